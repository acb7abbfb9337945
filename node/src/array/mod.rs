//! The cloud array application: from dirty extents to sealed copies in the clouds, and back.
//!
//! [`flush`] moves windows of the cache into the sequence, [`sequence`] brings the sequence to every cloud, [`checkpoint`] saves
//! the extent map, [`reclaim`] deletes what nothing refers to any more, [`compact`] empties segments that are mostly dead for
//! it, [`catalogue`] publishes what a recovery must know first, [`repair`] stores segments again that a read found lost, and
//! [`recover`] makes a cluster of clouds alone. [`VolumeArray`] wires the first five for one volume.
//!
//! What holds in every cloud at every instant: what is there refers only to what is there too. Everything is stored in an
//! order that keeps this, and deleted in the opposite one.

pub mod catalogue;
pub mod checkpoint;
pub mod closure;
pub mod compact;
pub mod context;
pub mod copies;
pub mod flush;
pub mod life;
mod numbers;
pub mod reclaim;
pub mod recover;
pub mod repair;
pub mod sequence;
mod shelf;
mod volume;

pub use catalogue::Catalogue;
pub use context::{ArrayContext, ArraySettings};
pub use volume::{CloudLag, Fenced, VolumeArray, VolumeArrayStatus};
