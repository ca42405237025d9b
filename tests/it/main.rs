//! The contract, proved from outside: real workers, a real broker, real models.
//!
//! One module per question. A test states what the contract promises, never what the code happens to do; bodies are
//! built and read by `support::body`, which shares nothing with the crate. Each test has a prefix of its own on one
//! broker that this process starts; a test that harms its broker starts another.

mod addresses;
mod bench;
mod bodies;
mod capacity;
mod chaos;
mod client;
mod cluster;
mod confirms;
mod contract;
mod dead;
mod demo;
mod dialects;
mod exit_codes;
mod faults;
mod happy;
mod held_back;
mod isolation;
mod models;
mod network;
mod observability;
mod overload;
mod page;
mod poison;
mod predict;
mod producers;
mod readme;
mod repository;
mod scaling;
mod seconds;
mod security;
mod startup;
mod starved;
mod status;
mod stop;
mod support;
mod telemetry;
mod topology_cli;
mod tracing;
