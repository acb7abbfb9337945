//! What an owner, the members of its volume's ensemble and whoever takes over say to each other. Records travel as they stand
//! in journals: sealed and linked. What they hold is judged by the member that takes them; here only lengths are.

use bytes::Bytes;

use super::{share, zeros};
use crate::{
    format::{
        reader::{ReadError, Reader},
        record::{HEADER_BYTES, RECORD_BYTES_MAX, SEAL_BYTES},
    },
    id::{BootId, Epoch, Hash, Jseq, VolumeId},
};

/// The most bytes of the records of one frame.
pub const RECORDS_BYTES_MAX: usize = 4 << 20;

/// The most records of one frame.
pub const RECORDS_MAX: usize = 16_384;

/// The shortest record: a header and a seal around nothing.
const RECORD_BYTES_MIN: u64 = HEADER_BYTES as u64 + SEAL_BYTES;

/// A position and the chain there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Point {
    /// The position.
    pub at: Jseq,
    /// The chain there.
    pub chain: Hash,
}

impl Point {
    fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.at.0.to_le_bytes());
        out.extend_from_slice(&self.chain.0);
    }

    fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        Ok(Self { at: Jseq(fields.u64()?), chain: fields.hash()? })
    }
}

/// One life of a member: of its process, and of its machine's page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Life {
    /// Random, the same for as long as the process lives; not zero.
    pub process: [u8; 16],
    /// The boot.
    pub boot: BootId,
}

impl Life {
    fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.process);
        out.extend_from_slice(&self.boot.0);
    }

    fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let life = Self { process: fields.array()?, boot: BootId(fields.array()?) };
        if life.process == [0; 16] { Err(ReadError::Field("life")) } else { Ok(life) }
    }
}

/// How far the owner knows its volume to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Marks {
    /// d0: on enough members.
    pub written: Jseq,
    /// d1: synced on enough members.
    pub durable: Jseq,
    /// d2: in the clouds; no member needs it.
    pub trimmed: Jseq,
}

impl Marks {
    fn put(self, out: &mut Vec<u8>) {
        for mark in [self.written, self.durable, self.trimmed] {
            out.extend_from_slice(&mark.0.to_le_bytes());
        }
    }

    fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let marks = Self { written: Jseq(fields.u64()?), durable: Jseq(fields.u64()?), trimmed: Jseq(fields.u64()?) };
        let are_in_order = marks.trimmed <= marks.durable && marks.durable <= marks.written;
        if are_in_order { Ok(marks) } else { Err(ReadError::Field("marks")) }
    }
}

/// What a member's copy may lack of what the member answered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Condition {
    /// Nothing.
    Whole = 0,
    /// What was not synced: the copy does not count for d0.
    Amnesic = 1,
    /// What was synced, too: the copy counts for nothing before an owner has filled it.
    Damaged = 2,
}

impl Condition {
    const ALL: [Self; 3] = [Self::Whole, Self::Amnesic, Self::Damaged];

    fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let [condition] = fields.array()?;
        let known = Self::ALL.into_iter().find(|known| *known as u8 == condition);
        known.ok_or(ReadError::Field("condition"))
    }
}

/// An owner's word that a copy is in a better condition once its member has taken what the word comes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heal {
    /// The process whose copy is meant; not zero.
    pub process: [u8; 16],
    /// What the copy is then: not damaged.
    pub to: Condition,
}

impl Heal {
    fn judge(process: [u8; 16], to: Condition) -> Result<Option<Self>, ReadError> {
        match (process == [0; 16], to) {
            (true, Condition::Whole) => Ok(None),
            (false, Condition::Whole | Condition::Amnesic) => Ok(Some(Self { process, to })),
            (true, _) | (_, Condition::Damaged) => Err(ReadError::Field("heals")),
        }
    }
}

/// Records for a member's copy, and the owner's marks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Append {
    /// The volume.
    pub volume: VolumeId,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// What the records follow.
    pub prev: Point,
    /// The owner's marks.
    pub marks: Marks,
    /// What the copy is once this is taken, if that is better than what it was.
    pub heals: Option<Heal>,
    /// Answer again when they are synced.
    pub sync: bool,
    /// The sealed records, in order; none to tell marks only.
    pub records: Vec<Bytes>,
}

impl Append {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_epoch(self.volume, self.epoch, out);
        self.prev.put(out);
        self.marks.put(out);
        let (process, to) = self.heals.map_or(([0; 16], Condition::Whole), |heal| (heal.process, heal.to));
        out.extend_from_slice(&process);
        out.extend_from_slice(&[u8::from(self.sync), to as u8, 0, 0]);
        put_records(&self.records, out);
    }

    pub(super) fn read(body: &Bytes, fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let (volume, epoch) = read_epoch(fields)?;
        let (prev, marks) = (Point::read(fields)?, Marks::read(fields)?);
        let (process, sync) = (fields.array()?, flag(fields, "sync")?);
        let heals = Heal::judge(process, Condition::read(fields)?)?;
        zeros::<2>(fields)?;
        Ok(Self { volume, epoch, prev, marks, heals, sync, records: read_records(body, fields)? })
    }
}

/// What a member did with records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// It has everything up to `at`, as the owner has it.
    Took = 1,
    /// It lacks what the records follow; go on behind `at`.
    Lacks = 2,
    /// It has promised a later epoch.
    Stale = 3,
    /// It holds what cannot be beside these records.
    Conflict = 4,
}

impl Verdict {
    const ALL: [Self; 4] = [Self::Took, Self::Lacks, Self::Stale, Self::Conflict];
}

/// The answer to [`Append`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch of what is answered.
    pub epoch: Epoch,
    /// The epoch promised.
    pub promise: Epoch,
    /// Who answers.
    pub life: Life,
    /// What was done.
    pub verdict: Verdict,
    /// What the copy may lack.
    pub condition: Condition,
    /// See [`Verdict`].
    pub at: Jseq,
    /// Everything up to here is taken and synced.
    pub synced: Jseq,
}

impl Appended {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_epoch(self.volume, self.epoch, out);
        out.extend_from_slice(&self.promise.0.to_le_bytes());
        self.life.put(out);
        out.extend_from_slice(&[self.verdict as u8, self.condition as u8, 0, 0]);
        out.extend_from_slice(&self.at.0.to_le_bytes());
        out.extend_from_slice(&self.synced.0.to_le_bytes());
    }

    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let (volume, epoch) = read_epoch(fields)?;
        let (promise, life) = (Epoch(fields.u64()?), Life::read(fields)?);
        let [verdict] = fields.array()?;
        let known = Verdict::ALL.into_iter().find(|known| *known as u8 == verdict);
        let verdict = known.ok_or(ReadError::Field("verdict"))?;
        let condition = Condition::read(fields)?;
        zeros::<2>(fields)?;
        let (at, synced) = (Jseq(fields.u64()?), Jseq(fields.u64()?));
        if synced > at {
            return Err(ReadError::Field("synced"));
        }
        Ok(Self { volume, epoch, promise, life, verdict, condition, at, synced })
    }
}

/// Asks a member to promise an epoch: it takes nothing of an earlier one any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch that raft granted.
    pub epoch: Epoch,
}

impl Fence {
    pub(super) fn put(self, out: &mut Vec<u8>) {
        put_epoch(self.volume, self.epoch, out);
    }

    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let (volume, epoch) = read_epoch(fields)?;
        Ok(Self { volume, epoch })
    }
}

/// The answer to [`Fence`]: the promise, which is durable, and what the copy holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fenced {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch promised; a higher one than asked for refuses.
    pub promise: Epoch,
    /// Who answers.
    pub life: Life,
    /// What the copy may lack of what this member answered for.
    pub condition: Condition,
    /// Before the first record held.
    pub base: Point,
    /// The last record held, or `base`.
    pub tail: Point,
    /// The epoch of the last record; zero when there is none.
    pub tail_epoch: Epoch,
    /// The highest d1 mark that any record or owner told.
    pub durable: Jseq,
}

impl Fenced {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_epoch(self.volume, self.promise, out);
        self.life.put(out);
        out.extend_from_slice(&[self.condition as u8, 0, 0, 0]);
        self.base.put(out);
        self.tail.put(out);
        out.extend_from_slice(&self.tail_epoch.0.to_le_bytes());
        out.extend_from_slice(&self.durable.0.to_le_bytes());
    }

    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let (volume, promise) = read_epoch(fields)?;
        let life = Life::read(fields)?;
        let condition = Condition::read(fields)?;
        zeros::<3>(fields)?;
        let (base, tail) = (Point::read(fields)?, Point::read(fields)?);
        let (tail_epoch, durable) = (Epoch(fields.u64()?), Jseq(fields.u64()?));
        let can_be = if tail_epoch.0 == 0 { tail == base } else { tail.at > base.at };
        if !can_be {
            return Err(ReadError::Field("tail"));
        }
        Ok(Self { volume, promise, life, condition, base, tail, tail_epoch, durable })
    }
}

/// Asks a member that promised the epoch for records that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadTail {
    /// The volume.
    pub volume: VolumeId,
    /// The reader's epoch.
    pub epoch: Epoch,
    /// The position before the first one wanted.
    pub after: Jseq,
    /// The last one wanted.
    pub through: Jseq,
}

impl ReadTail {
    pub(super) fn put(self, out: &mut Vec<u8>) {
        put_epoch(self.volume, self.epoch, out);
        out.extend_from_slice(&self.after.0.to_le_bytes());
        out.extend_from_slice(&self.through.0.to_le_bytes());
    }

    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let (volume, epoch) = read_epoch(fields)?;
        let (after, through) = (Jseq(fields.u64()?), Jseq(fields.u64()?));
        if after >= through {
            return Err(ReadError::Field("positions"));
        }
        Ok(Self { volume, epoch, after, through })
    }
}

/// Records of a member's copy, as many as fit a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// The volume.
    pub volume: VolumeId,
    /// The reader's epoch.
    pub epoch: Epoch,
    /// What the records follow.
    pub prev: Point,
    /// The sealed records, in order.
    pub records: Vec<Bytes>,
}

impl Tail {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_epoch(self.volume, self.epoch, out);
        self.prev.put(out);
        put_records(&self.records, out);
    }

    pub(super) fn read(body: &Bytes, fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let (volume, epoch) = read_epoch(fields)?;
        Ok(Self { volume, epoch, prev: Point::read(fields)?, records: read_records(body, fields)? })
    }
}

/// Asks a member whether it has promised an epoch later than the owner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirm {
    /// The volume.
    pub volume: VolumeId,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Comes back with the answer. Rises from question to question of an epoch.
    pub ticket: u64,
    /// The owner wants a lease with the answer.
    pub wants_lease: bool,
}

impl Confirm {
    pub(super) fn put(self, out: &mut Vec<u8>) {
        put_epoch(self.volume, self.epoch, out);
        put_ticket(self.ticket, self.wants_lease, out);
    }

    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let (volume, epoch) = read_epoch(fields)?;
        let (ticket, wants_lease) = read_ticket(fields)?;
        Ok(Self { volume, epoch, ticket, wants_lease })
    }
}

/// The answer to [`Confirm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch promised; zero for none.
    pub promise: Epoch,
    /// As asked.
    pub ticket: u64,
    /// Whether a lease was granted when the question came.
    pub is_leased: bool,
}

impl Confirmed {
    pub(super) fn put(self, out: &mut Vec<u8>) {
        put_epoch(self.volume, self.promise, out);
        put_ticket(self.ticket, self.is_leased, out);
    }

    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let (volume, promise) = (VolumeId(fields.array()?), Epoch(fields.u64()?));
        let (ticket, is_leased) = read_ticket(fields)?;
        Ok(Self { volume, promise, ticket, is_leased })
    }
}

/// An owner's word that it reads by no lease any more that it was granted so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// The volume.
    pub volume: VolumeId,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The last question that leases were granted for.
    pub ticket: u64,
}

impl Release {
    pub(super) fn put(self, out: &mut Vec<u8>) {
        put_epoch(self.volume, self.epoch, out);
        out.extend_from_slice(&self.ticket.to_le_bytes());
    }

    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let (volume, epoch) = read_epoch(fields)?;
        Ok(Self { volume, epoch, ticket: fields.u64()? })
    }
}

fn put_ticket(ticket: u64, lease: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(&ticket.to_le_bytes());
    out.extend_from_slice(&[u8::from(lease), 0, 0, 0]);
}

fn read_ticket(fields: &mut Reader<'_>) -> Result<(u64, bool), ReadError> {
    let (ticket, lease) = (fields.u64()?, flag(fields, "lease")?);
    zeros::<3>(fields)?;
    Ok((ticket, lease))
}

fn put_epoch(volume: VolumeId, epoch: Epoch, out: &mut Vec<u8>) {
    out.extend_from_slice(&volume.0);
    out.extend_from_slice(&epoch.0.to_le_bytes());
}

fn read_epoch(fields: &mut Reader<'_>) -> Result<(VolumeId, Epoch), ReadError> {
    let (volume, epoch) = (VolumeId(fields.array()?), Epoch(fields.u64()?));
    if epoch.0 == 0 { Err(ReadError::Field("epoch")) } else { Ok((volume, epoch)) }
}

/// What these records take in a frame.
pub(super) fn carried_bytes(records: &[Bytes]) -> usize {
    records.iter().map(|record| size_of::<u32>() + record.len()).sum()
}

fn put_records(records: &[Bytes], out: &mut Vec<u8>) {
    let count = u32::try_from(records.len()).expect("records are bounded where a frame is made");
    out.extend_from_slice(&count.to_le_bytes());
    for record in records {
        let length = u32::try_from(record.len()).expect("records are bounded by their format");
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(record);
    }
}

fn read_records(body: &Bytes, fields: &mut Reader<'_>) -> Result<Vec<Bytes>, ReadError> {
    let count = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
    // Each takes its length and its shortest form at least, so a count that cannot be is seen before room is made for it.
    if count > RECORDS_MAX || count > fields.left() {
        return Err(ReadError::Field("records"));
    }
    let (mut records, mut bytes) = (Vec::with_capacity(count), 0);
    for _ in 0..count {
        let length = fields.u32()?;
        if !(RECORD_BYTES_MIN..=RECORD_BYTES_MAX).contains(&u64::from(length)) {
            return Err(ReadError::Field("record length"));
        }
        let length = usize::try_from(length).map_err(|_| ReadError::Field("record length"))?;
        bytes += length;
        if bytes > RECORDS_BYTES_MAX {
            return Err(ReadError::Field("records"));
        }
        records.push(share(body, fields, length)?);
    }
    Ok(records)
}

fn flag(fields: &mut Reader<'_>, name: &'static str) -> Result<bool, ReadError> {
    match fields.array()? {
        [0] => Ok(false),
        [1] => Ok(true),
        [_] => Err(ReadError::Field(name)),
    }
}
