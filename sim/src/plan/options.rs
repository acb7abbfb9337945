//! The kind of world a seed makes.

use super::{KINDS, Kind, NODE_KINDS};
use crate::{guest::workload::Load, rng::Rng};

/// The smallest files of a journal in which atomic requests do not waste more room than the journal allows for.
pub const JOURNAL_FILE_MIN: u64 = 5 << 18;

/// Everything about a world that is fixed before it begins; printed with the seed when it fails.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long guests work, in simulated milliseconds.
    pub guests_ms: u64,
    /// Mean time between troubles.
    pub trouble_every_ms: u64,
    /// Enabled kinds of trouble and their weights.
    pub troubles: Vec<(u32, Kind)>,
    /// Clouds.
    pub clouds: usize,
    /// The only cloud that may lie, be emptied or be given up.
    pub bad_cloud: usize,
    /// Sizes of the volumes, in blocks.
    pub volume_blocks: Vec<u64>,
    /// What guests ask for.
    pub load: Load,
    /// Bytes of a journal file.
    pub journal_file_bytes: u64,
    /// Files of the ring at most.
    pub journal_files_max: u64,
    /// Memory budget.
    pub memory_bytes: u64,
    /// Dirty bytes that start a flush.
    pub flush_bytes: u64,
    /// Age of dirt that starts a flush.
    pub flush_interval_ms: u64,
    /// Records that start a checkpoint.
    pub checkpoint_records: u64,
    /// Bytes of the disk cache.
    pub cache_bytes: u64,
    /// Time before a dead object is deleted.
    pub reclaim_grace_ms: u64,
    /// Percent of the segments' bytes that must be live, or they are compacted; zero for never.
    pub compact_live_percent: u8,
    /// Latency of clouds.
    pub cloud_latency_ms_max: u64,
    /// Longest CPU job.
    pub compute_ms_max: u64,
    /// Offset of the node's clock.
    pub clock_offset_ms: u64,
    /// Rate error of the node's clock.
    pub clock_rate_ppm: i64,
    /// Longest way of a chunk over the network.
    pub network_ms_max: u64,
    /// At the end the machine is lost and the volumes are recovered; of several machines, all.
    pub burns: bool,
    /// Nodes of the cluster; one is alone, without a way to others.
    pub nodes: usize,
    /// Nobody serves a volume whose owner is away: it waits for that node, which must return with its disk. Otherwise another
    /// node takes over.
    pub owners_must_return: bool,
    /// Guests find their volumes by attachments, with one connection each.
    pub attached: bool,
    /// Hosts share each volume, and have permits to write that go from one to the other.
    pub shared: bool,
    /// An operator takes guests' rights away now and then, and gives them back.
    pub withheld: bool,
}

impl Options {
    /// Draws the options of a world.
    #[must_use]
    pub fn draw(rng: &Rng) -> Self {
        let volumes = if rng.chance(200_000) { 2 } else { 1 };
        let volume_blocks: Vec<_> = (0..volumes).map(|_| *rng.pick(&[16, 64, 256, 1024, 4500])).collect();
        let journal_file_bytes = *rng.pick(&[JOURNAL_FILE_MIN, 2 << 20, 4 << 20]);
        let flush_bytes = *rng.pick(&[64 << 10, 256 << 10, 1 << 20, 8 << 20]);
        Self {
            guests_ms: *rng.weighted(&[(5, 20_000), (3, 45_000), (1, 120_000)]),
            trouble_every_ms: *rng.pick(&[700, 2_000, 6_000, 15_000]),
            troubles: troubles(rng),
            clouds: 3,
            bad_cloud: rng.below(3) as usize,
            volume_blocks,
            load: load(rng),
            journal_file_bytes,
            journal_files_max: rng.between(4, 12),
            memory_bytes: *rng.pick(&[4 << 20, 16 << 20, 64 << 20]),
            flush_bytes,
            flush_interval_ms: *rng.pick(&[100, 500, 5_000]),
            checkpoint_records: *rng.pick(&[1, 3, 10, 100]),
            cache_bytes: *rng.pick(&[0, 1 << 20, 4 << 20]),
            reclaim_grace_ms: *rng.pick(&[0, 1_000, 10_000]),
            compact_live_percent: *rng.weighted(&[(1, 0), (2, 50), (2, 80)]),
            cloud_latency_ms_max: *rng.pick(&[5, 30, 300]),
            compute_ms_max: *rng.pick(&[0, 1, 20]),
            clock_offset_ms: rng.below(1 << 40),
            clock_rate_ppm: rng.below(100_001) as i64 - 50_000,
            network_ms_max: *rng.pick(&[0, 1, 10]),
            burns: rng.chance(300_000),
            nodes: 1,
            owners_must_return: true,
            attached: false,
            shared: false,
            withheld: false,
        }
        .attached_in(&Rng::new(rng.below(u64::MAX), "attached"))
        .withheld_in(&Rng::new(rng.below(u64::MAX), "withheld"))
    }

    /// In some worlds guests are attached.
    fn attached_in(mut self, rng: &Rng) -> Self {
        self.attached = rng.chance(300_000);
        self.shared = self.attached && rng.chance(400_000);
        if self.attached {
            self.load.connections = if self.shared { rng.between(2, 3) as u32 } else { 1 };
        }
        self
    }

    /// In some worlds what guests may do changes.
    fn withheld_in(mut self, rng: &Rng) -> Self {
        self.withheld = rng.chance(200_000);
        self
    }

    /// The options of the world of `seed`, with so many nodes or, when it is left open, with as many as the seed says.
    #[must_use]
    pub fn of(seed: u64, nodes: Option<usize>) -> Self {
        let (alone, rng) = (Self::draw(&Rng::new(seed, "options")), Rng::new(seed, "nodes"));
        let drawn = *rng.weighted(&[(50, 1), (40, 3), (10, 5)]);
        let nodes = nodes.unwrap_or(drawn);
        if nodes == 1 {
            return alone;
        }
        let guests_ms = alone.guests_ms.min(SEVERAL_GUESTS_MS_MAX);
        let mut several = Self { nodes, guests_ms, owners_must_return: false, ..alone };
        several.troubles.extend(NODE_KINDS.iter().filter(|_| rng.chance(500_000)));
        several
    }
}

/// Several nodes cost several times as much.
const SEVERAL_GUESTS_MS_MAX: u64 = 45_000;

/// Each kind is enabled in half of the worlds.
fn troubles(rng: &Rng) -> Vec<(u32, Kind)> {
    KINDS.iter().filter(|_| rng.chance(500_000)).copied().collect()
}

fn load(rng: &Rng) -> Load {
    let mut weights = [40, 30, 8, 10, 4, 2];
    for weight in &mut weights[2..] {
        if rng.chance(300_000) {
            *weight = 0;
        }
    }
    let (connections, depth) = (rng.between(1, 4) as u32, *rng.pick(&[1, 2, 8, 32]));
    // At most some hundred requests a second: what matters is what happens between them.
    let pause_ms_max = u64::from(connections * depth) * *rng.pick(&[5, 20, 100]);
    Load {
        connections,
        depth,
        pause_ms_max,
        blocks_max: *rng.pick(&[1, 4, 16, 64]),
        hot_blocks: *rng.pick(&[4, 16, 64]),
        hot_first: 0,
        partial_ppm: *rng.pick(&[0, 0, 100_000]),
        fua_ppm: *rng.pick(&[0, 50_000]),
        weights,
    }
}
