//! Decides when live blocks are moved out of mostly dead segments, and out of which.
//!
//! A segment is deleted when nothing refers to it any more; one live block of two thousand keeps it. So a look at how much of
//! the volume's segments is live is taken now and then. While that is less than the bound says, a step empties the emptiest
//! segments into one new one; the reclaim does the rest.
//!
//! Invariants:
//! * One step at a time, of bounded bytes read and bounded blocks moved.
//! * A step takes a lasting eighth off what it empties, or is not made: so without writes steps come to an end.
//!
//! Cost: a step moves fewer bytes than it frees as long as the bound is at most one half; in general at most
//! bound / (1 - bound) times as many. At rest the segments hold at most live bytes / bound, and 192 KiB.
//!
//! Nothing here is stored: after a crash what a step had stored is an orphan of an epoch that is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use velum_protocol::{
    format::{
        location::FRAME_OVERHEAD_BYTES,
        metadata::ObjectRef,
        object::SEGMENT_STEP_BYTES,
        page::SegmentUsage,
        segment::{FRAMES_OFFSET, SEGMENT_BLOCKS_TARGET},
    },
    id::{BLOCK_BYTES, Incarnation, ObjectNumber, Seq},
};

use crate::{actor, env::Instant};

/// Blocks that one step moves at most, but for a single segment that has more.
const BLOCKS_MAX: u64 = SEGMENT_BLOCKS_TARGET as u64;

/// Bytes that one step reads at most.
const READ_BYTES_MAX: u64 = 64 << 20;

/// Segments that one step empties at most.
const SEGMENTS_MAX: usize = 128;

/// A frame's entry in the directory takes at most this much.
const ENTRY_BYTES_MAX: u64 = 32;

/// Pause after a step that came to nothing.
const PAUSE: Duration = Duration::from_secs(10);

/// Shortest and longest pause between two steps.
const REST: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// A step is followed by a rest of so many times its own time when guests wait for the clouds.
const REST_FACTOR_PRESSED: u32 = 4;

/// Names a segment.
pub type Name = (Incarnation, ObjectNumber);

/// When a volume is compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Triggers {
    /// Percent of the bytes of a volume's segments that must be live; with fewer they are compacted. Zero: never.
    pub live_percent: u8,
    /// How often a volume at rest is looked at.
    pub interval: Duration,
}

/// What a volume's segments hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Bytes of the segments that something refers to, in one cloud.
    pub stored_bytes: u64,
    /// Bytes of live blocks in them.
    pub live_bytes: u64,
}

/// A look at all segments of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// All of them.
    pub holdings: Holdings,
    /// The emptiest ones by their live share.
    emptiest: BTreeMap<(u64, Name), SegmentUsage>,
}

impl Survey {
    /// Takes a segment in.
    pub fn add(&mut self, segment: SegmentUsage) {
        let live = live_bytes(&segment);
        self.holdings.stored_bytes += segment.object.bytes;
        self.holdings.live_bytes += live;
        let share = live.saturating_mul(1_000_000) / segment.object.bytes.max(1);
        self.emptiest.insert((share, (segment.object.incarnation, segment.object.number)), segment);
        if self.emptiest.len() > SEGMENTS_MAX {
            self.emptiest.pop_last();
        }
    }

    /// The segments to empty next: none when enough is live, or when emptying would free next to nothing.
    fn choose(&self, live_percent: u8) -> Vec<ObjectRef> {
        let Holdings { stored_bytes, live_bytes: live } = self.holdings;
        let percent = u64::from(live_percent);
        if !is_sparse(live, stored_bytes, percent) {
            return Vec::new();
        }
        let (mut blocks, mut bytes, mut chosen) = (0, 0, Vec::new());
        for segment in self.emptiest.values() {
            // Somewhat more than the bound asks for: a few large steps cost fewer requests than many small ones.
            let left = stored_bytes.saturating_sub(bytes) + sealed_bytes(blocks);
            if !is_sparse(live, left, percent + (100 - percent.min(100)) / 5) {
                break;
            }
            let fits =
                blocks + u64::from(segment.live_blocks) <= BLOCKS_MAX && bytes + segment.object.bytes <= READ_BYTES_MAX;
            if !is_sparse(live_bytes(segment), segment.object.bytes, percent) || !(fits || chosen.is_empty()) {
                break;
            }
            blocks += u64::from(segment.live_blocks);
            bytes += segment.object.bytes;
            chosen.push(segment.object.clone());
        }
        if sealed_bytes(blocks).saturating_mul(8) <= bytes.saturating_mul(7) { chosen } else { Vec::new() }
    }
}

fn is_sparse(live_bytes: u64, stored_bytes: u64, live_percent: u64) -> bool {
    live_bytes.saturating_mul(100) < stored_bytes.saturating_mul(live_percent)
}

fn live_bytes(segment: &SegmentUsage) -> u64 {
    u64::from(segment.live_blocks) * BLOCK_BYTES
}

/// Bytes of a segment of so many blocks at most.
fn sealed_bytes(blocks: u64) -> u64 {
    let per_block = BLOCK_BYTES + u64::from(FRAME_OVERHEAD_BYTES) + ENTRY_BYTES_MAX;
    let bare = blocks * per_block + u64::from(FRAMES_OFFSET) + u64::from(FRAME_OVERHEAD_BYTES);
    bare.next_multiple_of(SEGMENT_STEP_BYTES as u64)
}

/// Tells whether anything has changed that a survey would show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The newest record.
    pub seq: Seq,
    /// The newest checkpoint: each settles counts that were too high.
    pub checkpoint: u64,
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What it found is moved, or was gone by itself.
    Done,
    /// It came to nothing, and is tried again later.
    Failed,
}

/// A message, a completion or a timer.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time for a look.
    Tick,
    /// Where the volume stands.
    Looked(Mark),
    /// All segments; none when a page could not be read.
    Surveyed(Option<Survey>),
    /// A step's end.
    Stepped {
        /// How it went.
        outcome: Outcome,
        /// Guests wait for room at its end.
        pressed: bool,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// See where the volume stands.
    Look,
    /// Look at all segments but these.
    Survey(BTreeSet<Name>),
    /// Move what is live in these segments into a new one.
    Step(Vec<ObjectRef>),
    /// Step with [`Input::Tick`] after a pause.
    Arm(Duration),
}

/// The compaction of one volume.
#[derive(Debug)]
pub struct Machine {
    triggers: Triggers,
    /// Where the volume stood at the survey under way.
    mark: Option<Mark>,
    /// Where it stood when there was nothing to do.
    quiet_at: Option<Mark>,
    /// The segments that are being emptied.
    under_way: Vec<Name>,
    /// Segments that were emptied, with the newest checkpoint at that time. The map may still count blocks in them that were
    /// overwritten on pages that are away, until it has made a checkpoint that was begun later.
    emptied: BTreeMap<Name, u64>,
    began: Instant,
}

impl Machine {
    /// Looks at once at its first [`Input::Tick`].
    #[must_use]
    pub const fn new(triggers: Triggers) -> Self {
        Self {
            triggers,
            mark: None,
            quiet_at: None,
            under_way: Vec::new(),
            emptied: BTreeMap::new(),
            began: Instant(0),
        }
    }

    fn looked(&mut self, mark: Mark, effects: &mut Vec<Effect>) {
        if self.quiet_at == Some(mark) {
            return effects.push(Effect::Arm(self.triggers.interval));
        }
        self.mark = Some(mark);
        self.emptied.retain(|_, checkpoint| *checkpoint + 2 > mark.checkpoint);
        effects.push(Effect::Survey(self.emptied.keys().copied().collect()));
    }

    fn surveyed(&mut self, now: Instant, survey: &Survey, effects: &mut Vec<Effect>) {
        let segments = survey.choose(self.triggers.live_percent);
        if segments.is_empty() {
            self.quiet_at = self.mark;
            return effects.push(Effect::Arm(self.triggers.interval));
        }
        self.began = now;
        self.under_way = segments.iter().map(|segment| (segment.incarnation, segment.number)).collect();
        effects.push(Effect::Step(segments));
    }

    fn stepped(&mut self, now: Instant, pressed: bool, effects: &mut Vec<Effect>) {
        let checkpoint = self.mark.map_or(0, |mark| mark.checkpoint);
        self.emptied.extend(self.under_way.drain(..).map(|name| (name, checkpoint)));
        let factor = if pressed { REST_FACTOR_PRESSED } else { 1 };
        let rest = now.since(self.began).saturating_mul(factor);
        effects.push(Effect::Arm(rest.clamp(REST.0, REST.1)));
    }
}

impl actor::Machine for Machine {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Tick => effects.push(Effect::Look),
            Input::Looked(mark) => self.looked(mark, effects),
            Input::Surveyed(Some(survey)) => self.surveyed(now, &survey, effects),
            Input::Surveyed(None) | Input::Stepped { outcome: Outcome::Failed, .. } => {
                effects.push(Effect::Arm(PAUSE));
            }
            Input::Stepped { outcome: Outcome::Done, pressed } => self.stepped(now, pressed, effects),
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
