//! What `models/` holds: the repository's layout, signatures, golden vectors, and whether rows may share a run.

pub mod batching;
mod compare;
pub mod digest;
pub mod golden;
mod probe_rows;
pub mod proof;
pub mod repository;
pub mod settings;
pub mod signature;
#[cfg(test)]
pub mod test_engine;

pub use compare::{Deviation, Tolerance};
