//! Permits that go from one host to another while the volume goes from one node to another.

use velum_sim::{
    guest::workload::Load,
    plan::{Event, Options, Trouble},
    scenario::small_world,
    world::Recipe,
};

/// Of five nodes two are apart from the others, and together they are enough of an ensemble to go on with a volume. The others have
/// named a new owner, who cannot open it. A permit that he was asked for there was answered after half a minute, in force at nobody's
/// door; and apart from him the host that had lost it went on writing.
#[test]
fn a_permit_is_not_answered_where_the_volume_is_not_open() {
    let small = small_world();
    let options = Options {
        nodes: 5,
        owners_must_return: false,
        guests_ms: 55_000,
        volume_blocks: vec![64],
        // Nothing that is written there reaches the clouds meanwhile.
        load: Load { connections: 2, depth: 2, pause_ms_max: 400, blocks_max: 1, ..small.load },
        memory_bytes: 64 << 20,
        journal_files_max: 64,
        attached: true,
        shared: true,
        ..small
    };
    for (seed, node) in [(92, 0), (101, 1), (113, 1), (116, 0)] {
        let split = Event { at_ms: 3_000, node, trouble: Trouble::Split, for_ms: 45_000 };
        let (options, events) = (Some(options.clone()), Some(vec![split]));
        let run = Recipe { seed, options, events, planted: None }.run(|| None);
        assert!(run.failures.is_empty(), "seed {seed}: {:#?}", run.failures);
        assert!(run.tally.contains_key("permits handed over"), "seed {seed}: {:?}", run.tally);
    }
}
