//! Everything a node asks of the world outside it: time, chance, disks, networks, clouds and CPU jobs.
//!
//! [`Env`] is given to constructors and is never a global. `env::real` performs it on this machine, the simulator on a
//! world of its own; the node's code is the same in both. All futures are local to the node's thread.

use std::rc::Rc;

pub mod clock;
pub mod cloud;
pub mod compute;
pub mod disk;
pub mod entropy;
pub mod map;
pub mod network;
pub mod real;

pub use clock::{Clock, Instant, WallTime};
pub use cloud::{CloudStore, CloudStoreError, Clouds};
pub use compute::{Compute, Urgency};
pub use disk::{Disk, File, OpenMode};
pub use entropy::Entropy;
pub use map::FixedMap;
pub use network::{Credentials, Listener, Network, PeerIdentity, Stream};

/// A future that stays on the thread it was made on.
pub type Local<T> = futures_util::future::LocalBoxFuture<'static, T>;

/// The world as one node sees it.
#[derive(Clone)]
pub struct Env {
    /// Monotonic time, sleeping, and wall time for display only.
    pub clock: Rc<dyn Clock>,
    /// Fresh random bytes for keys, nonces and ids.
    pub entropy: Rc<dyn Entropy>,
    /// Local files.
    pub disk: Rc<dyn Disk>,
    /// Listening and streams.
    pub network: Rc<dyn Network>,
    /// Object stores, opened by URL.
    pub clouds: Rc<dyn Clouds>,
    /// CPU-heavy jobs off the node's thread.
    pub compute: Rc<dyn Compute>,
}
