//! What the worker tells of itself: metrics, traces, health and logs.

pub mod about;
pub mod export;
pub mod health;
pub mod log;
pub mod metrics;
pub mod server;
pub mod trace;
