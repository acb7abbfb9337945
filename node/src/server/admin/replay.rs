//! A repeated request gets the first one's outcome.
//!
//! A caller that lost the connection cannot know whether its request was carried out. When it gave the request a name of its
//! own (`Idempotency-Key`), it may send it again under that name. Names are remembered by this process only, the last
//! [`ADMIN_REPLAYS_MAX`] of them; across restarts the caller looks at what there is.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use velum_protocol::admin::{Problem, ProblemKind, Request};

use super::channel::{Outbox, Outcome, stopping};
use crate::limits::ADMIN_REPLAYS_MAX;

/// Longest name of a request.
const KEY_BYTES_MAX: usize = 64;

/// An outcome that several callers wait for.
pub(super) type Awaited = Shared<BoxFuture<'static, Arc<Outcome>>>;

struct Remembered {
    key: String,
    request: Request,
    outcome: Awaited,
}

/// The requests that were given names, oldest first.
#[derive(Default)]
pub(super) struct Replay(Mutex<VecDeque<Remembered>>);

impl Replay {
    /// Asks the node, or joins in waiting for what was asked before under the same key.
    pub(super) fn ask(&self, outbox: &Outbox, key: Option<&str>, request: Request) -> Result<Awaited, Problem> {
        let Some(key) = key else { return start(outbox, request) };
        if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let detail = "the Idempotency-Key is malformed";
            return Err(Problem::new(ProblemKind::Invalid, detail, "use 1 to 64 visible ASCII characters"));
        }
        let mut remembered = self.0.lock().expect("no thread panics while it holds the remembered requests");
        if let Some(earlier) = remembered.iter().find(|earlier| earlier.key == key) {
            if earlier.request == request {
                return Ok(earlier.outcome.clone());
            }
            let detail = "the Idempotency-Key was used for another request";
            return Err(Problem::new(ProblemKind::Conflict, detail, "use a new key for each request"));
        }
        let outcome = start(outbox, request.clone())?;
        if remembered.len() >= ADMIN_REPLAYS_MAX {
            remembered.pop_front();
        }
        remembered.push_back(Remembered { key: key.to_owned(), request, outcome: outcome.clone() });
        Ok(outcome)
    }
}

fn start(outbox: &Outbox, request: Request) -> Result<Awaited, Problem> {
    // Until there are tokens, every operator is whoever may reach the port, and has the same name as a guest from there.
    let outcome = outbox.ask("anonymous", request)?;
    Ok(outcome.map(|outcome| Arc::new(outcome.unwrap_or_else(|_| Err(stopping())))).boxed().shared())
}
