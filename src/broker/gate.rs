//! A gate before the socket: what is published together leaves together.
//!
//! The client writes on a thread of its own, which the first of many messages wakes up. It would write that one, go back to
//! sleep and be woken by the next: two changes of thread, a write and a packet for a message. While the gate is shut that
//! thread waits at it, so that it finds the whole batch when it comes through.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

/// One of a connection's two threads is at the gate at a time; clones are the same gate.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<Mutex<()>>);

impl Gate {
    /// Waits until the gate is open.
    pub fn pass(&self) {
        // Nothing is in it that a panic could have left half done.
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Runs `work`, and shuts the gate whenever it goes on. It must not wait for the writing thread in any other way than
    /// by being pending.
    pub async fn shut_during<F: Future>(&self, work: F) -> F::Output {
        let mut work = pin!(work);
        std::future::poll_fn(|context| {
            let _shut = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            work.as_mut().poll(context)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn nobody_passes_while_the_work_goes_on_and_anybody_while_it_waits() {
        let gate = Gate::default();
        let (passed, log) = mpsc::channel();
        let (at_the_gate, arrived) = mpsc::channel();
        let writer = gate.clone();
        let mut polls = 0;

        let seen = gate.shut_during(std::future::poll_fn(|context| {
            polls += 1;
            if polls == 1 {
                let (writer, passed, at_the_gate) = (writer.clone(), passed.clone(), at_the_gate.clone());
                let waker = context.waker().clone();
                std::thread::spawn(move || {
                    let _ = at_the_gate.send(());
                    writer.pass();
                    let _ = passed.send(());
                    waker.wake();
                });
                arrived.recv().unwrap();
                assert!(log.try_recv().is_err(), "passed a gate that was shut");
                return std::task::Poll::Pending;
            }
            std::task::Poll::Ready(log.try_recv())
        }));

        assert_eq!(seen.await, Ok(()));
        assert_eq!(polls, 2);
    }
}
