//! Bodies in hand: the bytes that they take, and what is done before they take too many.
//!
//! The broker sends as much as the prefetch windows allow, however big it is, and what it has sent is in this process before
//! anybody has looked at it. So bytes are bounded where they come in, in two steps:
//!
//! - While bodies take more than `limits.memory_bytes` the consuming connections are read slowly ([`Brake`]), and at full speed
//!   again as soon as jobs are settled; TCP and the broker do the rest. Windows need not know how big bodies are.
//!   While a consumer opens they are read at full speed: what the broker answers stands behind the bodies for all others.
//! - Slowly is not never, since RabbitMQ resets a peer that takes nothing for 30 s. So what even that lets in is bounded as well:
//!   beyond a quarter more, a body is kept only if its model has less than its share of another quarter. Of the others nothing
//!   is kept but the right to settle them, until there is room; then they go back to the broker, which delivers them again.
//!
//! Together: at most one and a half times `limits.memory_bytes`, and a single body whatever its size.
//!
//! # Source
//! Measured on RabbitMQ 3.10.8: a reader that stands still is reset after 30 s; with bodies of 16 MiB one that reads 1 MiB/s is
//! lost after a minute, and 2 MiB/s is enough.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// All bodies of a worker; clones are the same.
#[derive(Debug, Clone)]
pub struct Bodies(Arc<All>);

#[derive(Debug)]
struct All {
    limit: usize,
    body_max: usize,
    /// Bytes a second that are read at least.
    rate: usize,
    /// What the body of a model may take while there is no room for others.
    share: usize,
    taken: AtomicUsize,
    /// Of those, the bytes that have come.
    came: AtomicUsize,
    slowed_us: AtomicU64,
    /// Consumers that open: what the broker answers them stands behind bodies.
    opening: AtomicUsize,
    /// One: jobs without room go back one after the other.
    turns: Arc<Semaphore>,
    /// Wakes those who wait for room; `waiting` says how many without locking.
    waiters: Mutex<Vec<Waker>>,
    waiting: AtomicUsize,
}

/// The bodies of one consuming channel.
#[derive(Debug, Clone)]
pub struct Account(Arc<Own>);

#[derive(Debug)]
struct Own {
    all: Bodies,
    taken: AtomicUsize,
}

/// What one body takes. Dropped, it is given back.
#[derive(Debug)]
pub struct Claim {
    account: Account,
    bytes: usize,
    came: usize,
}

impl Bodies {
    /// So many bytes for the bodies of so many models, none of them bigger than `body_max`.
    pub fn new(limit: usize, body_max: usize, models: usize) -> Self {
        Self(Arc::new(All {
            limit,
            body_max,
            rate: (body_max / BODY_SECONDS).max(RATE_MIN),
            share: limit / 4 / models.max(1),
            taken: AtomicUsize::new(0),
            came: AtomicUsize::new(0),
            slowed_us: AtomicU64::new(0),
            opening: AtomicUsize::new(0),
            turns: Arc::new(Semaphore::new(1)),
            waiters: Mutex::default(),
            waiting: AtomicUsize::new(0),
        }))
    }

    pub fn account(&self) -> Account {
        Account(Arc::new(Own {
            all: self.clone(),
            taken: AtomicUsize::new(0),
        }))
    }

    /// In bytes.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// In bytes, from when the broker announces a body until its job is settled.
    pub fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Acquire)
    }

    /// For how long connections have been read slowly, all of them together.
    pub fn slowed(&self) -> Duration {
        Duration::from_micros(self.0.slowed_us.load(Ordering::Relaxed))
    }

    /// Whether more has come than may be in hand. What was only announced has to come first, and at full speed.
    pub fn is_over(&self) -> bool {
        self.0.came.load(Ordering::Acquire) > self.0.limit && self.0.opening.load(Ordering::Acquire) == 0
    }

    /// From here until it is dropped, nothing is read slowly.
    pub fn opening(&self) -> Opening {
        self.0.opening.fetch_add(1, Ordering::SeqCst);
        Opening(self.clone())
    }

    /// Whether a body of so many bytes has room; alone, any has.
    pub fn has_room_for(&self, bytes: usize) -> bool {
        let taken = self.taken();
        taken == 0 || taken.saturating_add(bytes) <= self.0.limit
    }

    /// Waits until a body of so many bytes has room, and nobody else's is on its way to the broker and back: all that have waited
    /// for the same room would find it taken again, and the broker counts how often.
    pub async fn turn(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        loop {
            self.room_for(bytes).await;
            let turn = self.0.turns.clone().acquire_owned().await.ok();
            if self.has_room_for(bytes) {
                return turn;
            }
        }
    }

    async fn room_for(&self, bytes: usize) {
        std::future::poll_fn(|context| self.poll(context, || self.has_room_for(bytes))).await;
    }

    /// Whether something holds; if not, the waker is woken when it may.
    fn poll(&self, context: &Context<'_>, holds: impl Fn() -> bool) -> Poll<()> {
        if holds() {
            return Poll::Ready(());
        }
        let mut waiters = self.waiters();
        if !waiters.iter().any(|waiter| waiter.will_wake(context.waker())) {
            waiters.push(context.waker().clone());
        }
        self.0.waiting.store(waiters.len(), Ordering::SeqCst);
        drop(waiters);
        // Something may have been given back meanwhile, by somebody who saw nobody waiting.
        std::sync::atomic::fence(Ordering::SeqCst);
        if holds() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn give_back(&self, bytes: usize, came: usize) {
        self.0.came.fetch_sub(came, Ordering::SeqCst);
        self.0.taken.fetch_sub(bytes, Ordering::SeqCst);
        if self.0.waiting.load(Ordering::SeqCst) > 0 {
            let waiters = std::mem::take(&mut *self.waiters());
            self.0.waiting.store(0, Ordering::SeqCst);
            waiters.into_iter().for_each(Waker::wake);
        }
    }

    fn waiters(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.0.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody opens a consumer.
pub struct Opening(Bodies);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.0.opening.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Account {
    /// Makes room for a body that the broker announces; `None` if there is none.
    pub fn claim(&self, bytes: u64) -> Option<Claim> {
        let bytes = usize::try_from(bytes).ok()?;
        let all = &self.0.all;
        let (taken, own) = (all.taken(), self.0.taken.load(Ordering::Relaxed));
        let below_the_brim = taken.saturating_add(bytes) <= all.0.limit + all.0.limit / 4;
        if taken > 0 && !below_the_brim && own.saturating_add(bytes) > all.0.share {
            return None;
        }
        all.0.taken.fetch_add(bytes, Ordering::SeqCst);
        self.0.taken.fetch_add(bytes, Ordering::Relaxed);
        Some(Claim {
            account: self.clone(),
            bytes,
            came: 0,
        })
    }
}

impl Claim {
    /// Memory for the body, which has been counted already and is taken as the body comes. None is set aside for one that is
    /// bigger than allowed.
    pub fn memory(&self) -> Vec<u8> {
        let mut memory = Vec::new();
        if self.bytes <= self.account.0.all.0.body_max {
            // Without it the body grows as it comes.
            memory.try_reserve_exact(self.bytes).ok();
        }
        memory
    }

    /// So many bytes of the body have come.
    pub fn came(&mut self, bytes: usize) {
        self.came += bytes;
        self.account.0.all.0.came.fetch_add(bytes, Ordering::SeqCst);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.account.0.taken.fetch_sub(self.bytes, Ordering::Relaxed);
        self.account.0.all.give_back(self.bytes, self.came);
    }
}

impl PartialEq for Claim {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

/// Slows down the reading of one connection while bodies take too much.
pub struct Brake {
    bodies: Bodies,
    /// While it slows down.
    pace: Option<Pace>,
    timer: Pin<Box<Sleep>>,
}

impl Brake {
    /// Must be called in the context of a tokio runtime.
    pub fn new(bodies: Bodies) -> Self {
        Self {
            bodies,
            pace: None,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        }
    }

    /// How many bytes may be read now, at least one; what comes of them is told to [`Brake::read`]. While nothing of it is
    /// kept, which is asked only above the limit, it may be read at full speed.
    pub fn poll_allowed(&mut self, context: &mut Context<'_>, is_kept: impl Fn() -> bool) -> Poll<usize> {
        if self.pace.is_none() && !self.bodies.is_over() {
            return Poll::Ready(usize::MAX);
        }
        loop {
            let now = Instant::now();
            let slowed = self.pace.as_mut().map_or(Duration::ZERO, |pace| pace.pass(now));
            let micros = u64::try_from(slowed.as_micros()).unwrap_or(u64::MAX);
            self.bodies.0.slowed_us.fetch_add(micros, Ordering::Relaxed);
            if !is_kept() || self.bodies.poll(context, || !self.bodies.is_over()).is_ready() {
                self.pace = None;
                return Poll::Ready(usize::MAX);
            }
            let pace = self.pace.get_or_insert_with(|| Pace::new(self.bodies.0.rate, now));
            let Err(until) = pace.allowed() else {
                return Poll::Ready(pace.bytes as usize);
            };
            self.timer.as_mut().reset(until);
            if self.timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }

    pub fn read(&mut self, bytes: usize) {
        if let Some(pace) = &mut self.pace {
            pace.bytes = (pace.bytes - bytes as f64).max(0.0);
        }
    }
}

/// What may be read, at so many bytes a second. Pure.
struct Pace {
    rate: f64,
    /// At `at`.
    bytes: f64,
    at: Instant,
}

impl Pace {
    fn new(rate: usize, now: Instant) -> Self {
        Self {
            rate: rate as f64,
            bytes: 0.0,
            at: now,
        }
    }

    /// Lets time pass, and returns how much has.
    fn pass(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at);
        self.bytes = (self.bytes + passed.as_secs_f64() * self.rate).min(READ_MAX);
        self.at = now;
        passed
    }

    /// # Errors
    /// When there is enough to be worth a call.
    fn allowed(&self) -> Result<(), Instant> {
        if self.bytes >= READ_MIN {
            return Ok(());
        }
        // Not a nanosecond too early, or it would be asked again at once.
        let missing = Duration::from_secs_f64((READ_MIN - self.bytes) / self.rate);
        Err(self.at + missing + Duration::from_micros(1))
    }
}

/// A body of the biggest size that is allowed takes so many seconds if it is read slowly; RabbitMQ gives it 30.
const BODY_SECONDS: usize = 4;
/// Where bodies are small there is still all else that a connection carries. In bytes a second.
const RATE_MIN: usize = 256 << 10;
/// What is read at once, slowly: at least, so that it is worth a call, and at most, so that it is slow.
const READ_MIN: f64 = 4096.0;
const READ_MAX: f64 = 65_536.0;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 1 << 20;

    #[test]
    fn what_is_claimed_is_given_back() {
        let bodies = Bodies::new(LIMIT, LIMIT, 1);

        let claims = [100, 200].map(|bytes| bodies.account().claim(bytes));
        let taken = bodies.taken();
        drop(claims);

        assert_eq!((taken, bodies.taken()), (300, 0));
    }

    #[test]
    fn memory_is_set_aside_for_bodies_that_are_allowed() {
        let bodies = Bodies::new(LIMIT, 1000, 1);
        let memory = |bytes| bodies.account().claim(bytes).unwrap().memory().capacity();

        assert_eq!(memory(1000), 1000);
        assert_eq!(memory(1001), 0);
        assert_eq!(memory(u64::MAX / 2), 0);
    }

    #[test]
    fn a_body_alone_always_has_room() {
        let bodies = Bodies::new(LIMIT, LIMIT, 1);

        let alone = bodies.account().claim(10 * LIMIT as u64);
        let beside = bodies.account().claim(LIMIT as u64);

        assert!(alone.is_some());
        assert!(beside.is_none());
    }

    #[test]
    fn a_model_below_its_share_has_room_beside_one_that_has_all() {
        let bodies = Bodies::new(LIMIT, LIMIT, 4);
        let (greedy, modest) = (bodies.account(), bodies.account());

        let all: Vec<_> = std::iter::from_fn(|| greedy.claim(LIMIT as u64 / 8)).collect();
        let small = modest.claim(300);
        let large = modest.claim(LIMIT as u64 / 8);

        assert_eq!(all.len(), 10);
        assert!(small.is_some());
        assert!(large.is_none());
    }

    proptest! {
        /// Whatever comes, and whatever is settled meanwhile.
        #[test]
        fn bodies_take_at_most_half_more_than_the_limit(
            models in 1_usize..20,
            steps in proptest::collection::vec((0_usize..20, 1_usize..LIMIT, 0_usize..40), 1..200),
        ) {
            let bodies = Bodies::new(LIMIT, LIMIT, models);
            let accounts: Vec<_> = (0..models).map(|_| bodies.account()).collect();
            let mut claims = Vec::new();

            for (model, bytes, settled) in steps {
                claims.extend(accounts[model % models].claim(bytes as u64));
                if settled < claims.len() {
                    claims.swap_remove(settled);
                }
                prop_assert!(bodies.taken() <= LIMIT + LIMIT / 2);
            }
            drop(claims);
            prop_assert_eq!(bodies.taken(), 0);
        }
    }

    #[tokio::test]
    async fn room_is_waited_for() {
        let bodies = Bodies::new(LIMIT, LIMIT, 1);
        let claim = bodies.account().claim(LIMIT as u64);

        let before = bodies.room_for(1).now_or_never();
        let waiting = tokio::spawn({
            let bodies = bodies.clone();
            async move { bodies.room_for(1).await }
        });
        tokio::task::yield_now().await;
        drop(claim);

        assert!(before.is_none());
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_only_announced_is_read_at_full_speed() {
        let bodies = Bodies::new(LIMIT, LIMIT, 1);
        let mut brake = Brake::new(bodies.clone());
        let _claim = bodies.account().claim(2 * LIMIT as u64);

        let allowed = std::future::poll_fn(|context| brake.poll_allowed(context, || true)).await;

        assert_eq!(allowed, usize::MAX);
    }

    #[tokio::test]
    async fn jobs_without_room_go_back_one_after_the_other() {
        let bodies = Bodies::new(LIMIT, LIMIT, 1);

        let first = bodies.turn(100).await;
        let second = bodies.turn(100).now_or_never();
        drop(first);
        let third = bodies.turn(100).now_or_never();

        assert!(second.is_none());
        assert!(third.is_some());
    }

    #[test]
    fn a_body_of_the_biggest_size_takes_four_seconds_while_bodies_take_too_much() {
        let body_max = 16 << 20;
        let began = Instant::now();
        let mut pace = Pace::new(Bodies::new(LIMIT, body_max, 1).0.rate, began);
        let mut read = 0.0;

        while read < body_max as f64 {
            match pace.allowed() {
                Ok(()) => read += std::mem::take(&mut pace.bytes),
                Err(until) => drop(pace.pass(until)),
            }
        }

        let took = pace.at - began;
        assert!(
            took.abs_diff(Duration::from_secs(4)) < Duration::from_millis(50),
            "{took:?}"
        );
    }

    #[test]
    fn a_connection_that_rested_reads_little_at_once_for_all_that() {
        let began = Instant::now();
        let mut pace = Pace::new(RATE_MIN, began);

        pace.pass(began + Duration::from_secs(60));

        assert!(pace.allowed().is_ok());
        assert!(pace.bytes <= READ_MAX);
    }

    #[tokio::test]
    async fn reading_is_slow_above_the_limit_and_at_full_speed_below() {
        let bodies = Bodies::new(LIMIT, LIMIT, 1);
        let mut brake = Brake::new(bodies.clone());
        let mut claim = bodies.account().claim(2 * LIMIT as u64).unwrap();
        claim.came(2 * LIMIT);
        let mut allowed = async || std::future::poll_fn(|context| brake.poll_allowed(context, || true)).await;

        let slow = allowed().await;
        drop(claim);
        let fast = allowed().await;

        assert!((1..=READ_MAX as usize).contains(&slow), "{slow}");
        assert_eq!(fast, usize::MAX);
        assert!(bodies.slowed() > Duration::ZERO);
    }

    #[tokio::test]
    async fn nothing_is_read_slowly_while_a_consumer_opens() {
        let bodies = Bodies::new(LIMIT, LIMIT, 1);
        let mut claim = bodies.account().claim(2 * LIMIT as u64).unwrap();
        claim.came(2 * LIMIT);

        let opening = bodies.opening();
        let while_it_opens = bodies.is_over();
        drop(opening);

        assert!(!while_it_opens);
        assert!(bodies.is_over());
    }

    #[tokio::test]
    async fn what_is_not_kept_is_read_at_full_speed() {
        let bodies = Bodies::new(LIMIT, LIMIT, 1);
        let mut brake = Brake::new(bodies.clone());
        let mut claim = bodies.account().claim(2 * LIMIT as u64).unwrap();
        claim.came(2 * LIMIT);

        let allowed = std::future::poll_fn(|context| brake.poll_allowed(context, || false)).await;

        assert_eq!(allowed, usize::MAX);
    }
}
