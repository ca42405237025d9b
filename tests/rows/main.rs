//! Is what the graph says of a model's rows true? Brute force is the judge: each row alone, and the same row among neighbours.
//!
//! A model that is proven independent must give every row the same answer in any company. What is independent and not proven
//! costs speed only; how much of that there is, is counted and printed (`cargo test --test rows -- --nocapture`).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod graph;
mod judge;
mod node_tests;
mod random_graphs;
mod tally;
