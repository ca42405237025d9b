//! The messages: what a job and a reply look like on the wire (DESIGN, section 2).
//!
//! Everything here is pure: bytes in, values out. It knows nothing of models, brokers or sessions.

pub mod tensor;
