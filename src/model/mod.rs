//! What `models/` holds: the repository's layout, signatures and golden vectors.

pub mod signature;
