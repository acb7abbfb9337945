//! A node that reaches no other one keeps nobody waiting: not the guests of volumes that it owned, and not those for whom it asked.

use velum_sim::{
    plan::{Event, Options, Trouble},
    scenario::small_world,
    world::Recipe,
};

#[test]
fn guests_of_a_node_that_is_cut_off_go_on_at_another_one() {
    let options = Options {
        nodes: 3,
        owners_must_return: false,
        guests_ms: 22_000,
        volume_blocks: vec![64, 64, 64],
        ..small_world()
    };
    for node in 0..3 {
        let isolated = Event { at_ms: 1_000, node, trouble: Trouble::Isolated, for_ms: 18_000 };
        let (options, events) = (Some(options.clone()), Some(vec![isolated]));
        let run = Recipe { seed: 60 + node as u64, options, events, planted: None }.run(|| None);
        assert!(run.failures.is_empty(), "node {node}: {:#?}", run.failures);
        assert_eq!(run.tally.get("isolated nodes"), Some(&1));
        assert_eq!(run.tally.get("requests that were kept waiting"), None, "node {node}: {:?}", run.tally);
    }
}
