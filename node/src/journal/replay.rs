//! Judges what the files of a journal hold after a start: what counts, what is damaged, what was never finished. Pure.
//!
//! Every record says what was durable when it was made, and the reach file what the last sync covered. The highest such
//! mark found, *W*, divides the journal: before it every record was covered by a completed sync, so anything unreadable
//! there is damage, is reported, and what lies behind it still counts. At and behind W the first unreadable place is the
//! end: nothing behind was promised to outlast the page cache, and taking some of it would show later writes without
//! earlier ones. Within one boot the reach file also says where the last record ended that was written, hence acked: a
//! journal that ends before has lost some, and one that ends there or behind has lost nothing.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use bytes::Bytes;
use velum_protocol::format::{
    journal::{LiveFile, Mark, Position, RECORDS_OFFSET, RecordKind, Ring, SECTOR_BYTES, StreamId},
    reach::Durable,
};

use super::{
    machine::{Known, KnownFile, REMOVED},
    reach::Reached,
    scan::{Flaw, Found},
};

/// What a start found.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    /// The records of each stream that are not known to be trimmed, in order. Owners skip what they trimmed since.
    pub records: BTreeMap<StreamId, Vec<(Position, Bytes)>>,
    /// Damage to what had been durable. Owners whose records do not join up must not go on as if nothing was missing.
    pub damage: Vec<Damage>,
    /// An end that cannot be read and is dropped. Nothing in it is known to have been acked as durable.
    pub torn: Option<Torn>,
    /// What became of writes that were acked and are not known to have been durable.
    pub tail: Tail,
    /// There was no journal and a new one was made.
    pub created: bool,
    /// Durable records that cannot be read and stand nowhere else, and where they stood.
    lost: BTreeMap<(StreamId, Position), Mark>,
    /// Where durable records are missing and nobody can say which.
    unknown: Vec<Mark>,
    /// The newest position found of each stream, and where it was appended.
    newest: BTreeMap<StreamId, (Position, Mark)>,
    /// What the reach file says to have been durable.
    covered: Option<Durable>,
}

/// Whether the journal ends where it was written to. Told within one boot of the machine; a loss of power may take any part
/// of what was not synced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tail {
    /// All that was acked is there.
    Whole,
    /// Acked writes are lost.
    Cut,
    /// Nothing tells how far this boot had got.
    #[default]
    Unknown,
}

/// What a stream may lack of what had been durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Records that are lost, in order.
    pub records: Vec<Position>,
    /// Records are missing of which nobody can say whose they were: a gap of this stream may be of that.
    pub gaps: bool,
    /// No record of this stream was found behind some of those places: they may have held its end.
    pub end: bool,
}

impl Replay {
    /// What damage may have taken from a stream.
    #[must_use]
    pub fn loss(&self, stream: StreamId) -> Loss {
        let records = self.lost.keys().filter(|(of, _)| *of == stream).map(|(_, at)| *at).collect();
        Loss { records, gaps: !self.unknown.is_empty(), end: self.is_end_lost(stream) }
    }

    /// True when the last records of a stream may have stood where nothing can be read. The reach file names the last one
    /// of raft, and so tells that none is missing.
    fn is_end_lost(&self, stream: StreamId) -> bool {
        let newest = self.newest.get(&stream);
        let named = self.covered.filter(|_| stream == StreamId::Raft);
        let is_missing = |named: Durable| newest.map_or(Position::default(), |(last, _)| *last) < named.raft;
        let may_hold_it =
            |place: &Mark| newest.map(|(_, at)| at) <= Some(place) && named.is_none_or(|named| named.end <= *place);
        named.is_some_and(is_missing) || self.unknown.iter().any(may_hold_it)
    }
}

/// A part of the journal that cannot be read although it had been durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file's number in the ring.
    pub file: u32,
    /// Its lap.
    pub lap: u64,
    /// Where the damage starts.
    pub offset: u64,
    /// How far it reaches at most.
    pub bytes: u64,
    /// What is wrong.
    pub kind: DamageKind,
}

/// What is wrong with a part of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// The file header; the records behind it were still found.
    FileHeader,
    /// The whole file is gone, or something else stands in its place.
    FileMissing,
    /// Nothing readable where records must be.
    Unreadable,
    /// A record whose body does not match its checksum.
    Body(RecordKind),
    /// One or more records are missing between two that can be read.
    Missing,
}

/// An end that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn {
    /// Where it starts.
    pub at: Mark,
    /// Whole records behind that place that were dropped with it.
    pub records: usize,
}

/// A place where the walk through a file stopped and went on.
#[derive(Clone, Debug)]
pub(super) struct Gap {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) flaw: Flaw,
    /// How many records stand before it.
    pub(super) records_before: usize,
}

/// One file as scanned.
#[derive(Clone, Debug)]
pub(super) struct Scanned {
    pub(super) file: u32,
    pub(super) lap: u64,
    pub(super) bytes: u64,
    pub(super) header_place: usize,
    pub(super) header_readable: bool,
    pub(super) records: Vec<Found>,
    pub(super) gaps: Vec<Gap>,
    /// Where the walk ended, and why.
    pub(super) stop: u64,
    pub(super) stop_flaw: Flaw,
}

impl Scanned {
    /// The newest ring record in the file.
    pub(super) fn ring(&self) -> Option<(Mark, Ring)> {
        let rings = self.records.iter().rev().filter(|found| found.header.kind == RecordKind::Ring);
        rings.filter_map(|found| Some((found.at(), Ring::decode(&found.body).ok()?))).next()
    }
}

/// A judgement over all files.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// What the machine starts from.
    pub(super) known: Known,
    /// Live records that no completed sync is known to cover, to be appended anew before anything is acked.
    pub(super) tail: Vec<(StreamId, Position, Bytes)>,
    /// Where the records before W end in W's file.
    pub(super) end_before_durable: u64,
    /// What the owner of the journal is told.
    pub(super) replay: Replay,
}

/// Judges the scanned files (`scans`, by lap) and those that should be there and nobody found (`missing`).
pub(super) fn judge(scans: Vec<Scanned>, missing: &[LiveFile], ring: &Ring, reached: &Reached) -> Verdict {
    let covered = reached.durable().map(|durable| durable.end).unwrap_or_default();
    // A sync closes the sector it ends in.
    let synced = Mark { offset: covered.offset.next_multiple_of(SECTOR_BYTES), ..covered };
    let told = scans.iter().flat_map(|scan| &scan.records).map(|found| found.header.durable).max();
    let durable = told.unwrap_or_default().max(synced);
    let trims: BTreeMap<StreamId, Position> = ring.trims.iter().copied().collect();
    let mut verdict = Verdict { end_before_durable: RECORDS_OFFSET, ..Verdict::default() };
    verdict.replay.covered = reached.durable();
    for lost in missing {
        let LiveFile { file, lap, end } = *lost;
        let kind = DamageKind::FileMissing;
        verdict.replay.damage.push(Damage { file, lap, offset: 0, bytes: end, kind });
        verdict.replay.unknown.push(Mark { lap, offset: 0 });
        verdict.known.lost.push(*lost);
    }
    let mut judgement = Judgement { durable, covered, end: Mark::default(), trims: &trims, verdict: &mut verdict };
    for scan in scans {
        let end = ring.files.iter().find(|live| live.file == scan.file && live.lap == scan.lap).map(|live| live.end);
        judgement.file(scan, end);
    }
    // What is durable and damaged is told as damage.
    let end = judgement.end.max(covered);
    let drops_records = verdict.replay.torn.is_some_and(|torn| torn.records > 0);
    verdict.replay.tail = match reached.written() {
        Some(written) if end < written => Tail::Cut,
        Some(_) => Tail::Whole,
        None if drops_records => Tail::Cut,
        None => Tail::Unknown,
    };
    verdict.replay.damage.sort_by_key(|damage| (damage.lap, damage.offset));
    verdict.known.trims = trims;
    verdict.known.durable = durable;
    // A record that was copied forward stands twice; the later one counts in case an owner reused a dropped position.
    let mut placed = BTreeSet::new();
    verdict.tail.reverse();
    verdict.tail.retain(|(stream, at, _)| placed.insert((*stream, *at)));
    verdict.tail.reverse();
    keep_what_tells_of_loss(&mut verdict);
    verdict
}

/// Pins damaged files to the streams that may have lost something in them: a file that is used again tells of nothing, and
/// the next start would take such a stream for whole.
fn keep_what_tells_of_loss(verdict: &mut Verdict) {
    let Verdict { known, replay, .. } = verdict;
    let found = |(stream, at): &(StreamId, Position)| {
        replay.records.get(stream).is_some_and(|records| records.iter().any(|(found, _)| found == at))
    };
    // What stands somewhere else too was copied forward, or written anew by an earlier start.
    let lost: BTreeMap<_, _> =
        replay.lost.iter().filter(|(record, _)| !found(record)).map(|(r, at)| (*r, *at)).collect();
    replay.lost = lost;
    let trimmed = known.trims.iter().filter(|(_, at)| **at != REMOVED).map(|(stream, _)| *stream);
    let streams: BTreeSet<StreamId> = replay.newest.keys().copied().chain(trimmed).collect();
    for file in known.live.iter_mut().filter(|file| file.damaged) {
        let doubtful = |stream: &&StreamId| {
            let newest = replay.newest.get(stream).map(|(_, at)| *at);
            matches!(stream, StreamId::Volume(_))
                && replay.unknown.iter().any(|place| place.lap == file.lap && newest <= Some(*place))
        };
        file.pins = streams.iter().filter(doubtful).copied().collect();
        let lost_here = replay.lost.iter().filter(|(_, place)| place.lap == file.lap);
        file.records.extend(lost_here.map(|((stream, at), _)| (*stream, *at, 0)));
    }
}

/// The judgement while it goes from file to file.
struct Judgement<'a> {
    durable: Mark,
    /// What the reach file says to have been durable, to the byte.
    covered: Mark,
    /// Where the last record taken ends.
    end: Mark,
    trims: &'a BTreeMap<StreamId, Position>,
    verdict: &'a mut Verdict,
}

impl Judgement<'_> {
    fn file(&mut self, mut scan: Scanned, end: Option<u64>) {
        if let Some(torn) = &mut self.verdict.replay.torn {
            torn.records += scan.records.len();
            return;
        }
        let damage_before = self.verdict.replay.damage.len();
        if !scan.header_readable {
            self.damage(&scan, 0, RECORDS_OFFSET, DamageKind::FileHeader);
        }
        let mut kept_end = None;
        for gap in self.gaps(&scan, end) {
            let records = scan.records.len() - gap.records_before;
            let is_damage = self.is_damage(&scan, &gap);
            if is_damage {
                self.damage(&scan, gap.from, gap.to, kind_of(&gap.flaw, records > 0));
                self.lose(&scan, &gap);
                if (Mark { lap: scan.lap, offset: gap.to }) <= self.durable {
                    continue;
                }
            }
            if records > 0 || (!is_damage && (gap.flaw != Flaw::NoHeader || end.is_some())) {
                self.verdict.replay.torn = Some(Torn { at: Mark { lap: scan.lap, offset: gap.from }, records });
            }
            scan.records.truncate(gap.records_before);
            kept_end = Some(gap.from);
            break;
        }
        let end = kept_end.or(end).unwrap_or(scan.stop);
        self.keep(&scan, end, self.verdict.replay.damage.len() > damage_before);
    }

    /// The gaps of a file, the one at its end included.
    fn gaps(&self, scan: &Scanned, end: Option<u64>) -> Vec<Gap> {
        let mut gaps = scan.gaps.clone();
        let records_before = scan.records.len();
        let mut at_end = |to: u64| {
            gaps.push(Gap { from: scan.stop, to, flaw: scan.stop_flaw.clone(), records_before });
        };
        match end {
            Some(end) if scan.stop < end => at_end(end),
            Some(_) => {}
            // No end on record, as the newest file has none: it is where nothing more can be read. In an older one the
            // record of it is damaged, which is told where it stood.
            None if scan.lap < self.durable.lap => {}
            None => at_end(u64::MAX),
        }
        gaps
    }

    /// True when a gap swallowed something that had been durable.
    fn is_damage(&self, scan: &Scanned, gap: &Gap) -> bool {
        match scan.lap.cmp(&self.durable.lap) {
            Ordering::Less => true,
            Ordering::Greater => false,
            // W stands at the start of a sector. Without a record right there, up to a sector before it may be filling,
            // unless the reach file says where the last record ended.
            Ordering::Equal => {
                let resumed_before = gap.to <= self.durable.offset;
                let cut_short = scan.lap == self.covered.lap && gap.from < self.covered.offset;
                resumed_before || cut_short || gap.from.next_multiple_of(SECTOR_BYTES) < self.durable.offset
            }
        }
    }

    fn damage(&mut self, scan: &Scanned, from: u64, to: u64, kind: DamageKind) {
        let Scanned { file, lap, bytes, .. } = *scan;
        let bytes = to.min(bytes).saturating_sub(from);
        self.verdict.replay.damage.push(Damage { file, lap, offset: from, bytes, kind });
    }

    /// Notes what a damaged place held: one record by name when that is all that fits there.
    fn lose(&mut self, scan: &Scanned, gap: &Gap) {
        let place = Mark { lap: scan.lap, offset: gap.from };
        // Behind W nothing had been durable.
        let mut to = gap.to;
        if scan.lap == self.durable.lap {
            to = to.min(self.durable.offset);
            // The file's records end behind the damage, or the next start would not find it again.
            self.verdict.end_before_durable = self.verdict.end_before_durable.max(to);
        }
        let Flaw::Body(header) = &gap.flaw else { return self.verdict.replay.unknown.push(place) };
        if let RecordKind::Stream(stream, at) = header.kind
            && self.trims.get(&stream).is_none_or(|trimmed| at > *trimmed)
        {
            self.verdict.replay.lost.insert((stream, at), place);
        }
        let end = header.at.offset + header.record_bytes();
        if end.next_multiple_of(SECTOR_BYTES) < to {
            self.verdict.replay.unknown.push(place);
        }
    }

    /// Takes the records of a file that count.
    fn keep(&mut self, scan: &Scanned, end: u64, damaged: bool) {
        let mut records = Vec::new();
        self.end = Mark { lap: scan.lap, offset: scan.records.last().map_or(RECORDS_OFFSET, Found::end) };
        for found in &scan.records {
            if found.at() < self.durable && found.at().lap == self.durable.lap {
                self.verdict.end_before_durable = self.verdict.end_before_durable.max(found.end());
            }
            let RecordKind::Stream(stream, at) = found.header.kind else { continue };
            records.push((stream, at, found.header.record_bytes()));
            // The first place of a position counts: a copy of it says nothing about what was appended meanwhile.
            let newest = self.verdict.replay.newest.entry(stream).or_insert((at, found.at()));
            if at > newest.0 {
                *newest = (at, found.at());
            }
            if self.trims.get(&stream).is_some_and(|trimmed| at <= *trimmed) {
                continue;
            }
            if found.at() >= self.durable {
                self.verdict.tail.push((stream, at, found.body.clone()));
            }
            self.verdict.replay.records.entry(stream).or_default().push((at, found.body.clone()));
        }
        let Scanned { file, lap, bytes, header_place, .. } = *scan;
        self.verdict.known.live.push(KnownFile {
            file,
            lap,
            bytes,
            header_place,
            end,
            damaged,
            records,
            pins: Vec::new(),
        });
    }
}

fn kind_of(flaw: &Flaw, resumed: bool) -> DamageKind {
    match flaw {
        Flaw::Body(header) => DamageKind::Body(header.kind),
        Flaw::BrokenLink => DamageKind::Missing,
        Flaw::NoHeader if resumed => DamageKind::Missing,
        Flaw::NoHeader => DamageKind::Unreadable,
    }
}

/// Puts the records of each stream in order, one per position, the newest copy.
pub(super) fn in_order(records: &mut BTreeMap<StreamId, Vec<(Position, Bytes)>>) {
    for records in records.values_mut() {
        let newest: BTreeMap<Position, Bytes> = records.drain(..).collect();
        records.extend(newest);
    }
}
