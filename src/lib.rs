//! Stateless workers that take prediction jobs off RabbitMQ, batch them, run ONNX models and reply.

pub mod worker;

pub mod wire;

pub mod broker;
pub mod model;

pub mod client;

pub mod cli;
pub mod telemetry;

pub mod config;
pub mod error;
