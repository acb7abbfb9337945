//! The copies of volumes' journals that this node keeps as a member of ensembles.
//!
//! Each is a member's machine over a stream of the node's journal and a promise file. Whoever owns or takes over a volume here
//! speaks to this node's own copy as to any other: what it sends to this node comes back by itself. Answers of members are
//! handed to whoever listens for the volume.
//!
//! Of records that the journal has no room for the first ones are taken that fit: the owner sends the rest again, and counts on
//! others meanwhile.

mod found;
mod shell;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    rc::Rc,
};

use bytes::Bytes;
use velum_protocol::{
    id::{ClusterId, NodeId, VolumeId},
    peer::{Frame, ensemble::Life},
};

pub(super) use found::{FoundCopies, Known};

use super::{quota::Quota, start::StartError};
use crate::{
    actor::{self, Handle},
    ensemble::member::{Found, Input, Member},
    env::{Env, Instant},
    journal::{Journal, StreamId},
    peer::Links,
};
use shell::CopyShell;

/// Hears what members say of one volume.
pub(super) trait Ear {
    /// A member says something.
    fn told(&self, from: NodeId, frame: Frame);
    /// What was sent to a member last may be lost.
    fn lost(&self, to: NodeId);
}

/// All copies of a node, and its way to those of others. Cheap to clone.
#[derive(Clone)]
pub(super) struct Copies(Rc<Inner>);

struct Inner {
    env: Env,
    cluster: ClusterId,
    node: NodeId,
    life: Life,
    promises: PathBuf,
    journal: Rc<Journal>,
    links: Links,
    /// Whether a volume is there.
    is_volume: Box<dyn Fn(VolumeId) -> bool>,
    quota: Rc<Quota>,
    copies: RefCell<BTreeMap<VolumeId, Handle<Input>>>,
    ears: RefCell<BTreeMap<VolumeId, Rc<dyn Ear>>>,
}

/// Where copies are kept and who is spoken to.
pub(super) struct Surroundings {
    pub(super) env: Env,
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
    pub(super) journal: Rc<Journal>,
    pub(super) links: Links,
    pub(super) is_volume: Box<dyn Fn(VolumeId) -> bool>,
    pub(super) quota: Quota,
}

impl Copies {
    /// Starts with what was found. Returns when it is noted, durably, which copies are not whole.
    ///
    /// # Errors
    /// When a promise cannot be written.
    pub(super) async fn start(around: Surroundings, found: FoundCopies) -> Result<Self, StartError> {
        let FoundCopies { promises, life, started, copies } = found;
        let Surroundings { env, cluster, node, journal, links, is_volume, quota } = around;
        let inner = Inner {
            env,
            cluster,
            node,
            life,
            promises,
            journal,
            links,
            is_volume,
            quota: Rc::new(quota),
            copies: RefCell::default(),
            ears: RefCell::default(),
        };
        let own = Self(Rc::new(inner));
        for (volume, found) in copies {
            found::note(&own.0.env, &own.0.promises, (cluster, node, volume), &found).await?;
            own.begin(found, started);
        }
        Ok(own)
    }

    fn begin(&self, found: Found, started: Instant) -> Handle<Input> {
        let volume = found.volume;
        let shell = CopyShell::new(self, volume);
        let handle = actor::start(Rc::clone(&self.0.env.clock), Member::new(found, started), shell);
        self.0.copies.borrow_mut().insert(volume, handle.clone());
        handle
    }

    /// The copy of a volume; a new one when there is none.
    fn copy(&self, volume: VolumeId) -> Handle<Input> {
        let known = self.0.copies.borrow().get(&volume).cloned();
        known.unwrap_or_else(|| self.begin(found::nothing(volume, self.0.life), self.0.env.clock.now()))
    }

    /// What this node's own volumes may take of journals.
    pub(super) fn quota(&self) -> Rc<Quota> {
        Rc::clone(&self.0.quota)
    }

    /// Has `ear` told what members say of a volume, instead of whoever was before.
    pub(super) fn listen(&self, volume: VolumeId, ear: Rc<dyn Ear>) {
        self.0.ears.borrow_mut().insert(volume, ear);
    }

    /// Speaks to a member, which may be this node.
    pub(super) fn send(&self, to: NodeId, frame: Frame) {
        if to == self.0.node { self.hear(to, frame) } else { self.0.links.send(to, frame) }
    }

    /// A node says something about an ensemble.
    pub(super) fn hear(&self, from: NodeId, frame: Frame) {
        match frame {
            Frame::Append(mut append) if (self.0.is_volume)(append.volume) => {
                append.records.truncate(self.fitting(&append.records));
                self.copy(append.volume).call(Input::Append(from, append));
            }
            Frame::Fence(fence) if (self.0.is_volume)(fence.volume) => {
                self.copy(fence.volume).call(Input::Fence(from, fence));
            }
            Frame::ReadTail(read) if (self.0.is_volume)(read.volume) => {
                self.copy(read.volume).call(Input::ReadTail(from, read));
            }
            Frame::Confirm(confirm) if (self.0.is_volume)(confirm.volume) => {
                self.copy(confirm.volume).call(Input::Confirm(from, confirm));
            }
            Frame::Release(release) if (self.0.is_volume)(release.volume) => {
                self.copy(release.volume).call(Input::Release(from, release));
            }
            Frame::Confirmed(confirmed) => self.tell(confirmed.volume, from, frame),
            Frame::Appended(appended) => self.tell(appended.volume, from, frame),
            Frame::Fenced(fenced) => self.tell(fenced.volume, from, frame),
            Frame::Tail(ref tail) => self.tell(tail.volume, from, frame),
            _ => {}
        }
    }

    /// How many of these records there is room for, from the first on. The marks beside them are always taken: they make room.
    fn fitting(&self, records: &[Bytes]) -> usize {
        let length = |record: &Bytes| u64::try_from(record.len()).expect("a length in memory fits 64 bits");
        if self.0.journal.has_room_for_foreign(records.iter().map(length).sum()) {
            return records.len();
        }
        let mut bytes = 0;
        let fits = |record: &&Bytes| {
            bytes += length(record);
            self.0.journal.has_room_for_foreign(bytes)
        };
        records.iter().take_while(fits).count()
    }

    fn tell(&self, volume: VolumeId, from: NodeId, frame: Frame) {
        let ear = self.0.ears.borrow().get(&volume).map(Rc::clone);
        if let Some(ear) = ear {
            ear.told(from, frame);
        }
    }

    /// What was sent to a node last may be lost.
    pub(super) fn lost(&self, to: NodeId) {
        let ears: Vec<Rc<dyn Ear>> = self.0.ears.borrow().values().map(Rc::clone).collect();
        ears.iter().for_each(|ear| ear.lost(to));
    }

    /// Forgets copies of volumes that are there no more.
    pub(super) async fn retain(&self, live: &BTreeSet<VolumeId>) {
        let gone: Vec<VolumeId> = self.0.copies.borrow().keys().filter(|id| !live.contains(*id)).copied().collect();
        for volume in gone {
            self.0.copies.borrow_mut().remove(&volume);
            self.0.ears.borrow_mut().remove(&volume);
            self.0.journal.remove(StreamId::Volume(volume));
            let path = found::path(&self.0.promises, volume);
            if let Err(error) = self.0.env.disk.remove(&path).await {
                tracing::debug!(path = %path.display(), %error, "the promise for a volume that is gone stays");
            }
        }
    }
}
