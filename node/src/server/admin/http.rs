//! The HTTP thread: one runtime, one listener, a bounded number of connections.
//!
//! This is the one thread a node starts outside its environment. It touches no node state: a request leaves through the
//! channel, metrics are atomics. So the simulator does without it and loses nothing of the node's decisions.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::Duration,
};

use futures_util::future::{Either, select};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinSet,
};
use tracing::debug;

use super::{
    channel::{self, Inbox},
    routes,
};
use crate::{limits::ADMIN_CONNECTIONS_MAX, metrics::Metrics};

/// Longest request head, most headers of it: larger than any scraper's, smaller than any flood's.
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;

/// How long a caller may take.
#[derive(Clone, Copy, Debug)]
pub struct AdminLimits {
    /// For the request's head.
    pub head_deadline: Duration,
    /// For its body.
    pub body_deadline: Duration,
}

impl Default for AdminLimits {
    fn default() -> Self {
        Self { head_deadline: Duration::from_secs(10), body_deadline: Duration::from_secs(10) }
    }
}

/// Why the admin door did not open.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address} for operators: {error}; free the address or set another admin.listen")]
    Listen {
        /// The address asked for.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// The thread or its runtime could not be had.
    #[error("cannot start the admin thread: {0}; look at the process limits")]
    Thread(io::Error),
}

/// The bound address of a door that does not serve yet: whoever comes waits.
#[derive(Debug)]
pub struct AdminListener {
    listener: TcpListener,
    address: SocketAddr,
}

impl AdminListener {
    /// Binds `address`: before a node is started, so that an address in use is told before anything is changed.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn bind(address: &str) -> Result<Self, AdminError> {
        let refused = |error| AdminError::Listen { address: address.to_owned(), error };
        let listener = TcpListener::bind(address).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Self { listener, address })
    }
}

/// The running door. Dropping it closes it.
pub struct AdminServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl AdminServer {
    /// Serves until dropped. What is asked comes out of the inbox: give it to [`super::answer`].
    ///
    /// # Errors
    /// When a thread cannot be had.
    pub fn start(
        listener: AdminListener,
        metrics: Arc<Metrics>,
        limits: AdminLimits,
    ) -> Result<(Self, Inbox), AdminError> {
        let AdminListener { listener, address: bound } = listener;
        let (outbox, inbox) = channel::channel();
        let router = routes::router(outbox, metrics, limits, bound.ip().is_loopback());
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
        let runtime = runtime.map_err(AdminError::Thread)?;
        let serve = async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => serve(listener, router, limits, stopped).await,
                Err(error) => tracing::error!(%error, "the admin door stays closed"),
            }
        };
        let thread = thread::Builder::new().name("velum-admin".to_owned()).spawn(move || runtime.block_on(serve));
        Ok((Self { address: bound, stop: Some(stop), thread: Some(thread.map_err(AdminError::Thread)?) }, inbox))
    }

    /// The address bound, with the port chosen when port 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so; there is nothing left to close.
            let _ = thread.join();
        }
    }
}

/// Accepts until stopped; then connections end where they are.
async fn serve(
    listener: tokio::net::TcpListener,
    router: axum::Router,
    limits: AdminLimits,
    mut stopped: oneshot::Receiver<()>,
) {
    let slots = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accept = async {
            let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
            (slot, listener.accept().await)
        };
        let accept = std::pin::pin!(accept);
        let Either::Right(((slot, accepted), _)) = select(&mut stopped, accept).await else { return };
        match accepted {
            Ok((stream, _)) => {
                let router = router.clone();
                connections.spawn(async move {
                    connection(stream, router, limits).await;
                    drop(slot);
                });
            }
            Err(error) => accept_failed(&error).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

/// One caller, from its first byte to its last.
async fn connection(stream: tokio::net::TcpStream, router: axum::Router, limits: AdminLimits) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_deadline)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        debug!(%error, "an operator's connection ended early");
    }
}

/// Most likely out of file descriptors: connections that end free some.
async fn accept_failed(error: &io::Error) {
    tracing::warn!(%error, "cannot accept an operator's connection");
    #[expect(clippy::disallowed_methods, reason = "HTTP runs outside the environment, on its own real runtime")]
    tokio::time::sleep(Duration::from_millis(100)).await;
}
