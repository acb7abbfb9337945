//! Small-scope models: every way in which the shipped machines can come through a few writes, grants and crashes, not some of
//! them under a seed.
//!
//! A system is made of machines that ship, stepped as their shells step them, and of what lies around them in its simplest
//! form: frames on their way, a disk that loses what was not synced, raft as one log. [`explore`] takes it through all of its
//! states. A [`journal::Scope`] bounds how often each thing may happen, so that there is an end to them.

pub mod explore;
pub mod journal;
pub mod planted;
pub mod print;
