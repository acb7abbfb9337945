//! Directed worlds: what a promise stands or falls with, written out, and seeds that once found something.
//!
//! Options and plans are spelt out here rather than drawn, so that a scenario keeps its meaning when the drawing changes.

use crate::{
    env::disk::Loss,
    guest::workload::Load,
    plan::{Event, JOURNAL_FILE_MIN, Options, Trouble},
    world::Recipe,
};

/// A world with a name and a reason.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it shows.
    pub name: &'static str,
    /// The world.
    pub recipe: Recipe,
}

/// A small world in fair weather, from which scenarios differ in what matters to them.
#[must_use]
pub fn small_world() -> Options {
    Options {
        guests_ms: 6_000,
        trouble_every_ms: 1_000,
        troubles: Vec::new(),
        clouds: 3,
        bad_cloud: 0,
        volume_blocks: vec![64],
        load: Load {
            connections: 2,
            depth: 4,
            pause_ms_max: 60,
            blocks_max: 8,
            hot_blocks: 16,
            hot_first: 0,
            partial_ppm: 50_000,
            fua_ppm: 50_000,
            weights: [40, 30, 8, 10, 4, 2],
        },
        journal_file_bytes: JOURNAL_FILE_MIN,
        journal_files_max: 4,
        memory_bytes: 8 << 20,
        flush_bytes: 128 << 10,
        flush_interval_ms: 500,
        checkpoint_records: 3,
        cache_bytes: 1 << 20,
        reclaim_grace_ms: 1_000,
        compact_live_percent: 50,
        cloud_latency_ms_max: 20,
        compute_ms_max: 1,
        clock_offset_ms: 0,
        clock_rate_ppm: 0,
        network_ms_max: 1,
        burns: false,
        nodes: 1,
        owners_must_return: true,
        attached: false,
        shared: false,
        withheld: false,
    }
}

fn scenario(name: &'static str, seed: u64, options: Options, troubles: &[(u64, Trouble)]) -> Scenario {
    let event =
        |(at_ms, trouble): &(u64, Trouble)| Event { at_ms: *at_ms, node: 0, trouble: trouble.clone(), for_ms: 1_500 };
    let events = troubles.iter().map(event).collect();
    Scenario { name, recipe: Recipe { seed, options: Some(options), events: Some(events), planted: None } }
}

/// All of those of one node.
#[must_use]
pub fn all() -> Vec<Scenario> {
    let power = |io| Trouble::PowerLossAtIo(io, Loss::Torn);
    let mut scenarios = vec![
        scenario("fair weather", 1, small_world(), &[]),
        scenario(
            "the process is killed again and again",
            2,
            small_world(),
            &[
                (500, Trouble::Kill),
                (1_500, Trouble::KillAtIo(7)),
                (3_000, Trouble::KillAtIo(30)),
                (4_500, Trouble::Kill),
            ],
        ),
        scenario(
            "power fails again and again",
            3,
            small_world(),
            &[(500, power(3)), (2_000, power(11)), (3_500, Trouble::PowerLoss(Loss::LoseAll)), (5_000, power(40))],
        ),
        scenario(
            "a sync fails, the page cache forgets, and then power fails too",
            4,
            small_world(),
            &[
                (500, Trouble::FailedSync(2)),
                (2_500, Trouble::PowerLoss(Loss::LoseAll)),
                (3_500, Trouble::FailedSync(0)),
            ],
        ),
        scenario(
            "a sync fails while the node starts",
            9,
            small_world(),
            &(3..=9)
                .flat_map(|syncs| [(syncs * 600, Trouble::FailedSync(syncs)), (syncs * 600, Trouble::Kill)])
                .collect::<Vec<_>>(),
        ),
        scenario(
            "the machine is lost, then also a cloud",
            6,
            Options { burns: true, ..small_world() },
            &[
                (1_500, Trouble::Flush),
                (2_500, Trouble::LostMachine { without: None }),
                (4_000, Trouble::LostMachine { without: Some(0) }),
            ],
        ),
        scenario(
            "every limit is reached at once",
            7,
            Options { memory_bytes: 2 << 20, flush_bytes: 8 << 20, flush_interval_ms: 5_000, ..small_world() },
            &[(500, Trouble::CloudAway(0)), (600, Trouble::CloudAway(1)), (3_000, Trouble::Kill)],
        ),
    ];
    scenarios.extend(clouds());
    scenarios
}

/// Those in which clouds are bad.
fn clouds() -> Vec<Scenario> {
    vec![
        scenario(
            "one cloud after the other is away",
            5,
            small_world(),
            &[(500, Trouble::CloudAway(0)), (2_500, Trouble::CloudAway(1)), (4_500, Trouble::CloudAway(2))],
        ),
        scenario(
            "a cloud lies about everything",
            8,
            Options { cache_bytes: 0, burns: true, ..small_world() },
            &[(500, Trouble::CloudLies(0)), (2_500, Trouble::CloudLies(0)), (4_000, Trouble::Kill)],
        ),
        scenario(
            "a cloud is emptied while another one is away, and the process is killed",
            10,
            Options { guests_ms: 40_000, burns: true, ..small_world() },
            &[
                (1_500, Trouble::Flush),
                (2_000, Trouble::CloudAway(1)),
                (2_100, Trouble::CloudEmptied(0)),
                (4_000, Trouble::Kill),
                (20_000, Trouble::CloudReadOnly(2)),
            ],
        ),
        scenario(
            "a cloud is exchanged for an empty place and put back",
            11,
            Options { guests_ms: 40_000, ..small_world() },
            &[(1_500, Trouble::Flush), (2_000, Trouble::CloudExchanged(0)), (20_000, Trouble::Kill)],
        ),
        scenario(
            "the machine is lost while a cloud is empty",
            12,
            Options { guests_ms: 12_000, burns: true, ..small_world() },
            &[
                (1_500, Trouble::Flush),
                (2_000, Trouble::CloudEmptied(0)),
                (2_500, Trouble::LostMachine { without: None }),
                (9_000, Trouble::CloudEmptied(0)),
            ],
        ),
    ]
}

/// A world of three nodes with these troubles: when, at which node, which.
fn three(name: &'static str, seed: u64, troubles: &[(u64, usize, Trouble)]) -> Scenario {
    let event = |(at_ms, node, trouble): &(u64, usize, Trouble)| Event {
        at_ms: *at_ms,
        node: *node,
        trouble: trouble.clone(),
        for_ms: 1_500,
    };
    let events = Some(troubles.iter().map(event).collect());
    let options = Options {
        nodes: 3,
        owners_must_return: false,
        guests_ms: 12_000,
        volume_blocks: vec![64, 64],
        ..small_world()
    };
    Scenario { name, recipe: Recipe { seed, options: Some(options), events, planted: None } }
}

/// Little is agreed on and nothing synced but by the way: what is lost is much, and known late.
fn quiet(scenario: Scenario) -> Scenario {
    let mut recipe = scenario.recipe;
    if let Some(options) = &mut recipe.options {
        (options.flush_bytes, options.flush_interval_ms, options.memory_bytes) = (8 << 20, 20_000, 64 << 20);
        (options.load.fua_ppm, options.load.weights[3]) = (0, 0);
    }
    Scenario { recipe, ..scenario }
}

/// Guests find their volumes by attachments.
fn attached(scenario: Scenario) -> Scenario {
    let mut recipe = scenario.recipe;
    if let Some(options) = &mut recipe.options {
        options.attached = true;
        options.load.connections = 1;
    }
    Scenario { recipe, ..scenario }
}

/// Hosts share the volumes.
fn shared(scenario: Scenario) -> Scenario {
    let Scenario { name, mut recipe } = attached(scenario);
    if let Some(options) = &mut recipe.options {
        options.shared = true;
        options.load.connections = 2;
    }
    Scenario { name, recipe }
}

/// Those in which guests go from node to node by attachments.
fn attachments() -> Vec<Scenario> {
    let troubles = [
        (500, 0, Trouble::Paused),
        (2_000, 1, Trouble::Isolated),
        (4_000, 0, Trouble::StalledNetwork),
        (5_500, 0, Trouble::LeaderAndOwnerDie),
        (8_000, 2, Trouble::Paused),
        (9_000, 0, Trouble::AllLosePower(Loss::Torn)),
    ];
    vec![
        attached(three("guests that are attached go from node to node", 25, &troubles)),
        shared(three("hosts that share volumes hand permits to each other", 26, &troubles)),
    ]
}

/// Those of several nodes.
#[must_use]
pub fn several() -> Vec<Scenario> {
    let mut scenarios = attachments();
    scenarios.extend([
        three("three nodes in fair weather", 20, &[]),
        // What a node has heard to be agreed on is on its disk later than what is agreed on. One that went by that opened the
        // volume of another one, or dropped what its journal held of its own.
        quiet(three(
            "all machines lose power after the volumes were made, then all nodes are killed",
            21,
            &[
                (300, 0, Trouble::AllLosePower(Loss::LoseAll)),
                (4_000, 0, Trouble::AllKilled),
                (7_000, 0, Trouble::AllLosePower(Loss::Torn)),
            ],
        )),
        three(
            "leader and owner die, a node is paused, and one is replaced",
            22,
            &[
                (500, 0, Trouble::LeaderAndOwnerDie),
                (3_000, 1, Trouble::Paused),
                (5_000, 2, Trouble::NodeReplaced),
                (6_000, 0, Trouble::NodeReplaced),
                (7_000, 1, Trouble::NodeReplaced),
                (9_000, 0, Trouble::LeadHandedOver),
            ],
        ),
        // A clean stop once said that nothing was lost, in a life that had not come to say what the one before had lost.
        quiet(three(
            "nodes that lost power are stopped before they can agree on what they lost",
            24,
            &[
                (3_000, 0, Trouble::AllLosePower(Loss::LoseAll)),
                (4_300, 0, Trouble::Isolated),
                (4_310, 1, Trouble::Isolated),
                (4_320, 2, Trouble::Isolated),
                (5_000, 0, Trouble::CleanRestart),
                (5_010, 1, Trouble::CleanRestart),
                (5_020, 2, Trouble::CleanRestart),
            ],
        )),
        three(
            "nodes are cut off from each other in every way",
            23,
            &[
                (500, 0, Trouble::Isolated),
                (1_000, 1, Trouble::BlockedOneWay),
                (2_500, 2, Trouble::Flapping),
                (4_500, 1, Trouble::Isolated),
                (5_000, 2, Trouble::Isolated),
                (7_000, 0, Trouble::SlowLink(400)),
                (8_000, 1, Trouble::ResetLinks),
            ],
        ),
    ]);
    scenarios
}
