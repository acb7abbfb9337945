//! Compaction: moving live blocks out of mostly dead segments, so that those can be reclaimed.
//!
//! [`machine`] decides when and out of which, [`shell`] reads, seals and stores, [`moves`] keeps what still lies where it was
//! found. The record goes into the sequence by way of the flush, which alone appends.

pub mod machine;
pub mod moves;
pub(crate) mod shell;
