//! The `velum` command as an operator meets it: the real binary in processes of its own, against local directories and
//! loopback. What is promised of it is exit code, stdout, stderr and what is left on disk.
#![expect(clippy::disallowed_methods, reason = "a test of processes waits in real time and reads the real disk")]

// Marked as tests, so that the lints let them fail as tests do.
#[cfg(test)]
mod admin_api;
#[cfg(test)]
mod bench;
#[cfg(test)]
mod cluster;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod first_run;
#[cfg(test)]
mod inspect;
#[cfg(test)]
mod living;
#[cfg(test)]
mod nbd;
#[cfg(test)]
mod nodes;
