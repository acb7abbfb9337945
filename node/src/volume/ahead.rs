//! Sequential read-ahead: who reads one block after the other finds the next ones here.
//!
//! A session's reads are sorted into a few streams. A stream that goes on is read ahead of by as much as it has read so far,
//! up to a bound, and again when half of that is used up: so a short run costs little and a long one soon has the store's
//! whole bandwidth. What is read ahead goes into the memory cache and is counted against nobody.

use std::ops::Range;

use velum_protocol::id::{BLOCK_BYTES, BlockIndex, SessionId};

use super::{
    blocks::Blocks,
    buffer::Piece,
    machine::{Effect, VolumeMachine},
};
use crate::{audit::ByteRange, cache::BlockLocation, extent::PageNeeded};

/// Streams told apart per session.
const STREAMS_MAX: usize = 4;

/// How far a read may lie from where its stream stands: several readers of one stream overtake each other.
const SLACK_BYTES: u64 = 1 << 20;

/// What a stream must have read before it is read ahead of, over at least two reads.
const SEQUENTIAL_BYTES_MIN: u64 = 32 << 10;

/// Frames fetched ahead at a time, over all streams of a volume (16 MiB).
const AHEAD_FRAMES_MAX: usize = 256;

/// The streams of one session, the one read last at the end.
#[derive(Debug, Default)]
pub(super) struct Streams(Vec<Stream>);

#[derive(Debug)]
struct Stream {
    /// One past the last byte read.
    next: u64,
    read_bytes: u64,
    /// Read ahead up to here.
    ahead: u64,
}

impl Streams {
    /// Takes note of a read and says which bytes to read ahead.
    fn observe(&mut self, read: ByteRange, ahead_bytes_max: u64) -> Option<Range<u64>> {
        let end = read.offset + read.length;
        let near = |stream: &Stream| {
            read.offset <= stream.next.saturating_add(SLACK_BYTES)
                && read.offset.saturating_add(SLACK_BYTES) >= stream.next
        };
        let Some(index) = self.0.iter().position(near) else {
            if self.0.len() == STREAMS_MAX {
                self.0.remove(0);
            }
            self.0.push(Stream { next: end, read_bytes: read.length, ahead: end });
            return None;
        };
        let mut stream = self.0.remove(index);
        let moved = end.saturating_sub(stream.next);
        stream.next += moved;
        stream.read_bytes += moved;
        stream.ahead = stream.ahead.max(stream.next);
        let window = stream.read_bytes.min(ahead_bytes_max);
        let mut wanted = None;
        let due = stream.ahead - stream.next <= window / 2;
        if moved > 0 && due && stream.read_bytes >= SEQUENTIAL_BYTES_MIN {
            wanted = Some(stream.ahead..stream.next + window);
            stream.ahead = stream.next + window;
        }
        self.0.push(stream);
        wanted.filter(|range| !range.is_empty())
    }
}

impl VolumeMachine {
    pub(super) fn read_ahead(&mut self, session: SessionId, read: ByteRange, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(&session) else { return };
        let Some(wanted) = session.streams.observe(read, self.settings.read_ahead_bytes) else { return };
        let first = wanted.start / BLOCK_BYTES;
        let end = wanted.end.div_ceil(BLOCK_BYTES).min(self.size_blocks);
        if first < end {
            let blocks = Blocks { first, count: end - first };
            if let Err(PageNeeded(page)) = self.fetch_ahead(blocks, effects) {
                self.fetch_page_ahead(page, effects);
            }
        }
    }

    fn fetch_ahead(&mut self, blocks: Blocks, effects: &mut Vec<Effect>) -> Result<(), PageNeeded> {
        let mut pieces = Vec::new();
        self.buffer.look_up(blocks.first, blocks.count, &mut pieces);
        for piece in pieces {
            let Piece::Ask { start, count } = piece else { continue };
            let mut mapped = Vec::new();
            self.map.lookup(BlockIndex(start), count, &mut mapped)?;
            for run in mapped {
                let Some(frame) = run.location else { continue };
                if self.gathering.ahead_flights >= AHEAD_FRAMES_MAX {
                    return Ok(());
                }
                let memory = self.memory.borrow();
                let wanted = (run.start.0..run.start.0 + run.count)
                    .filter_map(|block| BlockLocation::of(self.id, &frame, BlockIndex(block)))
                    .filter(|at| !memory.contains(at))
                    .fold(0, |wanted: u16, at| wanted | 1 << at.block);
                drop(memory);
                if wanted != 0 {
                    self.fetch_frame_ahead(frame, wanted, effects);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(offset: u64, length: u64) -> ByteRange {
        ByteRange { offset, length }
    }

    #[test]
    fn a_lone_read_is_not_read_ahead_of() {
        let mut streams = Streams::default();
        assert_eq!(streams.observe(read(0, 1 << 20), 8 << 20), None);
        assert_eq!(streams.observe(read(1 << 30, 4096), 8 << 20), None);
        assert_eq!(streams.observe(read(2 << 30, 4096), 8 << 20), None);
    }

    #[test]
    fn a_stream_is_read_ahead_of_further_and_further() {
        let mut streams = Streams::default();
        let mut ahead = 0;
        let mut asked = 0;
        for step in 0..64 {
            if let Some(range) = streams.observe(read(step << 20, 1 << 20), 8 << 20) {
                assert!(range.start >= ahead, "nothing is asked for twice");
                asked += range.end - range.start;
                ahead = range.end;
            }
            assert!(ahead <= ((step + 1) << 20) + (8 << 20));
        }
        assert!(asked >= 60 << 20, "all but the start was asked for ahead: {asked}");
    }

    #[test]
    fn streams_side_by_side_are_told_apart() {
        let mut streams = Streams::default();
        let mut asked = [0; 3];
        for step in 0..16u64 {
            for (stream, bytes) in (0u64..).zip(&mut asked) {
                if let Some(range) = streams.observe(read((stream << 30) + (step << 16), 1 << 16), 1 << 20) {
                    *bytes += range.end - range.start;
                }
            }
        }
        assert!(asked.iter().all(|bytes| *bytes >= 1 << 20), "{asked:?}");
    }
}
