//! Stateless workers that take prediction jobs off RabbitMQ, batch them, run ONNX models and reply.

pub mod cli;
pub mod config;
pub mod model;
pub mod wire;
pub mod worker;
