//! The doors: guests come in by `nbd`, operators by `admin`. What all guests' sessions share is in `session`; gate 1 is in
//! `gate`. `switch` is the way in to a volume whoever serves it; `roads` says what it needs to reach other nodes, and `forward` does it.

pub mod admin;
#[cfg(test)]
mod fakes;
pub mod forward;
pub mod gate;
pub mod nbd;
pub mod roads;
pub mod session;
pub mod switch;
