//! Is anything lost when everything fails, one thing upon the other? `make chaos` runs this for longer.
//!
//! A broker, three workers, a producer and collectors, each behind a link that has a network's faults; a schedule that
//! nothing but its seed decides; and a ledger that none of it can touch. At the end all is healed and counted.

pub mod ledger;
mod schedule;
pub mod traffic;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::ledger::Ledger;
use self::schedule::{Fault, Schedule, Sizes};
use self::traffic::{Address, Kind, collect, produce};
use crate::support::link::{Link, Weather};
use crate::support::scene::as_worker;
use crate::support::{Broker, Scene, Worker, eventually, within};

const MODEL: &str = "affine";
const PREFETCH: u16 = 64;
const SIZES: Sizes = Sizes {
    workers: 3,
    links: 4,
    queues: 4,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_fails_every_confirmed_job_ends_and_every_answer_is_its_own() {
    // Every kind of fault comes once even if the time is too short for it.
    let seconds = number("INFERQ_TEST_CHAOS_SECONDS").unwrap_or(60);
    let seed = number("INFERQ_TEST_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..));
    eprintln!("chaos: INFERQ_TEST_CHAOS_SEED={seed} INFERQ_TEST_CHAOS_SECONDS={seconds}");
    let mut chaos = Chaos::start().await;
    let mut schedule = Schedule::new(seed, SIZES);

    let end = chaos.began + Duration::from_secs(seconds);
    while Instant::now() < end || !schedule.is_complete() {
        let (pause, fault) = schedule.next();
        tokio::time::sleep(pause).await;
        chaos.inflict(fault).await;
        chaos.all_workers_run();
    }
    let tally = chaos.heal_and_finish().await;

    tally.print();
    let counts = &tally.counts;
    assert_eq!(tally.missing, [] as [usize; 0], "confirmed jobs without an end");
    assert_eq!(counts.wrong, [] as [String; 0]);
    assert_eq!(tally.waiting, 0, "jobs are left in the queue");
    let window = tally.losses * u64::from(PREFETCH);
    assert!(counts.duplicates <= window, "more duplicates than {window}");
    assert!(counts.replies > 0, "nothing was answered, so nothing was proved");
    assert!(tally.late.is_empty(), "drains that came too late: {:?}", tally.late);
}

/// A number from the environment of the test run.
#[expect(
    clippy::disallowed_methods,
    reason = "the length of this one test, not configuration"
)]
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

struct Chaos {
    began: Instant,
    broker: Broker,
    scene: Scene,
    links: Vec<Link>,
    workers: Vec<Worker>,
    reply_queues: Vec<String>,
    ledger: Arc<Ledger>,
    producing: CancellationToken,
    collecting: CancellationToken,
    tasks: JoinSet<()>,
    toll: Toll,
}

/// What was done, and what it took.
#[derive(Default)]
struct Toll {
    faults: u64,
    kills: u64,
    broker_ends: u64,
    /// How often a worker lost its window or its channel, its own death included.
    losses: u64,
    drains_ms: Vec<u64>,
    /// Drains that did not end in time.
    late: Vec<String>,
    /// From the broker's port being open to the reply to a job that was published after.
    recoveries: Vec<Duration>,
}

impl Chaos {
    async fn start() -> Self {
        let mut broker = Broker::durable_without_figures();
        let scene = Scene::at(broker.uri());
        let reply_queues: Vec<String> = (0..SIZES.queues)
            .map(|n| scene.queue(&format!("replies-{n}")))
            .collect();
        scene.declare(MODEL).await;
        for queue in &reply_queues {
            scene.declare_queue(queue).await;
        }
        // RabbitMQ 3.10 takes some seconds to make a new quorum queue proof against a kill; a stop in good order does.
        broker.stop();
        broker.start_again();
        let mut links = Vec::new();
        for _ in 0..SIZES.links {
            links.push(Link::to(broker.amqp_port()).await);
        }
        let mut chaos = Self {
            began: Instant::now(),
            broker,
            scene,
            links,
            workers: Vec::new(),
            reply_queues,
            ledger: Arc::new(Ledger::new(SIZES.queues)),
            producing: CancellationToken::new(),
            collecting: CancellationToken::new(),
            tasks: JoinSet::new(),
            toll: Toll::default(),
        };
        for number in 0..SIZES.workers {
            let worker = chaos.worker(number);
            worker.ready().await;
            chaos.workers.push(worker);
        }
        chaos.start_traffic();
        chaos.next_reply().await;
        chaos
    }

    /// A worker that notices a silent link soon, so that a short run sees what comes after.
    fn worker(&self, number: usize) -> Worker {
        self.scene
            .worker(MODEL)
            .env(
                "INFERQ_BROKER__URI",
                self.links[number].uri(&as_worker(&self.scene.uri)),
            )
            .env("INFERQ_BROKER__PREFETCH", PREFETCH.to_string())
            .env("INFERQ_BROKER__HEARTBEAT_MS", "2000")
            .env("INFERQ_BROKER__CONNECT_TIMEOUT_MS", "3000")
            .env("INFERQ_REPLY__CONFIRM_TIMEOUT_MS", "5000")
            .env("INFERQ_WORKER__DRAIN_TIMEOUT_MS", "20000")
            .spawn()
    }

    fn start_traffic(&mut self) {
        let uri = format!("{}?heartbeat=2", self.links[SIZES.workers].uri(&self.scene.uri));
        let address = Address {
            uri: uri.clone(),
            exchange: self.scene.prefix.clone(),
            model: MODEL.to_owned(),
            reply_queues: self.reply_queues.clone(),
        };
        let ledger = &self.ledger;
        self.tasks
            .spawn(produce(address, ledger.clone(), self.producing.clone()));
        let replies = self.reply_queues.iter().map(|queue| (queue.clone(), Kind::Replies));
        let dead = [(self.scene.dead_queue(MODEL), Kind::DeadLetters)];
        for (queue, kind) in replies.chain(dead) {
            let collecting = self.collecting.clone();
            self.tasks
                .spawn(collect(uri.clone(), queue, kind, ledger.clone(), collecting));
        }
    }

    async fn inflict(&mut self, fault: Fault) {
        eprintln!("chaos: {:6.1} s: {fault:?}", self.began.elapsed().as_secs_f64());
        self.toll.faults += 1;
        match fault {
            Fault::KillWorker(number) => self.kill_worker(number).await,
            Fault::StopWorker(number) => {
                self.stop_worker(number).await;
                self.replace(number);
            }
            Fault::Tear(link, tear) => self.links[link].tear(tear),
            Fault::Cut(link) => self.links[link].cut(),
            Fault::Weather(link, weather, time) => {
                self.links[link].weather(weather);
                let link = self.links[link].clone();
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    link.weather(Weather::default());
                });
            }
            Fault::KillBroker => self.end_broker(Broker::kill).await,
            Fault::RestartBroker => self.end_broker(Broker::stop).await,
            Fault::Alarm(worker, time) => {
                self.broker.ctl(&["set_vm_memory_high_watermark", "0"]);
                tokio::time::sleep(time).await;
                self.kill_worker(worker).await;
                self.broker.ctl(&["set_vm_memory_high_watermark", "0.9"]);
            }
            Fault::CloseConnections => {
                self.broker.ctl(&["close_all_connections", "maintenance"]);
            }
            Fault::LoseReplyQueue(queue, time) => self.lose_reply_queue(queue, time).await,
        }
    }

    async fn kill_worker(&mut self, number: usize) {
        self.toll.kills += 1;
        self.workers[number].sigkill();
        self.workers[number].exit().await;
        self.replace(number);
    }

    fn replace(&mut self, number: usize) {
        let worker = self.worker(number);
        let gone = std::mem::replace(&mut self.workers[number], worker);
        self.toll.losses += losses(&gone);
    }

    async fn stop_worker(&mut self, number: usize) {
        self.workers[number].drain().await;
        let log = self.workers[number].log();
        let took = log.lines().filter_map(drain_ms).next_back();
        self.toll.drains_ms.extend(took);
        if took.is_none() || log.contains("not all jobs were finished in time") {
            self.toll.late.push(log);
        }
    }

    async fn end_broker(&mut self, end: impl Fn(&mut Broker)) {
        end(&mut self.broker);
        self.broker.start_again();
        let open = Instant::now();
        self.next_reply().await;
        self.toll.broker_ends += 1;
        self.toll.recoveries.push(open.elapsed());
    }

    /// Waits for the reply to a job that has not been published yet.
    async fn next_reply(&self) {
        let next = Some(self.ledger.begun());
        eventually("a reply to a new job", || async {
            (self.ledger.newest_answered() >= next).then_some(())
        })
        .await;
    }

    /// Deletes a reply queue once it is empty and nothing is on the way to it: what it held would be lost with it, and
    /// nobody could tell that from a mistake of ours. Then jobs name it while it is missing.
    async fn lose_reply_queue(&mut self, queue: usize, time: Duration) {
        let name = &self.reply_queues[queue];
        self.ledger.shut(queue);
        eventually("the end of all jobs that are to be answered to one queue", || async {
            (self.ledger.under_way(Some(queue)) == 0).then_some(())
        })
        .await;
        self.scene.delete_queue(name).await;
        self.ledger.reopen_deleted(queue);
        tokio::time::sleep(time).await;
        self.scene.declare_queue(name).await;
    }

    fn all_workers_run(&self) {
        for worker in &self.workers {
            let ended = worker.ended();
            assert!(ended.is_none(), "a worker ended by itself: {ended:?}\n{}", worker.log());
        }
    }

    /// Ends all faults, waits until every job has ended, and counts.
    async fn heal_and_finish(mut self) -> Tally {
        for link in &self.links {
            link.calm();
        }
        let chaotic = self.began.elapsed();
        self.producing.cancel();
        // As long as it goes on, it may take its time: there may be thousands.
        let (mut left, mut since) = (usize::MAX, Instant::now());
        while left > 0 && since.elapsed() < crate::support::PATIENCE {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = self.ledger.under_way(None);
            if now < left {
                (left, since) = (now, Instant::now());
            }
        }
        for number in 0..self.workers.len() {
            self.workers[number].ready_again().await;
            self.stop_worker(number).await;
            self.toll.losses += losses(&self.workers[number]);
        }
        for queue in self.reply_queues.iter().chain([&self.scene.dead_queue(MODEL)]) {
            self.scene.until_waiting(queue, 0).await;
        }
        let waiting = self.scene.waiting(&self.scene.queue(MODEL)).await;
        self.collecting.cancel();
        within("the end of producers and collectors", self.tasks.join_all()).await;
        Tally {
            chaotic,
            counts: self.ledger.counts(),
            missing: self.ledger.missing(),
            waiting,
            toll: self.toll,
        }
    }
}

/// How often a worker lost what it had in hand, by its own word; a killed one counts once more.
fn losses(worker: &Worker) -> u64 {
    let lost = ["lost the broker", "not consuming: ", "the publishing channel is lost"];
    let log = worker.log();
    let said = log.lines().filter(|line| lost.iter().any(|lost| line.contains(lost)));
    said.count() as u64 + 1
}

/// How long a drain took, by the log line that ends it.
fn drain_ms(line: &str) -> Option<u64> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    line.get("drain_ms")
        .or_else(|| line.get("fields")?.get("drain_ms"))?
        .as_u64()
}

/// The count at the end.
struct Tally {
    chaotic: Duration,
    counts: ledger::Counts,
    missing: Vec<usize>,
    waiting: u32,
    toll: Toll,
}

impl std::ops::Deref for Tally {
    type Target = Toll;
    fn deref(&self) -> &Toll {
        &self.toll
    }
}

impl Tally {
    fn print(&self) {
        let Self { counts, toll, .. } = self;
        let mut recoveries = toll.recoveries.clone();
        recoveries.sort();
        let slowest = |times: &[Duration]| times.last().copied().unwrap_or_default().as_secs_f64();
        let median = recoveries.get(recoveries.len() / 2).copied().unwrap_or_default();
        eprintln!(
            "chaos: {:.0} s, {} faults: workers killed {}, brokers killed or restarted {}, windows or channels lost {}",
            self.chaotic.as_secs_f64(),
            toll.faults,
            toll.kills,
            toll.broker_ends,
            toll.losses,
        );
        eprintln!(
            "chaos: confirmed jobs {}, publishes without a confirm {}, replies {}, given up {}, dead letters {:?}",
            counts.confirmed, counts.unknown, counts.replies, counts.given_up, counts.dead,
        );
        eprintln!(
            "chaos: missing {}, wrong answers {}, left in the queue {}, duplicates {} (at most {}), handed over twice by the \
             broker {}",
            self.missing.len(),
            counts.wrong.len(),
            self.waiting,
            counts.duplicates,
            toll.losses * u64::from(PREFETCH),
            counts.handed_twice,
        );
        eprintln!(
            "chaos: from the broker's open port to the next reply: median {:.1} s, slowest {:.1} s of {}; drains {}, \
             slowest {} ms, late {}",
            median.as_secs_f64(),
            slowest(&recoveries),
            recoveries.len(),
            toll.drains_ms.len(),
            toll.drains_ms.iter().max().copied().unwrap_or_default(),
            toll.late.len(),
        );
    }
}
