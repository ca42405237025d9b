//! What is published and not yet confirmed, and whose a returned message is. Pure.
//!
//! The broker returns a message that no queue wanted, and then confirms it. `lapin` hands a return to whichever confirm
//! comes next, and of several confirms in one frame it takes any first: so a confirm may carry the return of another
//! message. What came back is therefore known by what the message itself says, and three rules tell a fate:
//!
//! - A confirm that carries nothing: all returns before it have been carried by others, which were finished earlier.
//! - A confirm that carries the return of a later message: the same, since returns come in the order of publishing.
//! - A confirm that carries the return of an earlier message: its own may still be on the way. It is told when it comes,
//!   or when every earlier message is confirmed: as many confirms as returns have then taken one each, the oldest first.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use lapin::types::ShortString;
use tokio::time::Instant;

use super::message::Message;
use super::plan::{Fate, Parcel};

/// Number of a message, in the order of publishing.
pub type Number = u64;

/// The messages under way.
#[derive(Default)]
pub struct Unconfirmed {
    waiting: BTreeMap<Number, Waiting>,
    /// Confirmed, but their own return may still come.
    in_doubt: Vec<Number>,
    next: Number,
}

struct Waiting {
    parcel: Box<Parcel>,
    address: Address,
    published: Instant,
    returned: bool,
    confirm: Option<Confirm>,
}

#[derive(Debug, Clone, Copy)]
struct Confirm {
    refused: bool,
    in_doubt: bool,
}

/// One confirm.
pub struct Confirmed {
    pub number: Number,
    /// The broker did not take the message.
    pub refused: bool,
    /// What the confirm carried: the return of this message or of another.
    pub returned: Option<Address>,
}

/// What tells a returned message from others.
///
/// Messages that agree in all of it go to one queue, so that either is the right one to blame first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub exchange: ShortString,
    pub routing_key: ShortString,
    pub message_id: Option<ShortString>,
}

/// A message whose fate is known.
pub struct Landed {
    pub parcel: Box<Parcel>,
    pub published: Instant,
    pub fate: Fate,
}

impl Unconfirmed {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes a message that is about to be published.
    pub fn hold(&mut self, parcel: Box<Parcel>, address: Address, now: Instant) -> Number {
        let number = self.next;
        self.next += 1;
        let waiting = Waiting {
            parcel,
            address,
            published: now,
            returned: false,
            confirm: None,
        };
        self.waiting.insert(number, waiting);
        number
    }

    /// When the message was published that has waited longest.
    pub fn oldest(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|(_, oldest)| oldest.published)
    }

    /// Takes all confirms that are there, and gives the messages whose fate they tell.
    ///
    /// Returns that nobody is waiting for come back as the second part.
    pub fn confirm(&mut self, confirms: Vec<Confirmed>) -> (Vec<Landed>, Vec<Address>) {
        let mut strays = Vec::new();
        let mut finished = std::mem::take(&mut self.in_doubt);
        for confirm in confirms {
            let in_doubt = match confirm.returned {
                None => false,
                Some(address) => match self.blame(&address) {
                    Some(blamed) => blamed < confirm.number,
                    None => {
                        strays.push(address);
                        true
                    }
                },
            };
            if let Some(waiting) = self.waiting.get_mut(&confirm.number) {
                waiting.confirm = Some(Confirm {
                    refused: confirm.refused,
                    in_doubt,
                });
                finished.push(confirm.number);
            }
        }
        (self.land(finished), strays)
    }

    /// The oldest that it can be.
    fn blame(&mut self, address: &Address) -> Option<Number> {
        let (number, waiting) = self
            .waiting
            .iter_mut()
            .find(|(_, waiting)| !waiting.returned && *address == waiting.address)?;
        waiting.returned = true;
        Some(*number)
    }

    fn land(&mut self, finished: Vec<Number>) -> Vec<Landed> {
        let open = self.waiting.iter().find(|(_, waiting)| waiting.confirm.is_none());
        let first_open = open.map_or(Number::MAX, |(number, _)| *number);
        let mut landed = Vec::with_capacity(finished.len());
        for number in finished {
            let Entry::Occupied(entry) = self.waiting.entry(number) else {
                continue;
            };
            let (returned, Some(confirm)) = (entry.get().returned, entry.get().confirm) else {
                continue;
            };
            if confirm.in_doubt && !returned && first_open < number {
                self.in_doubt.push(number);
                continue;
            }
            let waiting = entry.remove();
            landed.push(Landed {
                fate: match (confirm.refused, returned) {
                    (true, _) => Fate::Refused,
                    (false, true) => Fate::Returned,
                    (false, false) => Fate::Confirmed,
                },
                parcel: waiting.parcel,
                published: waiting.published,
            });
        }
        landed
    }

    /// Everything that is still under way.
    pub fn into_parcels(self) -> impl Iterator<Item = Box<Parcel>> {
        self.waiting.into_values().map(|waiting| waiting.parcel)
    }
}

impl Address {
    pub fn of(message: &Message) -> Self {
        Self {
            exchange: message.exchange.clone(),
            routing_key: message.routing_key.clone(),
            message_id: message.properties.message_id().clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use bytes::Bytes;
    use lapin::BasicProperties;
    use proptest::prelude::*;

    use super::super::message::reply_to;
    use super::super::plan::{Next, Plan};
    use super::super::reply::{Answer, Outcome};
    use super::super::testing::{Jobs, plan};
    use super::*;
    use crate::error::JobError;

    /// Messages on their way to queues of the same name as their id.
    struct Sky {
        jobs: Jobs,
        plan: Plan,
        unconfirmed: Unconfirmed,
    }

    impl Sky {
        fn new() -> Self {
            let jobs = Jobs::new();
            Self {
                plan: plan(&jobs),
                jobs,
                unconfirmed: Unconfirmed::default(),
            }
        }

        fn publish(&mut self, queue: &str) -> Number {
            let properties = BasicProperties::default()
                .with_reply_to(queue.into())
                .with_message_id(queue.into());
            let answer = Answer {
                envelope: self.jobs.envelope(properties, Bytes::new()),
                outcome: Outcome::Failure(JobError::Deadline { late_ms: 1 }),
            };
            let Next::Publish(parcel, message) = self.plan.start(answer) else {
                panic!("no reply");
            };
            self.unconfirmed.hold(parcel, Address::of(&message), Instant::now())
        }

        /// The queues whose messages landed, with their fates, for confirms that carry the returns of these queues.
        fn confirm(&mut self, confirms: &[(Number, Option<&str>)]) -> Vec<(String, Fate)> {
            let confirms = confirms
                .iter()
                .map(|(number, returned)| Confirmed {
                    number: *number,
                    refused: false,
                    returned: returned.map(address),
                })
                .collect();
            let (landed, strays) = self.unconfirmed.confirm(confirms);
            assert!(strays.is_empty());
            landed
                .into_iter()
                .map(|landed| (queue(&landed.parcel), landed.fate))
                .collect()
        }
    }

    fn queue(parcel: &Parcel) -> String {
        let queue = reply_to(&parcel.envelope);
        queue.unwrap().to_string()
    }

    fn address(queue: &str) -> Address {
        Address {
            exchange: ShortString::default(),
            routing_key: queue.into(),
            message_id: Some(queue.into()),
        }
    }

    fn fate(queue: &str, fate: Fate) -> (String, Fate) {
        (queue.to_owned(), fate)
    }

    #[test]
    fn a_return_is_blamed_on_its_own_message_whichever_confirm_carries_it() {
        let mut sky = Sky::new();
        let (a, b) = (sky.publish("a"), sky.publish("b"));

        let landed = sky.confirm(&[(a, Some("b"))]);
        let rest = sky.confirm(&[(b, None)]);

        assert_eq!(landed, [fate("a", Fate::Confirmed)]);
        assert_eq!(rest, [fate("b", Fate::Returned)]);
        assert!(sky.unconfirmed.is_empty());
    }

    #[test]
    fn a_confirm_that_carries_an_earlier_return_waits_for_the_message_it_may_have_swapped_with() {
        let mut sky = Sky::new();
        let (a, b) = (sky.publish("a"), sky.publish("b"));

        let early = sky.confirm(&[(b, Some("a"))]);
        let both = sky.confirm(&[(a, Some("b"))]);

        assert_eq!(early, []);
        assert_eq!(both, [fate("b", Fate::Returned), fate("a", Fate::Returned)]);
    }

    #[test]
    fn messages_that_agree_in_everything_are_blamed_in_the_order_they_left() {
        let mut sky = Sky::new();
        let (first, second) = (sky.publish("twins"), sky.publish("twins"));

        let landed = sky.confirm(&[(first, Some("twins")), (second, Some("twins"))]);

        assert_eq!(landed, [fate("twins", Fate::Returned), fate("twins", Fate::Returned)]);
    }

    #[test]
    fn a_return_that_nobody_waits_for_is_reported_and_blamed_on_nobody() {
        let mut sky = Sky::new();
        let number = sky.publish("a");

        let confirm = Confirmed {
            number,
            refused: false,
            returned: Some(address("stranger")),
        };
        let (landed, strays) = sky.unconfirmed.confirm(vec![confirm]);

        assert_eq!(strays, [address("stranger")]);
        assert_eq!(landed.len(), 1);
        assert_eq!(landed[0].fate, Fate::Confirmed);
    }

    #[test]
    fn a_refused_message_is_refused_even_if_it_was_returned() {
        let mut sky = Sky::new();
        let number = sky.publish("a");

        let confirm = Confirmed {
            number,
            refused: true,
            returned: Some(address("a")),
        };
        let (landed, _) = sky.unconfirmed.confirm(vec![confirm]);

        assert_eq!(landed[0].fate, Fate::Refused);
    }

    proptest! {
        /// The broker returns in the order of publishing and confirms in any; the client gives each confirm the oldest
        /// return it holds; we look at any time.
        #[test]
        fn every_message_learns_its_own_fate_in_any_order_of_confirms(
            routable in proptest::collection::vec(any::<bool>(), 1..24),
            choices in proptest::collection::vec((any::<bool>(), any::<u16>(), any::<bool>()), 200),
        ) {
            let mut sky = Sky::new();
            let names: Vec<_> = (0..routable.len()).map(|index| index.to_string()).collect();
            let numbers: Vec<_> = names.iter().map(|name| sky.publish(name)).collect();
            let (mut routed, mut returns, mut unacked) = (0, VecDeque::new(), Vec::new());
            let (mut seen, mut fates) = (Vec::new(), Vec::new());

            for (route, which, look) in choices {
                if route && routed < names.len() {
                    if !routable[routed] {
                        returns.push_back(names[routed].as_str());
                    }
                    unacked.push(routed);
                    routed += 1;
                } else if !unacked.is_empty() {
                    let index = unacked.swap_remove(usize::from(which) % unacked.len());
                    seen.push((numbers[index], returns.pop_front()));
                }
                if look {
                    fates.extend(sky.confirm(&std::mem::take(&mut seen)));
                }
            }
            for index in unacked {
                seen.push((numbers[index], returns.pop_front()));
            }
            fates.extend(sky.confirm(&seen));

            prop_assert_eq!(fates.len(), routed);
            for (name, fate) in fates {
                let expected = if routable[name.parse::<usize>().unwrap()] { Fate::Confirmed } else { Fate::Returned };
                prop_assert_eq!(fate, expected, "{}", name);
            }
        }
    }
}
