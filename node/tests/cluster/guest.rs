//! A guest: an NBD client on an in-memory network, and a reference device that says what a volume may hold.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    io,
    rc::Rc,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::Notify,
};
use velum_node::env::{
    Listener, Local, Network, PeerIdentity,
    network::{Address, Stream},
};
use velum_protocol::nbd::{
    ErrorCode,
    client::{Answer, Ask, ClientError, Handshake, Negotiated, Session, Wishes},
};

const BLOCK: usize = 4096;

/// The listening sockets of one process.
#[derive(Default)]
pub struct Ports {
    open: RefCell<BTreeMap<Address, Rc<Port>>>,
    /// Somebody else listens everywhere.
    pub taken: Cell<bool>,
}

#[derive(Default)]
struct Port {
    waiting: RefCell<VecDeque<DuplexStream>>,
    arrived: Notify,
}

struct Listening {
    address: Address,
    port: Rc<Port>,
}

impl Network for Ports {
    fn listen(&self, address: &Address) -> Local<io::Result<Rc<dyn Listener>>> {
        if self.taken.get() {
            return Box::pin(std::future::ready(Err(io::ErrorKind::AddrInUse.into())));
        }
        let port = Rc::<Port>::default();
        self.open.borrow_mut().insert(address.clone(), Rc::clone(&port));
        let listening: Rc<dyn Listener> = Rc::new(Listening { address: address.clone(), port });
        Box::pin(std::future::ready(Ok(listening)))
    }
}

impl Listener for Listening {
    fn accept(&self) -> Local<io::Result<(Box<dyn Stream>, PeerIdentity)>> {
        let port = Rc::clone(&self.port);
        Box::pin(async move {
            loop {
                let arrived = port.arrived.notified();
                if let Some(stream) = port.waiting.borrow_mut().pop_front() {
                    return Ok((Box::new(stream) as Box<dyn Stream>, PeerIdentity::Unknown("a test".into())));
                }
                arrived.await;
            }
        })
    }

    fn address(&self) -> Address {
        self.address.clone()
    }
}

/// A guest's connection to one volume. Everything it does has to run on the node's `LocalSet`.
pub struct Guest {
    stream: DuplexStream,
    session: Session,
    input: BytesMut,
}

/// Why a guest got no answer.
#[derive(Debug)]
pub enum Trouble {
    Refused(ErrorCode),
    Handshake(ClientError),
    Cut(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Cut(error)
    }
}

impl From<ClientError> for Trouble {
    fn from(error: ClientError) -> Self {
        Self::Handshake(error)
    }
}

impl Guest {
    pub async fn connect(ports: &Ports, export: &str) -> Result<Self, Trouble> {
        let (mut stream, theirs) = tokio::io::duplex(1 << 20);
        {
            let open = ports.open.borrow();
            let port = open.values().next().ok_or(io::Error::from(io::ErrorKind::ConnectionRefused))?;
            port.waiting.borrow_mut().push_back(theirs);
            port.arrived.notify_waiters();
        }
        let wishes = Wishes { export: export.into(), structured: true, allocation: true };
        let (mut handshake, mut input, mut out) = (Handshake::new(wishes), BytesMut::new(), BytesMut::new());
        loop {
            if let Some(negotiated) = handshake.step(&mut input, &mut out)? {
                stream.write_all(&out).await?;
                return Ok(Self { stream, session: Session::new(negotiated), input });
            }
            stream.write_all(&out.split()).await?;
            if stream.read_buf(&mut input).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    pub fn negotiated(&self) -> &Negotiated {
        self.session.negotiated()
    }

    pub async fn ask(&mut self, ask: Ask) -> Result<Answer, Trouble> {
        let mut out = BytesMut::new();
        let cookie = self.session.ask(&ask, &mut out);
        self.stream.write_all(&out).await?;
        let mut over = Vec::new();
        loop {
            self.session.receive(&mut self.input, &mut over)?;
            if let Some((answered, answer)) = over.pop() {
                assert_eq!(answered, cookie);
                return answer.map_err(Trouble::Refused);
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    pub async fn barrier(&mut self) -> Result<Answer, Trouble> {
        self.ask(Ask::Flush).await
    }

    /// The stamp of every block of the volume.
    pub async fn image(&mut self) -> Result<Vec<u64>, Trouble> {
        let size = self.negotiated().export.size_bytes;
        self.stamps(0, size / BLOCK as u64).await
    }

    pub async fn stamps(&mut self, first: u64, count: u64) -> Result<Vec<u64>, Trouble> {
        let (mut at, end, mut stamps) = (first, first + count, Vec::new());
        while at < end {
            let blocks = (end - at).min(256);
            let (offset, length) = (at * BLOCK as u64, u32::try_from(blocks).unwrap() * BLOCK as u32);
            match self.ask(Ask::Read { offset, length }).await? {
                Answer::Data(bytes) => stamps.extend(bytes.chunks(BLOCK).map(stamp_of)),
                other => panic!("a read brought {other:?}"),
            }
            at += blocks;
        }
        Ok(stamps)
    }
}

fn stamp_of(block: &[u8]) -> u64 {
    let stamp: [u8; 8] = block[..8].try_into().unwrap();
    assert!(block.chunks(8).all(|chunk| chunk == stamp), "a block mixes writes");
    u64::from_le_bytes(stamp)
}

/// What a guest did to its volume, in order: write number n has stamp n, a trim stamps zero.
#[derive(Clone, Default)]
pub struct Reference {
    pub blocks: u64,
    writes: Vec<(u64, u64, bool)>,
}

impl Reference {
    pub fn new(blocks: u64) -> Self {
        Self { blocks, writes: Vec::new() }
    }

    /// How many writes there were.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Forgets the last write: it was never acked and did not happen.
    pub fn forget_last(&mut self) {
        self.writes.pop();
    }

    /// The next write; count it in before it is sent.
    pub fn write(&mut self, first: u64, count: u64) -> Ask {
        self.writes.push((first, count, true));
        let stamp = u64::try_from(self.writes.len()).unwrap().to_le_bytes();
        let payload = Bytes::from(stamp.repeat(usize::try_from(count).unwrap() * BLOCK / 8));
        Ask::Write { offset: first * BLOCK as u64, payload, fua: false }
    }

    pub fn trim(&mut self, first: u64, count: u64) -> Ask {
        self.writes.push((first, count, false));
        let length = u32::try_from(count).unwrap() * BLOCK as u32;
        Ask::Trim { offset: first * BLOCK as u64, length, fua: false }
    }

    /// A random write or trim.
    pub fn any(&mut self, rng: &super::Rng) -> Ask {
        let count = 1 + rng.below(8);
        let first = rng.below(self.blocks - count);
        if rng.below(8) == 0 {
            self.trim(first, count * 4 % (self.blocks - first).max(1) + 1)
        } else {
            self.write(first, count)
        }
    }

    /// The image after the first `prefix` writes.
    pub fn image(&self, prefix: usize) -> Vec<u64> {
        let mut image = vec![0; usize::try_from(self.blocks).unwrap()];
        for (place, write) in self.writes.iter().take(prefix).enumerate() {
            apply(&mut image, place, *write);
        }
        image
    }

    /// The prefixes of the writes after which the volume looks like `image`.
    pub fn prefixes(&self, image: &[u64]) -> Vec<usize> {
        let mut own = self.image(0);
        let mut fits = Vec::new();
        for prefix in 0..=self.writes.len() {
            if let Some(place) = prefix.checked_sub(1) {
                apply(&mut own, place, self.writes[place]);
            }
            if own == image {
                fits.push(prefix);
            }
        }
        fits
    }

    /// Judges an image: it must be that of a prefix of at least `least` writes.
    pub fn expect_prefix(&self, image: &[u64], least: usize) -> usize {
        let fits = self.prefixes(image);
        match fits.last() {
            Some(longest) if *longest >= least => *longest,
            Some(longest) => panic!("the image is that of {longest} writes, at least {least} were promised"),
            None => panic!("the image is that of no prefix of the writes"),
        }
    }

    /// The volume grows.
    pub fn grow(&mut self, blocks: u64) {
        self.blocks = blocks;
    }

    /// Goes on from an image: the writes behind it never happened.
    pub fn cut(&mut self, prefix: usize) {
        self.writes.truncate(prefix);
    }
}

fn apply(image: &mut [u64], place: usize, (first, count, is_write): (u64, u64, bool)) {
    let stamp = if is_write { place as u64 + 1 } else { 0 };
    let (first, count) = (usize::try_from(first).unwrap(), usize::try_from(count).unwrap());
    image[first..first + count].fill(stamp);
}
