//! Object stores. This folder is the only place that names `object_store` and its HTTP client.
//!
//! Requests run on tokio runtimes with threads of their own: signing, TLS and hashing a body never hold up the node's thread.
//! What fetches has a runtime, for a guest may wait for it; what stores and deletes has another one that yields to guests.
//! Dropping a request's future cancels the request.

mod errors;
mod http;
mod open;
mod store;

use std::{collections::BTreeMap, future::Future, io, pin::Pin, rc::Rc, sync::Arc, task};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinHandle,
};

use super::priority;
use crate::env::{CloudStore, CloudStoreError, Clouds, Local, Urgency};

/// Threads that run requests of each urgency.
const THREADS: usize = 2;

pub(super) struct RealClouds(Arc<Threads>);

impl RealClouds {
    pub(super) fn start() -> io::Result<Self> {
        Ok(Self(Arc::new(Threads {
            guest: Some(runtime("cloud-get", || ())?),
            background: Some(runtime("cloud-put", priority::yield_to_guests)?),
        })))
    }
}

impl Clouds for RealClouds {
    fn open(&self, url: &str, options: &BTreeMap<String, String>) -> Result<Rc<dyn CloudStore>, CloudStoreError> {
        let opened = open::open(url, options)?;
        Ok(Rc::new(store::Store::new(opened, Arc::clone(&self.0))))
    }
}

fn runtime(name: &str, begin: fn()) -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(THREADS).thread_name(name).on_thread_start(begin).enable_all().build()
}

/// The runtimes of the requests.
struct Threads {
    guest: Option<Runtime>,
    background: Option<Runtime>,
}

impl Threads {
    /// Starts `work`; dropping what is given cancels it. `None` when the runtime is going down.
    fn run<T: Send + 'static>(
        &self,
        urgency: Urgency,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Local<Option<T>> {
        let runtime = match urgency {
            Urgency::Guest => &self.guest,
            Urgency::Background => &self.background,
        };
        let handle: &Handle = runtime.as_ref().expect("a runtime is there until the last store is dropped").handle();
        let task = Cancelling(handle.spawn(work));
        Box::pin(async move { task.await.ok() })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for runtime in [self.guest.take(), self.background.take()].into_iter().flatten() {
            // The node's thread runs in a runtime of its own, where waiting for another one is not allowed.
            runtime.shutdown_background();
        }
    }
}

/// A task that ends with its handle.
struct Cancelling<T>(JoinHandle<T>);

impl<T> Future for Cancelling<T> {
    type Output = Result<T, tokio::task::JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> task::Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl<T> Drop for Cancelling<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
