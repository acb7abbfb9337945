//! Reads the records of one journal file, in order, and finds on after damage.

use std::{io, rc::Rc, time::Duration};

use bytes::{Bytes, BytesMut};
use velum_protocol::{
    checksum::crc32c,
    format::journal::{
        FILE_HEADERS_BYTES, Mark, RECORD_ALIGN_BYTES, RECORD_HEADER_BYTES, RECORD_HEADER_LEN, RECORD_MAGIC,
        RECORDS_OFFSET, RecordHeader, SECTOR_BYTES,
    },
};

use crate::env::{Clock, File};

/// Bytes read at once; a record longer than that is read by itself.
const WINDOW_BYTES: u64 = 1 << 20;

/// A piece read again by itself when a window cannot be read, so that one bad sector hides no more than this.
const PIECE_BYTES: u64 = 4096;

/// How long pieces that cannot be read rest before they are read again. Reads also fail for reasons that pass (a cable, a
/// controller that resets, a path of several that is lost), and what counts as damage closes volumes for good. All pieces
/// of a window rest together, so that a file which is lost for good holds a start up by two seconds per window.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(20), Duration::from_millis(80), Duration::from_millis(400), Duration::from_millis(1500)];

/// A record as it stands in a file.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Its header.
    pub(super) header: RecordHeader,
    /// Checksum of its header.
    pub(super) crc: u32,
    /// Its body.
    pub(super) body: Bytes,
}

impl Found {
    /// Where it begins.
    pub(super) fn at(&self) -> Mark {
        self.header.at
    }

    /// Where it ends.
    pub(super) fn end(&self) -> u64 {
        self.header.at.offset + self.header.record_bytes()
    }
}

/// Why there is no record at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// No header of this file and lap.
    NoHeader,
    /// A header that does not link to the record before: one in between is missing.
    BrokenLink,
    /// A header whose body does not match its checksum.
    Body(Box<RecordHeader>),
}

/// What comes next in a file.
#[derive(Debug)]
pub(super) enum Step {
    /// The next record.
    Record(Found),
    /// No record follows here.
    Stop(Flaw),
}

/// Walks through one file.
pub(super) struct Scanner {
    clock: Rc<dyn Clock>,
    file: Rc<dyn File>,
    id: u32,
    lap: u64,
    /// Nothing at or behind this counts.
    limit: u64,
    /// Where the next record is looked for.
    pub(super) next: u64,
    /// What the next record must link to; `None` after damage.
    previous: Option<u32>,
    window: Bytes,
    window_at: u64,
}

impl Scanner {
    /// Starts at the first record of `lap`. `header_crc` is what it links to, when the file header could be read.
    pub(super) fn new(
        clock: &Rc<dyn Clock>,
        file: Rc<dyn File>,
        id: u32,
        lap: u64,
        header_crc: Option<u32>,
    ) -> io::Result<Self> {
        let limit = file.size()?;
        Ok(Self {
            clock: Rc::clone(clock),
            file,
            id,
            lap,
            limit,
            next: RECORDS_OFFSET,
            previous: header_crc,
            window: Bytes::new(),
            window_at: 0,
        })
    }

    /// Ends the walk at `end`, where the records of this lap are known to end.
    pub(super) fn end_at(&mut self, end: u64) {
        self.limit = self.limit.min(end);
    }

    /// Looks for the record behind the last one: right behind it, or in the next sector when a sync lay between.
    pub(super) async fn step(&mut self) -> Step {
        let mut flaw = match self.record_at(self.next).await {
            Ok(found) => return self.accept(found),
            Err(flaw) => flaw,
        };
        let sector = self.next.next_multiple_of(SECTOR_BYTES);
        if sector != self.next {
            match self.record_at(sector).await {
                Ok(found) => return self.accept(found),
                Err(Flaw::NoHeader) => {}
                Err(telling) => flaw = telling,
            }
        }
        Step::Stop(flaw)
    }

    /// Looks for any record of this file and lap behind the place where the walk stopped, and goes on there.
    pub(super) async fn resume(&mut self) -> Option<Found> {
        self.previous = None;
        let mut at = self.next;
        while let Some(candidate) = self.find_magic(at).await {
            if let Ok(found) = self.record_at(candidate).await {
                self.next = found.end();
                self.previous = Some(found.crc);
                return Some(found);
            }
            at = candidate + RECORD_ALIGN_BYTES;
        }
        None
    }

    /// The newest lap that any record of this file is of, for a file whose header cannot be read.
    pub(super) async fn find_lap(&mut self) -> Option<u64> {
        let mut newest = None;
        let mut at = RECORDS_OFFSET;
        while let Some(candidate) = self.find_magic(at).await {
            let bytes = self.read(candidate, RECORD_HEADER_LEN).await;
            if let Ok((header, _)) = RecordHeader::decode(&bytes)
                && header.file == self.id
                && header.at.offset == candidate
            {
                newest = newest.max(Some(header.at.lap));
            }
            at = candidate + RECORD_ALIGN_BYTES;
        }
        newest
    }

    /// The next place at or behind `at` that starts like a record.
    async fn find_magic(&mut self, at: u64) -> Option<u64> {
        let step = usize::try_from(RECORD_ALIGN_BYTES).expect("a small constant");
        let mut at = at.next_multiple_of(RECORD_ALIGN_BYTES);
        while at + RECORD_HEADER_LEN <= self.limit {
            let window = self.read(at, RECORD_HEADER_LEN).await;
            if let Some(chunks) = window.chunks_exact(step).position(|chunk| chunk.starts_with(&RECORD_MAGIC)) {
                return Some(at + u64_of(chunks) * RECORD_ALIGN_BYTES)
                    .filter(|at| at + RECORD_HEADER_LEN <= self.limit);
            }
            at += (u64_of(window.len()) / RECORD_ALIGN_BYTES).max(1) * RECORD_ALIGN_BYTES;
        }
        None
    }

    fn accept(&mut self, found: Found) -> Step {
        self.next = found.end();
        self.previous = Some(found.crc);
        Step::Record(found)
    }

    /// The record at an offset.
    async fn record_at(&mut self, at: u64) -> Result<Found, Flaw> {
        if at + RECORD_HEADER_LEN > self.limit {
            return Err(Flaw::NoHeader);
        }
        let bytes = self.read(at, RECORD_HEADER_LEN).await;
        let (header, crc) = RecordHeader::decode(&bytes).map_err(|_| Flaw::NoHeader)?;
        if header.file != self.id || header.at != (Mark { lap: self.lap, offset: at }) {
            return Err(Flaw::NoHeader);
        }
        if self.previous.is_some_and(|previous| previous != header.previous) {
            return Err(Flaw::BrokenLink);
        }
        if at + header.record_bytes() > self.limit {
            return Err(Flaw::Body(Box::new(header)));
        }
        let length = usize::try_from(header.body_bytes).expect("a body is bounded");
        let whole = self.read(at, RECORD_HEADER_LEN + u64::from(header.body_bytes)).await;
        let body = whole.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + length);
        // A copy, so that the bodies kept do not hold on to whole windows.
        let body = body.filter(|body| crc32c(body) == header.body_crc).map(Bytes::copy_from_slice);
        body.map(|body| Found { header, crc, body }).ok_or_else(|| Flaw::Body(Box::new(header)))
    }

    /// At least `length` bytes at `at`, up to a window; the caller has checked that they lie before the end.
    async fn read(&mut self, at: u64, length: u64) -> Bytes {
        let held_end = self.window_at + u64_of(self.window.len());
        if at < self.window_at || at + length > held_end {
            let wanted = length.max(WINDOW_BYTES).min(self.limit - at);
            self.window = read_through(&*self.clock, &*self.file, at, wanted).await;
            self.window_at = at;
        }
        let skip = usize::try_from(at - self.window_at).expect("a window fits memory");
        self.window.slice(skip.min(self.window.len())..)
    }
}

/// The header sectors of a file, or what there is of them; zeros where the disk gives nothing back.
pub(super) async fn read_headers(clock: &dyn Clock, file: &dyn File) -> io::Result<Bytes> {
    read_head(clock, file, FILE_HEADERS_BYTES).await
}

/// The first `length` bytes of a file, or what there is of them; zeros where the disk gives nothing back.
pub(super) async fn read_head(clock: &dyn Clock, file: &dyn File, length: usize) -> io::Result<Bytes> {
    let there = usize::try_from(file.size()?).unwrap_or(usize::MAX).min(length);
    Ok(read_through(clock, file, 0, u64_of(there)).await)
}

/// Reads a stretch, with zeros where the disk gives nothing back even after some time: what stays unreadable is damage like
/// any other.
async fn read_through(clock: &dyn Clock, file: &dyn File, at: u64, length: u64) -> Bytes {
    let whole = usize::try_from(length).expect("a window fits memory");
    if let Ok(bytes) = file.read_at(at, whole).await {
        return bytes;
    }
    let mut out = BytesMut::zeroed(whole);
    let piece_bytes = usize::try_from(PIECE_BYTES).expect("a small constant");
    let mut unread: Vec<(u64, &mut [u8])> = (at..).step_by(piece_bytes).zip(out.chunks_mut(piece_bytes)).collect();
    let mut pauses = PAUSES.iter();
    loop {
        let mut failed = Vec::new();
        for (offset, piece) in unread {
            match file.read_at(offset, piece.len()).await {
                Ok(bytes) => piece.copy_from_slice(&bytes),
                Err(_) => failed.push((offset, piece)),
            }
        }
        unread = failed;
        match pauses.next() {
            Some(pause) if !unread.is_empty() => clock.sleep(*pause).await,
            _ => break,
        }
    }
    out.freeze()
}

fn u64_of(length: usize) -> u64 {
    u64::try_from(length).expect("a length in memory fits 64 bits")
}
