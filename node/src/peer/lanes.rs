//! What waits to be sent to one peer. Short words that somebody waits for go first; what guests ask and are told, records, and pieces
//! of a snapshot take turns, so that none of them keeps another from getting through. Each kind keeps its order.

use std::collections::VecDeque;

use bytes::Bytes;
use velum_protocol::peer::Frame;

use crate::limits::PEER_QUEUE_BYTES_MAX;

/// Those that take turns, besides the one that goes first.
const TURNS: usize = 3;

/// One kind of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Words,
    Guests,
    Records,
    Pieces,
}

impl Lane {
    const IN_TURN: [Self; TURNS] = [Self::Guests, Self::Records, Self::Pieces];

    const fn of(frame: &Frame) -> Self {
        match frame {
            Frame::Forward(_) => Self::Guests,
            Frame::Append(_) | Frame::Tail(_) => Self::Records,
            Frame::Piece(_) => Self::Pieces,
            _ => Self::Words,
        }
    }
}

/// Frames of one kind.
#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Bytes>,
    bytes: usize,
}

/// All that waits.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    words: Queue,
    in_turn: [Queue; TURNS],
    /// Whose turn is next.
    turn: usize,
}

impl Lanes {
    /// Queues a frame; false when there is no room for another one of its kind.
    pub(super) fn push(&mut self, frame: &Frame) -> bool {
        let bytes = frame.encode();
        let queue = self.queue(Lane::of(frame));
        let has_room = queue.bytes + bytes.len() <= PEER_QUEUE_BYTES_MAX;
        if has_room {
            queue.bytes += bytes.len();
            queue.frames.push_back(bytes);
        }
        has_room
    }

    /// How long the next frame is, and whether it is one of those that take turns.
    pub(super) fn next(&self) -> Option<(usize, bool)> {
        let word = self.words.frames.front().map(|frame| (frame.len(), false));
        word.or_else(|| self.in_turn.get(self.at_turn()?)?.frames.front().map(|frame| (frame.len(), true)))
    }

    /// Takes it.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let turn = if self.words.frames.is_empty() { Some(self.at_turn()?) } else { None };
        self.turn = turn.map_or(self.turn, |turn| (turn + 1) % TURNS);
        let queue = turn.and_then(|turn| self.in_turn.get_mut(turn)).unwrap_or(&mut self.words);
        let frame = queue.frames.pop_front()?;
        queue.bytes -= frame.len();
        Some(frame)
    }

    /// True when no piece of a snapshot waits.
    pub(super) fn has_no_piece(&self) -> bool {
        self.in_turn.iter().zip(Lane::IN_TURN).all(|(queue, lane)| lane != Lane::Pieces || queue.frames.is_empty())
    }

    /// Frames that wait.
    pub(super) fn count(&self) -> usize {
        self.words.frames.len() + self.in_turn.iter().map(|queue| queue.frames.len()).sum::<usize>()
    }

    fn queue(&mut self, lane: Lane) -> &mut Queue {
        let place = Lane::IN_TURN.iter().position(|of_turn| *of_turn == lane);
        place.and_then(|place| self.in_turn.get_mut(place)).unwrap_or(&mut self.words)
    }

    /// The first of those that take turns that has something, from the one whose turn it is.
    fn at_turn(&self) -> Option<usize> {
        let has_frames = |turn: &usize| self.in_turn.get(*turn).is_some_and(|queue| !queue.frames.is_empty());
        (0..TURNS).map(|further| (self.turn + further) % TURNS).find(has_frames)
    }
}

#[cfg(test)]
mod tests {
    use velum_protocol::{
        id::{Epoch, Hash, Jseq, VolumeId},
        peer::{
            Beat, HEADER_BYTES, Header, Kind, Piece,
            ensemble::{Append, Marks, Point},
            forward::Forward,
        },
    };

    use super::*;

    fn word() -> Frame {
        Frame::Beat(Beat { taken_bytes: 0 })
    }

    fn records() -> Frame {
        let (volume, epoch, prev) = (VolumeId([1; 16]), Epoch(1), Point { at: Jseq(0), chain: Hash::ZERO });
        Frame::Append(Append {
            volume,
            epoch,
            prev,
            marks: Marks { written: Jseq(0), durable: Jseq(0), trimmed: Jseq(0) },
            heals: None,
            sync: false,
            records: Vec::new(),
        })
    }

    fn guests() -> Frame {
        Frame::Forward(Forward::Opened { stream: 1 })
    }

    fn piece(bytes: usize) -> Frame {
        Frame::Piece(Piece { index: 1, offset: 0, bytes: vec![1; bytes].into() })
    }

    fn drained(lanes: &mut Lanes) -> Vec<Kind> {
        let kind = |bytes: Bytes| Header::decode(bytes.first_chunk::<HEADER_BYTES>().unwrap()).unwrap().kind;
        std::iter::from_fn(|| lanes.pop()).map(kind).collect()
    }

    #[test]
    fn words_go_first_and_the_rest_takes_turns() {
        let mut lanes = Lanes::default();
        for frame in [records(), records(), records(), guests(), guests(), piece(1), word(), word()] {
            assert!(lanes.push(&frame));
        }
        assert_eq!((lanes.count(), lanes.next().map(|(_, in_turn)| in_turn)), (8, Some(false)));
        let (words, turns) = ([Kind::Beat, Kind::Beat], [Kind::Opened, Kind::Append, Kind::Piece, Kind::Opened]);
        assert_eq!(drained(&mut lanes), [&words[..], &turns[..], &[Kind::Append, Kind::Append]].concat());
        assert_eq!((lanes.count(), lanes.next()), (0, None));
    }

    #[test]
    fn a_lane_that_is_full_leaves_room_in_the_others() {
        let mut lanes = Lanes::default();
        while lanes.push(&piece(1 << 20)) {}
        assert!(lanes.count() <= PEER_QUEUE_BYTES_MAX >> 20);
        assert!(lanes.push(&word()) && lanes.push(&guests()) && lanes.push(&records()));
        let waiting = lanes.count();
        assert_eq!(drained(&mut lanes).len(), waiting);
        assert!(lanes.push(&piece(1 << 20)), "what was sent makes room");
    }
}
