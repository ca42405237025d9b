//! Stateless workers that take prediction jobs off RabbitMQ, batch them, run ONNX models and reply.
//!
//! What it does and promises is in `README.md`. This page is for whoever reads the code: follow one job by reading the six
//! files of its way, in this order.
//!
//! # The map
//! ```text
//! queue → consume → decode → batch → infer → reply → settle → queue
//!         Delivery   Job      Batch   Answers confirmed Verdict
//! ```
//!
//! | file | takes → gives | what is true only here |
//! |---|---|---|
//! | `src/main.rs` | arguments → exit code | calls one function of `src/cli/`, prints the error chain; no logic |
//! | `src/worker/consume.rs` | queue → `Delivery` | the only stage that watches the stop token; a channel is a generation |
//! | `src/worker/decode.rs` | `Delivery` → `Job` | pure; after it nobody checks a shape again |
//! | `src/worker/batch.rs` | jobs → `Batch` | a pure rule, and one small loop that never waits for a batch to fill |
//! | `src/worker/infer.rs` | `Batch` → answers | the `Engine` trait; a batch that fails is run in halves, on an OS thread |
//! | `src/worker/reply.rs` | answers → confirmed | the one publishing task |
//! | `src/worker/settle.rs` | `Receipt` + `Verdict` → ack | the only file that acks; started by `consume`, one for each channel |
//! | `src/worker/mod.rs` | | wiring: builds the other stages and joins them; the only file that knows them all |
//!
//! Beside the way, where a stage needs more than a file: `src/worker/onnx.rs` (with its folder the only one that names
//! `ort`), `src/worker/hardware.rs` (which device), `src/worker/rows_limit.rs` (fewer rows a run when memory is short),
//! `src/worker/lane_rows.rs` (whether rows of several jobs share a run, until one shows otherwise),
//! `src/worker/row_headers.rs` (and what results say of it), `src/worker/outputs.rs` (a run's outputs, cut into rows and
//! encoded), `src/worker/plan.rs` (what is published for a job and what its fate means), `src/worker/message.rs`
//! (replies and dead letters), `src/worker/publish_queue.rs` (what is to be published), `src/worker/flight.rs` and
//! `src/worker/unconfirmed.rs` (confirms and returns, matched to their messages), `src/worker/refusing.rs` (what is held back
//! for queues that take nothing), `src/worker/trial.rs` (one message to such a queue), `src/worker/sift.rs` (which message
//! the broker closed the channel for), `src/worker/load.rs` (from files to engines), `src/worker/isolate.rs` (a job that came
//! back, in a process of its own), `src/worker/watch.rs` (runs that take too long), `src/worker/turns.rs` (which model
//! runs next), `src/worker/prefetch.rs` (how much is taken ahead), `src/worker/backlog.rs` (how much waits),
//! `src/worker/pace.rs` (how fast the worker is, and so how long that takes),
//! `src/worker/coalesce.rs` (fewer wake-ups under load).
//!
//! For tests only: `src/worker/simulation/`, which runs these rules against a model broker in schedules drawn from seeds.
//!
//! Deliveries, replies and their confirms go past the AMQP client: `src/broker/frames.rs` writes and reads their frames,
//! `src/broker/post.rs` carries them, `src/broker/stream.rs` is where they meet what the client writes and reads, and
//! `src/broker/bodies.rs` bounds the bytes of their bodies; what found no room waits in `src/worker/aside.rs`.
//!
//! Around it: `src/wire/` the messages; `src/broker/` connections and topology; `src/model/` what a repository holds, `src/model/onnx/`
//! the reader of ONNX files and `src/model/rows/` the proof that rows are independent on it;
//! `src/client/` the producer's side; `src/cli/` one file a subcommand; `src/telemetry/` metrics, traces, health, logs;
//! `src/config.rs` and `src/error.rs` one home each.
//!
//! A failure takes the same road: from decode, batch or infer it goes on to reply as an error reply, and to settle with its
//! verdict.
//!
//! # The five invariants
//! 1. A delivery is settled at most once, and exactly once unless the worker is stopping or its channel is lost:
//!    `in_any_order_and_with_any_flushes_each_tag_gets_its_own_verdict_once`,
//!    `a_receipt_of_an_old_generation_settles_nothing`, `sigterm_under_load_loses_nothing_and_answers_nothing_twice`.
//! 2. It is acked only after the broker confirmed its reply or its dead letter; so a reply may come twice, and carries the
//!    job's id: `held_replies_go_back_when_the_connection_is_lost`,
//!    `a_return_is_blamed_on_its_own_message_whichever_confirm_carries_it`,
//!    `a_broker_that_is_killed_under_load_loses_nothing`, `sigkill_under_load_loses_nothing_and_what_comes_back_runs_alone`.
//! 3. Output rows return to the job they came from: `every_job_leaves_in_one_batch_once_and_in_order`,
//!    `two_hundred_producers_at_once_each_get_the_answers_to_their_own_rows`,
//!    `a_job_with_more_rows_than_a_batch_holds_is_answered_once_with_its_rows_in_order`.
//! 4. Every queue, wait, payload and retry has a limit, from [`config::Config`] or stated as a constant:
//!    `a_body_over_the_limit_is_refused_with_its_length_and_the_limit`, `a_batch_never_has_more_rows_than_allowed`,
//!    `a_job_for_which_memory_never_suffices_is_given_up_at_the_delivery_limit`,
//!    `a_worker_that_cannot_finish_in_time_gives_its_jobs_back`, `an_input_takes_no_more_memory_than_stated`.
//! 5. A stage knows its neighbours' types, never its neighbours: `no_stage_starts_another_but_consume_its_settler`.

pub mod worker;

pub mod wire;

pub mod broker;
pub mod model;

pub mod client;

pub mod cli;
pub mod telemetry;

pub mod config;
pub mod error;

#[cfg(test)]
mod map_tests;

/// Compiles what the README shows in Rust.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
