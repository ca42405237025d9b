//! What is published and not yet confirmed, and whose a returned message is. Pure.
//!
//! The broker returns a message that no queue wanted, and then confirms it. In between it may confirm others, and it
//! confirms many at once; a return goes with whichever confirm comes next ([`super::flight`]). So a confirm may carry the
//! return of another message. What came back is therefore known by what the message itself says, and three rules tell a fate:
//!
//! - What is refused is not returned: RabbitMQ confirms what it returns. So a return is never the fault of a refused
//!   message, even if that one says the same and carries it.
//! - A confirm that carries nothing: all returns before it have been carried by others, which were finished earlier.
//! - A confirm that carries a return: its own may still be on the way. It is told when it comes, or when every earlier
//!   message is confirmed: as many confirms as returns have then taken one each, the oldest first.
//!
//! Of messages that say the same to the same queue the oldest takes the first return. A younger one could not: its own may
//! still come, and would then find nobody.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
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
    /// Returns that came before the confirms of their messages.
    returns: VecDeque<Address>,
    /// Confirmed, but their own return may still come.
    in_doubt: Vec<Number>,
    next: Number,
}

struct Waiting {
    parcel: Box<Parcel>,
    address: Address,
    published: Instant,
    confirm: Option<Confirm>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Confirm {
    Refused,
    Plain,
    CarriedReturn,
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
/// Messages that agree in all of it say the same to the same queue, so that any of them may take the return of any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub exchange: ShortString,
    pub routing_key: ShortString,
    pub message_id: Option<ShortString>,
    pub body: Bytes,
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
            confirm: None,
        };
        self.waiting.insert(number, waiting);
        number
    }

    /// When the message was published that has waited longest.
    pub fn oldest(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|(_, oldest)| oldest.published)
    }

    /// Takes all confirms that are there, in any order, and gives the messages whose fate they tell.
    ///
    /// Returns that nobody is waiting for come back as the second part.
    pub fn confirm(&mut self, confirms: Vec<Confirmed>) -> (Vec<Landed>, Vec<Address>) {
        let mut finished = std::mem::take(&mut self.in_doubt);
        for confirm in confirms {
            if let Some(waiting) = self.waiting.get_mut(&confirm.number)
                && waiting.confirm.is_none()
            {
                waiting.confirm = Some(match confirm.returned {
                    _ if confirm.refused => Confirm::Refused,
                    None => Confirm::Plain,
                    Some(_) => Confirm::CarriedReturn,
                });
                finished.push(confirm.number);
            }
            self.returns.extend(confirm.returned);
        }
        if !self.returns.is_empty() {
            finished.sort_unstable();
        }
        (self.land(finished), self.strays())
    }

    fn land(&mut self, finished: Vec<Number>) -> Vec<Landed> {
        let open = self.waiting.iter().find(|(_, waiting)| waiting.confirm.is_none());
        let first_open = open.map_or(Number::MAX, |(number, _)| *number);
        let mut landed = Vec::with_capacity(finished.len());
        for number in finished {
            match self.fate(number, first_open) {
                Some(fate) => landed.extend(self.waiting.remove(&number).map(|waiting| Landed {
                    parcel: waiting.parcel,
                    published: waiting.published,
                    fate,
                })),
                None => self.in_doubt.push(number),
            }
        }
        landed
    }

    /// The fate of a message that is confirmed, if it is known yet.
    fn fate(&mut self, number: Number, first_open: Number) -> Option<Fate> {
        let waiting = self.waiting.get(&number)?;
        let confirm = waiting.confirm?;
        if confirm == Confirm::Refused {
            return Some(Fate::Refused);
        }
        let is_own = |address: &Address| *address == waiting.address;
        let Some(place) = self.returns.iter().position(is_own) else {
            let in_doubt = confirm == Confirm::CarriedReturn && first_open < number;
            return (!in_doubt).then_some(Fate::Confirmed);
        };
        let mut older = self.waiting.range(..number);
        if older.any(|(_, older)| is_own(&older.address)) {
            return None;
        }
        self.returns.remove(place);
        Some(Fate::Returned)
    }

    /// Returns whose message does not wait, or not any more.
    fn strays(&mut self) -> Vec<Address> {
        let waiting = &self.waiting;
        let is_stray = |address: &Address| !waiting.values().any(|waiting| waiting.address == *address);
        let (strays, kept): (Vec<_>, Vec<_>) = self.returns.drain(..).partition(is_stray);
        self.returns = kept.into();
        strays
    }

    #[cfg(test)]
    pub fn address(&self, number: Number) -> Option<&Address> {
        self.waiting.get(&number).map(|waiting| &waiting.address)
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
            body: message.body.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;
    use proptest::prelude::*;

    use super::super::plan::{Next, Plan};
    use super::super::reply::{Answer, Outcome};
    use super::super::testing::{Jobs, plan};
    use super::*;
    use crate::error::JobError;

    /// Messages on their way to queues of the same name as their id. The correlation id is what `publish` gives.
    struct Sky {
        jobs: Jobs,
        plan: Plan,
        unconfirmed: Unconfirmed,
    }

    /// What one confirm says.
    #[derive(Debug, Clone)]
    struct Told {
        number: Number,
        refused: bool,
        carries: Option<Address>,
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
            self.publish_error(queue, "it failed")
        }

        fn publish_error(&mut self, queue: &str, error: &str) -> Number {
            let properties = BasicProperties::default()
                .with_reply_to(queue.into())
                .with_message_id(queue.into())
                .with_correlation_id(self.unconfirmed.next.to_string().into());
            let answer = Answer {
                envelope: self.jobs.envelope(properties, Bytes::new()),
                outcome: Outcome::Failure(JobError::Failed(error.to_owned())),
            };
            let Next::Publish(parcel, message) = self.plan.start(answer) else {
                panic!("no reply");
            };
            self.unconfirmed.hold(parcel, Address::of(&message), Instant::now())
        }

        fn address(&self, number: Number) -> Address {
            self.unconfirmed.address(number).unwrap().clone()
        }

        fn ack(&self, number: Number, carries: Option<Number>) -> Told {
            Told {
                number,
                refused: false,
                carries: carries.map(|number| self.address(number)),
            }
        }

        fn nack(&self, number: Number, carries: Option<Number>) -> Told {
            Told {
                refused: true,
                ..self.ack(number, carries)
            }
        }

        fn confirm(&mut self, told: impl IntoIterator<Item = Told>) -> Vec<(Number, Fate)> {
            let (landed, strays) = self.confirm_with_strays(told);
            assert_eq!(strays, []);
            landed
        }

        fn confirm_with_strays(&mut self, told: impl IntoIterator<Item = Told>) -> (Vec<(Number, Fate)>, Vec<Address>) {
            let confirms = told.into_iter().map(|told| Confirmed {
                number: told.number,
                refused: told.refused,
                returned: told.carries,
            });
            let (landed, strays) = self.unconfirmed.confirm(confirms.collect());
            let number = |parcel: &Parcel| {
                let correlation_id = parcel.envelope.properties.correlation_id();
                correlation_id.as_ref().unwrap().as_str().parse().unwrap()
            };
            let landed = landed.iter().map(|landed| (number(&landed.parcel), landed.fate));
            (landed.collect(), strays)
        }

        /// Confirms that are seen at once, or each by itself.
        fn confirm_in_turn(&mut self, told: Vec<Told>, together: bool) -> Vec<(Number, Fate)> {
            if together {
                return self.confirm(told);
            }
            told.into_iter().flat_map(|told| self.confirm([told])).collect()
        }
    }

    #[test]
    fn a_return_is_blamed_on_its_own_message_whichever_confirm_carries_it() {
        let mut sky = Sky::new();
        let (a, b) = (sky.publish("a"), sky.publish("b"));

        let landed = sky.confirm([sky.ack(a, Some(b))]);
        let rest = sky.confirm([sky.ack(b, None)]);

        assert_eq!(landed, [(a, Fate::Confirmed)]);
        assert_eq!(rest, [(b, Fate::Returned)]);
        assert!(sky.unconfirmed.is_empty());
    }

    #[test]
    fn a_confirm_that_carries_an_earlier_return_waits_for_the_message_it_may_have_swapped_with() {
        let mut sky = Sky::new();
        let (a, b) = (sky.publish("a"), sky.publish("b"));

        let carries_b = sky.ack(a, Some(b));
        let early = sky.confirm([sky.ack(b, Some(a))]);
        let both = sky.confirm([carries_b]);

        assert_eq!(early, []);
        assert_eq!(both, [(a, Fate::Returned), (b, Fate::Returned)]);
    }

    #[test]
    fn messages_that_agree_in_everything_are_each_blamed_for_one_return() {
        let mut sky = Sky::new();
        let (first, second) = (sky.publish("twins"), sky.publish("twins"));

        let landed = sky.confirm([sky.ack(first, Some(second)), sky.ack(second, Some(first))]);

        assert_eq!(landed, [(first, Fate::Returned), (second, Fate::Returned)]);
    }

    /// The broker refuses the first, since the queue is full, and returns the second, since the queue is gone. The job of
    /// the second must not pass for answered, whoever carries the return and whatever is seen first.
    #[test]
    fn a_return_is_not_blamed_on_a_refused_twin() {
        type Order = fn(&Sky, Number, Number, Number) -> Vec<Told>;
        let orders: [Order; 6] = [
            |sky, first, second, _| vec![sky.nack(first, Some(second)), sky.ack(second, None)],
            |sky, first, second, _| vec![sky.nack(first, None), sky.ack(second, Some(second))],
            |sky, first, second, _| vec![sky.ack(second, Some(second)), sky.nack(first, None)],
            |sky, first, second, x| vec![sky.ack(x, Some(second)), sky.nack(first, None), sky.ack(second, None)],
            |sky, first, second, x| vec![sky.ack(x, Some(second)), sky.ack(second, None), sky.nack(first, None)],
            |sky, first, second, x| vec![sky.nack(first, None), sky.ack(x, Some(second)), sky.ack(second, None)],
        ];
        for (order, together) in orders.into_iter().flat_map(|order| [(order, true), (order, false)]) {
            let mut sky = Sky::new();
            let (first, second) = (sky.publish("twins"), sky.publish("twins"));
            let other = sky.publish("other");
            let told = order(&sky, first, second, other);

            let landed = sky.confirm_in_turn(told, together);

            let fate = |number| landed.iter().find(|landed| landed.0 == number).map(|landed| landed.1);
            assert_eq!(fate(first), Some(Fate::Refused), "{landed:?}");
            assert_eq!(fate(second), Some(Fate::Returned), "{landed:?}");
            assert_ne!(fate(other), Some(Fate::Returned), "{landed:?}");
        }
    }

    #[test]
    fn messages_of_one_id_that_say_different_things_are_told_apart() {
        let mut sky = Sky::new();
        let first = sky.publish_error("one", "this failed");
        let second = sky.publish_error("one", "that failed");

        let early = sky.confirm([sky.ack(first, Some(second))]);
        let late = sky.confirm([sky.ack(second, None)]);

        assert_eq!(early, [(first, Fate::Confirmed)]);
        assert_eq!(late, [(second, Fate::Returned)]);
    }

    #[test]
    fn a_return_that_nobody_waits_for_is_reported_and_blamed_on_nobody() {
        let mut sky = Sky::new();
        let number = sky.publish("a");
        let stranger = Address {
            routing_key: "stranger".into(),
            ..sky.address(number)
        };
        let told = Told {
            carries: Some(stranger.clone()),
            ..sky.ack(number, None)
        };

        let (landed, strays) = sky.confirm_with_strays([told]);

        assert_eq!(strays, [stranger]);
        assert_eq!(landed, [(number, Fate::Confirmed)]);
    }

    #[test]
    fn a_refused_message_is_refused_even_if_it_was_returned() {
        let mut sky = Sky::new();
        let number = sky.publish("a");

        let (landed, strays) = sky.confirm_with_strays([sky.nack(number, Some(number))]);

        assert_eq!(landed, [(number, Fate::Refused)]);
        // Kept, it would be blamed on the next of this id.
        assert_eq!(strays.len(), 1);
        assert_eq!(sky.unconfirmed.returns, []);
    }

    /// A message, and what the broker does with it.
    #[derive(Debug, Clone)]
    struct Sent {
        queue: u8,
        error: u8,
        fate: Fate,
    }

    /// Of few names and texts, so that twins are common.
    fn sent() -> impl Strategy<Value = Sent> {
        let fate = prop_oneof![Just(Fate::Confirmed), Just(Fate::Returned), Just(Fate::Refused)];
        (0_u8..3, 0_u8..2, fate).prop_map(|(queue, error, fate)| Sent { queue, error, fate })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// The broker returns in the order of publishing and confirms or refuses in any; the client gives each confirm the
        /// oldest return it holds; we look at any time, and see what came since in any order. Messages that agree in all
        /// but their fates may swap them, unless they were refused.
        #[test]
        fn every_message_learns_its_own_fate_in_any_order_of_confirms(
            sent in proptest::collection::vec(sent(), 1..16),
            choices in proptest::collection::vec((any::<bool>(), any::<u16>(), any::<bool>()), 100),
        ) {
            let mut sky = Sky::new();
            for sent in &sent {
                sky.publish_error(&sent.queue.to_string(), &sent.error.to_string());
            }
            let addresses: Vec<_> = (0..sent.len()).map(|number| sky.address(number as Number)).collect();
            let (mut routed, mut returns, mut unconfirmed) = (0, VecDeque::new(), Vec::new());
            let (mut seen, mut landed) = (Vec::new(), Vec::new());
            let told = |number: usize, carries| Told {
                number: number as Number,
                refused: sent[number].fate == Fate::Refused,
                carries,
            };

            for (route, which, look) in choices {
                let which = usize::from(which);
                if route && routed < sent.len() {
                    if sent[routed].fate == Fate::Returned {
                        returns.push_back(addresses[routed].clone());
                    }
                    unconfirmed.push(routed);
                    routed += 1;
                } else if !unconfirmed.is_empty() {
                    let number = unconfirmed.swap_remove(which % unconfirmed.len());
                    seen.insert(which % (seen.len() + 1), told(number, returns.pop_front()));
                }
                if look {
                    landed.extend(sky.confirm(std::mem::take(&mut seen)));
                }
            }
            for number in unconfirmed {
                seen.push(told(number, returns.pop_front()));
            }
            landed.extend(sky.confirm(seen));

            let fates = |fates: &mut dyn Iterator<Item = (Number, Fate)>| {
                let described = |(number, fate): (Number, Fate)| {
                    let refused = (fate == Fate::Refused).then_some(number);
                    format!("{:?} {fate:?} {refused:?}", addresses[number as usize])
                };
                let mut fates: Vec<_> = fates.map(described).collect();
                fates.sort();
                fates
            };
            let expected = fates(&mut (0..routed).map(|number| (number as Number, sent[number].fate)));
            prop_assert_eq!(fates(&mut landed.into_iter()), expected);
            prop_assert_eq!(sky.unconfirmed.len(), sent.len() - routed);
            prop_assert!(sky.unconfirmed.returns.is_empty() && sky.unconfirmed.in_doubt.is_empty());
        }
    }
}
