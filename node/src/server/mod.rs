//! The doors: guests come in by `nbd`, operators by `admin`. What all guests' sessions share is in `session`; gate 1 is in
//! `gate`. `switch` is the way in to a volume whoever serves it.

pub mod admin;
#[cfg(test)]
mod fakes;
pub mod gate;
pub mod nbd;
pub mod session;
pub mod switch;
