//! Work beside the data path: new files, next laps, and copying the last live records out of nearly dead files.

use velum_protocol::format::journal::RECORDS_OFFSET;

use super::{
    Chore, FileState, Machine, NEARLY_DEAD_DIVISOR, Phase, REMOVED, RESERVE_FILES, RING_RECORD_BYTES_MAX, Span,
    StreamId, encode_header, with_slack,
};

impl Machine {
    /// Picks the most useful piece of work beside the data path. Whoever takes it reports its end before asking again.
    pub(in crate::journal) fn next_chore(&mut self) -> Option<Chore> {
        if let Some(file) = self.recyclable() {
            return Some(self.prepare(file));
        }
        let is_enough = self.is_enough();
        if is_enough && !self.is_half_used() {
            return None;
        }
        if let Some(file) = self.victim(NEARLY_DEAD_DIVISOR) {
            return Some(Chore::CopyForward { file });
        }
        if is_enough {
            return None;
        }
        if self.files.len() < self.settings.files_max() && !self.growth_refused {
            return Some(self.create());
        }
        // The ring is as large as it gets: even a file that is mostly live gives some room back.
        self.victim_up_to(3, NEARLY_DEAD_DIVISOR).map(|file| Chore::CopyForward { file })
    }

    /// One file for volumes, or as many as a long write needs that waits.
    fn is_enough(&self) -> bool {
        self.ready.len() > RESERVE_FILES && self.has_room(self.wanted_bytes)
    }

    /// True when more files are needed than are ready, and trims of `stream` would let some go.
    pub(in crate::journal) fn is_crowded_by(&self, stream: StreamId) -> bool {
        let holds = |span: &Span| self.is_live(stream, span.last);
        let mut full = self.files.values().filter(|state| state.phase == Phase::Full);
        !self.is_enough() && full.any(|state| state.spans.get(&stream).is_some_and(holds))
    }

    /// True when more than half of the files the ring may have are in use.
    fn is_half_used(&self) -> bool {
        (self.files.len() - self.ready.len()) * 2 > self.settings.files_max()
    }

    /// True when there is a file to be given its next lap.
    pub(in crate::journal) fn has_recyclable(&self) -> bool {
        self.recyclable().is_some()
    }

    /// A file without live records, all durable.
    pub(in crate::journal) fn recyclable(&self) -> Option<u32> {
        let free = |state: &FileState| self.is_dead(state) && state.lap < self.durable.lap && !state.unsynced;
        self.files.iter().find(|(_, state)| free(state)).map(|(file, _)| *file)
    }

    fn victim(&self, divisor: u64) -> Option<u32> {
        self.victim_up_to(1, divisor)
    }

    /// The full file with the fewest live bytes, when those are at most `part / divisor` of it and there is room to copy all
    /// of them: copies of a part free nothing, and would be made again and again until raft has no room left.
    fn victim_up_to(&self, part: u64, divisor: u64) -> Option<u32> {
        let (file, state, live) = self
            .files
            .iter()
            .filter(|(_, state)| state.phase == Phase::Full && state.lap < self.durable.lap && !state.damaged)
            .map(|(file, state)| (*file, state, self.live_bytes(state)))
            .min_by_key(|(_, state, live)| (*live, state.lap))?;
        (live * divisor <= state.bytes * part && self.can_copy(live)).then_some(file)
    }

    /// True when copies of so many bytes leave raft half a file. They may go into the reserve, for they give back a whole
    /// file; when raft has begun the last one, nothing else would ever free another.
    fn can_copy(&self, bytes: u64) -> bool {
        let room = self.active_left() + self.ready_room(self.ready.len());
        room >= with_slack(bytes) + self.settings.file_bytes / 2
    }

    /// Gives a dead file its next lap.
    pub(in crate::journal) fn prepare(&mut self, file: u32) -> Chore {
        self.lap_last += 1;
        let lap = self.lap_last;
        let state = self.files.get_mut(&file).expect("a file to prepare is known");
        let place = 1 - state.header_place;
        let (header, header_crc) = encode_header(self.identity, file, lap, state.bytes, place);
        *state = FileState { lap, header_crc, ..FileState::blank(state.bytes, place) };
        self.forget_streams();
        Chore::Prepare { file, header }
    }

    /// Adds a file to the ring.
    pub(in crate::journal) fn create(&mut self) -> Chore {
        let taken = |id: &u32| {
            self.files.contains_key(id) || self.shunned.contains(id) || self.lost.iter().any(|lost| lost.file == *id)
        };
        let file = (0..u32::MAX).find(|id| !taken(id));
        let file = file.expect("a ring has few files");
        self.lap_last += 1;
        let (lap, bytes) = (self.lap_last, self.settings.file_bytes);
        let (header, header_crc) = encode_header(self.identity, file, lap, bytes, 0);
        self.files.insert(file, FileState { lap, header_crc, ..FileState::blank(bytes, 0) });
        Chore::Create { file, bytes, header }
    }

    /// Takes a file found unused into the ring, to be prepared.
    pub(in crate::journal) fn adopt(&mut self, file: u32, bytes: u64, header_place: usize) -> Chore {
        self.files.insert(file, FileState::blank(bytes, header_place));
        self.prepare(file)
    }

    /// True when a start needs another file: some to begin with, and room for a tail of `tail_bytes`.
    pub(in crate::journal) fn wants_file_at_start(&self, tail_bytes: u64) -> bool {
        let ready = self.ready.iter().filter_map(|file| self.files.get(file));
        let room: u64 = ready.map(|state| state.bytes.saturating_sub(RECORDS_OFFSET + RING_RECORD_BYTES_MAX)).sum();
        // Each file of the tail may end with a record that did not fit.
        let needed = tail_bytes + tail_bytes / 4 + self.settings.file_bytes / 4;
        let few = self.files.len() < self.settings.files_at_start || self.ready.len() <= RESERVE_FILES + 1;
        room < needed || (few && self.files.len() < self.settings.files_max())
    }

    /// True when there is a file to go on with.
    pub(in crate::journal) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// A file's next header is durable.
    pub(in crate::journal) fn prepared(&mut self, file: u32) {
        let state = self.files.get_mut(&file).expect("a prepared file is known");
        assert_eq!(state.phase, Phase::Preparing, "a file is ready once per lap");
        state.phase = Phase::Ready;
        self.ready.push_back(file);
    }

    /// A file could not be made (the disk is full): go on with those at hand.
    pub(in crate::journal) fn create_refused(&mut self, file: u32) {
        self.files.remove(&file);
        self.growth_refused = true;
    }

    /// The live records of `file` have been appended again.
    pub(in crate::journal) fn drained(&mut self, file: u32) {
        let copies = self.end_mark();
        self.files.get_mut(&file).expect("a drained file is known").phase = Phase::Drained(copies);
    }

    /// A file could not be read while its records were copied: it stays as it is.
    pub(in crate::journal) fn found_damaged(&mut self, file: u32) {
        self.files.get_mut(&file).expect("a file being copied is known").damaged = true;
    }

    /// Drops what is known of streams that no file holds, and losses that no live record can be missed beside.
    fn forget_streams(&mut self) {
        let files = &self.files;
        self.streams.retain(|stream, state| {
            let held = |file: &FileState| file.spans.contains_key(stream) || file.pins.contains(stream);
            state.trimmed != Some(REMOVED) || files.values().any(held)
        });
        if !files.values().any(|state| state.lap < self.first_lap) {
            self.lost.clear();
        }
    }
}
