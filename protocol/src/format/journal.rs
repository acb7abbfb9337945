//! The journal's files: a header sector, then records packed one behind the other.
//!
//! Everything here is in the clear and holds no guest data: bodies are sealed before they come to the journal. A record's
//! header says where it belongs (file, lap, offset) and links to the record before it, so data of an earlier lap, a write
//! that went elsewhere and a write that never arrived all show without keys. `docs/format.md` draws the layouts.

use crate::{
    checksum::{crc32c, crc32c_append},
    id::{ClusterId, NodeId, VolumeId},
    version::{JOURNAL_FILE, LeadError},
};

/// The unit a disk writes whole or not at all. A synced sector is never written again.
pub const SECTOR_BYTES: u64 = 512;

/// Bytes of a file header: one sector, so that it is never torn.
pub const FILE_HEADER_BYTES: usize = 512;

/// Bytes of the two places for a header. A lap's header goes where the one of the lap before is not, so that a write that
/// fails in the middle leaves that one readable.
pub const FILE_HEADERS_BYTES: usize = 2 * FILE_HEADER_BYTES;

/// Where the first record of a file starts.
pub const RECORDS_OFFSET: u64 = 1024;

/// Bytes of a record's header.
pub const RECORD_HEADER_BYTES: usize = 96;

/// Records start on multiples of this; the gap after a body is filled with zeros.
pub const RECORD_ALIGN_BYTES: u64 = 8;

/// The longest body of a record.
pub const BODY_BYTES_MAX: u32 = 8 << 20;

/// The most files one journal has.
pub const FILES_MAX: usize = 128;

/// The most streams whose trim points one ring record holds; the others are trimmed again by their owners.
pub const RING_TRIMS_MAX: usize = 1024;

/// The first four bytes of every record.
pub const RECORD_MAGIC: [u8; 4] = *b"VLjn";

/// Where the checksum of the file header stands, in every version.
const FILE_CRC_AT: usize = FILE_HEADER_BYTES - 4;

/// Where the checksum of a record's header stands.
const RECORD_CRC_AT: usize = RECORD_HEADER_BYTES - 4;

/// Who a record belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamId {
    /// The raft log and hard state of this node.
    Raft,
    /// The guest writes of a volume.
    Volume(VolumeId),
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Raft => f.write_str("raft"),
            Self::Volume(volume) => write!(f, "volume {volume}"),
        }
    }
}

/// A record's place in its stream. Positions of a stream rise in the order of appending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The owner epoch of a volume, the term of raft.
    pub epoch: u64,
    /// The number within the stream.
    pub number: u64,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.epoch, self.number)
    }
}

/// A place in the journal: laps count upwards over all files, so marks order everything ever appended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// The lap.
    pub lap: u64,
    /// Byte offset in the file of that lap.
    pub offset: u64,
}

/// Why journal bytes are not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalFormatError {
    /// Another kind of file, or a newer version.
    #[error(transparent)]
    Lead(#[from] LeadError),
    /// The checksum does not match: damage, or never written.
    #[error("the header's checksum does not match")]
    Checksum,
    /// Fewer bytes than a header has.
    #[error("the header is cut off")]
    Short,
    /// A field holds what no writer writes.
    #[error("the header's {0} is out of bounds")]
    Field(&'static str),
}

/// One of the two first sectors of a journal file. Written and synced before the lap begins, never during it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node whose journal it is.
    pub node: NodeId,
    /// Which file of the ring.
    pub file: u32,
    /// The lap the file is in, or stands ready for.
    pub lap: u64,
    /// Length of the file.
    pub file_bytes: u64,
}

impl FileHeader {
    /// The bytes to write, and their checksum, which the first record links to.
    #[must_use]
    pub fn encode(&self) -> ([u8; FILE_HEADER_BYTES], u32) {
        let mut out = Writer::<FILE_HEADER_BYTES>::new();
        out.put(&JOURNAL_FILE.lead());
        out.put(&self.cluster.0);
        out.put(&self.node.0.to_le_bytes());
        out.put(&self.file.to_le_bytes());
        out.put(&[0; 4]);
        out.put(&self.lap.to_le_bytes());
        out.put(&self.file_bytes.to_le_bytes());
        out.finish(FILE_CRC_AT)
    }

    /// Reads a header and its checksum. The checksum is looked at first, so `Newer` is the word of a newer build and not
    /// of a flipped bit.
    ///
    /// # Errors
    /// When the bytes are no journal file header this build reads.
    pub fn decode(bytes: &[u8]) -> Result<(Self, u32), JournalFormatError> {
        let sector: &[u8; FILE_HEADER_BYTES] = bytes.first_chunk().ok_or(JournalFormatError::Short)?;
        let crc = checked::<FILE_CRC_AT>(sector)?;
        let (_version, rest) = JOURNAL_FILE.check(sector)?;
        let mut fields = Reader(rest);
        let cluster = ClusterId(fields.take());
        let node = NodeId(fields.u64());
        let file = fields.u32();
        let _reserved = fields.u32();
        let header = Self { cluster, node, file, lap: fields.u64(), file_bytes: fields.u64() };
        if header.lap == 0 {
            return Err(JournalFormatError::Field("lap"));
        }
        Ok((header, crc))
    }
}

/// What the two header places of a file say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeaders {
    /// The header of the higher lap, with its checksum; or what is wrong.
    pub current: Result<(FileHeader, u32), JournalFormatError>,
    /// Which of the two it stands in; the header of the next lap goes to the other.
    pub place: usize,
    /// One of the places holds neither a header nor zeros, so a later lap may have begun than `current` says.
    pub doubtful: bool,
}

impl FileHeaders {
    /// Reads both places; what is missing counts as zeros. A header of a newer version in either stands above all.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        let mut headers = Self { current: Err(JournalFormatError::Short), place: 1, doubtful: false };
        for (place, sector) in bytes.chunks(FILE_HEADER_BYTES).take(2).enumerate() {
            let is_blank = sector.iter().all(|byte| *byte == 0);
            let decoded = FileHeader::decode(sector);
            headers.doubtful |= decoded.is_err() && !is_blank;
            let is_newer =
                |error: JournalFormatError| matches!(error, JournalFormatError::Lead(LeadError::Newer { .. }));
            let counts = match (decoded, headers.current) {
                (_, Err(error)) if is_newer(error) => false,
                (Err(error), _) if is_newer(error) => true,
                (Ok((found, _)), Ok((current, _))) => found.lap > current.lap,
                (Ok(_), Err(_)) => true,
                (Err(_), Ok(_)) => false,
                (Err(_), Err(_)) => !is_blank,
            };
            if counts {
                (headers.current, headers.place) = (decoded, place);
            }
        }
        headers
    }
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A sealed body of a stream.
    Stream(StreamId, Position),
    /// The journal's own: which files are live, and how far streams are trimmed ([`Ring`]).
    Ring,
}

/// The 96 bytes before a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What it is.
    pub kind: RecordKind,
    /// The file it was written to.
    pub file: u32,
    /// Where: lap of that file, offset of this header.
    pub at: Mark,
    /// Checksum of the header of the record before it in the file, or of the file header: a record that never reached the
    /// disk breaks the link.
    pub previous: u32,
    /// Everything before this mark was durable when the record was made. Damage there is damage; behind it, an unfinished
    /// write.
    pub durable: Mark,
    /// Length of the body.
    pub body_bytes: u32,
    /// Checksum of the body.
    pub body_crc: u32,
}

impl RecordHeader {
    /// The bytes to write, and their checksum, which the next record links to.
    #[must_use]
    pub fn encode(&self) -> ([u8; RECORD_HEADER_BYTES], u32) {
        let (kind, stream, position) = match self.kind {
            RecordKind::Stream(StreamId::Raft, position) => (1_u8, VolumeId::ZERO, position),
            RecordKind::Stream(StreamId::Volume(volume), position) => (2, volume, position),
            RecordKind::Ring => (3, VolumeId::ZERO, Position::default()),
        };
        let mut out = Writer::<RECORD_HEADER_BYTES>::new();
        out.put(&RECORD_MAGIC);
        out.put(&[kind, 0, 0, 0]);
        out.put(&self.at.lap.to_le_bytes());
        out.put(&self.file.to_le_bytes());
        out.put(&self.previous.to_le_bytes());
        out.put(&self.at.offset.to_le_bytes());
        out.put(&stream.0);
        out.put(&position.epoch.to_le_bytes());
        out.put(&position.number.to_le_bytes());
        out.put(&self.durable.lap.to_le_bytes());
        out.put(&self.durable.offset.to_le_bytes());
        out.put(&self.body_bytes.to_le_bytes());
        out.put(&self.body_crc.to_le_bytes());
        out.put(&[0; 4]);
        out.finish(RECORD_CRC_AT)
    }

    /// Reads a header and its checksum.
    ///
    /// # Errors
    /// When the bytes are no record header.
    pub fn decode(bytes: &[u8]) -> Result<(Self, u32), JournalFormatError> {
        let bytes: &[u8; RECORD_HEADER_BYTES] = bytes.first_chunk().ok_or(JournalFormatError::Short)?;
        let mut fields = Reader(bytes);
        if fields.take::<4>() != RECORD_MAGIC {
            return Err(JournalFormatError::Field("magic"));
        }
        let crc = checked::<RECORD_CRC_AT>(bytes)?;
        let [kind, reserved @ ..] = fields.take::<4>();
        let lap = fields.u64();
        let file = fields.u32();
        let previous = fields.u32();
        let offset = fields.u64();
        let stream = VolumeId(fields.take());
        let position = Position { epoch: fields.u64(), number: fields.u64() };
        let durable = Mark { lap: fields.u64(), offset: fields.u64() };
        let (body_bytes, body_crc) = (fields.u32(), fields.u32());
        let kind = match kind {
            1 => RecordKind::Stream(StreamId::Raft, position),
            2 => RecordKind::Stream(StreamId::Volume(stream), position),
            3 => RecordKind::Ring,
            _ => return Err(JournalFormatError::Field("kind")),
        };
        if reserved != [0; 3] {
            return Err(JournalFormatError::Field("reserved part"));
        }
        if body_bytes > BODY_BYTES_MAX {
            return Err(JournalFormatError::Field("body length"));
        }
        Ok((Self { kind, file, at: Mark { lap, offset }, previous, durable, body_bytes, body_crc }, crc))
    }

    /// Bytes of header, body and filling.
    #[must_use]
    pub fn record_bytes(&self) -> u64 {
        record_bytes(self.body_bytes)
    }
}

/// Bytes of a record with a body of `body_bytes`: header, body, filling.
#[must_use]
pub fn record_bytes(body_bytes: u32) -> u64 {
    (u64::from(body_bytes) + RECORD_HEADER_LEN).next_multiple_of(RECORD_ALIGN_BYTES)
}

/// [`RECORD_HEADER_BYTES`] for sums of offsets.
pub const RECORD_HEADER_LEN: u64 = 96;

/// A file that held live records when a ring record was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveFile {
    /// Which file of the ring.
    pub file: u32,
    /// Its lap.
    pub lap: u64,
    /// Where its records end; whatever lies behind was never acked and does not count.
    pub end: u64,
}

/// Body of a ring record: first in every file, so that a replay knows which files must be there and where each ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// The live files before this one, by lap.
    pub files: Vec<LiveFile>,
    /// Streams trimmed and how far; at most [`RING_TRIMS_MAX`].
    pub trims: Vec<(StreamId, Position)>,
}

impl Ring {
    /// The body.
    ///
    /// # Panics
    /// When there are more files or trims than a journal can have.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.files.len() <= FILES_MAX && self.trims.len() <= RING_TRIMS_MAX, "the ring record has bounds");
        let mut out = Vec::with_capacity(8 + self.files.len() * 20 + self.trims.len() * 33);
        out.extend_from_slice(&count(self.files.len()));
        out.extend_from_slice(&count(self.trims.len()));
        for file in &self.files {
            out.extend_from_slice(&file.file.to_le_bytes());
            out.extend_from_slice(&file.lap.to_le_bytes());
            out.extend_from_slice(&file.end.to_le_bytes());
        }
        for (stream, position) in &self.trims {
            let (kind, id) = match stream {
                StreamId::Raft => (1, VolumeId::ZERO),
                StreamId::Volume(volume) => (2, *volume),
            };
            out.push(kind);
            out.extend_from_slice(&id.0);
            out.extend_from_slice(&position.epoch.to_le_bytes());
            out.extend_from_slice(&position.number.to_le_bytes());
        }
        out
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When counts and length do not fit together or leave their bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, JournalFormatError> {
        let mut fields = Reader(bytes);
        if bytes.len() < 8 {
            return Err(JournalFormatError::Short);
        }
        let files = usize::try_from(fields.u32()).unwrap_or(usize::MAX);
        let trims = usize::try_from(fields.u32()).unwrap_or(usize::MAX);
        if files > FILES_MAX || trims > RING_TRIMS_MAX || bytes.len() != 8 + files * 20 + trims * 33 {
            return Err(JournalFormatError::Field("ring"));
        }
        let mut ring = Self { files: Vec::with_capacity(files), trims: Vec::with_capacity(trims) };
        for _ in 0..files {
            ring.files.push(LiveFile { file: fields.u32(), lap: fields.u64(), end: fields.u64() });
        }
        for _ in 0..trims {
            let [kind] = fields.take::<1>();
            let volume = VolumeId(fields.take());
            let position = Position { epoch: fields.u64(), number: fields.u64() };
            let stream = match kind {
                1 => StreamId::Raft,
                2 => StreamId::Volume(volume),
                _ => return Err(JournalFormatError::Field("ring")),
            };
            ring.trims.push((stream, position));
        }
        Ok(ring)
    }
}

/// A count as it stands in a ring record.
fn count(len: usize) -> [u8; 4] {
    u32::try_from(len).expect("the ring record has bounds").to_le_bytes()
}

/// Compares the little-endian checksum at `AT` with that of the bytes before it.
fn checked<const AT: usize>(bytes: &[u8]) -> Result<u32, JournalFormatError> {
    let (covered, stored) = bytes.split_at_checked(AT).ok_or(JournalFormatError::Short)?;
    let stored = u32::from_le_bytes(*stored.first_chunk().ok_or(JournalFormatError::Short)?);
    if crc32c(covered) == stored { Ok(stored) } else { Err(JournalFormatError::Checksum) }
}

/// Fills a fixed array from the front.
struct Writer<const N: usize> {
    bytes: [u8; N],
    used: usize,
}

impl<const N: usize> Writer<N> {
    const fn new() -> Self {
        Self { bytes: [0; N], used: 0 }
    }

    fn put(&mut self, field: &[u8]) {
        let end = self.used + field.len();
        self.bytes.get_mut(self.used..end).expect("the fields fit their header").copy_from_slice(field);
        self.used = end;
    }

    /// Puts the checksum of everything before `crc_at` there.
    fn finish(mut self, crc_at: usize) -> ([u8; N], u32) {
        assert!(self.used <= crc_at, "the checksum stands behind the fields");
        let (covered, place) = self.bytes.split_at_mut(crc_at);
        let crc = crc32c_append(0, covered);
        place.first_chunk_mut::<4>().expect("a header ends with its checksum").clone_from(&crc.to_le_bytes());
        (self.bytes, crc)
    }
}

/// Takes fixed-width fields off the front; callers have checked the length.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk::<N>().expect("the header's length was checked");
        self.0 = rest;
        *field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
