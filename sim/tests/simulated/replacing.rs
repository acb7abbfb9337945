//! A node that is lost for good is replaced, however busy guests are.

use velum_sim::{
    guest::workload::Load,
    plan::{Event, Options, Trouble},
    scenario::small_world,
    world::Recipe,
};

/// Guests write more than the clouds take, so that requests wait for room for longer than a planned change waits for them at first. An
/// owner that gave up each time left the lost node in the ensemble for as long as that went on, and the node could not be removed.
#[test]
fn an_ensemble_is_mended_while_guests_wait_for_room() {
    let small = small_world();
    let options = Options {
        nodes: 3,
        owners_must_return: false,
        guests_ms: 10_000,
        volume_blocks: vec![1024],
        load: Load {
            connections: 4,
            depth: 32,
            pause_ms_max: 500,
            blocks_max: 64,
            weights: [1, 0, 0, 0, 0, 0],
            ..small.load
        },
        memory_bytes: 4 << 20,
        cloud_latency_ms_max: 600,
        ..small
    };
    let lost = Event { at_ms: 2_000, node: 1, trouble: Trouble::NodeReplaced, for_ms: 100 };
    for seed in [80, 81] {
        let (options, events) = (Some(options.clone()), Some(vec![lost.clone()]));
        let run = Recipe { seed, options, events, planted: None }.run(|| None);
        assert!(run.failures.is_empty(), "seed {seed}: {:#?}", run.failures);
        assert_eq!(run.tally.get("nodes replaced"), Some(&1), "seed {seed}: {:?}", run.tally);
        assert!(run.tally.contains_key("requests that were kept waiting"), "seed {seed}: {:?}", run.tally);
    }
}
