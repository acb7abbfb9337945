//! Attachments, connections and permits: what is let in, what ends what, and what is refused.

use velum_protocol::id::Epoch;

use super::{
    super::tests::{Bench, VOLUME},
    *,
};

const REGION: u64 = REGION_BLOCKS;

fn handle(number: u8) -> Handle {
    Handle([number; 10])
}

fn attach(number: u8, shared: bool, steal: bool) -> Command {
    let attaching = Attaching { shared, connections_max: 2, host: "a host".into() };
    Command::Attach { volume: VOLUME, handle: handle(number), attaching, steal }
}

fn connect(bench: &mut Bench, number: u8) -> Result<Pass, Rejection> {
    let handle = handle(number);
    match bench.run(Command::Connect { volume: VOLUME, handle })? {
        Answer::Connection(connection) => Ok(Pass { handle, connection }),
        other => panic!("no connection: {other:?}"),
    }
}

fn permit(first: u64, end: u64, holder: Option<u8>, steal: bool) -> Command {
    let bound = |region: u64| BlockIndex(region * REGION);
    let (first, end, holder) = (bound(first), bound(end), holder.map(handle));
    Command::SetPermit { volume: VOLUME, first, end, holder, steal }
}

/// First region, the region behind, and whose.
fn permits(bench: &Bench) -> Vec<(u64, u64, u8)> {
    let permits = &bench.state.attachments[&VOLUME].permits;
    permits.iter().map(|(first, (end, holder))| (first.0 / REGION, end.0 / REGION, holder.0[0])).collect()
}

#[test]
fn a_volume_is_attached_once_unless_all_share_it() {
    let mut bench = Bench::new();
    assert!(bench.state.admits(VOLUME, None), "nobody is attached");
    bench.run(attach(1, false, false)).unwrap();
    assert!(!bench.state.admits(VOLUME, None), "whoever has no attachment keeps out");
    for shared in [false, true] {
        assert_eq!(bench.run(attach(2, shared, false)), Err(Rejection::Attached));
    }
    assert_eq!(bench.run(attach(1, false, true)), Err(Rejection::HandleUsed));
    bench.run(Command::Detach { volume: VOLUME, handle: handle(1) }).unwrap();
    assert_eq!(bench.run(Command::Detach { volume: VOLUME, handle: handle(1) }), Err(Rejection::NotAttached));
    assert!(bench.state.admits(VOLUME, None));
    bench.run(attach(3, true, false)).unwrap();
    bench.run(attach(4, true, false)).unwrap();
    assert_eq!(bench.run(attach(5, false, false)), Err(Rejection::Attached));
}

#[test]
fn the_oldest_connection_ends_when_there_are_too_many() {
    let mut bench = Bench::new();
    assert_eq!(connect(&mut bench, 1), Err(Rejection::NotAttached));
    bench.run(attach(1, false, false)).unwrap();
    let passes: Vec<Pass> = (0..3).map(|_| connect(&mut bench, 1).unwrap()).collect();
    let admitted =
        |bench: &Bench| passes.iter().map(|pass| bench.state.admits(VOLUME, Some(*pass))).collect::<Vec<_>>();
    assert_eq!(admitted(&bench), [false, true, true]);
    bench.run(Command::Disconnect { volume: VOLUME, handle: handle(1), connection: passes[1].connection }).unwrap();
    assert_eq!(admitted(&bench), [false, false, true]);
    connect(&mut bench, 1).unwrap();
    assert_eq!(admitted(&bench), [false, false, true], "there was room again");
    let forged = Pass { handle: handle(2), ..passes[2] };
    assert!(!bench.state.admits(VOLUME, Some(forged)));
}

#[test]
fn a_steal_and_a_change_of_lineage_end_all_connections_and_numbers_go_on() {
    let mut bench = Bench::new();
    bench.run(attach(1, false, false)).unwrap();
    let first = connect(&mut bench, 1).unwrap();
    bench.run(attach(2, false, true)).unwrap();
    assert!(!bench.state.admits(VOLUME, Some(first)));
    assert_eq!(connect(&mut bench, 1), Err(Rejection::NotAttached));
    let second = connect(&mut bench, 2).unwrap();
    assert!(second.connection > first.connection);
    bench.run(Command::GrantOwner { volume: VOLUME, node: velum_protocol::id::NodeId(1), after: Epoch(0) }).unwrap();
    bench.run(Command::ChangeLineage { volume: VOLUME, epoch: Epoch(1) }).unwrap();
    assert!(!bench.state.admits(VOLUME, Some(second)));
    assert_eq!(connect(&mut bench, 2), Err(Rejection::NotAttached));
    bench.run(attach(3, false, false)).unwrap();
    assert!(connect(&mut bench, 3).unwrap().connection > second.connection);
    bench.run(Command::DeleteVolume { volume: VOLUME }).unwrap();
    assert_eq!(connect(&mut bench, 3), Err(Rejection::NotAttached));
}

#[test]
fn permits_are_for_one_at_a_time_and_go_with_their_holder() {
    let mut bench = Bench::new();
    assert_eq!(bench.run(permit(0, 1, None, false)), Err(Rejection::NotAttached));
    bench.run(attach(1, true, false)).unwrap();
    bench.run(attach(2, true, false)).unwrap();
    bench.run(permit(0, 8, Some(1), false)).unwrap();
    assert_eq!(bench.run(permit(7, 9, Some(2), false)), Err(Rejection::Permitted));
    bench.run(permit(8, 9, Some(2), false)).unwrap();
    assert_eq!(permits(&bench), [(0, 8, 1), (8, 9, 2)]);
    bench.run(permit(2, 4, Some(2), true)).unwrap();
    assert_eq!(permits(&bench), [(0, 2, 1), (2, 4, 2), (4, 8, 1), (8, 9, 2)]);
    bench.run(permit(1, 5, None, false)).unwrap();
    assert_eq!(permits(&bench), [(0, 1, 1), (5, 8, 1), (8, 9, 2)]);
    bench.run(Command::Detach { volume: VOLUME, handle: handle(1) }).unwrap();
    assert_eq!(permits(&bench), [(8, 9, 2)]);
    assert_eq!(bench.run(permit(0, 1, Some(1), false)), Err(Rejection::NotShared));
}

#[test]
fn what_is_malformed_is_refused() {
    let mut bench = Bench::new();
    let attaching = |connections_max, host: &str| Attaching { shared: false, connections_max, host: host.into() };
    for attaching in [attaching(0, ""), attaching(17, ""), attaching(1, "a\nb"), attaching(1, &"x".repeat(64))] {
        let attach = Command::Attach { volume: VOLUME, handle: handle(1), attaching, steal: false };
        assert_eq!(bench.run(attach), Err(Rejection::BadAttachment));
    }
    bench.run(attach(1, true, false)).unwrap();
    for (first, end) in [(0, 0), (REGION, 0), (1, REGION), (0, REGION + 1)] {
        let (first, end, holder) = (BlockIndex(first), BlockIndex(end), Some(handle(1)));
        let set = Command::SetPermit { volume: VOLUME, first, end, holder, steal: false };
        assert_eq!(bench.run(set), Err(Rejection::BadPermit));
    }
}
