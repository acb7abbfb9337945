//! One way to put behaviour around every request of a store: a [`Layer`] sees each as a call that it can make once, several
//! times or not at all, and [`Layered`] is the store with the layer around it. Retries, admission, counting and deadlines are
//! layers; the store underneath is the environment's and knows of none of them.

use std::{ops::Range, rc::Rc};

use bytes::Bytes;

use crate::{
    env::{CloudStore, CloudStoreError, Local},
    metrics::CloudRequest,
};

/// What one attempt gives.
pub(super) type Attempt<T> = Result<T, CloudStoreError>;

/// A request that can be made again.
pub(super) type Call<T> = Box<dyn Fn() -> Local<Attempt<T>>>;

/// What a layer may know of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// Its kind.
    pub(super) kind: CloudRequest,
    /// Bytes that go out with it.
    pub(super) sent: usize,
    /// Most bytes that come back.
    pub(super) expected: u64,
}

/// An answer, as far as counting is concerned.
pub(super) trait Answer: 'static {
    /// Bytes of objects in it.
    fn received(&self) -> usize {
        0
    }
}

impl Answer for () {}
impl Answer for u64 {}
impl Answer for Vec<String> {}
impl Answer for Bytes {
    fn received(&self) -> usize {
        self.len()
    }
}

/// Behaviour around requests.
pub(super) trait Layer: 'static {
    /// Makes the request, in this layer's way.
    fn around<T: Answer>(self: Rc<Self>, asked: Asked, call: Call<T>) -> Local<Attempt<T>>;
}

/// A store with a layer around it.
pub(super) struct Layered<L> {
    pub(super) inner: Rc<dyn CloudStore>,
    pub(super) layer: Rc<L>,
}

impl<L: Layer> Layered<L> {
    /// Puts `layer` around `inner`.
    pub(super) fn around(inner: Rc<dyn CloudStore>, layer: Rc<L>) -> Rc<dyn CloudStore> {
        Rc::new(Self { inner, layer })
    }

    fn ask<T: Answer>(
        &self,
        kind: CloudRequest,
        sent: usize,
        expected: u64,
        call: impl Fn(&dyn CloudStore) -> Local<Attempt<T>> + 'static,
    ) -> Local<Attempt<T>> {
        let inner = Rc::clone(&self.inner);
        Rc::clone(&self.layer).around(Asked { kind, sent, expected }, Box::new(move || call(&*inner)))
    }
}

impl<L: Layer> CloudStore for Layered<L> {
    fn put(&self, name: &str, body: Bytes) -> Local<Attempt<()>> {
        let name = name.to_owned();
        self.ask(CloudRequest::Put, body.len(), 0, move |store| store.put(&name, body.clone()))
    }

    fn create(&self, name: &str, body: Bytes) -> Local<Attempt<()>> {
        let name = name.to_owned();
        self.ask(CloudRequest::Create, body.len(), 0, move |store| store.create(&name, body.clone()))
    }

    fn get(&self, name: &str, bytes_max: u64) -> Local<Attempt<Bytes>> {
        let name = name.to_owned();
        self.ask(CloudRequest::Get, 0, bytes_max, move |store| store.get(&name, bytes_max))
    }

    fn get_range(&self, name: &str, range: Range<u64>) -> Local<Attempt<Bytes>> {
        let name = name.to_owned();
        let length = range.end.saturating_sub(range.start);
        self.ask(CloudRequest::GetRange, 0, length, move |store| store.get_range(&name, range.clone()))
    }

    fn head(&self, name: &str) -> Local<Attempt<u64>> {
        let name = name.to_owned();
        self.ask(CloudRequest::Head, 0, 0, move |store| store.head(&name))
    }

    fn delete(&self, name: &str) -> Local<Attempt<()>> {
        let name = name.to_owned();
        self.ask(CloudRequest::Delete, 0, 0, move |store| store.delete(&name))
    }

    fn list(&self, prefix: &str, after: &str, count_max: usize) -> Local<Attempt<Vec<String>>> {
        let (prefix, after) = (prefix.to_owned(), after.to_owned());
        self.ask(CloudRequest::List, 0, 0, move |store| store.list(&prefix, &after, count_max))
    }
}
