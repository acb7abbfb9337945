//! Accepts NBD connections and runs a session for each.
//!
//! No volume is opened for a connection before it has chosen an export, so a client that connects and leaves costs a
//! greeting. Connections past the node's bound are closed at once.

use std::{cell::Cell, rc::Rc, time::Duration};

use futures_util::FutureExt;

use super::session::{End, Surroundings, serve};
use crate::{
    actor,
    audit::Throttle,
    env::{Env, Listener, PeerIdentity, Stream, network::Address},
    limits::SESSION_STOP_MAX,
    metrics::RefusedInput,
    server::session::{Sessions, principal},
};

/// Pause after a failed accept, so that a lack of file descriptors is not answered by spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening NBD door.
pub struct NbdDoor {
    address: Address,
    own: Rc<Own>,
}

struct Own {
    env: Env,
    around: Surroundings,
    sessions: Rc<Sessions>,
    closed: Cell<bool>,
    bell: tokio::sync::Notify,
    throttle: Throttle,
}

/// Serves whoever comes to `listener`, and has come since it was bound, until the door is stopped. So a node can bind first,
/// when it has changed nothing yet, and let guests in last. `sessions` may be shared by several doors.
#[must_use]
pub fn open(env: &Env, listener: Rc<dyn Listener>, around: Surroundings, sessions: Rc<Sessions>) -> NbdDoor {
    let address = listener.address();
    let own = Rc::new(Own {
        env: env.clone(),
        around,
        sessions,
        closed: Cell::new(false),
        bell: tokio::sync::Notify::new(),
        throttle: Throttle::default(),
    });
    actor::spawn(accept(Rc::clone(&own), listener));
    NbdDoor { address, own }
}

impl NbdDoor {
    /// Where it listens, with the port that was chosen when port 0 was asked for.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// Lets nobody in any more, lets every session finish what is in flight, and gives up waiting after
    /// [`SESSION_STOP_MAX`].
    pub async fn stop(&self) {
        self.own.closed.set(true);
        self.own.bell.notify_one();
        self.own.sessions.stop();
        let mut late = self.own.env.clock.sleep(SESSION_STOP_MAX).fuse();
        let mut drained = std::pin::pin!(self.own.sessions.drained().fuse());
        futures_util::select_biased! {
            () = drained => {}
            () = late => tracing::warn!(sessions = self.own.sessions.count(), "sessions did not end in time"),
        }
    }
}

/// The loop that accepts; the listening socket closes with it.
async fn accept(own: Rc<Own>, listener: Rc<dyn Listener>) {
    while !own.closed.get() {
        let mut closed = std::pin::pin!(own.bell.notified().fuse());
        let mut accepted = listener.accept().fuse();
        let accepted = futures_util::select_biased! {
            () = closed => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => welcome(&own, stream, peer),
            Err(error) => {
                if let Some(held_back) = own.throttle.admit(own.env.clock.now()) {
                    tracing::warn!(%error, held_back, "cannot accept a connection");
                }
                own.env.clock.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn welcome(own: &Rc<Own>, stream: Box<dyn Stream>, peer: PeerIdentity) {
    let Some(ticket) = own.sessions.open() else {
        own.around.metrics.nbd.refused_inputs.of(RefusedInput::Limit).inc();
        if let Some(held_back) = own.throttle.admit(own.env.clock.now()) {
            tracing::warn!(held_back, "too many connections, or stopping: a connection was closed");
        }
        return;
    };
    let own = Rc::clone(own);
    actor::spawn(async move {
        let principal = principal(&peer);
        let sessions = &own.around.metrics.nbd.sessions;
        sessions.inc();
        let end = serve(&own.around, &ticket, &principal, stream).await;
        sessions.dec();
        report(&own, &end, &principal.0);
    });
}

/// One line per session that ended by somebody's fault, within the throttle; nothing a client sent is in it.
fn report(own: &Own, end: &End, principal: &str) {
    if end.refused_input().is_none() {
        tracing::debug!(%end, principal, "NBD session over");
    } else if let Some(held_back) = own.throttle.admit(own.env.clock.now()) {
        tracing::warn!(%end, principal, held_back, "NBD session cut off");
    }
}

#[cfg(test)]
mod tests;
