//! The operator's door: JSON over HTTP, and `/metrics`.
//!
//! HTTP runs on a thread of its own with its own runtime, so that a slow or hostile client takes nothing from the guests.
//! What is asked passes through a bounded [`channel`](mod@channel) to the node's thread, where a [`Backend`] answers it; `/metrics` is
//! answered without the node. The door decides nothing but whether a request is well-formed and comes from this machine's
//! operator: over loopback it needs no token, but a foreign `Host` or `Origin` is refused, so that no web page can reach it
//! through the operator's browser. It holds no state that matters: after a crash it starts empty.

mod channel;
mod guard;
mod http;
mod replay;
mod routes;
#[cfg(test)]
mod tests;

pub use channel::{Inbox, answer};
pub use http::{AdminError, AdminLimits, AdminListener, AdminServer};
use velum_protocol::admin::{Problem, Request, Response};

use crate::env::Local;

/// Answers what operators ask; lives on the node's thread.
pub trait Backend {
    /// Does one thing for `principal`.
    fn handle(&self, principal: &str, request: Request) -> Local<Result<Response, Problem>>;
}
