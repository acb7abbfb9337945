//! A fixed number of threads and a bounded queue of jobs; results come back as local futures.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex},
    thread,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::env::Local;

type Job = Box<dyn FnOnce() + Send>;

/// Threads that run jobs in the order of their arrival. Dropping the pool lets them finish what is queued.
pub(super) struct Pool {
    queue: Arc<Queue>,
    room: Arc<Semaphore>,
}

struct Queue {
    state: Mutex<State>,
    filled: Condvar,
}

struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

const POISON: &str = "the queue's lock is held for a push or a pop only, and neither panics";

impl Pool {
    /// Starts `threads` threads, each of which calls `begin` first. A job past `jobs_max` waits, without blocking its caller, until one before it is done.
    pub(super) fn start(name: &str, threads: usize, jobs_max: usize, begin: fn()) -> io::Result<Self> {
        let state = Mutex::new(State { jobs: VecDeque::new(), closed: false });
        let queue = Arc::new(Queue { state, filled: Condvar::new() });
        for number in 0..threads {
            let queue = Arc::clone(&queue);
            thread::Builder::new().name(format!("{name}-{number}")).spawn(move || {
                begin();
                queue.work();
            })?;
        }
        Ok(Self { queue, room: Arc::new(Semaphore::new(jobs_max)) })
    }

    /// Runs `job` on one of the threads. It is queued at once when there is room, whether or not the future is polled.
    pub(super) fn call<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Local<T> {
        let (done, result) = oneshot::channel();
        let job = move |permit: OwnedSemaphorePermit| -> Job {
            Box::new(move || {
                // A caller that went away does not want the result.
                drop(done.send(job()));
                drop(permit);
            })
        };
        let waiting = match Arc::clone(&self.room).try_acquire_owned() {
            Ok(permit) => {
                self.queue.push(job(permit));
                None
            }
            Err(_) => Some((Arc::clone(&self.queue), Arc::clone(&self.room), job)),
        };
        Box::pin(async move {
            if let Some((queue, room, job)) = waiting {
                let permit = room.acquire_owned().await.expect("the semaphore is never closed");
                queue.push(job(permit));
            }
            result.await.expect("a job that panics stops the process")
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.state.lock().expect(POISON).closed = true;
        self.queue.filled.notify_all();
    }
}

impl Queue {
    fn push(&self, job: Job) {
        self.state.lock().expect(POISON).jobs.push_back(job);
        self.filled.notify_one();
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            job();
        }
    }

    fn next(&self) -> Option<Job> {
        let state = self.state.lock().expect(POISON);
        let mut state = self.filled.wait_while(state, |state| state.jobs.is_empty() && !state.closed).expect(POISON);
        state.jobs.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn more_jobs_than_there_is_room_for_all_run() {
        let pool = Pool::start("test", 2, 3, || ()).unwrap();
        let results = join_all((0..50).map(|number| pool.call(move || number * 2))).await;
        assert_eq!(results, (0..50).map(|number| number * 2).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_job_whose_caller_went_away_still_runs() {
        let pool = Pool::start("test", 1, 3, || ()).unwrap();
        let ran = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&ran);
        drop(pool.call(move || counted.fetch_add(1, Ordering::SeqCst)));
        pool.call(|| ()).await;
        assert_eq!(ran.load(Ordering::SeqCst), 1);
    }
}
