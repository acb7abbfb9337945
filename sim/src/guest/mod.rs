//! Guests: what uses a volume over its door, and remembers what it was told.

pub mod connection;
pub(crate) mod parts;
pub mod pattern;
pub mod workload;
