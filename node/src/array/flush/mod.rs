//! The flush: moving dirty extents, sealed, to the clouds.
//!
//! A window is cut off, let through by gate 3 ([`grant`]), cut into segments ([`cut`]), sealed and stored on enough clouds,
//! and at last appended to the volume's sequence. [`machine`] decides, [`shell`] performs.

pub mod cut;
pub(crate) mod grant;
pub mod machine;
pub(crate) mod relocate;
pub(crate) mod shell;
