//! Bugs planted on purpose: the simulator must find each of them, or it would not find the like by accident.
//!
//! A planted bug is a decorator of the environment's traits: it makes the shipped node, which does everything right, behave
//! as a node would that has the bug. Nothing of it is in the node's own code. The numbers are those of the list of bugs that
//! this family of systems is known for. What only raft can do wrong is looked for in groups, where a bug may also be one of the
//! parts that a group has of its own.

mod clouds;
mod disk;
mod keys;
mod resealed;
mod stale;

use std::rc::Rc;

use velum_node::env::Env;
use velum_protocol::{format::record::ATOMIC_BLOCKS_MAX, id::REGION_BLOCKS};

use crate::{
    env::{Surroundings, disk::Loss},
    group,
    guest::workload::Load,
    plan::{Event, Options, Trouble},
    rng::Rng,
    runtime::Run,
    trace::Printer,
    world::Recipe,
};

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Planted {
    /// 1: a write is acked before it is in the journal file.
    AckBeforeAppend,
    /// 3: a barrier is acked without a sync.
    BarrierWithoutSync,
    /// 3: a barrier is acked before its sync is done.
    BarrierBeforeSync,
    /// 29: a failed sync is tried again.
    RetriedSync,
    /// A failed write is taken for done.
    IgnoredWriteError,
    /// A directory is not synced after a file was made or renamed in it.
    UnsyncedNames,
    /// How far the journal was written is noted when it is opened, and not again.
    UnnotedWrites,
    /// 11: the lineage stays as it was after a loss of power.
    KeptLineage,
    /// 17: a record is left out of the sequence.
    SkippedRecord,
    /// 18: a record is uploaded before the segments it names.
    RecordBeforeSegments,
    /// 19: one cloud less than needed counts as enough.
    TooFewClouds,
    /// 20: the journal is trimmed when a record is agreed on, not when it lies in the clouds.
    TrimBeforeDurable,
    /// 25: an object is deleted in a cloud whose checkpoint still names it.
    DeletedTooEarly,
    /// 26: a name is used again after a restart.
    ReusedName,
    /// 27: a name that is taken counts as stored, whatever lies there. The names are those of an earlier life.
    UncomparedName,
    /// 28: an upload that failed counts as one without effect: the segment is sealed anew, and the record names the old sealing.
    ResealedSegment,
    /// 31: a member that has lost its log goes on under its number, and votes.
    VotesAfterLoss,
    /// 32: entries are applied and answered before they and the hard state are durable.
    AppliedBeforeStored,
    /// 33: a snapshot of raft is written over the one before.
    SnapshotInPlace,
    /// 34: entries are applied in the order of a hash map.
    HashOrder,
    /// A compaction moves a block that was overwritten since.
    StaleRelocation,
    /// 37: a nonce is used for two seals.
    ReusedNonce,
    /// Guests' data is written to a file in the clear.
    ReadableData,
    /// A cloud that was emptied while the node runs is taken for what it was.
    AcceptedEmptied,
    /// A door makes a request for each block of one.
    CutRequest,
    /// 38: gate 2 looks at the first region of a request only.
    FirstRegionOnly,
    /// 39: what gate 2 allowed it allows for a while after it was revoked.
    StalePermit,
    /// 39: a right that an operator has taken away is there for a while yet.
    StaleRight,
    /// 40: a connection whose place a newer one has taken goes on.
    LivingDead,
}

/// All planted bugs.
pub const ALL: [Planted; 29] = [
    Planted::AckBeforeAppend,
    Planted::BarrierWithoutSync,
    Planted::BarrierBeforeSync,
    Planted::RetriedSync,
    Planted::IgnoredWriteError,
    Planted::UnsyncedNames,
    Planted::UnnotedWrites,
    Planted::KeptLineage,
    Planted::SkippedRecord,
    Planted::RecordBeforeSegments,
    Planted::TooFewClouds,
    Planted::TrimBeforeDurable,
    Planted::DeletedTooEarly,
    Planted::ReusedName,
    Planted::UncomparedName,
    Planted::ResealedSegment,
    Planted::VotesAfterLoss,
    Planted::AppliedBeforeStored,
    Planted::SnapshotInPlace,
    Planted::HashOrder,
    Planted::StaleRelocation,
    Planted::ReusedNonce,
    Planted::ReadableData,
    Planted::AcceptedEmptied,
    Planted::CutRequest,
    Planted::FirstRegionOnly,
    Planted::StalePermit,
    Planted::StaleRight,
    Planted::LivingDead,
];

/// How long guests work in a world with a planted bug, at most, in simulated milliseconds: many short worlds find more than
/// a few long ones.
const GUESTS_MS_MAX: u64 = 12_000;

/// What a world is made for comes about this often in it.
const TROUBLE_EVERY_MS: u64 = 1_500;

/// A world in which a planted bug is looked for.
#[derive(Clone, Debug)]
pub enum World {
    /// One of whole nodes.
    Nodes(Box<Recipe>),
    /// A group of raft members.
    Group(group::Recipe),
}

impl World {
    /// Makes the world and lets it run to its end.
    pub fn run(self, printer: impl FnOnce() -> Option<Printer> + Send + 'static) -> Run<()> {
        match self {
            Self::Nodes(recipe) => recipe.run(printer),
            Self::Group(recipe) => recipe.run(printer),
        }
    }

    /// The same world without the bug, in which it must be fine: what it shows anyway is not found.
    #[must_use]
    pub fn without_bug(self) -> Self {
        match self {
            Self::Nodes(recipe) => Self::Nodes(Box::new(Recipe { planted: None, ..*recipe })),
            Self::Group(recipe) => Self::Group(group::Recipe { planted: None, ..recipe }),
        }
    }
}

/// The world of `seed` in which `bug` is looked for.
#[must_use]
pub fn world(seed: u64, bug: Planted) -> World {
    let group = group::Recipe { planted: Some(bug), ..group::Recipe::of(seed) };
    match bug {
        Planted::HashOrder => World::Group(group),
        // Whatever else goes wrong keeps members from coming to that I/O.
        Planted::SnapshotInPlace => World::Group(group::Recipe { only: Some(group::Trouble::EndAtIo), ..group }),
        Planted::VotesAfterLoss => {
            World::Group(group::Recipe { members: 3, only: Some(group::Trouble::LostVoter), ..group })
        }
        _ => World::Nodes(Box::new(nodes(seed, bug))),
    }
}

fn nodes(seed: u64, bug: Planted) -> Recipe {
    let drawn = Options::draw(&Rng::new(seed, "options"));
    let options = Options {
        guests_ms: drawn.guests_ms.min(GUESTS_MS_MAX),
        trouble_every_ms: drawn.trouble_every_ms.min(GUESTS_MS_MAX / 6),
        ..drawn
    };
    let options = match bug {
        Planted::LivingDead => going_elsewhere(options),
        Planted::CutRequest => of_several_blocks(options),
        Planted::FirstRegionOnly => over_a_bound(sharing(options)),
        Planted::StalePermit => sharing(options),
        Planted::StaleRight => Options { withheld: true, ..options },
        _ => options,
    };
    let events = match bug {
        Planted::RetriedSync => Some(failures(seed, options.guests_ms, |rng| {
            let loss = *rng.pick(&[Loss::LoseAll, Loss::Pages, Loss::Torn]);
            (Trouble::FailedSync(rng.below(4)), Trouble::PowerLoss(loss))
        })),
        Planted::IgnoredWriteError => {
            Some(failures(seed, options.guests_ms, |rng| (Trouble::FailedWrite(rng.below(8)), Trouble::Kill)))
        }
        Planted::UnnotedWrites => Some(again_and_again(options.guests_ms, 50, |_| Trouble::RottenEnd)),
        Planted::ResealedSegment => Some(again_and_again(options.guests_ms, TROUBLE_EVERY_MS, |turn| {
            Trouble::CloudFlaky(turn as usize % options.clouds)
        })),
        Planted::LivingDead => {
            // Long enough to be given up, and short enough to be still linked to the owner.
            let paused = |node: usize| {
                let at_ms = 1_500 + 6_000 * node as u64;
                Event { at_ms, node, trouble: Trouble::Paused, for_ms: 2_000 }
            };
            Some((0..3).map(paused).collect())
        }
        Planted::AppliedBeforeStored => {
            Some(again_and_again(options.guests_ms, 50, |_| Trouble::PowerLoss(Loss::LoseAll)))
        }
        _ => None,
    };
    Recipe { options: Some(options), events, planted: Some(bug), ..Recipe::of(seed) }
}

/// Attached guests of three nodes, who write little and often in one place: what an old connection left comes between what is read.
fn going_elsewhere(options: Options) -> Options {
    let load = Load { connections: 1, depth: 8, hot_blocks: 4, blocks_max: 1, pause_ms_max: 20, ..options.load };
    let (attached, nodes, guests_ms, volume_blocks) = (true, 3, 20_000, vec![16]);
    Options { attached, nodes, guests_ms, owners_must_return: false, volume_blocks, load, ..options }
}

/// What is written is small enough to be atomic, and mostly no single block.
fn of_several_blocks(options: Options) -> Options {
    let load = Load { blocks_max: ATOMIC_BLOCKS_MAX, partial_ppm: 0, weights: [60, 20, 0, 1, 0, 0], ..options.load };
    Options { load, ..options }
}

/// Two hosts of three nodes that share a volume.
fn sharing(options: Options) -> Options {
    let load = Load { connections: 2, hot_blocks: 16, pause_ms_max: 20, ..options.load };
    let (attached, shared, nodes, volume_blocks) = (true, true, 3, vec![64]);
    Options { attached, shared, nodes, owners_must_return: false, volume_blocks, load, ..options }
}

/// What is written lies about the bound of the volume's two regions.
fn over_a_bound(options: Options) -> Options {
    let load = Load { hot_first: REGION_BLOCKS - 8, blocks_max: 8, ..options.load };
    Options { volume_blocks: vec![REGION_BLOCKS + 64], load, ..options }
}

/// Failures of the disk, each with an end of the process soon after. What a failed sync left out shows only when the page cache
/// is lost before those pages are written again, and what a failed write left out only while it is still needed; drawn plans
/// hardly ever come to either.
fn failures(seed: u64, guests_ms: u64, draw: impl Fn(&Rng) -> (Trouble, Trouble)) -> Vec<Event> {
    let rng = Rng::new(seed, "failures");
    let mut events = Vec::new();
    let mut at_ms = TROUBLE_EVERY_MS;
    while at_ms < guests_ms {
        let (failure, end) = draw(&rng);
        events.push(Event { at_ms, node: 0, trouble: failure, for_ms: 0 });
        at_ms += rng.between(20, 400);
        events.push(Event { at_ms, node: 0, trouble: end, for_ms: rng.between(1, 500) });
        at_ms += TROUBLE_EVERY_MS;
    }
    events
}

/// One kind of trouble, time and again; drawn plans come to it seldom, or to too much beside it.
fn again_and_again(guests_ms: u64, for_ms: u64, trouble: impl Fn(u64) -> Trouble) -> Vec<Event> {
    let times = (1..).map(|turn| (turn, turn * TROUBLE_EVERY_MS)).take_while(|(_, at_ms)| *at_ms < guests_ms);
    times.map(|(turn, at_ms)| Event { at_ms, node: 0, trouble: trouble(turn), for_ms }).collect()
}

impl Planted {
    /// `env` as a node with the bug sees it, whose root key is `secret`.
    #[must_use]
    pub fn into_env(self, around: &Surroundings, env: Env, secret: [u8; 32]) -> Env {
        match self {
            Self::AckBeforeAppend
            | Self::BarrierWithoutSync
            | Self::BarrierBeforeSync
            | Self::RetriedSync
            | Self::IgnoredWriteError
            | Self::UnsyncedNames
            | Self::UnnotedWrites
            | Self::KeptLineage
            | Self::AppliedBeforeStored
            | Self::SnapshotInPlace
            | Self::ReusedNonce => {
                let disk = disk::BuggyDisk::new(self, Rc::clone(&env.disk), Rc::clone(&env.clock));
                Env { disk: Rc::new(disk), ..env }
            }
            Self::SkippedRecord
            | Self::RecordBeforeSegments
            | Self::TooFewClouds
            | Self::TrimBeforeDurable
            | Self::DeletedTooEarly
            | Self::ReusedName
            | Self::UncomparedName
            | Self::ResealedSegment
            | Self::StaleRelocation
            | Self::ReadableData
            | Self::AcceptedEmptied => {
                let clouds = clouds::BuggyClouds::new(self, around, &env, secret);
                Env { clouds: Rc::new(clouds), ..env }
            }
            // These are of groups, which do themselves what is wrong.
            Self::VotesAfterLoss | Self::HashOrder => env,
            // Its guests ask in parts.
            Self::CutRequest => env,
            // The world's operator asks for it.
            Self::FirstRegionOnly | Self::StalePermit | Self::StaleRight | Self::LivingDead => env,
        }
    }
}
