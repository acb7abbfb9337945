//! Decides where records go, what is durable, and which files may be used again. Pure: no I/O, no clock.
//!
//! A file is *ready* (header of a coming lap durable, content void), *active* (takes appends), *full*, *drained* (its live
//! records were copied forward; free once the copies are durable) or *preparing* (its next header is being synced). The
//! laps count upwards over all files, and ready files are taken in lap order, so the header of a lap is always durable
//! before its first record is written, and a record can be told from one of an earlier lap by itself.
//!
//! Invariants: a sector that was part of a sync is never written again (each sync starts the next sector); a file is
//! prepared only when none of its records is live and all of them are durable; positions of a stream rise,
//! but for copies of other nodes' records, which are filled again where they were damaged.

mod chores;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use velum_protocol::{
    checksum::crc32c,
    format::journal::{
        BODY_BYTES_MAX, FILE_HEADER_BYTES, FILES_MAX, FileHeader, LiveFile, Mark, Position, RECORD_ALIGN_BYTES,
        RECORD_HEADER_BYTES, RECORD_HEADER_LEN, RECORDS_OFFSET, RING_TRIMS_MAX, RecordHeader, RecordKind, Ring,
        SECTOR_BYTES, StreamId, record_bytes,
    },
    format::reach::Durable,
};

use super::{JournalError, JournalIdentity, JournalSettings};

/// Room for the largest ring record, which every file starts with.
pub(super) const RING_RECORD_BYTES_MAX: u64 = 40 << 10;

/// Ready files that volumes leave alone: raft needs room to commit the very flushes that trim the journal, and a start
/// after a crash needs room to write the unsynced tail anew.
pub(super) const RESERVE_FILES: usize = 2;

/// Those of them that copies of other nodes' records leave alone as well.
const RESERVE_FOR_FOREIGN: usize = 1;

/// A file is copied forward at leisure when at most this part of it is live.
const NEARLY_DEAD_DIVISOR: u64 = 4;

/// Where a file stands in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The header of its next lap is durable.
    Ready,
    /// Takes appends.
    Active,
    /// Took appends; some of its records may be live.
    Full,
    /// Its live records stand again before this mark.
    Drained(Mark),
    /// Its next header is on the way to the disk.
    Preparing,
}

/// The records of one stream in one file.
#[derive(Clone, Copy, Debug)]
struct Span {
    last: Position,
    bytes: u64,
}

/// One file of the ring.
#[derive(Debug)]
pub(super) struct FileState {
    pub(super) phase: Phase,
    pub(super) lap: u64,
    /// Length of the file.
    pub(super) bytes: u64,
    /// Checksum of the file header, which the first record links to.
    header_crc: u32,
    /// Which of the two header places it stands in.
    header_place: usize,
    /// Where the last record ends.
    pub(super) end: u64,
    /// Written to since the last sync began.
    unsynced: bool,
    /// Part of it cannot be read: it is kept as it is until all its streams are trimmed.
    damaged: bool,
    /// Streams that may have lost records in it: it is kept until they are removed.
    pins: Vec<StreamId>,
    spans: BTreeMap<StreamId, Span>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    last: Option<Position>,
    trimmed: Option<Position>,
}

/// Work beside the data path, one piece at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chore {
    /// Write this header, sync; then [`Machine::prepared`].
    Prepare { file: u32, header: NewHeader },
    /// Make a file of this length, all written, with this header, sync; then [`Machine::prepared`].
    Create { file: u32, bytes: u64, header: NewHeader },
    /// Append the live records of this file again; then [`Machine::drained`].
    CopyForward { file: u32 },
}

/// The header of a file's next lap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NewHeader {
    /// Where it goes in the file.
    pub(super) offset: u64,
    /// The header.
    pub(super) bytes: [u8; FILE_HEADER_BYTES],
}

/// What a sync has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyncPlan {
    /// The files to sync.
    pub(super) files: Vec<u32>,
    /// Everything before is durable when they are.
    pub(super) through: Mark,
}

/// Where the next record goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Into the active file.
    Here,
    /// Into the next ready file: call [`Machine::roll`] first.
    Roll,
}

/// The journal's state of mind.
#[derive(Debug)]
pub(super) struct Machine {
    identity: JournalIdentity,
    settings: JournalSettings,
    files: BTreeMap<u32, FileState>,
    ready: VecDeque<u32>,
    active: u32,
    /// Where the next record goes.
    next: u64,
    /// Checksum of the last record's header.
    previous: u32,
    /// The longest record that fits into every file beside its ring record.
    record_bytes_max: u64,
    lap_last: u64,
    durable: Mark,
    /// The same to the byte, for the last sync of this life.
    covered: Durable,
    /// What the sync in flight will have made durable.
    syncing: Option<(Mark, Durable)>,
    streams: BTreeMap<StreamId, Stream>,
    /// Files that should be there and are not; carried along so that the loss is told again at the next start.
    lost: Vec<LiveFile>,
    /// Files of the directory that are not the ring's; their ids are not given again.
    shunned: BTreeSet<u32>,
    /// The lap this life began with.
    first_lap: u64,
    growth_refused: bool,
    /// Bodies of so many bytes are waited for.
    wanted_bytes: u64,
}

/// A live file as replay found it.
#[derive(Clone, Debug)]
pub(super) struct KnownFile {
    pub(super) file: u32,
    pub(super) lap: u64,
    pub(super) bytes: u64,
    pub(super) header_place: usize,
    pub(super) end: u64,
    pub(super) damaged: bool,
    /// Its records: stream, position, length.
    pub(super) records: Vec<(StreamId, Position, u64)>,
    /// Streams that may have lost records in it: it is kept until they are removed.
    pub(super) pins: Vec<StreamId>,
}

/// What a machine starts from.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) live: Vec<KnownFile>,
    pub(super) lost: Vec<LiveFile>,
    pub(super) shunned: BTreeSet<u32>,
    pub(super) trims: BTreeMap<StreamId, Position>,
    /// The highest lap seen anywhere.
    pub(super) lap_last: u64,
    pub(super) durable: Mark,
    /// Length of the shortest file there is, whether it holds anything or not.
    pub(super) file_bytes_min: Option<u64>,
}

impl Machine {
    /// A machine over the live files found, with no active file yet: make files ready, then [`Machine::roll`].
    pub(super) fn new(identity: JournalIdentity, settings: JournalSettings, known: Known) -> Self {
        let mut machine = Self {
            identity,
            settings,
            files: BTreeMap::new(),
            ready: VecDeque::new(),
            active: u32::MAX,
            next: 0,
            previous: 0,
            record_bytes_max: record_bytes_max(settings, known.file_bytes_min),
            lap_last: known.lap_last,
            durable: known.durable,
            covered: Durable::default(),
            syncing: None,
            streams: BTreeMap::new(),
            lost: known.lost,
            shunned: known.shunned,
            first_lap: known.lap_last + 1,
            growth_refused: false,
            wanted_bytes: 0,
        };
        for (stream, position) in known.trims {
            machine.streams.insert(stream, Stream { last: Some(position), trimmed: Some(position) });
        }
        for KnownFile { file, lap, bytes, header_place, end, damaged, records, pins } in known.live {
            let blank = FileState::blank(bytes, header_place);
            let state = FileState { phase: Phase::Full, lap, end, damaged, pins, ..blank };
            machine.files.insert(file, state);
            for (stream, position, bytes) in records {
                machine.note(file, stream, position, bytes);
            }
        }
        machine
    }

    /// Counts a record of a stream in a file.
    fn note(&mut self, file: u32, stream: StreamId, at: Position, bytes: u64) {
        let state = self.files.get_mut(&file).expect("records are noted in known files");
        let span = state.spans.entry(stream).or_insert(Span { last: at, bytes: 0 });
        span.last = span.last.max(at);
        span.bytes += bytes;
        let stream = self.streams.entry(stream).or_default();
        stream.last = stream.last.max(Some(at));
    }

    /// Judges an append before anything changes.
    pub(super) fn admit(&self, stream: StreamId, at: Position, body_len: usize) -> Result<Admission, JournalError> {
        if let Some(last) = self.streams.get(&stream).and_then(|state| state.last).filter(|last| at <= *last) {
            return Err(JournalError::OutOfOrder { stream, at, last });
        }
        let reserve = match stream {
            StreamId::Raft => 0,
            StreamId::Volume(_) => RESERVE_FILES,
        };
        self.admit_bytes(body_len, reserve)
    }

    /// Judges the append of a record of another node's volume, at whatever position.
    pub(super) fn admit_foreign(&self, body_len: usize) -> Result<Admission, JournalError> {
        self.admit_bytes(body_len, RESERVE_FOR_FOREIGN)
    }

    /// Judges an append by its length alone, leaving `reserve` ready files.
    pub(super) fn admit_bytes(&self, body_len: usize, reserve: usize) -> Result<Admission, JournalError> {
        let bytes = u32::try_from(body_len).ok().filter(|len| *len <= BODY_BYTES_MAX).map(record_bytes);
        let Some(bytes) = bytes.filter(|bytes| *bytes <= self.record_bytes_max) else {
            return Err(JournalError::TooLarge { bytes: body_len });
        };
        if self.active_left() >= bytes {
            Ok(Admission::Here)
        } else if self.ready.len() > reserve {
            Ok(Admission::Roll)
        } else {
            Err(JournalError::Full)
        }
    }

    /// The longest body of a record; the same for all of this life.
    pub(super) fn body_bytes_max(&self) -> usize {
        body_bytes_max(self.record_bytes_max)
    }

    /// The longest body that leaves no more of a file unused than [`with_slack`] adds.
    pub(super) fn body_bytes_handy(&self) -> usize {
        body_bytes_max(self.record_bytes_max / SLACK_DIVISOR)
    }

    /// Bytes left in the active file.
    fn active_left(&self) -> u64 {
        self.files.get(&self.active).map_or(0, |state| state.bytes.saturating_sub(self.next))
    }

    /// Makes the next ready file the active one. The caller has written all that goes to the active one before, and places
    /// the ring record returned first of all.
    pub(super) fn roll(&mut self) -> Result<Ring, JournalError> {
        let file = self.ready.pop_front().ok_or(JournalError::Full)?;
        if let Some(state) = self.files.get_mut(&self.active) {
            state.phase = Phase::Full;
        }
        let ring = self.ring();
        let state = self.files.get_mut(&file).expect("ready files are known");
        state.phase = Phase::Active;
        state.end = RECORDS_OFFSET;
        self.active = file;
        self.next = RECORDS_OFFSET;
        self.previous = state.header_crc;
        self.growth_refused = false;
        Ok(ring)
    }

    /// What a ring record says now.
    pub(super) fn ring(&self) -> Ring {
        let mut files: Vec<_> = self
            .files
            .iter()
            .filter(|(_, state)| matches!(state.phase, Phase::Full | Phase::Drained(_)) && !self.is_dead(state))
            .map(|(file, state)| LiveFile { file: *file, lap: state.lap, end: state.end })
            .chain(self.lost.iter().copied())
            .collect();
        files.sort_unstable_by_key(|file| file.lap);
        files.truncate(FILES_MAX);
        let held = |stream: &StreamId| self.files.values().any(|state| state.spans.contains_key(stream));
        let trims = self
            .streams
            .iter()
            .filter(|(stream, _)| held(stream))
            .filter_map(|(stream, state)| Some((*stream, state.trimmed?)))
            .take(RING_TRIMS_MAX)
            .collect();
        Ring { files, trims }
    }

    /// Gives the next record its place and header. The caller puts header, body and filling behind what it has put before.
    pub(super) fn place(&mut self, kind: RecordKind, body: &[u8]) -> [u8; RECORD_HEADER_BYTES] {
        let body_bytes = u32::try_from(body.len()).expect("admitted bodies are short");
        let state = self.files.get_mut(&self.active).expect("records are placed in the active file");
        let header = RecordHeader {
            kind,
            file: self.active,
            at: Mark { lap: state.lap, offset: self.next },
            previous: self.previous,
            durable: self.durable,
            body_bytes,
            body_crc: crc32c(body),
        };
        let bytes = header.record_bytes();
        self.next += bytes;
        assert!(self.next <= state.bytes, "an admitted record ends inside its file");
        state.end = self.next;
        state.unsynced = true;
        let (encoded, crc) = header.encode();
        self.previous = crc;
        if let RecordKind::Stream(stream, at) = kind {
            self.note(self.active, stream, at, bytes);
        }
        encoded
    }

    /// The offset of the next record in the active file.
    pub(super) fn next_offset(&self) -> u64 {
        self.next
    }

    /// The active file.
    pub(super) fn active(&self) -> u32 {
        self.active
    }

    /// The mark behind everything appended.
    pub(super) fn end_mark(&self) -> Mark {
        Mark { lap: self.files.get(&self.active).map_or(0, |state| state.lap), offset: self.next }
    }

    /// Everything before this mark is durable.
    pub(super) fn durable(&self) -> Mark {
        self.durable
    }

    /// Begins a sync of everything written, unless one is under way or nothing needs it. Closes the current sector.
    pub(super) fn begin_sync(&mut self) -> Option<SyncPlan> {
        if self.syncing.is_some() {
            return None;
        }
        let mut files = Vec::new();
        for (file, state) in &mut self.files {
            if std::mem::take(&mut state.unsynced) {
                files.push(*file);
            }
        }
        if files.is_empty() {
            return None;
        }
        let raft = self.streams.get(&StreamId::Raft).and_then(|raft| raft.last).unwrap_or_default();
        let covered = Durable { file: self.active, end: self.records_end(), raft };
        self.next = self.next.next_multiple_of(SECTOR_BYTES);
        let through = self.end_mark();
        self.syncing = Some((through, covered));
        Some(SyncPlan { files, through })
    }

    /// A sync begun has succeeded.
    pub(super) fn synced(&mut self, through: Mark) {
        let (begun, covered) = self.syncing.take().expect("a sync that ends was begun");
        assert_eq!(begun, through, "one sync is in flight at a time");
        assert!(self.durable <= through, "what is durable stays durable");
        (self.durable, self.covered) = (through, covered);
    }

    /// What the last sync of this life made durable, to the byte.
    pub(super) fn covered(&self) -> Durable {
        self.covered
    }

    /// Where the last record ends that was placed.
    pub(super) fn records_end(&self) -> Mark {
        let (lap, offset) = self.extent_of(self.active);
        Mark { lap, offset }
    }

    /// Says that a stream's records up to `through` are needed no more.
    pub(super) fn trim(&mut self, stream: StreamId, through: Position) {
        let state = self.streams.entry(stream).or_default();
        state.trimmed = state.trimmed.max(Some(through));
    }

    /// What a stream may have lost in damaged files is made up for elsewhere: they need not tell of it any more.
    pub(super) fn made_up(&mut self, stream: StreamId) {
        self.files.values_mut().for_each(|state| state.pins.retain(|pinned| *pinned != stream));
    }

    /// True when the record is still needed.
    pub(super) fn is_live(&self, stream: StreamId, at: Position) -> bool {
        self.streams.get(&stream).and_then(|state| state.trimmed).is_none_or(|trimmed| at > trimmed)
    }

    /// Upper bound of the bytes of live records in a file.
    fn live_bytes(&self, state: &FileState) -> u64 {
        state.spans.iter().filter(|(stream, span)| self.is_live(**stream, span.last)).map(|(_, span)| span.bytes).sum()
    }

    /// True when nothing in the file is needed.
    fn is_dead(&self, state: &FileState) -> bool {
        match state.phase {
            Phase::Drained(copies) => copies <= self.durable,
            Phase::Full => {
                state.spans.iter().all(|(stream, span)| !self.is_live(*stream, span.last))
                    && state.pins.iter().all(|stream| self.is_removed(*stream))
            }
            Phase::Ready | Phase::Active | Phase::Preparing => false,
        }
    }

    fn is_removed(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|state| state.trimmed == Some(REMOVED))
    }

    /// The live files and what they hold have been made durable again at a start: cuts them at `durable`, behind which
    /// everything live was appended again.
    pub(super) fn cut(&mut self, durable: Mark, end: u64) {
        // The tail may have filled more than one file of this life; those stay.
        for state in self.files.values_mut().filter(|state| state.phase == Phase::Full && state.lap < self.first_lap) {
            if state.lap > durable.lap {
                state.spans.clear();
            } else if state.lap == durable.lap {
                state.end = end;
            }
        }
    }

    /// True when a volume can append `bytes` of bodies now. What raft has begun of the reserve is left to it, also the rest
    /// of the file it is in.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.has_room_beside(bytes, RESERVE_FILES)
    }

    /// True when copies of other nodes' records can be appended, `bytes` of bodies.
    pub(super) fn has_room_for_foreign(&self, bytes: u64) -> bool {
        self.has_room_beside(bytes, RESERVE_FOR_FOREIGN)
    }

    fn has_room_beside(&self, bytes: u64, reserve: usize) -> bool {
        let Some(spare) = self.ready.len().checked_sub(reserve) else { return false };
        self.active_left().max(self.ready_room(spare)) >= with_slack(bytes)
    }

    /// Says that somebody waits for room for bodies of `bytes`, or with zero that the wait is over.
    pub(super) fn want(&mut self, bytes: u64) {
        self.wanted_bytes = if bytes == 0 { 0 } else { self.wanted_bytes.max(bytes) };
    }

    /// Room for records in the first of the ready files.
    fn ready_room(&self, files: usize) -> u64 {
        let ready = self.ready.iter().take(files).filter_map(|file| self.files.get(file));
        ready.map(|state| state.bytes.saturating_sub(RECORDS_OFFSET + RING_RECORD_BYTES_MAX)).sum()
    }

    /// The files, for status and housekeeping.
    pub(super) fn files(&self) -> impl Iterator<Item = (u32, &FileState)> {
        self.files.iter().map(|(file, state)| (*file, state))
    }

    /// Lap and end of a file.
    pub(super) fn extent_of(&self, file: u32) -> (u64, u64) {
        self.files.get(&file).map_or((0, 0), |state| (state.lap, state.end))
    }

    /// Upper bound of the bytes of all live records.
    pub(super) fn live_bytes_total(&self) -> u64 {
        self.files.values().filter(|state| !self.is_dead(state)).map(|state| self.live_bytes(state)).sum()
    }
}

/// The longest record that fits into every file there is or may be made, beside its ring record.
pub(super) fn record_bytes_max(settings: JournalSettings, file_bytes_min: Option<u64>) -> u64 {
    let shortest = file_bytes_min.unwrap_or(u64::MAX).min(settings.file_bytes);
    shortest.saturating_sub(RECORDS_OFFSET + RING_RECORD_BYTES_MAX)
}

/// The longest body of a record that takes `record_bytes_max` at most.
pub(super) fn body_bytes_max(record_bytes_max: u64) -> usize {
    let bytes = (record_bytes_max / RECORD_ALIGN_BYTES * RECORD_ALIGN_BYTES).saturating_sub(RECORD_HEADER_LEN);
    usize::try_from(bytes.min(u64::from(BODY_BYTES_MAX))).expect("a body is bounded")
}

/// The trim point of a stream that was removed.
pub(super) const REMOVED: Position = Position { epoch: u64::MAX, number: u64::MAX };

/// Added to every question for room, so that small records with their headers and filling fit too.
const RECORD_SLACK_BYTES: u64 = 4096;

/// The part of a file that headers, filling, and a record that did not fit at its end may take.
const SLACK_DIVISOR: u64 = 16;

/// What bodies of `bytes` take, with headers, filling, and the end of a file that a record did not fit into.
const fn with_slack(bytes: u64) -> u64 {
    bytes + bytes / SLACK_DIVISOR + RECORD_SLACK_BYTES
}

impl FileState {
    fn blank(bytes: u64, header_place: usize) -> Self {
        Self {
            phase: Phase::Preparing,
            lap: 0,
            bytes,
            header_crc: 0,
            header_place,
            end: RECORDS_OFFSET,
            unsynced: false,
            damaged: false,
            pins: Vec::new(),
            spans: BTreeMap::new(),
        }
    }
}

fn encode_header(identity: JournalIdentity, file: u32, lap: u64, file_bytes: u64, place: usize) -> (NewHeader, u32) {
    let JournalIdentity { cluster, node } = identity;
    let (bytes, crc) = FileHeader { cluster, node, file, lap, file_bytes }.encode();
    (NewHeader { offset: if place == 0 { 0 } else { SECTOR_BYTES }, bytes }, crc)
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
