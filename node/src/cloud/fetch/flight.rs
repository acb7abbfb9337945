//! Single flight: who asks for what is being fetched already waits for the same answer.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use futures_util::future::{FutureExt, Shared, WeakShared};

use crate::env::Local;

/// Flights by key, each with its number, so that one that is over does not take a later one off the table.
type Table<K, T> = Rc<RefCell<BTreeMap<K, (u64, WeakShared<Local<T>>)>>>;

/// What is under way.
pub(super) struct Flights<K: Ord, T: Clone> {
    under_way: Table<K, T>,
    started: Cell<u64>,
}

impl<K: Ord + Clone + 'static, T: Clone + 'static> Flights<K, T> {
    pub(super) fn new() -> Self {
        Self { under_way: Rc::default(), started: Cell::default() }
    }

    /// The answer of the flight for `key`: the one under way, or a new one that `start` makes. A flight ends when nobody
    /// waits for it any more.
    pub(super) fn join(&self, key: K, start: impl FnOnce() -> Local<T>) -> Local<T> {
        let under_way = self.under_way.borrow().get(&key).and_then(|(_, flight)| flight.upgrade());
        under_way.unwrap_or_else(|| self.start(key, start())).boxed_local()
    }

    fn start(&self, key: K, work: Local<T>) -> Shared<Local<T>> {
        let number = self.started.get() + 1;
        self.started.set(number);
        let landing = Landing { under_way: Rc::clone(&self.under_way), key: key.clone(), number };
        let flight = async move {
            let _landing = landing;
            work.await
        }
        .boxed_local()
        .shared();
        if let Some(weak) = flight.downgrade() {
            self.under_way.borrow_mut().insert(key, (number, weak));
        }
        flight
    }
}

/// Takes a flight off the table when it has ended or was given up.
struct Landing<K: Ord, T: Clone> {
    under_way: Table<K, T>,
    key: K,
    number: u64,
}

impl<K: Ord, T: Clone> Drop for Landing<K, T> {
    fn drop(&mut self) {
        let mut under_way = self.under_way.borrow_mut();
        if under_way.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            under_way.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join3;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_for_the_same_share_one_flight() {
        let flights = Flights::new();
        let started = Rc::new(Cell::new(0));
        let fetch = |key: u8| {
            let started = Rc::clone(&started);
            flights.join(key, move || {
                started.set(started.get() + 1);
                async move {
                    tokio::task::yield_now().await;
                    u32::from(key) * 10
                }
                .boxed_local()
            })
        };
        assert_eq!(join3(fetch(1), fetch(2), fetch(1)).await, (10, 20, 10));
        assert_eq!(started.get(), 2);
        assert_eq!(fetch(1).await, 10);
        assert_eq!(started.get(), 3, "a flight that has ended is not joined");
        assert!(flights.under_way.borrow().is_empty());
    }

    #[tokio::test]
    async fn a_flight_goes_on_for_those_who_still_wait() {
        let flights = Flights::new();
        let (land, landed) = oneshot::channel::<u8>();
        let mut first = flights.join(1, || async move { landed.await.unwrap() }.boxed_local());
        assert!(futures_util::poll!(&mut first).is_pending());
        let second = flights.join(1, || unreachable!("one is under way"));
        drop(first);
        land.send(7).unwrap();
        assert_eq!(second.await, 7);
    }

    #[tokio::test]
    async fn a_flight_that_nobody_waits_for_is_dropped() {
        let flights = Flights::<u8, u8>::new();
        let (land, landed) = oneshot::channel::<u8>();
        let mut only = flights.join(1, || async move { landed.await.unwrap() }.boxed_local());
        assert!(futures_util::poll!(&mut only).is_pending());
        drop(only);
        assert!(land.is_closed());
        assert!(flights.under_way.borrow().is_empty());
    }
}
