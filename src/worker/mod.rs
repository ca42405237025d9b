//! The worker: from a queue to a confirmed reply.

pub mod infer;
pub mod onnx;
