//! Object stores. This folder is the only place that names `object_store` and its HTTP client.
//!
//! Requests run on a tokio runtime with threads of its own: signing, TLS and hashing a body never hold up the node's thread.
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

use crate::env::{CloudStore, CloudStoreError, Clouds, Local};

/// Threads that run requests.
const THREADS: usize = 2;

pub(super) struct RealClouds(Arc<Threads>);

impl RealClouds {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(THREADS).thread_name("cloud").enable_all().build()?;
        Ok(Self(Arc::new(Threads(Some(runtime)))))
    }
}

impl Clouds for RealClouds {
    fn open(&self, url: &str, options: &BTreeMap<String, String>) -> Result<Rc<dyn CloudStore>, CloudStoreError> {
        let opened = open::open(url, options)?;
        Ok(Rc::new(store::Store::new(opened, Arc::clone(&self.0))))
    }
}

/// The runtime of the requests.
struct Threads(Option<Runtime>);

impl Threads {
    /// Starts `work`; dropping what is given cancels it. `None` when the runtime is going down.
    fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Local<Option<T>> {
        let handle: &Handle = self.0.as_ref().expect("the runtime is there until the last store is dropped").handle();
        let task = Cancelling(handle.spawn(work));
        Box::pin(async move { task.await.ok() })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // The node's thread runs in a runtime of its own, where waiting for this one is not allowed.
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
