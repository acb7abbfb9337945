//! The plan of a world: what kind of world a seed makes, and what goes wrong in it when.
//!
//! Each seed enables a random subset of the faults (swarm testing), so that some worlds are calm enough to get far and others
//! have nothing but one kind of trouble. Everything in a plan is recoverable: at most one cloud at a time is bad for long,
//! no disk is lost before what was flushed lies in the clouds, and every fault ends. What the promises say must then hold.
//! Among several nodes a disk is lost for good too, with its node; another one comes in its place under a new number.

mod options;

pub use options::{JOURNAL_FILE_MIN, Options};

use crate::{env::disk::Loss, rng::Rng};

/// Something that goes wrong, or that an operator does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The process is killed; the page cache stays.
    Kill,
    /// The process is killed at the I/O after this many more.
    KillAtIo(u64),
    /// The machine loses power.
    PowerLoss(Loss),
    /// The machine loses power at the I/O after this many more.
    PowerLossAtIo(u64, Loss),
    /// The node is stopped and started as an operator does it.
    CleanRestart,
    /// The sync after this many more fails, and its pages count as clean.
    FailedSync(u64),
    /// The write after this many more fails.
    FailedWrite(u64),
    /// Syncs take up to this many milliseconds.
    SlowDisk(u64),
    /// Reads in a million fail.
    ReadErrors(u32),
    /// Only this many more bytes fit on the disk.
    FullDisk(u64),
    /// One bit of the disk cache flips.
    CacheRot,
    /// The process is killed, and one bit flips of what it had written to the journal and not synced.
    RottenEnd,
    /// A cloud cannot be reached.
    CloudAway(usize),
    /// A cloud takes requests and does nothing.
    CloudStalls(usize),
    /// A cloud refuses the credentials.
    CloudDenies(usize),
    /// A cloud fails often, before or after the effect.
    CloudFlaky(usize),
    /// A cloud loses answers.
    CloudLosesAnswers(usize),
    /// A cloud asks to slow down.
    CloudThrottles(usize),
    /// A cloud lies about some of its objects.
    CloudLies(usize),
    /// A cloud answers and takes nothing.
    CloudReadOnly(usize),
    /// A cloud loses everything it holds.
    CloudEmptied(usize),
    /// An empty place is in a cloud's stead, until an operator puts the right one back.
    CloudExchanged(usize),
    /// A guest's connection is cut.
    CutConnection,
    /// Nothing arrives over the network.
    StalledNetwork,
    /// An operator flushes the volumes to the clouds and waits for it.
    Flush,
    /// The machine is lost and the volumes are recovered from the clouds; one cloud may be given up with it.
    LostMachine {
        /// The cloud that cannot be reached during the recovery.
        without: Option<usize>,
    },
    /// A node can reach no other one, and none can reach it.
    Isolated,
    /// A node and the next one reach each other, and no other one.
    Split,
    /// What a node sends to the next one does not arrive; the other way is open.
    BlockedOneWay,
    /// The way from a node to the next one is blocked and open in turns.
    Flapping,
    /// What a node sends to the next one takes this many milliseconds longer.
    SlowLink(u64),
    /// The connections between a node and the next one are cut.
    ResetLinks,
    /// A node takes no step, as after SIGSTOP.
    Paused,
    /// All nodes are killed at once.
    AllKilled,
    /// All machines lose power at once.
    AllLosePower(Loss),
    /// Raft's leader and the owner of a volume die at once.
    LeaderAndOwnerDie,
    /// An operator hands the lead over to a node.
    LeadHandedOver,
    /// An operator has all volumes served by a node.
    VolumesMoved,
    /// A node is lost with its disk and removed; another one joins under a new number.
    NodeReplaced,
}

impl Trouble {
    /// True for what takes a node away from the others for so long that another one may take over.
    const fn stops_a_node(&self) -> bool {
        matches!(
            self,
            Self::Kill | Self::PowerLoss(_) | Self::Isolated | Self::Split | Self::Paused | Self::LeaderAndOwnerDie
        )
    }
}

/// A trouble and when it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Milliseconds since guests began.
    pub at_ms: u64,
    /// Which node it comes to, counted from the first one that there is.
    pub node: usize,
    /// What happens.
    pub trouble: Trouble,
    /// How long it lasts, for what lasts; how long the process stays down, for what ends it.
    pub for_ms: u64,
}

/// Machines lost in one world. Each recovery begins a life, and what a life left in the clouds is looked for under thousands of
/// names: a dozen of them in a few minutes is no fault that anything is promised under.
const LOSSES_MAX: usize = 5;

/// Draws the plan of a world.
#[must_use]
pub fn draw(options: &Options, rng: &Rng) -> Vec<Event> {
    let mut events = Vec::new();
    let (mut at_ms, mut losses) = (0, 0);
    loop {
        at_ms += rng.between(options.trouble_every_ms / 2, options.trouble_every_ms * 3 / 2);
        if at_ms >= options.guests_ms {
            break;
        }
        let kinds: Vec<_> = options.troubles.iter().map(|(weight, kind)| (*weight, *kind)).collect();
        if kinds.iter().all(|(weight, _)| *weight == 0) {
            break;
        }
        let kind = *rng.weighted(&kinds);
        if kind == Kind::Loss {
            losses += 1;
            if losses > LOSSES_MAX {
                continue;
            }
        }
        let node = if options.nodes > 1 { rng.below(options.nodes as u64) as usize } else { 0 };
        let trouble = if options.nodes > 1 { among_nodes(kind, options, rng) } else { trouble(kind, options, rng) };
        events.push(Event { at_ms, node, trouble, for_ms: lasts(kind, rng) });
        // A machine whose disk fails often goes down soon after, before what the failure left is overwritten or trimmed.
        if kind == Kind::DiskError && rng.chance(500_000) {
            at_ms += rng.between(1, 600);
            let down = if rng.chance(500_000) { Trouble::Kill } else { Trouble::PowerLoss(loss(rng)) };
            events.push(Event { at_ms, node, trouble: down, for_ms: lasts(Kind::Process, rng) });
        }
    }
    if options.nodes > 1 {
        upon_takeovers(&mut events, options, &rng.fork("upon takeovers"));
    }
    events
}

/// While another node takes over for one that is gone, a third one loses what it has: seldom met by chance, for both are seldom.
fn upon_takeovers(events: &mut Vec<Event>, options: &Options, rng: &Rng) {
    let is_enabled = |kind| options.troubles.iter().any(|(weight, enabled)| *enabled == kind && *weight > 0);
    let kinds: Vec<_> = [Kind::Rot, Kind::Loss].into_iter().filter(|kind| is_enabled(*kind)).collect();
    if kinds.is_empty() {
        return;
    }
    let falls: Vec<_> = events.iter().filter(|event| event.trouble.stops_a_node()).map(|event| event.at_ms).collect();
    for fell_ms in falls.into_iter().filter(|_| rng.chance(150_000)).take(LOSSES_MAX) {
        let (kind, at_ms) = (*rng.pick(&kinds), fell_ms + rng.between(800, 3_500));
        let (node, trouble) = (rng.below(options.nodes as u64) as usize, among_nodes(kind, options, rng));
        events.push(Event { at_ms, node, trouble, for_ms: lasts(kind, rng) });
    }
    events.sort_by_key(|event| event.at_ms);
}

/// Kinds of trouble, as options enable them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Kills and crashes of the process.
    Process,
    /// Losses of power.
    Power,
    /// Failing writes and syncs.
    DiskError,
    /// Slow, full and misreading disks.
    DiskTrouble,
    /// Rot in the disk cache and in the journal's unsynced end.
    Rot,
    /// Clouds that cannot be used for a while.
    CloudOutage,
    /// Clouds that fail now and then.
    CloudFaults,
    /// A lying cloud.
    Adversary,
    /// Connections and delays.
    Network,
    /// What operators do.
    Operator,
    /// Machines lost for good.
    Loss,
    /// Clouds that are emptied, exchanged or read-only.
    Place,
    /// Ways between nodes that are blocked, slow or cut.
    Partition,
    /// Nodes that take no step for a while.
    Pause,
    /// Several nodes that go down at once.
    Together,
    /// Leads handed over and volumes moved.
    Handover,
}

/// All kinds, with how often each comes when all are enabled.
pub const KINDS: [(u32, Kind); 12] = [
    (20, Kind::Process),
    (12, Kind::Power),
    (6, Kind::DiskError),
    (6, Kind::DiskTrouble),
    (3, Kind::Rot),
    (12, Kind::CloudOutage),
    (12, Kind::CloudFaults),
    (4, Kind::Adversary),
    (8, Kind::Network),
    (8, Kind::Operator),
    (3, Kind::Loss),
    (6, Kind::Place),
];

/// Those that only several nodes know.
pub const NODE_KINDS: [(u32, Kind); 4] =
    [(20, Kind::Partition), (8, Kind::Pause), (6, Kind::Together), (8, Kind::Handover)];

fn loss(rng: &Rng) -> Loss {
    *rng.weighted(&[(1, Loss::KeepAll), (3, Loss::LoseAll), (3, Loss::Pages), (3, Loss::Torn)])
}

fn trouble(kind: Kind, options: &Options, rng: &Rng) -> Trouble {
    let cloud = rng.below(options.clouds as u64) as usize;
    // Only one cloud of a world ever lies or is given up: the others hold everything at d2.
    let bad_cloud = options.bad_cloud;
    match kind {
        Kind::Process => {
            let io = rng.between(1, 200);
            rng.weighted(&[(3, Trouble::Kill), (5, Trouble::KillAtIo(io)), (2, Trouble::CleanRestart)]).clone()
        }
        Kind::Power => {
            let (io, loss) = (rng.between(1, 200), loss(rng));
            rng.weighted(&[(2, Trouble::PowerLoss(loss)), (5, Trouble::PowerLossAtIo(io, loss))]).clone()
        }
        Kind::DiskError => {
            let after = rng.below(50);
            rng.weighted(&[(1, Trouble::FailedSync(after)), (1, Trouble::FailedWrite(after))]).clone()
        }
        Kind::DiskTrouble => {
            let (slow, ppm) = (rng.between(20, 2_000), rng.between(1_000, 50_000) as u32);
            let room = rng.between(0, 1 << 20);
            rng.weighted(&[(4, Trouble::SlowDisk(slow)), (2, Trouble::ReadErrors(ppm)), (2, Trouble::FullDisk(room))])
                .clone()
        }
        Kind::Rot => rng.weighted(&[(3, Trouble::CacheRot), (2, Trouble::RottenEnd)]).clone(),
        Kind::CloudOutage => {
            let all =
                [(4, Trouble::CloudAway(cloud)), (2, Trouble::CloudStalls(cloud)), (1, Trouble::CloudDenies(cloud))];
            rng.weighted(&all).clone()
        }
        Kind::CloudFaults => {
            let all = [
                (4, Trouble::CloudFlaky(cloud)),
                (2, Trouble::CloudLosesAnswers(cloud)),
                (1, Trouble::CloudThrottles(cloud)),
            ];
            rng.weighted(&all).clone()
        }
        Kind::Adversary => Trouble::CloudLies(bad_cloud),
        Kind::Network => rng.weighted(&[(4, Trouble::CutConnection), (1, Trouble::StalledNetwork)]).clone(),
        Kind::Operator => Trouble::Flush,
        Kind::Loss => Trouble::LostMachine { without: rng.chance(500_000).then_some(bad_cloud) },
        Kind::Place => {
            let all = [
                (3, Trouble::CloudEmptied(bad_cloud)),
                (2, Trouble::CloudExchanged(bad_cloud)),
                (1, Trouble::CloudReadOnly(cloud)),
            ];
            rng.weighted(&all).clone()
        }
        Kind::Partition | Kind::Pause | Kind::Together | Kind::Handover => among_nodes(kind, options, rng),
    }
}

/// What goes wrong among several nodes.
fn among_nodes(kind: Kind, options: &Options, rng: &Rng) -> Trouble {
    match kind {
        Kind::Loss => Trouble::NodeReplaced,
        Kind::Partition => {
            let all = [
                (8, Trouble::Isolated),
                (4, Trouble::Split),
                (8, Trouble::BlockedOneWay),
                (4, Trouble::Flapping),
                (4, Trouble::SlowLink(rng.between(20, 400))),
                (4, Trouble::ResetLinks),
            ];
            rng.weighted(&all).clone()
        }
        Kind::Pause => Trouble::Paused,
        Kind::Together => {
            let all = [(2, Trouble::AllKilled), (2, Trouble::AllLosePower(loss(rng))), (3, Trouble::LeaderAndOwnerDie)];
            rng.weighted(&all).clone()
        }
        Kind::Handover => rng.weighted(&[(1, Trouble::LeadHandedOver), (2, Trouble::VolumesMoved)]).clone(),
        other => trouble(other, options, rng),
    }
}

fn lasts(kind: Kind, rng: &Rng) -> u64 {
    match kind {
        Kind::Process | Kind::Power | Kind::Rot | Kind::Loss | Kind::DiskError => rng.between(1, 2_000),
        Kind::CloudOutage | Kind::Place => rng.between(500, 20_000),
        // Short ones and long ones.
        Kind::Pause | Kind::Partition => {
            let longest = *rng.pick(&[500, 3_000, 30_000]);
            rng.between(100, longest)
        }
        _ => rng.between(200, 8_000),
    }
}
