//! The sequence in the clouds: every cloud's copy at its own cursor.
//!
//! [`machine`] decides which cloud gets which records when, [`shell`] brings them there.

pub mod machine;
pub(crate) mod shell;
