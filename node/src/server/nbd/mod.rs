//! The NBD door: fixed newstyle handshake, then requests, many in flight and answered out of order.
//!
//! [`handshake`] and [`transmission`] are pure: bytes in, decisions and bytes out; [`judge`] holds the rules for requests.
//! [`session`] drives the two over one stream, [`listener`] accepts. What is offered and how it is done stands in `docs/nbd.md`; how bad input is answered, in the
//! tests of the two machines.

pub mod handshake;
pub mod judge;
pub mod listener;
pub mod outgoing;
pub mod session;
pub mod transmission;

pub use listener::{NbdDoor, open};
