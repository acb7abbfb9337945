//! Reading from the clouds: from the best one first, from another on any doubt, never unverified.

pub mod race;
pub mod rank;

mod flight;
pub mod holes;

use std::{cell::RefCell, collections::BTreeSet, ops::Range, rc::Rc};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use holes::{Hole, Holes};
use race::{Doubt, Effect, Input, Race};
use rank::Ranking;
use velum_protocol::{
    checksum,
    format::{
        bind::{BlockFrame, FrameCodec},
        location::Frame,
        metadata::ObjectRef,
    },
    id::{BLOCK_LEN, Hash, Incarnation, VolumeId},
};

use super::{
    one::{Cloud, CloudError},
    set::CloudSet,
};
use crate::{
    actor::Machine,
    env::{Clock, Compute, Env, Local, compute},
    keyring::{Keyring, ObjectId, ObjectKind, SealKey, VolumeKeys},
    metrics::CloudRequest,
};

/// Why nothing can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Every cloud answered, and none has it.
    #[error("no cloud has object {name} as it was stored: missing in {missing}, damaged in {damaged}")]
    Lost {
        /// The object's name in the clouds.
        name: String,
        /// Clouds that do not have it.
        missing: usize,
        /// Clouds that gave back something else.
        damaged: usize,
    },
}

/// Objects longer than this are hashed on the compute pool: 1 MiB takes 0.2 ms.
const HASH_BYTES_INLINE_MAX: usize = 1 << 20;

/// Reads frames and whole objects. Cheap to clone.
///
/// While a cloud that may have the bytes is away, a read waits; its caller drops it when it does not want to any longer.
#[derive(Clone)]
pub struct Fetcher(Rc<Inner>);

struct Inner {
    clock: Rc<dyn Clock>,
    compute: Rc<dyn Compute>,
    clouds: Vec<Rc<Cloud>>,
    keyring: Keyring,
    ranking: RefCell<Ranking>,
    flights: flight::Flights<FlightKey, Result<Bytes, FetchError>>,
    holes: Rc<Holes>,
}

/// What is fetched: an object, or a frame in one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FlightKey {
    kind: ObjectKind,
    volume: VolumeId,
    incarnation: Incarnation,
    number: u64,
    frame: Option<u32>,
    hash: Option<Hash>,
}

/// Where to find bytes and how to know them.
struct Wanted {
    id: ObjectId,
    name: String,
    /// Clouds that did not have it as it was stored.
    doubts: RefCell<BTreeSet<usize>>,
    part: Part,
    proof: Proof,
}

enum Part {
    Whole { bytes: u64 },
    Range(Range<u64>),
}

enum Proof {
    /// The stored bytes have this hash; they are given out as they are.
    Hash(Hash),
    /// The stored bytes open under this key and binding; the plaintext is given out.
    Seal { key: SealKey, aad: [u8; 71], plaintext_bytes: usize },
}

impl Fetcher {
    /// Reads from `clouds`.
    #[must_use]
    pub fn new(env: &Env, clouds: &CloudSet, keyring: Keyring) -> Self {
        Self(Rc::new(Inner {
            clock: Rc::clone(&env.clock),
            compute: Rc::clone(&env.compute),
            clouds: clouds.clouds.clone(),
            keyring,
            ranking: RefCell::default(),
            flights: flight::Flights::new(),
            holes: Rc::default(),
        }))
    }

    /// The plaintext of a frame of `volume`.
    ///
    /// # Panics
    /// When `keys` are of another key epoch than the frame, which the caller looked up for it.
    #[must_use]
    pub fn frame(&self, volume: VolumeId, keys: &VolumeKeys, frame: &Frame) -> Local<Result<Bytes, FetchError>> {
        assert_eq!(
            keys.key_epoch, frame.key_epoch,
            "a frame is opened with the keys of the epoch that its location names"
        );
        let key = FlightKey {
            kind: ObjectKind::Segment,
            volume,
            incarnation: frame.incarnation,
            number: frame.segment.0,
            frame: Some(frame.frame),
            hash: None,
        };
        let (inner, block, frame) = (Rc::clone(&self.0), keys.block.clone(), *frame);
        self.0.flights.join(key, move || {
            let wanted = inner.wanted_frame(volume, block, &frame);
            Box::pin(inner.fetch(wanted))
        })
    }

    /// A whole object of `volume` as it is stored, proven by its hash.
    #[must_use]
    pub fn object(&self, kind: ObjectKind, volume: VolumeId, object: &ObjectRef) -> Local<Result<Bytes, FetchError>> {
        let key = FlightKey {
            kind,
            volume,
            incarnation: object.incarnation,
            number: object.number.0,
            frame: None,
            hash: Some(object.hash),
        };
        let (inner, object) = (Rc::clone(&self.0), object.clone());
        self.0.flights.join(key, move || {
            let id = ObjectId { kind, volume, incarnation: object.incarnation, number: object.number.0 };
            let part = Part::Whole { bytes: object.bytes };
            let wanted = inner.wanted(id, part, Proof::Hash(object.hash));
            Box::pin(inner.fetch(wanted))
        })
    }

    /// Copies of segments that reads found missing or damaged.
    #[must_use]
    pub fn holes(&self) -> Rc<Holes> {
        Rc::clone(&self.0.holes)
    }
}

impl Inner {
    fn wanted(&self, id: ObjectId, part: Part, proof: Proof) -> Wanted {
        let name = self.keyring.names().object(id.kind, id.volume, id.incarnation, id.number);
        Wanted { id, name, doubts: RefCell::default(), part, proof }
    }

    /// One cloud had it: what others lacked can be repaired. Pages and roots come to a cloud in an order that is not known
    /// here.
    fn report_holes(&self, wanted: &Wanted) {
        if wanted.id.kind != ObjectKind::Segment {
            return;
        }
        for cloud in wanted.doubts.borrow().iter().filter_map(|place| self.clouds.get(*place)) {
            self.holes.report(Hole { cloud: cloud.name().clone(), id: wanted.id });
        }
    }

    fn wanted_frame(&self, volume: VolumeId, key: SealKey, frame: &Frame) -> Wanted {
        let binding = BlockFrame {
            cluster: self.keyring.cluster(),
            volume,
            key_epoch: frame.key_epoch,
            incarnation: frame.incarnation,
            segment: frame.segment,
            frame: frame.frame,
            start: frame.start,
            blocks: frame.blocks,
            codec: FrameCodec::Stored,
        };
        let start = u64::from(frame.offset);
        let (incarnation, number) = (frame.incarnation, frame.segment.0);
        self.wanted(
            ObjectId { kind: ObjectKind::Segment, volume, incarnation, number },
            Part::Range(start..start + u64::from(frame.sealed_bytes())),
            Proof::Seal { key, aad: binding.aad(), plaintext_bytes: usize::from(frame.blocks) * BLOCK_LEN },
        )
    }

    /// Runs a race; its effects are performed here.
    async fn fetch(self: Rc<Self>, wanted: Wanted) -> Result<Bytes, FetchError> {
        let wanted = Rc::new(wanted);
        let mut race = Race::default();
        let mut effects = Vec::new();
        let mut under_way: FuturesUnordered<Local<(Input, Option<Bytes>)>> = FuturesUnordered::new();
        race.step(self.clock.now(), Input::Begin { order: self.order() }, &mut effects);
        let mut verified = None;
        loop {
            for effect in effects.drain(..) {
                match effect {
                    Effect::Ask { cloud, instead_of } => {
                        if let Some(slow) = instead_of.and_then(|slow| self.clouds.get(slow)) {
                            slow.report_hedged();
                        }
                        under_way.push(Box::pin(Rc::clone(&self).ask(cloud, Rc::clone(&wanted))));
                    }
                    Effect::WaitFor { round, place, patience } => {
                        let sleep = self.clock.sleep(patience);
                        under_way.push(Box::pin(async move {
                            sleep.await;
                            (Input::Impatient { round, place }, None)
                        }));
                    }
                    Effect::RestFor { delay } => {
                        let (own, sleep) = (Rc::clone(&self), self.clock.sleep(delay));
                        under_way.push(Box::pin(async move {
                            sleep.await;
                            (Input::Begin { order: own.order() }, None)
                        }));
                    }
                    Effect::Deliver => {
                        self.report_holes(&wanted);
                        return Ok(verified.take().expect("bytes are delivered in the step that verified them"));
                    }
                    Effect::GiveUp { missing, damaged } => {
                        return Err(FetchError::Lost { name: wanted.name.clone(), missing, damaged });
                    }
                }
            }
            let (input, bytes) = under_way.next().await.expect("a race waits for a cloud, its patience or a rest");
            verified = bytes;
            race.step(self.clock.now(), input, &mut effects);
        }
    }

    fn order(&self) -> Vec<rank::Candidate> {
        let views: Vec<_> = self.clouds.iter().map(|cloud| cloud.view()).collect();
        self.ranking.borrow_mut().order(self.clock.now(), &views)
    }

    /// Asks one cloud and proves its answer.
    async fn ask(self: Rc<Self>, place: usize, wanted: Rc<Wanted>) -> (Input, Option<Bytes>) {
        let cloud = self.clouds.get(place).expect("an order is made of the clouds there are");
        let (kind, answer) = match &wanted.part {
            Part::Whole { bytes } => (CloudRequest::Get, cloud.get_once(&wanted.name, *bytes).await),
            Part::Range(range) => (CloudRequest::GetRange, cloud.get_range_once(&wanted.name, range.clone()).await),
        };
        let doubt = match answer {
            Ok(stored) => match self.prove(&wanted, stored).await {
                Some(bytes) => return (Input::Verified, Some(bytes)),
                None => Doubt::Damaged,
            },
            Err(CloudError::NotFound) => Doubt::Missing,
            // The object has another length than it was stored with.
            Err(CloudError::Refused(_)) => Doubt::Damaged,
            // Also a place that is not the cluster's now: it may be again, and have it.
            Err(_) => Doubt::Away,
        };
        match doubt {
            Doubt::Damaged => cloud.report_damaged(kind),
            Doubt::Missing => cloud.report_missing(),
            Doubt::Away => {}
        }
        if doubt != Doubt::Away {
            wanted.doubts.borrow_mut().insert(place);
        }
        (Input::Failed { doubt }, None)
    }

    async fn prove(&self, wanted: &Wanted, stored: Bytes) -> Option<Bytes> {
        match &wanted.proof {
            Proof::Hash(expected) => {
                let found = if stored.len() > HASH_BYTES_INLINE_MAX {
                    let hashed = stored.clone();
                    compute::call(&*self.compute, move || checksum::hash(&hashed)).await
                } else {
                    checksum::hash(&stored)
                };
                (found == *expected).then_some(stored)
            }
            Proof::Seal { key, aad, plaintext_bytes } => {
                let plaintext = key.open(aad, &stored).ok()?;
                (plaintext.len() == *plaintext_bytes).then(|| Bytes::from(plaintext))
            }
        }
    }
}
