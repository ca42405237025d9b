//! What was asked for and what came back, written down outside of all that can fail.

use std::collections::BTreeMap;
use std::sync::Mutex;

/// How a message came back for a job.
pub enum End {
    /// A reply; `attempt` tells two computations of one job apart.
    Reply { attempt: u64, right: bool },
    /// The error reply to a job that came back too often.
    GivenUp,
    /// A dead letter, with its reason.
    Dead(String),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Publish {
    UnderWay,
    Confirmed,
    /// The connection broke before the confirm: the job may exist or not.
    Unknown,
}

struct Entry {
    queue: u8,
    publish: Publish,
    ended: bool,
    attempt: Option<u64>,
}

/// The reply queues, and whether jobs may name them.
struct Queue {
    open: bool,
    was_deleted: bool,
    /// Jobs that are still to end, but for those that may not exist.
    under_way: usize,
}

#[derive(Default)]
struct Book {
    entries: Vec<Entry>,
    queues: Vec<Queue>,
    counts: Counts,
    newest_answered: Option<usize>,
}

#[derive(Debug, Default, Clone)]
pub struct Counts {
    pub confirmed: u64,
    pub unknown: u64,
    pub replies: u64,
    /// Replies that were computed although another had been.
    pub duplicates: u64,
    /// Replies that the broker handed to us twice, since our own ack did not reach it.
    pub handed_twice: u64,
    pub given_up: u64,
    /// Dead letters by reason.
    pub dead: BTreeMap<String, u64>,
    /// Replies that are not the answer to their job, and dead letters without cause.
    pub wrong: Vec<String>,
}

pub struct Ledger(Mutex<Book>);

impl Ledger {
    pub fn new(queues: usize) -> Self {
        let queue = |_| Queue {
            open: true,
            was_deleted: false,
            under_way: 0,
        };
        Self(Mutex::new(Book {
            queues: (0..queues).map(queue).collect(),
            ..Book::default()
        }))
    }

    fn book<T>(&self, look: impl FnOnce(&mut Book) -> T) -> T {
        look(&mut self.0.lock().expect("nobody panics with the book open"))
    }

    /// Writes down that a job is about to be published; returns its number and the number of its reply queue.
    pub fn begin(&self) -> (usize, usize) {
        self.book(|book| {
            let number = book.entries.len();
            let open: Vec<usize> = (0..book.queues.len())
                .filter(|queue| book.queues[*queue].open)
                .collect();
            let queue = open[number % open.len()];
            book.queues[queue].under_way += 1;
            book.entries.push(Entry {
                queue: u8::try_from(queue).expect("few queues"),
                publish: Publish::UnderWay,
                ended: false,
                attempt: None,
            });
            (number, queue)
        })
    }

    pub fn confirmed(&self, number: usize) {
        self.book(|book| {
            book.entries[number].publish = Publish::Confirmed;
            book.counts.confirmed += 1;
        });
    }

    pub fn unknown(&self, number: usize) {
        self.book(|book| {
            let entry = &mut book.entries[number];
            entry.publish = Publish::Unknown;
            book.counts.unknown += 1;
            if !entry.ended {
                book.queues[usize::from(entry.queue)].under_way -= 1;
            }
        });
    }

    /// Writes down what came for a job; `again` if the broker says that it may have handed it to us before.
    pub fn end(&self, number: usize, end: End, again: bool) {
        self.book(|book| {
            let Some(entry) = book.entries.get_mut(number) else {
                return book.counts.wrong.push(format!("there is no job {number}"));
            };
            let queue = &mut book.queues[usize::from(entry.queue)];
            if !entry.ended && entry.publish != Publish::Unknown {
                queue.under_way -= 1;
            }
            entry.ended = true;
            match end {
                End::Reply { right: false, .. } => book.counts.wrong.push(format!("the reply to job {number}")),
                End::Reply { attempt, .. } => {
                    match entry.attempt.replace(attempt) {
                        None => book.counts.replies += 1,
                        Some(before) if again && before == attempt => book.counts.handed_twice += 1,
                        Some(_) => book.counts.duplicates += 1,
                    }
                    book.newest_answered = book.newest_answered.max(Some(number));
                }
                End::GivenUp => book.counts.given_up += 1,
                End::Dead(reason) => {
                    if reason == "UNROUTABLE_REPLY" && !queue.was_deleted {
                        let wrong = format!("the reply of job {number} found no queue, but it was there");
                        book.counts.wrong.push(wrong);
                    }
                    *book.counts.dead.entry(reason).or_default() += 1;
                }
            }
        });
    }

    /// A message that is nobody's.
    pub fn stray(&self, what: String) {
        self.book(|book| book.counts.wrong.push(what));
    }

    /// No new job names this queue as its reply queue.
    pub fn shut(&self, queue: usize) {
        self.book(|book| book.queues[queue].open = false);
    }

    /// Jobs may name a queue again that does not exist any more.
    pub fn reopen_deleted(&self, queue: usize) {
        self.book(|book| {
            book.queues[queue].open = true;
            book.queues[queue].was_deleted = true;
        });
    }

    /// Jobs that are still to end, of those whose replies go to `queue` or of all.
    pub fn under_way(&self, queue: Option<usize>) -> usize {
        self.book(|book| match queue {
            Some(queue) => book.queues[queue].under_way,
            None => book.queues.iter().map(|queue| queue.under_way).sum(),
        })
    }

    /// How many jobs were begun.
    pub fn begun(&self) -> usize {
        self.book(|book| book.entries.len())
    }

    pub fn newest_answered(&self) -> Option<usize> {
        self.book(|book| book.newest_answered)
    }

    pub fn counts(&self) -> Counts {
        self.book(|book| book.counts.clone())
    }

    /// Confirmed jobs that have neither a reply nor a dead letter.
    pub fn missing(&self) -> Vec<usize> {
        let open = |entry: &Entry| entry.publish == Publish::Confirmed && !entry.ended;
        self.book(|book| {
            let entries = book.entries.iter().enumerate();
            entries
                .filter(|(_, entry)| open(entry))
                .map(|(number, _)| number)
                .collect()
        })
    }
}

#[test]
fn a_ledger_knows_what_is_missing_wrong_and_twice() {
    let ledger = Ledger::new(2);
    let jobs: Vec<usize> = (0..6).map(|_| ledger.begin().0).collect();
    let reply = |attempt| End::Reply { attempt, right: true };
    jobs[..5].iter().for_each(|job| ledger.confirmed(*job));
    ledger.unknown(jobs[5]);

    ledger.end(jobs[0], reply(1), false);
    ledger.end(jobs[0], reply(2), false);
    ledger.end(jobs[1], reply(1), false);
    ledger.end(jobs[1], reply(1), true);
    ledger.end(jobs[2], End::Dead("UNROUTABLE_REPLY".to_owned()), false);
    let right = End::Reply {
        attempt: 1,
        right: false,
    };
    ledger.end(jobs[3], right, false);

    let counts = ledger.counts();
    assert_eq!(ledger.missing(), [jobs[4]]);
    assert_eq!(ledger.under_way(None), 1);
    assert_eq!((counts.replies, counts.duplicates, counts.handed_twice), (2, 1, 1));
    assert_eq!(counts.wrong.len(), 2);
}
