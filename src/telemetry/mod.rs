//! What the worker tells of itself: metrics, health and logs.

pub mod health;
pub mod log;
pub mod metrics;
pub mod server;
