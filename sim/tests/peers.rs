//! The door for peers, met by peers that do not do what they should.

use std::{cell::RefCell, rc::Rc};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use velum_node::{
    env::{Credentials, Env, Stream, network::Address},
    peer::{Links, Receiver},
};
use velum_protocol::{
    id::{ClusterId, Incarnation, NodeId},
    peer::{Beat, Frame, HEADER_BYTES, Header, Hello, Placed, Placement, Verdict},
};
use velum_sim::{
    env::{self, Machine, Surroundings, network::Wires},
    rng::Rng,
    runtime::{Life, Sim, simulate},
};

const CLUSTER: ClusterId = ClusterId([1; 16]);
/// The life of the cluster that the node with the door belongs to.
const OWN_LIFE: Incarnation = Incarnation(2);

/// Everything that was let through.
#[derive(Default)]
struct Heard {
    frames: RefCell<Vec<(u64, Frame)>>,
    removed: RefCell<Vec<NodeId>>,
    /// What this node heard of itself.
    verdicts: RefCell<Vec<Verdict>>,
    parted: RefCell<Vec<NodeId>>,
}

impl Receiver for Heard {
    fn hears(&self, node: NodeId) -> bool {
        !self.removed.borrow().contains(&node)
    }

    fn receive(&self, from: NodeId, frame: Frame, _state: Bytes) {
        self.frames.borrow_mut().push((from.0, frame));
    }

    fn lost(&self, _to: NodeId) {}

    fn incarnation(&self) -> Incarnation {
        OWN_LIFE
    }

    fn refused(&self, verdict: Verdict) {
        self.verdicts.borrow_mut().push(verdict);
    }

    fn parted(&self, from: NodeId) {
        self.parted.borrow_mut().push(from);
    }
}

fn credentials(node: u64) -> Credentials {
    Credentials { cluster: CLUSTER, node: NodeId(node), authority: [7; 32].into() }
}

/// A node's door, and another machine from which to come to it.
struct Place {
    sim: Rc<Sim>,
    heard: Rc<Heard>,
    links: Links,
    outside: Env,
}

impl Place {
    async fn connect(&self, node: u64) -> Box<dyn Stream> {
        let door = Address::Tcp("n1:9891".into());
        self.outside.network.connect_peer(&door, Rc::new(credentials(node)), NodeId(1)).await.expect("the door is open")
    }

    /// A link of node 2 that has greeted.
    async fn greeted(&self, life: u8, link: u64) -> Box<dyn Stream> {
        let mut stream = self.connect(2).await;
        stream.write_all(&hello(life, link).encode()).await.expect("it is taken");
        assert!(matches!(read(&mut stream).await, Some(Frame::Hello(_))), "life {life} link {link} is not greeted");
        stream
    }

    fn refused(&self) -> u64 {
        self.links.counts().refused_connections.get()
    }
}

fn hello(life: u8, link: u64) -> Frame {
    hello_of(OWN_LIFE, life, link)
}

fn hello_of(incarnation: Incarnation, life: u8, link: u64) -> Frame {
    Frame::Hello(Hello {
        cluster: CLUSTER,
        from: NodeId(2),
        to: NodeId(1),
        version_min: 1,
        version_max: 1,
        life: [life; 16],
        link,
        incarnation,
        address: String::new(),
    })
}

fn frame(ticket: u64) -> Frame {
    Frame::Placed(Placed { ticket, placement: Placement::Busy })
}

/// The next frame, or nothing when the stream ends.
async fn read(stream: &mut Box<dyn Stream>) -> Option<Frame> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await.ok()?;
    let header = Header::decode(&header).expect("the node sends frames");
    let mut body = vec![0; header.body_bytes];
    stream.read_exact(&mut body).await.ok()?;
    Some(Frame::decode(header.kind, &body.into()).expect("the node sends frames"))
}

fn at_the_door(test: impl AsyncFnOnce(Place) + Send + 'static) {
    let run = simulate(
        7,
        || None,
        |sim| {
            Box::pin(async move {
                let wires = Wires::new(Rc::clone(&sim), Rng::new(7, "network"));
                let around = Surroundings { sim: Rc::clone(&sim), wires, clouds: Rc::default() };
                let env = |name: &str| env::of(&around, &Machine::new(name), &Rc::<Life>::default(), 1);
                let heard = Rc::<Heard>::default();
                let links = Links::new(&env("n1"), credentials(1), heard.clone());
                links.listen(&Address::Tcp("0.0.0.0:9891".into()), None).await.expect("the address is free");
                test(Place { sim, heard, links: links.clone(), outside: env("n2") }).await;
                links.close();
            })
        },
    );
    assert!(run.failures.is_empty() && run.result.is_some(), "{:#?}", run.failures);
}

#[test]
fn what_a_peer_says_after_its_greeting_is_let_through() {
    at_the_door(async |place| {
        let mut stream = place.greeted(1, 1).await;
        for ticket in 0..3 {
            stream.write_all(&frame(ticket).encode()).await.unwrap();
        }
        stream.write_all(&Frame::Beat(Beat { taken_bytes: 0 }).encode()).await.unwrap();
        let taken_bytes = 3 * frame(0).encode().len() as u64 + 24;
        assert_eq!(read(&mut stream).await, Some(Frame::Beat(Beat { taken_bytes })));
        assert_eq!(*place.heard.frames.borrow(), [(2, frame(0)), (2, frame(1)), (2, frame(2))]);
    });
}

#[test]
fn a_peer_that_does_not_speak_as_it_should_is_cut_off() {
    at_the_door(async |place| {
        let mut strange = hello(1, 1).encode().to_vec();
        strange[20] ^= 1;
        let mut long = frame(1).encode().to_vec();
        long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let beginnings: [Vec<u8>; 4] =
            [b"GET / HTTP/1.1\r\n\r\n".to_vec(), frame(1).encode().to_vec(), strange, long.clone()];
        for (number, beginning) in beginnings.into_iter().enumerate() {
            let mut stream = place.connect(2).await;
            // It may be cut off before it has said all.
            drop(stream.write_all(&beginning).await);
            assert_eq!(read(&mut stream).await, None, "beginning {number}");
            assert_eq!(place.refused(), number as u64 + 1);
        }
        let mut stream = place.greeted(1, 1).await;
        stream.write_all(&long).await.unwrap();
        assert_eq!(read(&mut stream).await, None);
        // Node 3's certificate, node 2's greeting.
        let mut stream = place.connect(3).await;
        stream.write_all(&hello(1, 2).encode()).await.unwrap();
        assert_eq!(read(&mut stream).await, None);
        assert_eq!(place.refused(), 6);
        assert!(place.heard.frames.borrow().is_empty());
    });
}

#[test]
fn a_stale_link_of_the_same_process_is_refused_and_a_newer_one_takes_its_place() {
    at_the_door(async |place| {
        let mut first = place.greeted(1, 5).await;
        let mut stale = place.connect(2).await;
        stale.write_all(&hello(1, 4).encode()).await.unwrap();
        assert_eq!(read(&mut stale).await, None);
        let mut second = place.greeted(1, 6).await;
        assert_eq!(*place.heard.parted.borrow(), [NodeId(2)], "what the older one brought may be all there is of it");
        assert_eq!(read(&mut first).await, None, "the older one is closed");
        drop(first.write_all(&frame(1).encode()).await);
        second.write_all(&frame(2).encode()).await.unwrap();
        place.sim.sleep_ms(100).await;
        assert_eq!(*place.heard.frames.borrow(), [(2, frame(2))]);
        assert_eq!(place.heard.parted.borrow().len(), 1, "the newer one stands");
        drop(second);
        place.sim.sleep_ms(100).await;
        assert_eq!(place.heard.parted.borrow().len(), 2);
    });
}

#[test]
fn two_processes_under_one_number_are_not_both_heard() {
    at_the_door(async |place| {
        let mut first = place.greeted(1, 1).await;
        first.write_all(&frame(1).encode()).await.unwrap();
        let mut second = place.connect(2).await;
        second.write_all(&hello(2, 1).encode()).await.unwrap();
        assert_eq!(read(&mut second).await, None);
        assert_eq!(place.refused(), 1);
        // Once the first has fallen silent, it is a restarted one.
        place.sim.sleep_ms(3_000).await;
        let mut third = place.greeted(2, 2).await;
        third.write_all(&frame(3).encode()).await.unwrap();
        place.sim.sleep_ms(100).await;
        assert_eq!(*place.heard.frames.borrow(), [(2, frame(1)), (2, frame(3))]);
    });
}

#[test]
fn a_node_that_is_removed_is_told_so_and_cut_off_at_its_next_word() {
    at_the_door(async |place| {
        let mut stream = place.greeted(1, 1).await;
        place.heard.removed.borrow_mut().push(NodeId(2));
        stream.write_all(&frame(1).encode()).await.unwrap();
        assert_eq!(read(&mut stream).await, Some(Frame::Verdict(Verdict::Removed)));
        assert_eq!(read(&mut stream).await, None);
        assert!(place.heard.frames.borrow().is_empty());
    });
}

/// After a recovery from clouds alone nodes of the life before may come back: they are told, and a newer one is believed.
#[test]
fn a_node_of_an_older_life_is_told_so_and_one_of_a_newer_life_ends_this_one() {
    at_the_door(async |place| {
        let mut older = place.connect(2).await;
        older.write_all(&hello_of(Incarnation(1), 1, 1).encode()).await.unwrap();
        assert_eq!(read(&mut older).await, Some(Frame::Verdict(Verdict::Outlived)));
        assert_eq!((read(&mut older).await, place.refused()), (None, 1));
        assert!(place.heard.verdicts.borrow().is_empty());
        // A newcomer does not know yet which life it comes to.
        let mut newcomer = place.connect(2).await;
        newcomer.write_all(&hello_of(Incarnation(0), 2, 1).encode()).await.unwrap();
        let Some(Frame::Hello(greeting)) = read(&mut newcomer).await else { panic!("a newcomer is greeted") };
        assert_eq!(greeting.incarnation, OWN_LIFE);
        drop(newcomer);
        place.sim.sleep_ms(3_000).await;
        let mut newer = place.connect(2).await;
        newer.write_all(&hello_of(Incarnation(3), 3, 1).encode()).await.unwrap();
        assert_eq!(read(&mut newer).await, None);
        assert_eq!(*place.heard.verdicts.borrow(), [Verdict::Outlived]);
    });
}
