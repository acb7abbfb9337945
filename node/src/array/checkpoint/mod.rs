//! Checkpoints: the extent map saved in the clouds.
//!
//! [`machine`] decides, [`shell`] performs: [`draft`] makes and stores a new one, [`publish`] gives a cloud the newest one.

pub(crate) mod draft;
pub mod machine;
pub(crate) mod orphans;
pub(crate) mod publish;
pub(crate) mod shell;
