//! The eyes of a world: every change of a cloud and every write to a disk is judged at the instant it takes effect.

use std::{cell::RefCell, collections::BTreeMap, path::Path, rc::Rc};

use bytes::Bytes;
use velum_node::keyring::{Keyring, ObjectKind};
use velum_protocol::id::{ClusterId, Jseq, VolumeId};

use crate::{
    checker::{Verdict, cry1::Nonces, cry2::Canaries, seq1, seq2, seq3, seq4, seq4::Journaled, seq5, seq9},
    env::{
        cloud::{Change, SimCloud},
        disk::Medium,
    },
    guest::{pattern::Cell, workload::Guest},
    ledger::{Entry, Ledger, Meaning},
    runtime::Sim,
};

/// Judges what clouds and disks are given.
pub struct Watch {
    sim: Rc<Sim>,
    /// The book of all clouds.
    pub ledger: RefCell<Ledger>,
    clouds: BTreeMap<String, Rc<SimCloud>>,
    nonces: RefCell<Nonces>,
    canaries: Canaries,
    quorum: usize,
    /// How far the clouds reached that the machine was recovered from, when it was.
    adopted: RefCell<BTreeMap<VolumeId, Jseq>>,
}

impl Watch {
    /// Watches `clouds`, of which `quorum` make d2, for a cluster whose root key is `secret`; `names` must stay unread.
    #[must_use]
    pub fn new(
        sim: &Rc<Sim>,
        clouds: Vec<Rc<SimCloud>>,
        quorum: usize,
        secret: [u8; 32],
        names: &[String],
    ) -> Rc<Self> {
        let cloud_names: Vec<_> = clouds.iter().map(|cloud| cloud.name().to_owned()).collect();
        let mut secrets: Vec<(&str, &[u8])> = vec![("the root key", &secret)];
        secrets.extend(names.iter().map(|name| ("a volume's name", name.as_bytes())));
        let watch = Rc::new(Self {
            sim: Rc::clone(sim),
            ledger: RefCell::new(Ledger::new(secret, &cloud_names)),
            clouds: clouds.iter().map(|cloud| (cloud.name().to_owned(), Rc::clone(cloud))).collect(),
            nonces: RefCell::default(),
            canaries: Canaries::new(&secrets),
            quorum,
            adopted: RefCell::default(),
        });
        for cloud in clouds {
            // The eyes hold the clouds: a cloud that held them too would keep every world in memory for ever.
            let watching = Rc::downgrade(&watch);
            cloud.watch(Rc::new(move |cloud, change| {
                if let Some(watching) = watching.upgrade() {
                    watching.changed(cloud, change);
                }
            }));
        }
        watch
    }

    /// Watches a disk too.
    pub fn disk(self: &Rc<Self>, medium: &Medium) {
        let watching = Rc::clone(self);
        medium.watch(Rc::new(move |path, bytes| watching.written(path, bytes)));
    }

    fn judge(&self, promise: &str, verdict: Verdict) {
        if let Err(why) = verdict {
            self.sim.fail(format!("{promise} {why}"));
        }
    }

    fn written(&self, path: &Path, bytes: &[u8]) {
        let place = path.to_string_lossy();
        self.judge("CRY2", self.canaries.check(bytes, &place));
        self.judge("CRY1", self.nonces.borrow_mut().note_journal(bytes, &place));
        self.sim.count("bytes written", bytes.len() as u64);
    }

    fn changed(&self, cloud: &SimCloud, change: &Change<'_>) {
        match change {
            Change::Put { name, body, .. } => self.put(cloud.name(), name, body),
            Change::Delete { name } => {
                self.sim.count("objects deleted", 1);
                let Some(gone) = self.ledger.borrow().named(name) else { return };
                let (before, _) = self.ledger.borrow().head(cloud.name(), gone.volume);
                self.ledger.borrow_mut().deleted(cloud.name(), name);
                self.judge("SEQ3", seq3::check_deleted(&self.ledger.borrow(), cloud.name(), &gone, before));
            }
        }
    }

    fn put(&self, cloud: &str, name: &str, body: &Bytes) {
        self.sim.count("objects stored", 1);
        let place = format!("object {name} in cloud {cloud}");
        self.judge("CRY2", self.canaries.check(body, &place));
        self.judge("CRY2", self.canaries.check(name.as_bytes(), &place));
        let stored = self.ledger.borrow_mut().stored(cloud, name, body);
        match stored {
            Err(why) => self.sim.fail(format!("SEQ6 {why}")),
            Ok(None) => {}
            Ok(Some(entry)) => self.understood(cloud, &entry, body, &place),
        }
    }

    fn understood(&self, cloud: &str, entry: &Entry, body: &Bytes, place: &str) {
        let (ledger, id) = (self.ledger.borrow(), &entry.known.id);
        if entry.is_new {
            let frames = if let Meaning::Segment(frames) = &*entry.known.meaning { frames.as_slice() } else { &[] };
            self.judge("CRY1", self.nonces.borrow_mut().note_object(body, frames, place));
        }
        if let Meaning::Record(record) = &*entry.known.meaning {
            self.judge("SEQ1", seq1::check(&ledger, cloud, id, record));
            if entry.is_new {
                self.sim.count("sequence records", 1);
                self.judge("SEQ2", seq2::check(ledger.holdings.values(), self.quorum, id, record));
            }
            if entry.is_new && record.link.is_empty() {
                self.sim.count("relocations", 1);
                let stored = |object: &str| self.clouds[cloud].bucket.borrow().pristine().get(object).cloned();
                let verdict = ledger.moved(cloud, id, record, &stored).and_then(|moved| seq9::check(&moved));
                let place = format!("record {} of volume {} in cloud {cloud}", id.number, id.volume);
                self.judge("SEQ9", verdict.map_err(|why| format!("{place}: {why}")));
            }
        }
        if id.kind == ObjectKind::Stub && entry.is_new {
            self.sim.count("checkpoints", 1);
        }
        self.judge("SEQ3", seq3::check_stored(&ledger, cloud, id));
    }

    /// The cluster, once its keys are known.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.ledger.borrow().keyring().map(Keyring::cluster)
    }

    /// The volume called `name`, as the catalogue says.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<VolumeId> {
        self.ledger.borrow().volume_named(name)
    }

    /// Reads a guest's volume from every cloud alone and judges each image as a prefix. Gives the newest image among
    /// `trusted` clouds, of which none need know of a life when another does: what it has beyond that life's beginning is void.
    pub fn sample(&self, guest: &Guest, trusted: &dyn Fn(&str) -> bool) -> Option<Vec<Cell>> {
        let volume = self.volume(&guest.export)?;
        let history = guest.history.borrow();
        let ledger = self.ledger.borrow();
        let told = self.clouds.keys().filter(|name| trusted(name)).max_by_key(|name| ledger.newest_life(name))?;
        let mut newest: Option<(u64, Vec<Cell>)> = None;
        for (name, cloud) in &self.clouds {
            let stored = |object: &str| cloud.bucket.borrow().pristine().get(object).cloned();
            let read = |told| {
                let image = ledger.image((name, told), volume, history.sectors(), &stored);
                image.map_err(|why| self.sim.fail(format!("SEQ3 volume {} in cloud {name}: {why}", guest.export))).ok()
            };
            let Some(mut image) = read(name) else { continue };
            let verdict = seq5::check_prefix(&history, &image.cells);
            self.judge("SEQ5", verdict.map_err(|why| format!("the image in cloud {name}: {why}")));
            if ledger.newest_life(told) > ledger.newest_life(name) {
                let Some(valid) = read(told) else { continue };
                image = valid;
            }
            if trusted(name) && newest.as_ref().is_none_or(|(seq, _)| image.seq.0 > *seq) {
                newest = Some((image.seq.0, image.cells));
            }
        }
        self.sim.count("cloud images judged", self.clouds.len() as u64);
        newest.map(|(_, image)| image)
    }

    /// The last journal position of `volume` that lies in enough clouds.
    #[must_use]
    pub fn durable(&self, volume: VolumeId) -> Jseq {
        let ledger = self.ledger.borrow();
        seq4::durable(self.clouds.keys().map(|cloud| ledger.head(cloud, volume).1).collect(), self.quorum)
    }

    /// A machine without a journal is about to be recovered from the clouds that `usable` names.
    pub fn recovering(&self, guests: &[Rc<Guest>], usable: &dyn Fn(&str) -> bool) {
        let volumes = guests.iter().filter_map(|guest| self.volume(&guest.export));
        let ledger = self.ledger.borrow();
        let newest = |volume: VolumeId| {
            let clouds = self.clouds.keys().filter(|cloud| usable(cloud));
            Some((volume, clouds.map(|cloud| ledger.head(cloud, volume).1).max()?))
        };
        self.adopted.replace(volumes.filter_map(newest).collect());
    }

    /// Judges what a journal still holds of `volume`.
    pub fn check_journal(&self, volume: VolumeId, journaled: &Journaled) {
        let adopted = self.adopted.borrow().get(&volume).copied().unwrap_or_default();
        let verdict = seq4::check(self.durable(volume), adopted, journaled);
        self.judge("SEQ4", verdict.map_err(|why| format!("volume {volume}: {why}")));
    }

    /// Judges that every pair of clouds a recovery may start from holds what was flushed.
    pub fn check_flushed(&self, guest: &Guest) {
        for missing in self.clouds.keys() {
            if let Some(image) = self.sample(guest, &|name| name != missing) {
                let verdict = seq5::check_flushed(&guest.history.borrow(), &image);
                self.judge("SEQ5", verdict.map_err(|why| format!("without cloud {missing}: {why}")));
            }
        }
    }
}
