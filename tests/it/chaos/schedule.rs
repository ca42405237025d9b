//! Which fault comes when: nothing but a seed decides.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::support::frames::{Frame, HEAD};
use crate::support::link::{Tear, Way, Weather};

/// Something that goes wrong. Workers, links and queues are numbered.
#[derive(Debug, Clone)]
pub enum Fault {
    KillWorker(usize),
    StopWorker(usize),
    Tear(usize, Tear),
    Cut(usize),
    /// The weather of a link for some time.
    Weather(usize, Weather, Duration),
    KillBroker,
    RestartBroker,
    /// A memory alarm for some time, in the middle of which a worker is killed with replies that the broker does not take.
    Alarm(usize, Duration),
    CloseConnections,
    /// A reply queue is missing for some time.
    LoseReplyQueue(usize, Duration),
}

/// Endless, the same for the same seed, and every kind of fault once before any comes a second time.
pub struct Schedule {
    rng: fastrand::Rng,
    first: Vec<usize>,
    sizes: Sizes,
}

/// How many there are of each thing.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub workers: usize,
    /// One for each worker, then one for producers and collectors.
    pub links: usize,
    pub queues: usize,
}

/// How often each kind comes; the order is that of [`Schedule::fault`]. Workers die most of all: that is what a fleet
/// must bear, and what the count of duplicates is about.
const WEIGHTS: [u32; 13] = [44, 4, 14, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4];

impl Schedule {
    pub fn new(seed: u64, sizes: Sizes) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut first: Vec<usize> = (0..WEIGHTS.len()).collect();
        rng.shuffle(&mut first);
        Self { rng, first, sizes }
    }

    /// Whether every kind of fault has come.
    pub fn is_complete(&self) -> bool {
        self.first.is_empty()
    }

    /// The next fault, and how long after the one before it.
    pub fn next(&mut self) -> (Duration, Fault) {
        let kind = self.first.pop().unwrap_or_else(|| self.weighted());
        let pause = self.ms(0..1_200);
        (pause, self.fault(kind))
    }

    fn weighted(&mut self) -> usize {
        let mut at = self.rng.u32(0..WEIGHTS.iter().sum());
        for (kind, weight) in WEIGHTS.iter().enumerate() {
            match at.checked_sub(*weight) {
                Some(left) => at = left,
                None => return kind,
            }
        }
        0
    }

    fn fault(&mut self, kind: usize) -> Fault {
        let Sizes { workers, links, queues } = self.sizes;
        let link = self.rng.usize(0..links);
        match kind {
            0 => Fault::KillWorker(self.rng.usize(0..workers)),
            1 => Fault::StopWorker(self.rng.usize(0..workers)),
            2 => Fault::Tear(link, self.tear()),
            3 => Fault::Cut(link),
            // Sometimes shorter than it takes to be noticed, sometimes longer.
            4 => self.weather(link, |weather, _| weather.silent = true, 500..9_000),
            5 => self.weather(
                link,
                |weather, rng| weather.latency = Duration::from_millis(rng.u64(20..600)),
                2_000..6_000,
            ),
            6 => self.weather(
                link,
                |weather, _| weather.bytes_per_second = NonZeroU32::new(64 * 1024),
                2_000..6_000,
            ),
            7 => self.weather(
                link,
                |weather, rng| weather.piece_bytes_max = Some(rng.usize(1..9)),
                2_000..6_000,
            ),
            8 => Fault::KillBroker,
            9 => Fault::RestartBroker,
            10 => Fault::Alarm(self.rng.usize(0..workers), self.ms(500..4_000)),
            11 => Fault::CloseConnections,
            _ => Fault::LoseReplyQueue(self.rng.usize(0..queues), self.ms(500..3_000)),
        }
    }

    fn tear(&mut self) -> Tear {
        let frames = [Frame::Any, Frame::Ack, Frame::Body];
        Tear {
            way: if self.rng.bool() { Way::ToBroker } else { Way::ToWorker },
            frame: frames[self.rng.usize(0..frames.len())],
            bytes: self.rng.usize(1..=HEAD),
        }
    }

    fn weather(
        &mut self,
        link: usize,
        change: impl Fn(&mut Weather, &mut fastrand::Rng),
        ms: std::ops::Range<u64>,
    ) -> Fault {
        let mut weather = Weather::default();
        change(&mut weather, &mut self.rng);
        Fault::Weather(link, weather, self.ms(ms))
    }

    fn ms(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.u64(range))
    }
}

#[test]
fn a_seed_gives_the_same_faults_again_and_each_kind_among_the_first() {
    let sizes = Sizes {
        workers: 3,
        links: 4,
        queues: 4,
    };
    let faults = |seed| {
        let mut schedule = Schedule::new(seed, sizes);
        let faults: Vec<String> = (0..60).map(|_| format!("{:?}", schedule.next())).collect();
        assert!(schedule.is_complete());
        faults
    };

    assert_eq!(faults(7), faults(7));
    assert_ne!(faults(7), faults(8));
}
