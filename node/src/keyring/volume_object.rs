//! The objects of a volume, sealed and opened: segments, sequence records, checkpoint pages, roots and stubs.
//!
//! Everything here is pure and may run on the compute pool. One `fresh` serves a whole object: nonces are drawn from a keyed
//! hash over it, the binding and the plaintext, and no two pieces of an object have the same binding.

use bytes::Bytes;
use velum_protocol::{
    checksum,
    format::{
        bind::{
            BlockFrame, CheckpointPage, CheckpointRoot, CheckpointStub, FrameCodec, SegmentDirectory, SequenceRecord,
        },
        checkpoint::{PAGE_OBJECT_BYTES_MAX, ROOT_OBJECT_BYTES_MAX, RootLink, STUB_BYTES_MAX, Stub},
        location::Frame,
        metadata::ObjectRef,
        object::{NO_DETAIL, PRELUDE_BYTES, SEAL_OVERHEAD_BYTES},
        segment::{self, Entry, FRAMES_OFFSET, Outline, SEGMENT_BYTES_MAX},
        sequence::{Body, Link, RECORD_BYTES_MAX},
    },
    id::{BlockIndex, Epoch, Hash, Incarnation, KeyEpoch, ObjectNumber, Seq},
};

use super::{
    KeySet, ObjectFault, ObjectId, ObjectKind, VolumeKeys,
    object::{open_metadata, seal_metadata},
};

/// The contents of one frame to be sealed.
#[derive(Clone, Debug)]
pub struct FramePlan {
    /// First block of the volume.
    pub start: BlockIndex,
    /// The blocks, 4,096 bytes each.
    pub blocks: Vec<Bytes>,
}

/// A sealed segment, ready to be stored.
#[derive(Clone, Debug)]
pub struct SealedSegment {
    /// Number, length and hash.
    pub object: ObjectRef,
    /// The stored bytes.
    pub stored: Bytes,
    /// Where each frame lies, in the order of the plan.
    pub frames: Vec<Frame>,
}

/// A segment whose header and directory are whole.
#[derive(Clone, Debug)]
pub struct Examined {
    /// What the directory says, in the order of the frames.
    pub entries: Vec<Entry>,
    /// Each frame that does not open, and why.
    pub faults: Vec<(Frame, ObjectFault)>,
}

/// A sealed sequence record, ready to be agreed on.
#[derive(Clone, Debug)]
pub struct SealedRecord {
    /// The stored bytes.
    pub stored: Bytes,
    /// The chain hash at this record.
    pub hash: Hash,
}

/// An opened sequence record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedRecord {
    /// What it is bound to.
    pub link: Link,
    /// What it says.
    pub body: Body,
    /// The chain hash at this record.
    pub hash: Hash,
}

impl KeySet {
    /// Seals a segment under `keys`.
    ///
    /// # Panics
    /// When the plan holds more blocks than a segment may, or a frame more than a frame may: the caller cuts windows first.
    #[must_use]
    pub fn seal_segment(
        &self,
        fresh: &[u8; 32],
        keys: &VolumeKeys,
        epoch: Epoch,
        (incarnation, number): (Incarnation, ObjectNumber),
        plan: &[FramePlan],
    ) -> SealedSegment {
        let mut stored = vec![0; PRELUDE_BYTES];
        let mut frames = Vec::with_capacity(plan.len());
        let mut entries = Vec::with_capacity(plan.len());
        let mut plaintext = Vec::new();
        for (place, frame) in (0_u32..).zip(plan) {
            let blocks = u16::try_from(frame.blocks.len()).expect("a frame holds a few blocks");
            let location = Frame {
                incarnation,
                segment: number,
                frame: place,
                offset: u32::try_from(stored.len()).expect("a segment is bounded far below 4 GiB"),
                key_epoch: keys.key_epoch,
                start: frame.start,
                blocks,
            };
            plaintext.clear();
            frame.blocks.iter().for_each(|block| plaintext.extend_from_slice(block));
            keys.block.seal_into(fresh, &self.frame_binding(&location), &plaintext, &mut stored);
            entries.push(Entry { start: frame.start, blocks, tag: tag(&stored) });
            frames.push(location);
        }
        let id = self.id(ObjectKind::Segment, incarnation, number.0);
        self.seal_directory(fresh, keys, epoch, &id, &entries, &mut stored);
        let stored = Bytes::from(stored);
        let object = ObjectRef { incarnation, number, bytes: length(&stored), hash: checksum::hash(&stored) };
        SealedSegment { object, stored, frames }
    }

    /// Appends the sealed directory and puts the prelude into its place.
    fn seal_directory(
        &self,
        fresh: &[u8; 32],
        keys: &VolumeKeys,
        epoch: Epoch,
        id: &ObjectId,
        entries: &[Entry],
        stored: &mut Vec<u8>,
    ) {
        let directory_offset = stored.len();
        let directory = segment::encode_directory(entries, directory_offset);
        let sealed = directory.len() + SEAL_OVERHEAD_BYTES;
        let object_bytes = directory_offset + sealed;
        assert!(object_bytes <= SEGMENT_BYTES_MAX, "windows are cut into segments of bounded length");
        let count = |number: usize| u32::try_from(number).expect("a segment is bounded far below 4 GiB");
        let outline = Outline {
            epoch,
            frames: count(entries.len()),
            directory_offset: count(directory_offset),
            directory_bytes: count(sealed),
        };
        let binding = self.directory_binding(keys, id, outline.frames, object_bytes);
        keys.segment.seal_into(fresh, &binding, &directory, stored);
        let prelude = self.prelude(fresh, id, keys.key_epoch, outline.to_detail());
        let place = stored.first_chunk_mut::<PRELUDE_BYTES>().expect("room for the prelude was left");
        *place = prelude;
    }

    /// Opens everything in a segment and checks that it is whole.
    ///
    /// # Errors
    /// When any part is damaged, or it is another segment.
    pub fn verify_segment(&self, name: (Incarnation, ObjectNumber), stored: &[u8]) -> Result<Vec<Entry>, ObjectFault> {
        let Examined { entries, faults } = self.examine_segment(name, stored)?;
        faults.into_iter().next().map_or(Ok(entries), |(_, fault)| Err(fault))
    }

    /// Opens everything in a segment that can be opened.
    ///
    /// # Errors
    /// When header or directory are damaged, so that it is not known where the frames lie, or it is another segment.
    pub fn examine_segment(&self, name: (Incarnation, ObjectNumber), stored: &[u8]) -> Result<Examined, ObjectFault> {
        let frames = self.segment_frames(name, stored)?;
        let fault = |(frame, entry): &(Frame, Entry)| {
            let listed = sealed_frame(frame, stored).is_some_and(|sealed| tag(sealed) == entry.tag);
            let opened = if listed { self.open_frame(frame, stored) } else { Err(ObjectFault::Unfit("tag")) };
            opened.err().map(|fault| (*frame, fault))
        };
        let faults = frames.iter().filter_map(fault).collect();
        Ok(Examined { entries: frames.into_iter().map(|(_, entry)| entry).collect(), faults })
    }

    /// Opens the contents of one frame of a segment.
    ///
    /// # Errors
    /// When it is damaged, or the segment does not hold it.
    pub fn open_frame(&self, frame: &Frame, stored: &[u8]) -> Result<Vec<u8>, ObjectFault> {
        let keys = self.epoch(frame.key_epoch).ok_or(ObjectFault::NoKey(frame.key_epoch))?;
        let sealed = sealed_frame(frame, stored).ok_or(ObjectFault::Unfit("frame"))?;
        Ok(keys.block.open(&self.frame_binding(frame), sealed)?)
    }

    /// Where each frame of a segment lies, in block order, by its directory; the frames are not looked at.
    ///
    /// # Errors
    /// When header or directory are damaged, they do not fit the object, or it is another segment.
    pub fn segment_frames(
        &self,
        (incarnation, number): (Incarnation, ObjectNumber),
        stored: &[u8],
    ) -> Result<Vec<(Frame, Entry)>, ObjectFault> {
        let id = self.id(ObjectKind::Segment, incarnation, number.0);
        let (header, keys, _) = self.open_header(&id, stored, SEGMENT_BYTES_MAX)?;
        let outline = Outline::from_detail(&header.detail)?;
        let index = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let directory_offset = index(outline.directory_offset);
        let (_, sealed) = stored.split_at_checked(directory_offset).ok_or(ObjectFault::Unfit("directory"))?;
        if sealed.len() != index(outline.directory_bytes) {
            return Err(ObjectFault::Unfit("directory"));
        }
        let binding = self.directory_binding(keys, &id, outline.frames, stored.len());
        let entries = segment::decode_directory(&keys.segment.open(&binding, sealed)?, outline.frames)?;
        let mut offset = FRAMES_OFFSET;
        let mut frames = Vec::with_capacity(entries.len());
        for (place, entry) in (0_u32..).zip(entries) {
            let frame = Frame {
                incarnation,
                segment: number,
                frame: place,
                offset,
                key_epoch: keys.key_epoch,
                start: entry.start,
                blocks: entry.blocks,
            };
            offset = offset.checked_add(entry.sealed_bytes()).ok_or(ObjectFault::Unfit("frame"))?;
            frames.push((frame, entry));
        }
        if offset == outline.directory_offset { Ok(frames) } else { Err(ObjectFault::Unfit("directory")) }
    }

    /// Seals a sequence record under `keys`. The caller sees to it that it is not longer than a record may be.
    #[must_use]
    pub fn seal_record(
        &self,
        fresh: &[u8; 32],
        keys: &VolumeKeys,
        (incarnation, seq): (Incarnation, Seq),
        link: &Link,
        body: &Body,
    ) -> SealedRecord {
        let id = self.id(ObjectKind::Record, incarnation, seq.0);
        let prelude = self.prelude(fresh, &id, keys.key_epoch, link.to_detail());
        let binding = self.record_binding(keys, &id, link);
        let stored = seal_metadata(&prelude, &keys.sequence, fresh, &binding, &body.encode(keys.key_epoch));
        let (_, ciphertext) = stored.split_at(PRELUDE_BYTES);
        let hash = checksum::chain(&prelude, ciphertext);
        SealedRecord { stored: stored.into(), hash }
    }

    /// Opens a sequence record.
    ///
    /// # Errors
    /// When it is damaged or another record.
    pub fn open_record(
        &self,
        (incarnation, seq): (Incarnation, Seq),
        stored: &[u8],
    ) -> Result<OpenedRecord, ObjectFault> {
        let id = self.id(ObjectKind::Record, incarnation, seq.0);
        let (header, keys, parts) = self.open_header(&id, stored, RECORD_BYTES_MAX)?;
        let link = Link::from_detail(&header.detail)?;
        let payload = open_metadata(&keys.sequence, &self.record_binding(keys, &id, &link), parts.body)?;
        let body = Body::decode(&payload, keys.key_epoch)?;
        // Nothing is written by a record without a window, so nothing is given up by one either.
        if link.is_empty() && body.updates.iter().any(|update| update.frame.is_none()) {
            return Err(ObjectFault::Unfit("relocation"));
        }
        Ok(OpenedRecord { link, body, hash: checksum::chain(parts.prelude, parts.body) })
    }

    /// Which life of the cluster wrote a record of this volume; `None` when the bytes are not the record of that place.
    #[must_use]
    pub fn record_incarnation(&self, seq: Seq, stored: &[u8]) -> Option<Incarnation> {
        let header = self.read_header(ObjectKind::Record, stored, RECORD_BYTES_MAX).ok()?;
        (header.volume == self.volume() && header.number == seq.0).then_some(header.incarnation)
    }

    /// Seals a page of the extent map.
    #[must_use]
    pub fn seal_page(
        &self,
        fresh: &[u8; 32],
        keys: &VolumeKeys,
        (incarnation, number): (Incarnation, ObjectNumber),
        payload: &[u8],
    ) -> (ObjectRef, Bytes) {
        let id = self.id(ObjectKind::Page, incarnation, number.0);
        let prelude = self.prelude(fresh, &id, keys.key_epoch, NO_DETAIL);
        let stored = seal_metadata(&prelude, &keys.checkpoint, fresh, &self.page_binding(keys, &id), payload);
        referred(incarnation, number, stored)
    }

    /// Opens a page of the extent map; the payload is what [`velum_protocol::format::page`] draws.
    ///
    /// # Errors
    /// When it is damaged or another page.
    pub fn open_page(&self, page: &ObjectRef, stored: &[u8]) -> Result<Vec<u8>, ObjectFault> {
        let id = self.id(ObjectKind::Page, page.incarnation, page.number.0);
        let (_, keys, parts) = self.open_header(&id, stored, PAGE_OBJECT_BYTES_MAX)?;
        open_metadata(&keys.checkpoint, &self.page_binding(keys, &id), parts.body)
    }

    /// Seals the root of a checkpoint.
    #[must_use]
    pub fn seal_root(
        &self,
        fresh: &[u8; 32],
        keys: &VolumeKeys,
        (incarnation, number): (Incarnation, ObjectNumber),
        link: &RootLink,
        payload: &[u8],
    ) -> (ObjectRef, Bytes) {
        let id = self.id(ObjectKind::Root, incarnation, number.0);
        let prelude = self.prelude(fresh, &id, keys.key_epoch, link.to_detail());
        let stored = seal_metadata(&prelude, &keys.checkpoint, fresh, &self.root_binding(keys, &id, link), payload);
        referred(incarnation, number, stored)
    }

    /// Opens the root of a checkpoint: what it is a checkpoint of, and the payload.
    ///
    /// # Errors
    /// When it is damaged or another root.
    pub fn open_root(&self, root: &ObjectRef, stored: &[u8]) -> Result<(RootLink, Vec<u8>), ObjectFault> {
        let id = self.id(ObjectKind::Root, root.incarnation, root.number.0);
        let (header, keys, parts) = self.open_header(&id, stored, ROOT_OBJECT_BYTES_MAX)?;
        let link = RootLink::from_detail(&header.detail)?;
        let payload = open_metadata(&keys.checkpoint, &self.root_binding(keys, &id, &link), parts.body)?;
        Ok((link, payload))
    }

    /// The key epoch that a root is sealed under, by its header.
    ///
    /// # Errors
    /// When it is damaged or another root.
    pub fn root_key_epoch(&self, root: &ObjectRef, stored: &[u8]) -> Result<KeyEpoch, ObjectFault> {
        let id = self.id(ObjectKind::Root, root.incarnation, root.number.0);
        self.open_header(&id, stored, ROOT_OBJECT_BYTES_MAX).map(|(header, ..)| header.key_epoch)
    }

    /// Seals the stub of a checkpoint. The same checkpoint gives the same bytes, whoever seals it and whenever: the stub's
    /// content stands in for fresh randomness, and the nonce repeats only where everything repeats.
    #[must_use]
    pub fn seal_stub(&self, keys: &VolumeKeys, stub: &Stub) -> Bytes {
        let fresh = &stub.checkpoint.root.hash.0;
        let id = self.id(ObjectKind::Stub, stub.checkpoint.root.incarnation, stub.checkpoint.number);
        let prelude = self.prelude(fresh, &id, keys.key_epoch, NO_DETAIL);
        let binding = self.stub_binding(keys, &id);
        seal_metadata(&prelude, &keys.checkpoint, fresh, &binding, &stub.encode()).into()
    }

    /// Opens the stub of a checkpoint.
    ///
    /// # Errors
    /// When it is damaged or another stub.
    pub fn open_stub(&self, incarnation: Incarnation, number: u64, stored: &[u8]) -> Result<Stub, ObjectFault> {
        let id = self.id(ObjectKind::Stub, incarnation, number);
        let (_, keys, parts) = self.open_header(&id, stored, STUB_BYTES_MAX)?;
        let payload = open_metadata(&keys.checkpoint, &self.stub_binding(keys, &id), parts.body)?;
        let stub = Stub::decode(&payload)?;
        let fits = stub.checkpoint.number == number && stub.checkpoint.root.incarnation == incarnation;
        if fits { Ok(stub) } else { Err(ObjectFault::Unfit("checkpoint")) }
    }

    fn frame_binding(&self, frame: &Frame) -> [u8; 71] {
        BlockFrame {
            cluster: self.cluster(),
            volume: self.volume(),
            key_epoch: frame.key_epoch,
            incarnation: frame.incarnation,
            segment: frame.segment,
            frame: frame.frame,
            start: frame.start,
            blocks: frame.blocks,
            codec: FrameCodec::Stored,
        }
        .aad()
    }

    fn directory_binding(&self, keys: &VolumeKeys, id: &ObjectId, frames: u32, object_bytes: usize) -> [u8; 68] {
        SegmentDirectory {
            cluster: self.cluster(),
            volume: self.volume(),
            key_epoch: keys.key_epoch,
            incarnation: id.incarnation,
            segment: ObjectNumber(id.number),
            frames,
            object_bytes: u64::try_from(object_bytes).expect("a length in memory fits 64 bits"),
        }
        .aad()
    }

    fn record_binding(&self, keys: &VolumeKeys, id: &ObjectId, link: &Link) -> [u8; 112] {
        SequenceRecord {
            cluster: self.cluster(),
            volume: self.volume(),
            key_epoch: keys.key_epoch,
            incarnation: id.incarnation,
            seq: Seq(id.number),
            epoch: link.epoch,
            first: link.first,
            last: link.last,
            prev_hash: link.prev_hash,
        }
        .aad()
    }

    fn page_binding(&self, keys: &VolumeKeys, id: &ObjectId) -> [u8; 56] {
        CheckpointPage {
            cluster: self.cluster(),
            volume: self.volume(),
            key_epoch: keys.key_epoch,
            incarnation: id.incarnation,
            number: ObjectNumber(id.number),
        }
        .aad()
    }

    fn root_binding(&self, keys: &VolumeKeys, id: &ObjectId, link: &RootLink) -> [u8; 96] {
        CheckpointRoot {
            cluster: self.cluster(),
            volume: self.volume(),
            key_epoch: keys.key_epoch,
            incarnation: id.incarnation,
            number: ObjectNumber(id.number),
            seq: link.seq,
            chain: link.chain,
        }
        .aad()
    }

    fn stub_binding(&self, keys: &VolumeKeys, id: &ObjectId) -> [u8; 56] {
        CheckpointStub {
            cluster: self.cluster(),
            volume: self.volume(),
            key_epoch: keys.key_epoch,
            incarnation: id.incarnation,
            checkpoint: id.number,
        }
        .aad()
    }
}

fn referred(incarnation: Incarnation, number: ObjectNumber, stored: Vec<u8>) -> (ObjectRef, Bytes) {
    let stored = Bytes::from(stored);
    (ObjectRef { incarnation, number, bytes: length(&stored), hash: checksum::hash(&stored) }, stored)
}

fn length(stored: &[u8]) -> u64 {
    u64::try_from(stored.len()).expect("a length in memory fits 64 bits")
}

/// The last 16 bytes of something sealed.
fn tag(sealed: &[u8]) -> [u8; 16] {
    *sealed.last_chunk().expect("something sealed ends in its tag")
}

/// The bytes of a sealed frame in its segment; `None` when the segment ends before.
fn sealed_frame<'a>(frame: &Frame, stored: &'a [u8]) -> Option<&'a [u8]> {
    let start = usize::try_from(frame.offset).ok()?;
    stored.get(start..start.checked_add(usize::try_from(frame.sealed_bytes()).ok()?)?)
}
