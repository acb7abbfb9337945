//! Volumes that operators move while guests work on them: at whatever door a guest is, its session goes on, and nothing is lost.

use velum_sim::{
    guest::workload::Load,
    plan::{Event, Options, Trouble},
    scenario::small_world,
    world::Recipe,
};

/// So often volumes are moved.
const MOVES: u64 = 12;

/// Guests are at the first node's door. So each of them sees its volume go from another node to a third one, to the node that it is
/// at, and away from there; and with ways this long something of it is always on the way.
#[test]
fn a_planned_move_ends_no_session() {
    let small = small_world();
    let options = Options {
        nodes: 3,
        owners_must_return: false,
        guests_ms: MOVES * 500 + 1_500,
        volume_blocks: vec![64, 64],
        load: Load { depth: 8, pause_ms_max: 40, ..small.load.clone() },
        network_ms_max: 8,
        ..small
    };
    let to =
        |at: u64| Event { at_ms: 500 + at * 500, node: (at % 3) as usize, trouble: Trouble::VolumesMoved, for_ms: 0 };
    for seed in [70, 71] {
        let (options, events) = (Some(options.clone()), Some((0..MOVES).map(to).collect()));
        let run = Recipe { seed, options, events, planted: None }.run(|| None);
        assert!(run.failures.is_empty(), "seed {seed}: {:#?}", run.failures);
        let tallied = |what| run.tally.get(what).copied().unwrap_or_default();
        assert!(tallied("volumes moved") > MOVES, "seed {seed}: {:?}", run.tally);
        assert_eq!(tallied("sessions that troubles ended"), 0, "seed {seed}: {:?}", run.tally);
        assert_eq!(tallied("guest errors"), 0, "seed {seed}: {:?}", run.tally);
    }
}
