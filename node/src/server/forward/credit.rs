//! What of a stream is on its way in one direction: bounded in bytes, so that a link's queue always has room for others.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use velum_protocol::peer::forward::{Ask, FORWARD_PIECE_BYTES_MAX, Forward};

use crate::limits::FORWARD_CREDIT_BYTES;

/// Bytes of a payload in one frame: what a link writes at once, so that raft's messages come between.
pub(super) const PIECE_BYTES: usize = 256 << 10;
const _: () = assert!(PIECE_BYTES <= FORWARD_PIECE_BYTES_MAX);

/// The other side is told how much was taken whenever so much more was.
const TELL_BYTES: u64 = FORWARD_CREDIT_BYTES / 4;

/// Frames to the other side, in order.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    queue: VecDeque<Forward>,
    queued_bytes: u64,
    sent_bytes: u64,
    taken_bytes: u64,
}

impl Outbound {
    /// Appends a frame.
    pub(super) fn push(&mut self, frame: Forward) {
        self.queued_bytes += frame.credit_bytes();
        self.queue.push_back(frame);
    }

    /// Bytes that wait for credit.
    pub(super) const fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    /// The next frame that there is credit for. A frame never takes more than there is on an idle stream.
    pub(super) fn next(&mut self) -> Option<Forward> {
        let bytes = self.queue.front()?.credit_bytes();
        if self.sent_bytes - self.taken_bytes + bytes > FORWARD_CREDIT_BYTES {
            return None;
        }
        self.sent_bytes += bytes;
        self.queued_bytes -= bytes;
        self.queue.pop_front()
    }

    /// The other side has taken so much since the stream began. It cannot have taken more than was sent, nor give back.
    pub(super) fn took(&mut self, bytes: u64) {
        self.taken_bytes = self.taken_bytes.max(bytes.min(self.sent_bytes));
    }

    /// Forgets what waits of a session.
    pub(super) fn forget(&mut self, session: u64) {
        let queued_bytes = &mut self.queued_bytes;
        self.queue.retain(|frame| {
            let is_kept = session_of(frame) != Some(session);
            if !is_kept {
                *queued_bytes -= frame.credit_bytes();
            }
            is_kept
        });
    }
}

/// How much was taken, and when the other side is to hear of it.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    taken_bytes: u64,
    told_bytes: u64,
}

impl Inbound {
    /// Takes so much more; gives the sum when it is to be told.
    pub(super) fn take(&mut self, bytes: u64) -> Option<u64> {
        self.taken_bytes += bytes;
        if self.taken_bytes - self.told_bytes < TELL_BYTES {
            return None;
        }
        self.told_bytes = self.taken_bytes;
        Some(self.taken_bytes)
    }
}

const fn session_of(frame: &Forward) -> Option<u64> {
    match frame {
        Forward::Attach { session, .. }
        | Forward::Attached { session, .. }
        | Forward::Ended { session, .. }
        | Forward::Detach { session }
        | Forward::Request { session, .. }
        | Forward::Payload { session, .. }
        | Forward::Reply { session, .. } => Some(*session),
        Forward::Open { .. }
        | Forward::Opened { .. }
        | Forward::Closed { .. }
        | Forward::TookRequests { .. }
        | Forward::TookReplies { .. } => None,
    }
}

/// A write's frames: the request with the first piece, then the others.
pub(super) fn write_frames(session: u64, tag: u64, (offset, fua): (u64, bool), mut payload: Bytes) -> Vec<Forward> {
    let length = u32::try_from(payload.len()).expect("the door bounds payloads");
    let first = payload.split_to(payload.len().min(PIECE_BYTES));
    let ask = Ask::Write { offset, length, fua, payload: first };
    let mut frames = vec![Forward::Request { session, tag, ask, burst_end: false }];
    while !payload.is_empty() {
        let bytes = payload.split_to(payload.len().min(PIECE_BYTES));
        frames.push(Forward::Payload { session, tag, bytes });
    }
    frames
}

/// Bytes in pieces of any length as pieces that fit frames, the shorter ones put together.
pub(super) fn repack(pieces: Vec<Bytes>) -> Vec<Bytes> {
    let (mut packed, mut gathered) = (Vec::new(), BytesMut::new());
    for mut piece in pieces {
        while !piece.is_empty() {
            if gathered.is_empty() && piece.len() >= PIECE_BYTES {
                packed.push(piece.split_to(PIECE_BYTES));
                continue;
            }
            let more = piece.split_to(piece.len().min(PIECE_BYTES - gathered.len()));
            gathered.extend_from_slice(&more);
            if gathered.len() == PIECE_BYTES {
                packed.push(gathered.split().freeze());
            }
        }
    }
    if !gathered.is_empty() {
        packed.push(gathered.freeze());
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(session: u64, bytes: usize) -> Forward {
        Forward::Payload { session, tag: 1, bytes: Bytes::from(vec![0; bytes]) }
    }

    #[test]
    fn no_more_is_sent_than_there_is_credit_for() {
        let mut out = Outbound::default();
        let pieces = usize::try_from(FORWARD_CREDIT_BYTES).unwrap() / PIECE_BYTES;
        for _ in 0..2 * pieces {
            out.push(payload(1, PIECE_BYTES));
        }
        let sent = std::iter::from_fn(|| out.next()).count();
        assert_eq!(sent, pieces - 1, "each counts for a little more than its payload");
        out.took(payload(1, PIECE_BYTES).credit_bytes());
        assert_eq!(std::iter::from_fn(|| out.next()).count(), 1);
        // What cannot be gives no credit that is not there.
        out.took(u64::MAX);
        assert_eq!(std::iter::from_fn(|| out.next()).count(), pieces - 1);
        out.took(0);
        out.forget(2);
        assert_eq!(out.queued_bytes(), payload(1, PIECE_BYTES).credit_bytes());
        out.forget(1);
        assert_eq!((out.queued_bytes(), out.next()), (0, None));
    }

    #[test]
    fn what_is_taken_is_told_in_steps() {
        let mut inbound = Inbound::default();
        assert_eq!(inbound.take(TELL_BYTES - 1), None);
        assert_eq!(inbound.take(1), Some(TELL_BYTES));
        assert_eq!(inbound.take(TELL_BYTES - 1), None);
    }

    #[test]
    fn payloads_are_cut_and_put_together_without_a_byte_lost() {
        let bytes: Bytes = (0..PIECE_BYTES * 2 + 5).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let frames = write_frames(1, 2, (7, true), bytes.clone());
        let pieces: Vec<Bytes> = frames
            .into_iter()
            .map(|frame| match frame {
                Forward::Request { ask: Ask::Write { payload, .. }, .. } => payload,
                Forward::Payload { bytes, .. } => bytes,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(pieces.concat(), bytes);
        assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [PIECE_BYTES, PIECE_BYTES, 5]);
        for cut in [1, 4096, PIECE_BYTES - 1, PIECE_BYTES + 1] {
            let packed = repack(bytes.chunks(cut).map(Bytes::copy_from_slice).collect());
            assert_eq!(packed.concat(), bytes, "cut at {cut}");
            assert_eq!(packed.len(), 3);
        }
    }
}
