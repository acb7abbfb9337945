//! Accepting, turning away and stopping, with a network that is a queue.

use std::{cell::RefCell, collections::VecDeque, io, sync::Arc};

use tokio::{
    io::{AsyncReadExt, DuplexStream},
    sync::Notify,
    task::yield_now,
};
use velum_protocol::format::metadata::Right;

use super::*;
use crate::{
    env::{
        Clock, CloudStore, CloudStoreError, Clouds, Compute, Disk, Entropy, File, Local, Network, OpenMode, Urgency,
    },
    limits::SESSIONS_MAX,
    metrics::Metrics,
    server::fakes::{ManualClock, Table},
};

/// Connections wait here until they are accepted.
#[derive(Clone, Default)]
struct Queue {
    waiting: Rc<RefCell<VecDeque<io::Result<DuplexStream>>>>,
    bell: Rc<Notify>,
}

impl Queue {
    fn push(&self, connection: io::Result<DuplexStream>) {
        self.waiting.borrow_mut().push_back(connection);
        self.bell.notify_one();
    }

    fn connect(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(1 << 12);
        self.push(Ok(far));
        near
    }
}

impl Listener for Queue {
    fn accept(&self) -> Local<io::Result<(Box<dyn Stream>, PeerIdentity)>> {
        let queue = self.clone();
        Box::pin(async move {
            loop {
                if let Some(connection) = queue.waiting.borrow_mut().pop_front() {
                    let peer = PeerIdentity::Unknown("test".to_owned());
                    return connection.map(|stream| (Box::new(stream) as Box<dyn Stream>, peer));
                }
                queue.bell.notified().await;
            }
        })
    }

    fn address(&self) -> Address {
        Address::Tcp("test:1".to_owned())
    }
}

impl Network for Queue {
    fn listen(&self, _address: &Address) -> Local<io::Result<Rc<dyn Listener>>> {
        let listener: Rc<dyn Listener> = Rc::new(self.clone());
        Box::pin(async move { Ok(listener) })
    }
}

/// Parts of the environment that a door does not touch.
struct Untouched;

impl Entropy for Untouched {
    fn fill(&self, _bytes: &mut [u8]) {
        unreachable!("a door draws no lots")
    }
}

impl Compute for Untouched {
    fn run(&self, _urgency: Urgency, _job: Box<dyn FnOnce() + Send>) -> Local<()> {
        unreachable!("a door has no heavy jobs")
    }
}

impl Clouds for Untouched {
    fn open(
        &self,
        _url: &str,
        _options: &std::collections::BTreeMap<String, String>,
    ) -> Result<Rc<dyn CloudStore>, CloudStoreError> {
        unreachable!("a door knows no clouds")
    }
}

impl Disk for Untouched {
    fn open(&self, _path: &std::path::Path, _mode: OpenMode) -> Local<io::Result<Rc<dyn File>>> {
        unreachable!("a door knows no files")
    }
    fn list(&self, _dir: &std::path::Path) -> Local<io::Result<Vec<String>>> {
        unreachable!("a door knows no files")
    }
    fn create_dir_all(&self, _dir: &std::path::Path) -> Local<io::Result<()>> {
        unreachable!("a door knows no files")
    }
    fn rename(&self, _from: &std::path::Path, _to: &std::path::Path) -> Local<io::Result<()>> {
        unreachable!("a door knows no files")
    }
    fn remove(&self, _path: &std::path::Path) -> Local<io::Result<()>> {
        unreachable!("a door knows no files")
    }
    fn sync_dir(&self, _dir: &std::path::Path) -> Local<io::Result<()>> {
        unreachable!("a door knows no files")
    }
    fn boot(&self) -> Local<io::Result<velum_protocol::id::BootId>> {
        unreachable!("a door knows no files")
    }
    fn lock(&self, _path: std::path::PathBuf) -> Local<io::Result<Box<dyn std::any::Any>>> {
        unreachable!("a door knows no files")
    }
}

struct Hall {
    queue: Queue,
    clock: Rc<ManualClock>,
    door: NbdDoor,
    sessions: Rc<Sessions>,
    metrics: Arc<Metrics>,
}

async fn hall() -> Hall {
    let (queue, clock) = (Queue::default(), Rc::new(ManualClock::default()));
    let (_, gate, _) = Table::gate(&[("demo", Right::Write)], 1 << 20);
    let metrics = Arc::new(Metrics::new());
    let nothing = Rc::new(Untouched);
    let env = Env {
        clock: Rc::clone(&clock) as Rc<dyn Clock>,
        entropy: Rc::clone(&nothing) as Rc<dyn Entropy>,
        disk: Rc::clone(&nothing) as Rc<dyn Disk>,
        network: Rc::new(queue.clone()),
        clouds: Rc::clone(&nothing) as Rc<dyn Clouds>,
        compute: nothing,
    };
    let around = Surroundings { clock: Rc::clone(&clock) as Rc<dyn Clock>, gate, metrics: Arc::clone(&metrics) };
    let sessions = Rc::new(Sessions::default());
    let listener = env.network.listen(&Address::Tcp("test:0".to_owned())).await.unwrap();
    let door = open(&env, listener, around, Rc::clone(&sessions));
    Hall { queue, clock, door, sessions, metrics }
}

async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

async fn greeted(stream: &mut DuplexStream) -> bool {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).await.is_ok()
}

#[test]
fn connections_past_the_bound_are_closed_at_once_and_places_come_back() {
    run(async {
        let hall = hall().await;
        assert_eq!(*hall.door.address(), Address::Tcp("test:1".to_owned()));
        let mut streams: Vec<_> = (0..SESSIONS_MAX).map(|_| hall.queue.connect()).collect();
        for stream in &mut streams {
            assert!(greeted(stream).await);
        }
        assert!(!greeted(&mut hall.queue.connect()).await);
        assert_eq!(hall.metrics.nbd.refused_inputs.of(RefusedInput::Limit).get(), 1);
        assert_eq!(hall.metrics.nbd.sessions.get(), i64::try_from(SESSIONS_MAX).unwrap());
        drop(streams.pop());
        settle().await;
        assert!(greeted(&mut hall.queue.connect()).await);
    });
}

#[test]
fn a_failed_accept_is_waited_out() {
    run(async {
        let hall = hall().await;
        hall.queue.push(Err(io::Error::other("no file descriptors")));
        let mut stream = hall.queue.connect();
        settle().await;
        hall.clock.pass(ACCEPT_PAUSE);
        assert!(greeted(&mut stream).await);
    });
}

#[test]
fn a_stopped_door_ends_its_sessions_and_lets_nobody_in() {
    run(async {
        let hall = hall().await;
        let mut stream = hall.queue.connect();
        assert!(greeted(&mut stream).await);
        hall.door.stop().await;
        assert_eq!(hall.sessions.count(), 0);
        let mut late = hall.queue.connect();
        settle().await;
        assert_eq!(hall.queue.waiting.borrow().len(), 1, "nobody accepts any more");
        hall.queue.waiting.borrow_mut().clear();
        assert!(!greeted(&mut late).await);
    });
}
