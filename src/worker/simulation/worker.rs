//! One worker: the real rules, called step by step where its tasks would call them.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::Instant;

use super::super::aside::Aside;
use super::super::backlog::PaceHandle;
use super::super::batch::{Batch, Batcher};
use super::super::coalesce::Hurry;
use super::super::consume::Delivery;
use super::super::decode::{Envelope, Job, Lane, Limits, Moment, Served, decode_at, header};
use super::super::hardware::Hardware;
use super::super::infer::{Engine, Inference};
use super::super::lane_rows::LaneRows;
use super::super::message::Author;
use super::super::plan::{Fate, Next, Parcel, Parcels, Plan};
use super::super::refusing::{Destination, Finding, GivenUp, Refusing};
use super::super::reply::Answer;
use super::super::row_headers::RowHeaders;
use super::super::rows_limit::RowsLimit;
use super::super::settle::{Receipts, Settler, VERDICTS_MAX, Verdict, generation_with};
use super::super::sift::Suspects;
use super::super::unconfirmed::{Address, Unconfirmed};
use super::super::watch::Watched;
use super::super::{Fatal, WorkerError};
use super::arithmetic::Arithmetic;
use super::broker::{Broker, Consuming, Publishing};
use super::event::Event;
use super::messages::{MODEL, message_id, queue_name};
use super::mutants::Mutant;
use super::oracle::{AttemptNumber, Checked, ISOLATED_AFTER, Oracle};
use super::schedule::{BODY_BYTES_MAX, Kind, ReplyTo, Setting};
use crate::broker::backoff::Backoff;
use crate::broker::bodies::{Account, Bodies, Claim};
use crate::broker::topology::Names;
use crate::model::batching::Batching;
use crate::model::capacity::{Estimate, Fit};
use crate::telemetry::metrics::Metrics;

/// A worker process.
pub struct Worker {
    setting: Setting,
    mutant: Option<Mutant>,
    metrics: Arc<Metrics>,
    bodies: Bodies,
    aside: Aside,
    /// What a mutant does not give back.
    kept: Vec<Claim>,
    served: Served,
    lane: Receiver<Job>,
    batcher: Batcher,
    running: Option<Batch>,
    inference: Inference,
    answers: VecDeque<Vec<Answer>>,
    plan: Plan,
    refusing: Refusing,
    consuming: Option<(Consuming, Receipts, Account, Settler)>,
    publishing: Option<(Publishing, Unconfirmed)>,
    /// Those of lost channels, for a worker that confuses them.
    old: Vec<Settler>,
    consume_backoff: Backoff,
    consume_again: Option<Instant>,
    publish_again: Option<Instant>,
    publish_backoff: Backoff,
    pub draining: bool,
}

/// What a step may look at besides the worker.
pub struct World<'a> {
    pub broker: &'a mut Broker,
    pub oracle: &'a mut Oracle,
    pub moment: Moment,
    /// How far the wall clock has been put forward.
    pub ahead: Duration,
    pub rng: &'a mut Rng,
}

/// The process is gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Died;

impl Worker {
    pub fn new(setting: &Setting, metrics: &Arc<Metrics>, mutant: Option<Mutant>) -> Self {
        let engine = Arithmetic::new(false, mutant);
        let bodies = Bodies::new(setting.memory_bytes, BODY_BYTES_MAX, 1);
        let lane = Arc::new(Lane {
            model: MODEL.into(),
            version: "1".to_owned(),
            signature: engine.signature().clone(),
            defaults: Vec::new(),
            rows: Arc::new(LaneRows::new(&Batching::Rows, RowHeaders::independent())),
            rows_max: setting.rows_max,
            engines: 1,
            capacity: Arc::default(),
            hurry: Hurry::here(),
            metrics: metrics.lane(MODEL, "1"),
        });
        metrics.model(MODEL).prefetch.set(setting.prefetch, "test");
        let (jobs, lane_receiver) = mpsc::channel(LANE_MAX);
        let (idle, _) = mpsc::channel(1);
        let (answers, _) = mpsc::channel(1);
        Self {
            aside: Aside::new(bodies.clone()),
            bodies,
            kept: Vec::new(),
            served: Served {
                name: MODEL.into(),
                lanes: [(1, (lane.clone(), jobs))].into(),
                default_version: 1,
                left_out: Vec::new(),
                metrics: metrics.model(MODEL).into(),
                traces: None,
                pace: PaceHandle::alone(),
            },
            lane: lane_receiver,
            batcher: batcher(setting, lane.rows.clone(), mutant),
            running: None,
            inference: Inference {
                engine: Box::new(engine),
                lane,
                fit: Fit::default(),
                // What starts processes is no part of this: `Arithmetic` does as if.
                model: PathBuf::new(),
                hardware: Hardware::CPU,
                isolation: None,
                isolated: None,
                watched: Watched::default(),
                run_max: Duration::MAX,
                rows_limit: RowsLimit::new(setting.rows_max),
                reply_bytes_max: 64 * 1024,
                idle,
                answers,
                fatal: Fatal(mpsc::channel::<WorkerError>(1).0),
            },
            answers: VecDeque::new(),
            plan: plan(setting, metrics),
            refusing: Refusing::new(UNAVAILABLE_MAX),
            consuming: None,
            publishing: None,
            old: Vec::new(),
            consume_backoff: Backoff::new(RECONNECT_MAX),
            publish_backoff: Backoff::new(RECONNECT_MAX),
            consume_again: None,
            publish_again: None,
            draining: false,
            setting: setting.clone(),
            metrics: metrics.clone(),
            mutant,
        }
    }

    fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub fn consuming(&mut self) -> Option<&mut Consuming> {
        self.consuming.as_mut().map(|(consuming, ..)| consuming)
    }

    pub fn publishing(&mut self) -> Option<&mut Publishing> {
        self.publishing.as_mut().map(|(publishing, _)| publishing)
    }

    /// Opens the channels that are missing, once their back-off is over.
    pub fn reopen(&mut self, now: Instant) {
        if self.consuming.is_none() && !self.draining && self.consume_again.is_none_or(|again| again <= now) {
            let verdicts_max = match self.mutant {
                Some(Mutant::WindowTakenForExact) => usize::from(self.setting.prefetch),
                _ => VERDICTS_MAX,
            };
            let (receipts, settler) =
                generation_with(verdicts_max, self.setting.prefetch, self.metrics.receipts.clone());
            self.consuming = Some((Consuming::new(), receipts, self.bodies.account(), settler));
        }
        if self.publishing.is_none() && self.publish_again.is_none_or(|again| again <= now) {
            self.publishing = Some((Publishing::default(), Unconfirmed::default()));
        }
    }

    /// `Consume::serve` and `Consume::take`.
    pub fn take(&mut self, count: usize, world: &mut World<'_>) -> Checked {
        for _ in 0..count {
            let Some((consuming, receipts, account, _)) = &mut self.consuming else {
                return Ok(());
            };
            let Some((tag, number)) = consuming.deliveries.front().copied() else {
                // The end of the stream.
                if !consuming.open || consuming.cancelled && !self.draining {
                    self.lose_consuming(world)?;
                }
                return Ok(());
            };
            let attempt = &world.oracle.attempts[number];
            let job = &world.oracle.jobs[attempt.job];
            // The stage after it would be waited for as well.
            if self.answers.len() >= ANSWERS_MAX {
                return Ok(());
            }
            consuming.deliveries.pop_front();
            let receipt = receipts.receipt(tag);
            let bytes = job.body.len() as u64;
            let Some(claim) = account.claim(bytes) else {
                world.oracle.saw(Event::MemoryShort);
                self.aside.put(receipt, bytes);
                if self.draining {
                    self.aside.give_back_all();
                }
                continue;
            };
            in_bounds(&self.bodies)?;
            let claim = match self.mutant {
                Some(Mutant::MemoryKept) => {
                    self.kept.push(claim);
                    None
                }
                _ => Some(claim),
            };
            let delivery = Delivery {
                properties: properties(number, world.oracle),
                body: job.body.clone(),
                redelivered: attempt.redelivered && self.mutant != Some(Mutant::RedeliveryForgotten),
                arrived: world.moment.now,
                receipt,
                claim,
            };
            world.oracle.attempts[number].arrived = Some(world.moment.now);
            let job = &world.oracle.jobs[world.oracle.attempts[number].job];
            if let Some(unix_ms) = job.deadline_unix_ms {
                let ms = unix_ms - i64::try_from(world.moment.unix.as_millis()).unwrap_or(i64::MAX);
                let ahead = Duration::from_millis(ms.unsigned_abs());
                let now = world.moment.now;
                world.oracle.attempts[number].deadline = Some(if ms >= 0 { now + ahead } else { now - ahead });
            }
            match decode_at(world.moment, delivery, &self.served, &limits(&self.setting)) {
                Ok((job, lane)) => {
                    if lane.try_send(job).is_err() {
                        return Err("the lane of the simulated worker is too short".to_owned());
                    }
                }
                Err(answer) => self.answer(vec![*answer], world)?,
            }
        }
        Ok(())
    }

    /// Answers on their way to the publishing task.
    fn answer(&mut self, answers: Vec<Answer>, world: &mut World<'_>) -> Checked {
        for answer in &answers {
            world
                .oracle
                .answered(attempt(&answer.envelope), answer.outcome.status(), world.moment.now)?;
        }
        self.answers.push_back(answers);
        Ok(())
    }

    /// `batch::run`: an idle engine takes all that has arrived.
    pub fn batch(&mut self, world: &mut World<'_>) -> Checked {
        if self.running.is_some() || self.answers.len() >= ANSWERS_MAX {
            return Ok(());
        }
        while self.batcher.push(self.lane.try_recv().ok()) {}
        let now = match self.mutant {
            Some(Mutant::DeadlineOnWallClock) => world.moment.now + world.ahead,
            _ => world.moment.now,
        };
        let (mut batch, expired) = self.batcher.take(now, None);
        if !expired.is_empty() {
            self.answer(expired, world)?;
        }
        if let Some(batch) = &mut batch {
            if self.has(Mutant::OrderOfArrival) {
                batch.jobs.sort_by_key(|job| attempt(&job.envelope));
            }
            let attempts: Vec<_> = batch.jobs.iter().map(|job| attempt(&job.envelope)).collect();
            world.oracle.batch(&attempts, world.moment.now)?;
        }
        self.running = batch;
        Ok(())
    }

    /// The engine's thread.
    pub fn run(&mut self, world: &mut World<'_>) -> Checked<Result<(), Died>> {
        if self.answers.len() >= ANSWERS_MAX {
            return Ok(Ok(()));
        }
        let Some(batch) = self.running.take() else {
            return Ok(Ok(()));
        };
        let isolated = matches!(&batch.jobs[..], [job] if job.envelope.delivery_count >= ISOLATED_AFTER);
        self.inference.engine = Box::new(Arithmetic::new(isolated, self.mutant));
        let mut answers = Vec::new();
        let ran = self.inference.execute(batch, &mut answers);
        if let Some(mutant) = self.mutant {
            mutant.answers(&mut answers);
        }
        // Also when the device was lost on the way.
        self.answer(answers, world)?;
        Ok(ran.map_err(|_| Died))
    }

    /// `Reply::publish`, where it takes answers.
    pub fn reply(&mut self, world: &mut World<'_>) {
        let Some((_, unconfirmed)) = &self.publishing else {
            return;
        };
        if unconfirmed.len() >= self.setting.unconfirmed_max {
            return;
        }
        for answer in self.answers.pop_front().unwrap_or_default() {
            let next = self.plan.start(answer);
            self.follow(next, world);
        }
    }

    /// `PublishQueue::try_refusing` and `PublishQueue::tried`, as if each trial ended at once.
    pub fn retry(&mut self, world: &mut World<'_>) -> Checked {
        if self.publishing.is_none() {
            return Ok(());
        }
        let now = world.moment.now;
        while let Some((destination, parcel, look_first)) = self.refusing.take_due(now) {
            let Next::Publish(parcel, message) = self.plan.again(parcel) else {
                self.refusing.untried(&destination, now);
                continue;
            };
            let number = attempt(&parcel.envelope);
            let finding = world
                .broker
                .try_alone(number, &message, look_first, world.oracle, world.rng)?;
            self.tried(&destination, parcel, finding, world);
        }
        let given_up = self.refusing.expire(now);
        self.turn_away(given_up, world);
        Ok(())
    }

    fn tried(&mut self, destination: &Destination, parcel: Box<Parcel>, finding: Finding, world: &mut World<'_>) {
        let (now, jitter) = (world.moment.now, world.rng.f64());
        let learned = self.refusing.found(destination, parcel, finding, now, jitter);
        if let Some(parcel) = learned.taken {
            let next = self.plan.after(parcel, Fate::Confirmed);
            self.follow(next, world);
        }
        if let Some((parcel, said)) = learned.unacceptable {
            let next = self.plan.outlaw(parcel, &said);
            self.follow(next, world);
        }
        for parcel in learned.released {
            let next = self.plan.again(parcel);
            self.follow(next, world);
        }
        self.turn_away(learned.given_up, world);
    }

    fn turn_away(&mut self, given_up: Vec<GivenUp>, world: &mut World<'_>) {
        for GivenUp { parcel, reason } in given_up {
            world.oracle.turned_away(attempt(&parcel.envelope));
            let next = self.plan.turn_away(parcel, reason);
            self.follow(next, world);
        }
    }

    fn hold(&mut self, parcel: Box<Parcel>, fate: Option<Fate>, world: &mut World<'_>) {
        if self.draining && !self.has(Mutant::HeldWhileDraining) {
            return parcel.give_back();
        }
        world.oracle.saw(Event::HeldBack);
        let destination = self.plan.destination(&parcel);
        let (now, jitter) = (world.moment.now, world.rng.f64());
        if let Err(given_up) = self.refusing.hold(parcel, destination, fate, now, jitter) {
            self.turn_away(vec![given_up], world);
        }
    }

    fn follow(&mut self, next: Next, world: &mut World<'_>) {
        match next {
            Next::Publish(parcel, message) => {
                if self.refusing.is_refusing(&message) {
                    return self.hold(parcel, None, world);
                }
                let Some((publishing, unconfirmed)) = &mut self.publishing else {
                    return parcel.give_back();
                };
                let number = attempt(&parcel.envelope);
                if self.mutant == Some(Mutant::AckBeforeConfirm) {
                    publishing.wire.push_back((world.rng.u64(..), number, message));
                    let next = self.plan.after(parcel, Fate::Confirmed);
                    return self.follow(next, world);
                }
                let place = unconfirmed.hold(parcel, Address::of(&message), world.moment.now);
                if !publishing.closed {
                    publishing.wire.push_back((place, number, message));
                }
            }
            Next::HoldBack(parcel, _) if self.has(Mutant::HeldTakenForConfirmed) => {
                let next = self.plan.after(parcel, Fate::Confirmed);
                self.follow(next, world);
            }
            Next::HoldBack(parcel, fate) => self.hold(parcel, Some(fate), world),
            // The pause says when, not what: here the job goes back at once.
            Next::RetryAfter(_, envelope) => envelope.settle(Verdict::Retry),
            Next::GiveBackAfter(_, envelope) => envelope.settle(Verdict::GiveBack),
            Next::Settled => {}
        }
    }

    /// `Flight::landed` and what `Reply::publish` makes of it.
    pub fn land(&mut self, world: &mut World<'_>) -> Checked {
        let Some((publishing, unconfirmed)) = &mut self.publishing else {
            return Ok(());
        };
        let (closed, over_message) = (publishing.closed, publishing.over_message);
        let mut confirms = std::mem::take(&mut publishing.confirms);
        world.rng.shuffle(&mut confirms);
        if self.mutant == Some(Mutant::AckBeforeConfirm) {
            confirms.clear();
        }
        if let Some(mutant) = self.mutant {
            for confirm in &mut confirms {
                let address = unconfirmed.address(confirm.number).cloned();
                mutant.confirm(confirm, address);
            }
        }
        let (landed, strays) = unconfirmed.confirm(confirms);
        if !strays.is_empty() {
            return Err(format!("I1: a return that nobody waits for: {strays:?}"));
        }
        for landed in landed {
            let next = self.plan.after(landed.parcel, landed.fate);
            self.follow(next, world);
        }
        match (closed, over_message) {
            (true, true) if !world.broker.is_blocked() => self.sift(world)?,
            (true, false) => self.lose_publishing(world),
            (true, true) | (false, _) => {}
        }
        Ok(())
    }

    /// `Reply::sift`: what was under way is published again in halves, until the message that closes the channel is alone.
    fn sift(&mut self, world: &mut World<'_>) -> Checked {
        let Some((_, unconfirmed)) = self.publishing.take() else {
            return Ok(());
        };
        let mut suspects = Suspects::default();
        let mut closed = Some(unconfirmed.into_parcels().collect());
        let mut nexts = Vec::new();
        loop {
            if let Some(group) = closed.take()
                && let Some(culprit) = suspects.closed(group)
            {
                nexts.push(self.plan.outlaw(culprit, "it is too large"));
            }
            let Some(group) = suspects.next() else { break };
            closed = self.publish_alone(group, &mut nexts, world)?;
        }
        self.publishing = Some((Publishing::default(), Unconfirmed::default()));
        nexts.into_iter().for_each(|next| self.follow(next, world));
        Ok(())
    }

    /// `Reply::publish_alone`: gives back what was under way if the broker closed the channel.
    fn publish_alone(&self, group: Parcels, nexts: &mut Vec<Next>, world: &mut World<'_>) -> Checked<Option<Parcels>> {
        let (mut publishing, mut unconfirmed) = (Publishing::default(), Unconfirmed::default());
        for parcel in group {
            let Next::Publish(parcel, message) = self.plan.again(parcel) else {
                continue;
            };
            let number = attempt(&parcel.envelope);
            world.oracle.published_again(number);
            let place = unconfirmed.hold(parcel, Address::of(&message), world.moment.now);
            publishing.wire.push_back((place, number, message));
        }
        while !publishing.closed && !publishing.is_confirmed() {
            world.broker.route(&mut publishing, 1, world.oracle)?;
            let (which, multiple) = (world.rng.usize(..64), world.rng.bool());
            if world.rng.bool() {
                world.broker.confirm(&mut publishing, which, multiple, world.oracle);
            }
        }
        let (landed, _) = unconfirmed.confirm(publishing.confirms);
        for landed in landed {
            nexts.push(self.plan.after(landed.parcel, landed.fate));
        }
        Ok(publishing.closed.then(|| unconfirmed.into_parcels().collect()))
    }

    /// `Reply::publish`, where it ends.
    fn lose_publishing(&mut self, world: &mut World<'_>) {
        let Some((_, unconfirmed)) = self.publishing.take() else {
            return;
        };
        for parcel in unconfirmed.into_parcels() {
            if self.has(Mutant::LostChannelConfirms) {
                if let Next::Publish(parcel, _) = self.plan.after(parcel, Fate::Confirmed) {
                    parcel.give_back();
                }
            } else {
                parcel.give_back();
            }
        }
        for parcel in self.refusing.take_all() {
            if self.mutant != Some(Mutant::RefusedDropped) {
                parcel.give_back();
            }
        }
        let wait = self.publish_backoff.next(world.rng.f64());
        self.publish_again = Some(world.moment.now + wait);
    }

    /// `Settler::run`, and `Consume::serve` where there is room for a job that was set aside.
    pub fn settle(&mut self, world: &mut World<'_>) -> Checked {
        if !self.has(Mutant::AsideForgotten) {
            self.aside.give_back_if_room();
        }
        let Some((consuming, _, _, settler)) = &mut self.consuming else {
            return Ok(());
        };
        let frames = match self.mutant {
            Some(mutant) => mutant.frames(settler, &mut self.old),
            None => settler.frames(),
        };
        if consuming.open {
            consuming.frames.extend(frames);
        } else if !frames.is_empty() {
            self.lose_consuming(world)?;
        }
        Ok(())
    }

    /// The end of `Consume::serve`.
    fn lose_consuming(&mut self, world: &mut World<'_>) -> Checked {
        let Some((mut consuming, receipts, _, settler)) = self.consuming.take() else {
            return Ok(());
        };
        self.aside.give_back_all();
        drop(receipts);
        if self.has(Mutant::OldGenerationSettles) {
            self.old.push(settler);
        }
        // Of a consumer that the broker cancelled the channel is still there: what was sent on it arrives.
        world.broker.take_frames(&mut consuming, usize::MAX, world.oracle)?;
        world.broker.close_consuming(&mut consuming, world.oracle);
        let wait = self.consume_backoff.next(world.rng.f64());
        self.consume_again = Some(world.moment.now + wait);
        Ok(())
    }

    /// The connection is gone, or the process.
    pub fn disconnect(mut self, routed: usize, world: &mut World<'_>) -> Checked {
        if let Some((publishing, _)) = &mut self.publishing {
            world.broker.route(publishing, routed, world.oracle)?;
        }
        if let Some((consuming, ..)) = &mut self.consuming {
            world.broker.take_frames(consuming, routed, world.oracle)?;
            world.broker.close_consuming(consuming, world.oracle);
        }
        Ok(())
    }

    /// SIGTERM.
    pub fn drain(&mut self) {
        self.draining = true;
        if let Some((consuming, ..)) = &mut self.consuming {
            consuming.cancelled = true;
        }
        self.aside.give_back_all();
        for parcel in self.refusing.take_all() {
            if !self.has(Mutant::HeldWhileDraining) {
                parcel.give_back();
            }
        }
        if self.has(Mutant::DrainDropsBatch) {
            while self.lane.try_recv().is_ok() {}
            self.batcher = batcher(&self.setting, self.inference.lane.rows.clone(), self.mutant);
        }
    }

    /// Whether every stage has run dry.
    pub fn is_dry(&self) -> bool {
        let consumed = self
            .consuming
            .as_ref()
            .is_none_or(|(consuming, ..)| consuming.deliveries.is_empty());
        let published = self
            .publishing
            .as_ref()
            .is_none_or(|(_, unconfirmed)| unconfirmed.is_empty());
        let idle = self.lane.is_empty() && !self.batcher.has_jobs() && self.running.is_none();
        consumed
            && idle
            && self.aside.is_empty()
            && self.answers.is_empty()
            && published
            && self.refusing.holds_nothing()
    }

    /// The end of a drain: the last acks, and the channel is closed.
    pub fn leave_dry(mut self, world: &mut World<'_>) -> Checked {
        self.settle(world)?;
        let Some((mut consuming, ..)) = self.consuming.take() else {
            return Ok(());
        };
        if consuming.open {
            world.broker.take_frames(&mut consuming, usize::MAX, world.oracle)?;
            if consuming.unacked() > 0 {
                return Err(format!(
                    "I6: a drained worker leaves {} jobs unsettled",
                    consuming.unacked()
                ));
            }
        }
        world.broker.close_consuming(&mut consuming, world.oracle);
        if self.bodies.taken() > 0 {
            return Err("I3: a worker without jobs accounts for memory".to_owned());
        }
        world.oracle.saw(Event::Drained);
        Ok(())
    }
}

fn plan(setting: &Setting, metrics: &Metrics) -> Plan {
    Plan {
        author: Author {
            names: Names::new("inferq"),
            worker: "simulated".to_owned(),
        },
        unroutable: setting.unroutable,
        uncounted: setting.classic,
        metrics: metrics.reply.clone(),
    }
}

fn limits(setting: &Setting) -> Limits {
    Limits {
        body_bytes_max: BODY_BYTES_MAX,
        delivery_limit: if setting.classic {
            u64::MAX
        } else {
            setting.delivery_limit
        },
    }
}

/// README.md, "Capacity".
fn in_bounds(bodies: &Bodies) -> Checked {
    let (taken, limit) = (bodies.taken(), bodies.limit());
    if taken > limit + limit / 2 {
        return Err(format!("I3: bodies in hand take {taken} bytes, at a limit of {limit}"));
    }
    Ok(())
}

/// What runs take is drawn with the schedule: the clock of the machine has no place in it.
fn batcher(setting: &Setting, rows: Arc<LaneRows>, mutant: Option<Mutant>) -> Batcher {
    let capacity = setting.capacity.filter(|_| mutant != Some(Mutant::EstimateIgnored));
    Batcher::new(setting.rows_max, rows, Arc::new(Estimate::new(capacity)))
}

/// The attempt that an envelope belongs to.
fn attempt(envelope: &Envelope) -> AttemptNumber {
    match header(&envelope.properties, ATTEMPT) {
        Some(AMQPValue::LongLongInt(number)) => usize::try_from(*number).expect("it was one"),
        _ => unreachable!("every simulated delivery has it"),
    }
}

fn properties(number: AttemptNumber, oracle: &Oracle) -> BasicProperties {
    let attempt = &oracle.attempts[number];
    let job = &oracle.jobs[attempt.job];
    let mut headers = FieldTable::default();
    let number = i64::try_from(number).expect("there are few");
    headers.insert(ATTEMPT.into(), AMQPValue::LongLongInt(number));
    if attempt.count > 0 {
        let count = i64::try_from(attempt.count).expect("there are few");
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(count));
    }
    if let Some(ms) = job.deadline_unix_ms {
        headers.insert("inferq-deadline".into(), AMQPValue::LongLongInt(ms));
    }
    if job.kind == Kind::UnknownVersion {
        headers.insert("inferq-model-version".into(), AMQPValue::LongLongInt(9));
    }
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_message_id(message_id(job.twin_of))
        .with_correlation_id(message_id(job.twin_of))
        .with_headers(headers);
    match job.reply_to {
        ReplyTo::Nobody => properties,
        ReplyTo::Queue(queue) => properties.with_reply_to(queue_name(queue).into()),
    }
}

const ATTEMPT: &str = "simulated-attempt";
/// `ANSWERS_QUEUED_MAX` of the worker, but short enough to be full at times.
const ANSWERS_MAX: usize = 3;
const LANE_MAX: usize = 512;
const RECONNECT_MAX: Duration = Duration::from_secs(5);
const UNAVAILABLE_MAX: Duration = Duration::from_secs(30);
