//! The doors: guests come in by `nbd`, operators by `admin`. What all guests' sessions share is in `session`; gate 1 is in
//! `gate`. Volumes of other nodes are reached by `forward`, and `switch` is the way in to a volume whoever serves it.

pub mod admin;
#[cfg(test)]
mod fakes;
pub mod forward;
pub mod gate;
pub mod nbd;
pub mod session;
pub mod switch;
