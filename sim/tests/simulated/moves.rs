//! Volumes that operators move while guests work on them: at whatever door a guest is, its session goes on, and nothing is lost.

use velum_sim::{
    guest::workload::Load,
    plan::{Event, Options, Trouble},
    runtime::Run,
    scenario::small_world,
    world::Recipe,
};

/// So often volumes are moved.
const MOVES: u64 = 12;

/// Guests are at the first node's door. So each of them sees its volume go from another node to a third one, to the node that it is
/// at, and away from there; and with ways this long something of it is always on the way.
fn moved(seed: u64, attached: bool) -> Run<()> {
    let small = small_world();
    let connections = if attached { 1 } else { small.load.connections };
    let options = Options {
        nodes: 3,
        owners_must_return: false,
        guests_ms: MOVES * 500 + 1_500,
        volume_blocks: vec![64, 64],
        load: Load { connections, depth: 8, pause_ms_max: 40, ..small.load.clone() },
        network_ms_max: 8,
        attached,
        ..small
    };
    let to =
        |at: u64| Event { at_ms: 500 + at * 500, node: (at % 3) as usize, trouble: Trouble::VolumesMoved, for_ms: 0 };
    let (options, events) = (Some(options), Some((0..MOVES).map(to).collect()));
    let run = Recipe { seed, options, events, planted: None }.run(|| None);
    assert!(run.failures.is_empty(), "seed {seed}: {:#?}", run.failures);
    assert!(tallied(&run, "volumes moved") > MOVES, "seed {seed}: {:?}", run.tally);
    run
}

fn tallied(run: &Run<()>, what: &str) -> u64 {
    run.tally.get(what).copied().unwrap_or_default()
}

#[test]
fn a_planned_move_ends_no_session() {
    for seed in [70, 71] {
        let run = moved(seed, false);
        assert_eq!(tallied(&run, "sessions that troubles ended"), 0, "seed {seed}: {:?}", run.tally);
        assert_eq!(tallied(&run, "guest errors"), 0, "seed {seed}: {:?}", run.tally);
        assert_eq!(tallied(&run, "reads by lease"), 0, "seed {seed}: nobody is attached: {:?}", run.tally);
    }
}

/// What is read by lease misses nothing of the owners before, and the first read at each new owner brings the next lease.
#[test]
fn attached_guests_read_by_lease_wherever_their_volumes_go() {
    for seed in [72, 73] {
        let run = moved(seed, true);
        let (by_lease, by_question) = (tallied(&run, "reads by lease"), tallied(&run, "reads by question"));
        assert!(by_lease > 200 && by_lease > by_question, "seed {seed}: {:?}", run.tally);
    }
}
