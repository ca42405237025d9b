use bytes::Bytes;
use lapin::BasicProperties;

use super::super::plan::{Next, Plan};
use super::super::reply::{Answer, Outcome};
use super::super::testing::{Jobs, plan};
use super::*;
use crate::error::JobError;

/// A model with a window of 256 deliveries, and the replies of its jobs.
struct Office {
    jobs: Jobs,
    plan: Plan,
    refusing: Refusing,
    now: Instant,
}

impl Office {
    fn new() -> Self {
        Self::with_window(256)
    }

    fn with_window(window: u16) -> Self {
        let jobs = Jobs::new();
        jobs.metrics.model("pair").prefetch.set(window, "test");
        Self {
            plan: plan(&jobs),
            jobs,
            refusing: Refusing::new(UNAVAILABLE_MAX),
            now: Instant::now(),
        }
    }

    fn parcel(&self, reply_to: Option<&str>, deadline: Option<Duration>) -> Box<Parcel> {
        let properties = reply_to.map_or_else(BasicProperties::default, |queue| {
            BasicProperties::default().with_reply_to(queue.into())
        });
        let mut envelope = self.jobs.envelope(properties, Bytes::new());
        envelope.deadline = deadline.map(|deadline| self.now + deadline);
        let answer = Answer {
            envelope,
            outcome: Outcome::Failure(JobError::Failed("it failed".to_owned())),
        };
        match self.plan.start(answer) {
            Next::Publish(parcel, _) => parcel,
            _ => panic!("nothing to publish"),
        }
    }

    /// Whether there was room for a reply to `queue` that met this fate.
    fn hold(&mut self, queue: &str, fate: Option<Fate>) -> bool {
        let parcel = self.parcel(Some(queue), None);
        self.hold_parcel(parcel, fate).is_ok()
    }

    fn hold_parcel(&mut self, parcel: Box<Parcel>, fate: Option<Fate>) -> Result<(), GivenUp> {
        let destination = self.plan.destination(&parcel);
        self.refusing.hold(parcel, destination, fate, self.now, 1.0)
    }

    fn hold_many(&mut self, queue: &str, count: usize) -> usize {
        (0..count).filter(|_| self.hold(queue, Some(Fate::Refused))).count()
    }

    /// The next trial finds this.
    fn find(&mut self, finding: Finding) -> Learned {
        let (destination, parcel, _) = self.refusing.take_due(self.now).expect("a trial is due");
        self.refusing.found(&destination, parcel, finding, self.now, 1.0)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn held(&self) -> usize {
        self.refusing.held().0
    }
}

fn full() -> Finding {
    Finding::Full { messages: Some(10) }
}

fn away() -> Finding {
    Finding::Away("home node 'b' is down".to_owned())
}

#[test]
fn a_refused_destination_is_tried_at_once_by_one_message() {
    let mut office = Office::new();
    office.hold_many("full", 3);

    let first = office.refusing.take_due(office.now);
    let second = office.refusing.take_due(office.now);

    assert!(first.is_some());
    assert!(second.is_none(), "one trial at a time");
}

#[test]
fn what_is_held_goes_out_once_its_queue_takes_a_message() {
    let mut office = Office::new();
    office.hold_many("full", 3);

    let learned = office.find(Finding::Taken);

    assert!(learned.taken.is_some());
    assert_eq!(learned.released.len(), 2);
    assert_eq!(office.held(), 0);
    let Next::Publish(_, message) = office.plan.again(learned.released.into_iter().next().unwrap()) else {
        panic!("nothing to publish");
    };
    assert!(!office.refusing.is_refusing(&message));
}

#[test]
fn a_channel_is_stale_if_a_new_one_is_served_at_once() {
    let mut office = Office::new();
    office.hold("queue", Some(Fate::Refused));
    let stale = office.find(Finding::Taken).channel_is_stale;
    office.hold("full", Some(Fate::Refused));
    office.find(full());
    office.pass(WAIT_MAX);
    let room_again = office.find(Finding::Taken).channel_is_stale;
    office.hold("back", Some(Fate::Returned));
    let returned = office.find(Finding::Taken).channel_is_stale;

    assert_eq!((stale, room_again, returned), (true, false, false));
}

#[test]
fn a_full_queue_holds_back_64_answers_at_the_most() {
    let mut office = Office::with_window(10_000);
    office.hold("full", Some(Fate::Refused));
    office.find(full());

    let more = office.hold_many("full", 100);

    assert_eq!(more, 63);
    assert_eq!(office.held(), 64);
}

#[test]
fn all_queues_together_hold_back_a_quarter_of_the_window() {
    let mut office = Office::with_window(100);
    for queue in ["a", "b", "c", "d"] {
        office.hold(queue, Some(Fate::Refused));
        office.find(full());
        office.hold_many(queue, 20);
    }

    assert_eq!(office.held(), 25);
}

#[test]
fn a_window_of_one_holds_back_one_answer() {
    let mut office = Office::with_window(1);
    office.hold("away", Some(Fate::Returned));

    office.find(away());

    assert_eq!(office.held(), 1);
    assert!(!office.hold("away", None));
}

#[test]
fn a_new_leader_is_waited_for_with_the_whole_window() {
    let mut office = Office::with_window(256);
    office.hold_many("between", 200);

    let learned = office.find(Finding::Refused);
    office.pass(ELECTION);
    let later = office.find(Finding::Refused);

    assert_eq!(learned.given_up.len(), 0);
    assert_eq!(later.given_up.len(), 200 - 64);
}

#[test]
fn what_a_trial_shows_to_be_too_much_is_given_up() {
    let mut office = Office::with_window(256);
    let held = office.hold_many("full", 200);

    let learned = office.find(full());

    assert_eq!(held, 200);
    assert_eq!(learned.given_up.len(), 200 - 64);
    assert_eq!(office.held(), 64);
    assert_eq!(
        learned.given_up[0].reason,
        "the reply queue `full` is full (10 messages)"
    );
}

#[test]
fn a_queue_that_stays_full_holds_back_nothing_but_a_trial() {
    let mut office = Office::new();
    office.hold_many("full", 10);
    office.find(full());
    office.pass(FULL_MAX);

    let given_up = office.refusing.expire(office.now).len();
    let first = office.hold("full", None);
    let second = office.hold("full", None);
    let learned = office.find(full());

    assert_eq!(given_up, 10);
    assert_eq!((first, second), (true, false));
    assert_eq!(learned.given_up.len(), 1);
    assert!(!office.hold("full", None), "the next trial is not due");
    office.pass(WAIT_MAX);
    assert!(office.hold("full", None));
}

#[test]
fn a_full_queue_that_takes_one_message_is_still_known_to_be_full() {
    let mut office = Office::new();
    office.hold("full", Some(Fate::Refused));
    office.find(full());
    office.pass(FULL_MAX - Duration::from_secs(1));
    office.find(Finding::Taken);
    office.pass(Duration::from_secs(1));

    let held = office.hold("full", Some(Fate::Refused));

    assert!(!held, "it has been full for too long");
}

#[test]
fn a_quiet_destination_begins_anew() {
    let mut office = Office::new();
    office.hold("full", Some(Fate::Refused));
    office.find(full());
    office.pass(FULL_MAX);
    office.refusing.expire(office.now);
    office.pass(QUIET + Duration::from_millis(1));

    office.refusing.expire(office.now);

    assert!(office.refusing.entries.is_empty());
    assert!(office.hold("full", Some(Fate::Refused)));
}

#[test]
fn a_queue_that_is_away_is_waited_for_and_asked_for_first() {
    let mut office = Office::new();
    office.hold("away", Some(Fate::Returned));
    let (destination, parcel, look_first) = office.refusing.take_due(office.now).unwrap();
    office.refusing.found(&destination, parcel, away(), office.now, 1.0);
    office.pass(UNAVAILABLE_MAX - Duration::from_millis(1));
    let early = office.refusing.expire(office.now).len();
    office.pass(Duration::from_millis(1));

    let late = office.refusing.expire(office.now);

    assert!(look_first);
    assert_eq!((early, late.len()), (0, 1));
    assert_eq!(
        late[0].reason,
        "the reply queue `away` is not available: home node 'b' is down"
    );
}

#[test]
fn an_answer_is_held_back_no_longer_than_its_deadline() {
    let mut office = Office::new();
    let parcel = office.parcel(Some("away"), Some(Duration::from_secs(7)));
    assert!(office.hold_parcel(parcel, Some(Fate::Returned)).is_ok());
    office.find(away());

    let next = office.refusing.next_due();
    office.pass(Duration::from_secs(7));
    let given_up = office.refusing.expire(office.now).len();

    assert!(next.is_some_and(|next| next <= office.now));
    assert_eq!(given_up, 1);
}

#[test]
fn a_queue_that_is_gone_is_given_up_at_once() {
    let mut office = Office::new();
    office.hold_many("gone", 3);

    let learned = office.find(Finding::Gone);

    assert_eq!(learned.given_up.len(), 3);
    assert_eq!(learned.given_up[0].reason, "the reply queue `gone` does not exist");
    assert!(office.refusing.entries.is_empty());
}

#[test]
fn dead_letters_are_held_back_without_a_bound() {
    let mut office = Office::with_window(4);
    for _ in 0..100 {
        let parcel = office.parcel(None, None);
        assert!(office.hold_parcel(parcel, Some(Fate::Refused)).is_ok());
    }

    let learned = office.find(full());
    office.pass(2 * UNAVAILABLE_MAX);
    let given_up = office.refusing.expire(office.now).len();

    assert_eq!((learned.given_up.len(), given_up), (0, 0));
    assert_eq!(office.refusing.held(), (0, 100));
    assert_eq!(
        office.refusing.dead_letters(),
        [(
            "pair".into(),
            "the dead letter queue of model `pair` is full (10 messages); jobs that wait for it: 100".to_owned()
        )]
    );
}

#[test]
fn only_refusals_without_a_reason_are_inexplicable() {
    let mut office = Office::new();
    office.hold("a", Some(Fate::Refused));
    let one = office.refusing.is_inexplicable();
    office.find(full());
    office.hold("b", Some(Fate::Refused));

    assert!(one);
    assert!(!office.refusing.is_inexplicable());
}

const UNAVAILABLE_MAX: Duration = Duration::from_secs(300);
