//! Every byte that leaves a Velum process or outlives it.
//!
//! Pure encoding and decoding: no I/O, no clock, no randomness, no secrets. Decoders are total: they bound a length
//! before they allocate for it, never panic, and answer bad bytes with a typed error. The layouts are drawn in
//! `docs/format.md`; golden files in `protocol/tests/golden` hold every released version.

pub mod admin;
pub mod checksum;
pub mod codec;
pub mod format;
pub mod id;
pub mod invitation;
pub mod nbd;
pub mod peer;
pub mod version;
