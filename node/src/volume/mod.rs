//! The life of one volume on this node.
//!
//! [`Volume`] is the way in, for sessions (`messages::Door`) and for the cloud array application (`messages::FlushPort`). Behind it, `machine` decides and
//! `shell` performs; `buffer` holds what is dirty, `budget` bounds it over all volumes of the node, `replay` brings it back
//! after a crash.

mod ahead;
mod blocks;
pub mod budget;
pub mod buffer;
mod flush;
mod gather;
mod journaled;
mod judged;
pub mod machine;
pub mod messages;
mod read;
pub mod replay;
pub mod sealing;
mod shell;
mod write;

pub use shell::{
    FrameSource, JournalFailed, OnWritten, OpenVolumeError, Opening, Records, Replayed, Submitted, Volume,
};

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "marks and small offsets of a test device")]
mod tests;
