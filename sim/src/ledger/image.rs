//! What one cloud alone says a volume holds: its newest complete checkpoint, and every record that follows.

use std::collections::BTreeMap;

use bytes::Bytes;
use velum_node::keyring::{ObjectId, ObjectKind};
use velum_protocol::{
    format::{
        location::{Frame, RunUpdate},
        page::Payload,
    },
    id::{BlockIndex, Incarnation, Jseq, Seq, VolumeId},
};

use super::{Ledger, Meaning, Record};
use crate::guest::pattern::{BLOCK_SECTORS, Cell, SECTOR, recognise};

/// A volume as read from one cloud.
#[derive(Clone, Debug)]
pub struct CloudImage {
    /// The last record that follows without a gap.
    pub seq: Seq,
    /// The last journal position in it.
    pub last: Jseq,
    /// What it holds.
    pub cells: Vec<Cell>,
}

/// A block that a record moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Which.
    pub block: u64,
    /// What it held.
    pub before: Option<Bytes>,
    /// What it holds.
    pub after: Option<Bytes>,
}

impl Ledger {
    /// Walks the newest gapless chain of `volume` in `cloud`, knowing the lives that `told` knows of: shows each record after
    /// its checkpoint to `each`.
    fn walk(&self, cloud: &str, told: &str, volume: VolumeId, each: &mut dyn FnMut(Seq, &Record)) -> Chain {
        let holding = &self.holdings[cloud];
        let starts = self.starts(told, volume);
        let life =
            |seq: Seq| starts.iter().rev().find(|(_, at)| seq > at.seq).map_or(Incarnation(0), |(life, _)| *life);
        let mut chain = Chain::default();
        for (id, hash) in holding.of(ObjectKind::Stub, volume).rev() {
            let Some(Meaning::Stub(stub)) = self.known(hash).map(|known| &*known.meaning) else { continue };
            // A checkpoint may be of records of lives before its own; it is void when a later life began before it.
            let is_void = starts.iter().any(|(life, at)| *life > id.incarnation && at.checkpoint < id.number);
            if !is_void && holding.is_whole(id) {
                let root = &stub.checkpoint.root;
                let kind = ObjectKind::Root;
                chain.root = Some(ObjectId { kind, volume, incarnation: root.incarnation, number: root.number.0 });
                (chain.seq, chain.last) = (stub.checkpoint.seq, stub.last);
                break;
            }
        }
        loop {
            let seq = chain.seq.next();
            let id = ObjectId { kind: ObjectKind::Record, volume, incarnation: life(seq), number: seq.0 };
            let Some(Meaning::Record(record)) = self.held(cloud, &id).map(|known| &*known.meaning) else { break };
            each(seq, record);
            (chain.seq, chain.last) = (seq, record.link.last);
        }
        chain
    }

    /// The lives of the cluster that `cloud` knows of, each with what it took over of `volume`.
    fn starts(&self, cloud: &str, volume: VolumeId) -> BTreeMap<Incarnation, Start> {
        let mut starts = BTreeMap::new();
        for (id, hash) in self.holdings[cloud].of(ObjectKind::Claim, VolumeId::ZERO) {
            if let Some(Meaning::Claim(claim)) = self.known(hash).map(|known| &*known.meaning) {
                let head = claim.heads.iter().find(|head| head.volume == volume);
                let start = head.map(|head| Start { seq: head.seq, checkpoint: head.checkpoint });
                starts.insert(id.incarnation, start.unwrap_or_default());
            }
        }
        if let Some(first) = self.first_lives.get(&volume) {
            starts.entry(*first).or_default();
        }
        starts
    }

    /// The newest life of the cluster that `cloud` knows of.
    #[must_use]
    pub fn newest_life(&self, cloud: &str) -> Incarnation {
        self.holdings[cloud]
            .of(ObjectKind::Claim, VolumeId::ZERO)
            .next_back()
            .map_or(Incarnation(0), |(id, _)| id.incarnation)
    }

    /// Where the newest gapless chain of `volume` in `cloud` ends.
    #[must_use]
    pub fn head(&self, cloud: &str, volume: VolumeId) -> (Seq, Jseq) {
        let chain = self.walk(cloud, cloud, volume, &mut |_, _| {});
        (chain.seq, chain.last)
    }

    /// True when every record of the newest life that `cloud` holds of `volume` is part of its newest gapless chain or behind
    /// that, and has all that it names.
    #[must_use]
    pub fn is_closed(&self, cloud: &str, volume: VolumeId) -> bool {
        let (holding, (head, _)) = (&self.holdings[cloud], self.head(cloud, volume));
        let newest = self.newest_life(cloud);
        holding
            .of(ObjectKind::Record, volume)
            .filter(|(id, _)| id.incarnation >= newest)
            .all(|(id, _)| id.number <= head.0 && holding.is_whole(id))
    }

    /// Reads `volume`, of `sectors` sectors, from `cloud`, knowing the lives of the cluster that cloud `told` knows of; `stored`
    /// gives the bytes of an object by its name.
    ///
    /// # Errors
    /// When something that the cloud's own chain names is missing there or does not open.
    pub fn image(
        &self,
        (cloud, told): (&str, &str),
        volume: VolumeId,
        sectors: u64,
        stored: &dyn Fn(&str) -> Option<Bytes>,
    ) -> Result<CloudImage, String> {
        let (chain, map) = self.map(cloud, told, volume, Seq(u64::MAX))?;
        let mut cells = vec![Cell::ZERO; sectors as usize];
        let mut opened: BTreeMap<Frame, Bytes> = BTreeMap::new();
        for (block, frame) in map {
            let contents = match opened.get(&frame) {
                Some(contents) => contents.clone(),
                None => {
                    let contents = self.frame(volume, &frame, stored)?;
                    opened.insert(frame, contents.clone());
                    contents
                }
            };
            let at = (block - frame.start.0) as usize * 4096;
            for (index, sector) in contents[at..at + 4096].chunks(SECTOR).enumerate() {
                if let Some(cell) = cells.get_mut(block as usize * BLOCK_SECTORS as usize + index) {
                    *cell = recognise(sector);
                }
            }
        }
        Ok(CloudImage { seq: chain.seq, last: chain.last, cells })
    }

    /// Where each block of `volume` lies after record `through`, or after the last one, as `cloud` has it.
    fn map(
        &self,
        cloud: &str,
        told: &str,
        volume: VolumeId,
        through: Seq,
    ) -> Result<(Chain, BTreeMap<u64, Frame>), String> {
        let mut updates = Vec::new();
        let chain = self.walk(cloud, told, volume, &mut |seq, record| {
            if seq <= through {
                updates.extend_from_slice(&record.body.updates);
            }
        });
        let mut map: BTreeMap<u64, Frame> = BTreeMap::new();
        if let Some(root) = chain.root {
            self.load(cloud, root, &mut map)?;
        }
        for RunUpdate { start, count, frame } in &updates {
            for block in start.0..start.0 + count {
                match frame {
                    Some(frame) => drop(map.insert(block, *frame)),
                    None => drop(map.remove(&block)),
                }
            }
        }
        Ok((chain, map))
    }

    /// The contents of every block that record `id` says lies somewhere: before it, and after it. `None` is a block that was
    /// not mapped. The record lies in `cloud`, whose chain it ends.
    ///
    /// # Errors
    /// When something that the cloud's own chain names is missing there or does not open.
    pub fn moved(
        &self,
        cloud: &str,
        id: &ObjectId,
        record: &Record,
        stored: &dyn Fn(&str) -> Option<Bytes>,
    ) -> Result<Vec<Moved>, String> {
        let (_, map) = self.map(cloud, cloud, id.volume, Seq(id.number - 1))?;
        let contents = |frame: &Frame, block: u64| {
            let at = (block - frame.start.0) as usize * 4096;
            self.frame(id.volume, frame, stored).map(|contents| contents.slice(at..at + 4096))
        };
        let mut moved = Vec::new();
        for RunUpdate { start, count, frame } in &record.body.updates {
            for block in start.0..start.0 + count {
                let before = map.get(&block).map(|frame| contents(frame, block)).transpose()?;
                let after = frame.map(|frame| contents(&frame, block)).transpose()?;
                moved.push(Moved { block, before, after });
            }
        }
        Ok(moved)
    }

    fn load(&self, cloud: &str, root: ObjectId, map: &mut BTreeMap<u64, Frame>) -> Result<(), String> {
        for id in self.closure(cloud, root)? {
            let Some(Meaning::Page(Payload::Leaf(leaf))) = self.held(cloud, &id).map(|known| &*known.meaning) else {
                continue;
            };
            for run in &leaf.runs {
                let frame = leaf.frame(run).ok_or_else(|| format!("a run of {id:?} names no segment"))?;
                for block in 0..u64::from(run.count) {
                    map.insert(leaf.first.0 + u64::from(run.start) + block, frame);
                }
            }
        }
        Ok(())
    }

    fn frame(&self, volume: VolumeId, frame: &Frame, stored: &dyn Fn(&str) -> Option<Bytes>) -> Result<Bytes, String> {
        let (kind, incarnation, number) = (ObjectKind::Segment, frame.incarnation, frame.segment.0);
        let id = ObjectId { kind, volume, incarnation, number };
        let keyring = self.keyring().ok_or("the cluster's keys are not known")?;
        let segment = stored(&keyring.object_name(&id)).ok_or_else(|| format!("{id:?} is not there"))?;
        let range = frame.offset as usize..(frame.offset + frame.sealed_bytes()) as usize;
        let sealed = segment.get(range).ok_or_else(|| format!("{frame:?} leaves its segment"))?;
        let keys =
            self.keys(volume).and_then(|keys| keys.epoch(frame.key_epoch)).ok_or("the volume's keys are not known")?;
        let aad = velum_protocol::format::bind::BlockFrame {
            cluster: keyring.cluster(),
            volume,
            key_epoch: frame.key_epoch,
            incarnation: frame.incarnation,
            segment: frame.segment,
            frame: frame.frame,
            start: BlockIndex(frame.start.0),
            blocks: frame.blocks,
            codec: velum_protocol::format::bind::FrameCodec::Stored,
        };
        let contents = keys.block.open(&aad.aad(), sealed).map_err(|error| format!("{frame:?}: {error}"))?;
        Ok(Bytes::from(contents))
    }
}

/// The last record and checkpoint of a volume that a life took over; everything newer of lives before is void.
#[derive(Clone, Copy, Default)]
struct Start {
    seq: Seq,
    checkpoint: u64,
}

#[derive(Default)]
struct Chain {
    root: Option<ObjectId>,
    seq: Seq,
    last: Jseq,
}
