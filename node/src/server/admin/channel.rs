//! The bounded way from the HTTP thread to the node's thread and back.

use std::rc::Rc;

use tokio::sync::{Semaphore, mpsc, oneshot};
use velum_protocol::admin::{Problem, ProblemKind, Request, Response};

use super::Backend;
use crate::{
    actor,
    limits::{ADMIN_FLUSHES_MAX, ADMIN_REQUESTS_MAX},
};

/// What is sent back.
pub(super) type Outcome = Result<Response, Problem>;

/// The HTTP thread's end: asks.
#[derive(Clone)]
pub(super) struct Outbox(mpsc::Sender<Asked>);

/// The node's end: what was asked and waits for an answer.
pub struct Inbox(mpsc::Receiver<Asked>);

struct Asked {
    principal: &'static str,
    request: Request,
    reply: oneshot::Sender<Outcome>,
}

/// Both ends. When the node falls behind by more requests than fit, further ones are told that it is busy.
pub(super) fn channel() -> (Outbox, Inbox) {
    let (sender, receiver) = mpsc::channel(ADMIN_REQUESTS_MAX);
    (Outbox(sender), Inbox(receiver))
}

impl Outbox {
    /// Hands a request to the node; the outcome comes through the receiver.
    pub(super) fn ask(&self, principal: &'static str, request: Request) -> Result<oneshot::Receiver<Outcome>, Problem> {
        let (reply, outcome) = oneshot::channel();
        self.0.try_send(Asked { principal, request, reply }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => Problem::new(
                ProblemKind::Busy,
                "the node has too many requests of operators to answer",
                "ask again later",
            ),
            mpsc::error::TrySendError::Closed(_) => stopping(),
        })?;
        Ok(outcome)
    }
}

/// The node goes away before it answered.
pub(super) fn stopping() -> Problem {
    Problem::new(
        ProblemKind::Unavailable,
        "the node is stopping",
        "start it again, then ask what became of the request",
    )
}

/// Answers what comes in until the HTTP thread ends. Requests run beside each other; flushes, which wait for clouds, are
/// counted apart so that they cannot keep an operator from looking at the node.
pub async fn answer(mut inbox: Inbox, backend: Rc<dyn Backend>) {
    let (requests, flushes) = (Rc::new(Semaphore::new(ADMIN_REQUESTS_MAX)), Rc::new(Semaphore::new(ADMIN_FLUSHES_MAX)));
    while let Some(Asked { principal, request, reply }) = inbox.0.recv().await {
        let waits_for_clouds = matches!(request, Request::FlushVolume { .. } | Request::CheckClouds);
        let permits = Rc::clone(if waits_for_clouds { &flushes } else { &requests });
        let backend = Rc::clone(&backend);
        actor::spawn(async move {
            let outcome = match permits.try_acquire() {
                Ok(_permit) => backend.handle(principal, request).await,
                Err(_) => {
                    let detail = "too many requests of this kind are under way";
                    Err(Problem::new(ProblemKind::Busy, detail, "wait for one of them to end"))
                }
            };
            // The caller may have gone; what was done stays done.
            let _ = reply.send(outcome);
        });
    }
}
