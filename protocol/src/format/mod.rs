//! Byte layouts of everything stored: journal, raft state, cloud objects, key slots, cache files.
//!
//! Each stored thing starts with a magic and a version in the clear; what follows is drawn in `docs/format.md`.

pub mod bind;
pub mod boot;
pub mod cache_file;
pub mod catalogue;
pub mod checkpoint;
pub mod claim;
pub mod journal;
pub mod location;
pub mod metadata;
pub mod object;
pub mod page;
pub mod promise;
pub mod raft;
pub mod reach;
pub mod reader;
pub mod record;
pub mod segment;
pub mod sequence;
pub mod slot;
