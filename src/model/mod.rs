//! What `models/` holds: the repository's layout, signatures, golden vectors, whether rows may share a run, and how long
//! runs take.

pub mod batching;
pub mod capacity;
pub(crate) mod compare;
pub mod digest;
pub mod golden;
pub mod onnx;
mod probe_rows;
pub mod proof;
pub mod repository;
mod row_trial;
pub mod rows;
pub mod settings;
pub mod signature;
pub mod sniff;
#[cfg(test)]
pub mod test_engine;
pub mod timing;
pub mod unsteady;

pub use compare::{Deviation, Tolerance};
