//! Object stores behind one type: what is policy about them is here, what is a request is in `env::cloud`.
//!
//! A [`Cloud`] is a store with layers around it (retry, identity, admission, counting, deadline) and verification of what was
//! stored.
//! A [`Fetcher`] reads from whichever cloud is best and gives out only what it has verified. Nothing here knows what a
//! volume's metadata says; callers own the long loops, for they know whether a request still matters.

mod admission;
mod attempts;
pub mod fetch;
pub mod governor;
pub mod identity;
mod layer;
mod one;
mod set;

pub use fetch::{FetchError, Fetcher};
pub use one::{Cloud, CloudError, Health};
pub use set::{CloudSet, OpenCloudError};
