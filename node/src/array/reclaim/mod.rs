//! Reclaim: deleting what nothing refers to any more.
//!
//! [`machine`] decides by the ledger that Raft keeps, [`shell`] deletes. Volumes that are deleted as a whole are [`retire`]d.

pub mod machine;
pub(crate) mod records;
pub mod retire;
mod roots;
pub(crate) mod shell;
