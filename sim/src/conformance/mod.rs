//! What every environment must do, one suite per trait of `velum_node::env`.
//!
//! The same functions run on the real environment and on the simulated one: what the simulator promises the node is then
//! what the machine keeps. A suite panics at the first thing that is not as it should be, and says what.

pub mod clock;
pub mod clouds;
pub mod compute;
pub mod disk;
pub mod entropy;
pub mod network;
