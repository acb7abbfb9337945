//! Commands against the state: what each gives, what is refused, and that refusals change nothing.

use bytes::Bytes;
use velum_protocol::{
    format::metadata::{
        AclEntry, CheckpointRef, CloudName, Command, CondemnedObject, NumberedKind, ObjectRef, Proposal, RequestId,
        Right, WrappedKey, WrappedVolumeKeys,
    },
    id::{
        BlockCount, BlockIndex, ClusterId, Epoch, Hash, Incarnation, Jseq, KeyEpoch, NodeId, ObjectNumber, Seq,
        VolumeId,
    },
};

use super::{
    Answer, Rejection, State,
    acl::{right_over, widest_right},
    state::CloudEntry,
};

pub(super) const VOLUME: VolumeId = VolumeId([7; 16]);

/// `velum up` makes the first volume of a cluster that was never asked for one, and no other.
#[test]
fn only_a_cluster_that_never_had_a_volume_is_untouched() {
    let mut bench = Bench::new();
    let fresh = State::new(ClusterId([1; 16]), Vec::new(), 2);
    assert!(fresh.is_untouched() && !bench.state.is_untouched());
    assert!(!State { incarnation: Incarnation(2), ..fresh.clone() }.is_untouched(), "a recovered cluster had a life");
    bench.run(Command::DeleteVolume { volume: VOLUME }).unwrap();
    bench.run(Command::ForgetVolume { volume: VOLUME }).unwrap();
    assert!(bench.state.volumes.is_empty() && !bench.state.is_untouched());
    let mut refused = Bench { state: fresh, requests: 0 };
    refused.run(create("Demo", 1 << 30)).unwrap_err();
    assert!(refused.state.is_untouched(), "what was refused was not made");
}

pub(super) struct Bench {
    pub(super) state: State,
    requests: u8,
}

impl Bench {
    pub(super) fn new() -> Self {
        let clouds = ["a", "b", "c"]
            .map(|name| CloudEntry { name: CloudName(name.into()), url: format!("memory:///{name}") })
            .to_vec();
        let mut bench = Self { state: State::new(ClusterId([1; 16]), clouds, 2), requests: 0 };
        bench.run(create("demo", 1 << 30)).unwrap();
        bench
    }

    pub(super) fn run(&mut self, command: Command) -> Result<Answer, Rejection> {
        self.requests += 1;
        let before = self.state.clone();
        let answer = self.state.apply(&Proposal { request: RequestId([self.requests; 16]), command });
        if answer.is_err() {
            let mut after = self.state.clone();
            after.answered.clone_from(&before.answered);
            assert_eq!(after, before, "a refused command changed the state");
        }
        answer
    }

    fn own(&mut self) -> Epoch {
        let after = self.state.volumes[&VOLUME].epoch;
        match self.run(Command::GrantOwner { volume: VOLUME, node: NodeId(1), after }) {
            Ok(Answer::Epoch(epoch)) => epoch,
            other => panic!("no epoch: {other:?}"),
        }
    }

    fn grant(&mut self, epoch: Epoch) -> u64 {
        match self.run(Command::GrantFlush { volume: VOLUME, epoch, key_epoch: KeyEpoch(1) }) {
            Ok(Answer::Grant(grant)) => grant,
            other => panic!("no grant: {other:?}"),
        }
    }

    fn append(&mut self, epoch: Epoch, seq: u64, first: u64, last: u64) -> Result<Answer, Rejection> {
        let grant = self.grant(epoch);
        let command = self.record(epoch, grant, seq, first, last);
        self.run(command)
    }

    fn record(&self, epoch: Epoch, grant: u64, seq: u64, first: u64, last: u64) -> Command {
        Command::AppendSequence {
            volume: VOLUME,
            epoch,
            grant,
            seq: Seq(seq),
            prev_hash: self.state.volumes[&VOLUME].head.chain,
            hash: hash(seq),
            first: Jseq(first),
            last: Jseq(last),
            journal_chain: Hash([9; 32]),
            record: Bytes::from_static(b"sealed"),
            objects: vec![],
        }
    }

    fn checkpoint(&mut self, epoch: Epoch, number: u64, seq: u64, dead: &[u64]) -> Result<Answer, Rejection> {
        let checkpoint = CheckpointRef { number, seq: Seq(seq), chain: hash(seq), root: object(1000 + number) };
        let condemned = dead
            .iter()
            .map(|number| CondemnedObject { kind: NumberedKind::Segment, object: object(*number) })
            .collect();
        self.run(Command::CommitCheckpoint { volume: VOLUME, epoch, checkpoint, condemned })
    }

    fn move_cursor(&mut self, cloud: &str, seq: u64) -> Result<Answer, Rejection> {
        self.run(Command::MoveCursor { volume: VOLUME, cloud: CloudName(cloud.into()), seq: Seq(seq) })
    }

    fn hold_checkpoint(&mut self, cloud: &str, number: u64) -> Result<Answer, Rejection> {
        self.run(Command::MoveCheckpointCursor { volume: VOLUME, cloud: CloudName(cloud.into()), number })
    }
}

fn create(name: &str, size_bytes: u64) -> Command {
    let key = WrappedKey { sealed: Bytes::from_static(b"wrapped"), commitment: Hash::ZERO };
    let keys = WrappedVolumeKeys { key_epoch: KeyEpoch(1), data: key.clone(), metadata: key.clone(), journal: key };
    Command::CreateVolume { volume: VOLUME, name: name.into(), size_bytes, keys, acl: vec![] }
}

fn hash(number: u64) -> Hash {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Hash(bytes)
}

fn object(number: u64) -> ObjectRef {
    ObjectRef { incarnation: Incarnation(1), number: ObjectNumber(number), bytes: 1, hash: Hash::ZERO }
}

fn numbers(numbers: &[u64]) -> Vec<(Incarnation, ObjectNumber)> {
    numbers.iter().map(|number| (Incarnation(1), ObjectNumber(*number))).collect()
}

#[test]
fn a_repeated_proposal_is_applied_once_and_answered_alike() {
    let mut bench = Bench::new();
    let proposal = Proposal {
        request: RequestId([200; 16]),
        command: Command::GrantOwner { volume: VOLUME, node: NodeId(1), after: Epoch(0) },
    };
    assert_eq!(bench.state.apply(&proposal), Ok(Answer::Epoch(Epoch(1))));
    assert_eq!(bench.state.apply(&proposal), Ok(Answer::Epoch(Epoch(1))));
    assert_eq!(bench.state.volumes[&VOLUME].epoch, Epoch(1));
}

#[test]
fn names_and_sizes_outside_the_rules_are_refused() {
    let mut bench = Bench::new();
    for name in ["", "UPPER", "a/b", "..\u{0}", &"a".repeat(64)] {
        assert_eq!(bench.run(create(name, 4096)), Err(Rejection::BadName), "{name:?}");
    }
    for size in [0, 1, 4095, 4097, (64 << 40) + 4096] {
        assert_eq!(bench.run(create("other", size)), Err(Rejection::BadSize), "{size}");
    }
    assert_eq!(bench.run(create("demo", 4096)), Err(Rejection::NameTaken));
}

#[test]
fn the_sequence_takes_only_the_next_record_of_the_owner() {
    let mut bench = Bench::new();
    let old = bench.own();
    assert_eq!(bench.append(old, 1, 1, 10), Ok(Answer::Done));
    assert_eq!(bench.append(old, 3, 11, 12), Err(Rejection::NotNext(Seq(1))), "a gap in seq");
    assert_eq!(bench.append(old, 2, 12, 13), Err(Rejection::NotNext(Seq(1))), "a gap in the journal");
    assert_eq!(bench.append(old, 2, 11, 9), Err(Rejection::NotNext(Seq(1))), "an inverted window");
    let new = bench.own();
    let stale = bench.record(old, 1, 2, 11, 12);
    assert_eq!(bench.run(stale), Err(Rejection::StaleEpoch(new)));
    assert_eq!(bench.append(new, 2, 11, 12), Ok(Answer::Done));
}

#[test]
fn a_relocation_leaves_the_journal_where_it_is() {
    let mut bench = Bench::new();
    let epoch = bench.own();
    bench.append(epoch, 1, 1, 10).unwrap();
    let grant = bench.grant(epoch);
    let mut elsewhere = bench.record(epoch, grant, 2, 11, 10);
    if let Command::AppendSequence { journal_chain, .. } = &mut elsewhere {
        *journal_chain = Hash([8; 32]);
    }
    assert_eq!(bench.run(elsewhere), Err(Rejection::NotNext(Seq(1))), "another journal");
    assert_eq!(bench.append(epoch, 2, 11, 10), Ok(Answer::Done));
    let head = bench.state.volumes[&VOLUME].head;
    assert_eq!((head.seq, head.last, head.journal_chain), (Seq(2), Jseq(10), Hash([9; 32])));
    assert_eq!(bench.append(epoch, 3, 11, 12), Ok(Answer::Done), "the next window follows as if it had not been");
}

#[test]
fn a_record_must_name_the_hash_of_the_head() {
    let mut bench = Bench::new();
    let epoch = bench.own();
    bench.append(epoch, 1, 1, 1).unwrap();
    let grant = bench.grant(epoch);
    let Command::AppendSequence { volume, seq, hash, first, last, journal_chain, record, objects, .. } =
        bench.record(epoch, grant, 2, 2, 2)
    else {
        unreachable!()
    };
    let forked = Command::AppendSequence {
        volume,
        epoch,
        grant,
        seq,
        prev_hash: Hash([66; 32]),
        hash,
        first,
        last,
        journal_chain,
        record,
        objects,
    };
    assert_eq!(bench.run(forked), Err(Rejection::NotNext(Seq(1))));
}

#[test]
fn a_flush_grant_serves_one_record_and_can_be_revoked() {
    let mut bench = Bench::new();
    let epoch = bench.own();
    let grant = bench.grant(epoch);
    bench.run(Command::RevokeFlush { volume: VOLUME }).unwrap();
    let revoked = bench.record(epoch, grant, 1, 1, 1);
    assert_eq!(bench.run(revoked), Err(Rejection::NoGrant));
    let grant = bench.grant(epoch);
    let first = bench.record(epoch, grant, 1, 1, 1);
    assert_eq!(bench.run(first), Ok(Answer::Done));
    let again = bench.record(epoch, grant, 2, 2, 2);
    assert_eq!(bench.run(again), Err(Rejection::NoGrant));
}

#[test]
fn object_numbers_are_never_handed_out_twice() {
    let mut bench = Bench::new();
    let epoch = bench.own();
    let ask = |epoch| Command::GrantObjects { volume: VOLUME, epoch, count: 100 };
    assert_eq!(bench.run(ask(epoch)), Ok(Answer::Objects(ObjectNumber(1), 100)));
    let epoch = bench.own();
    assert_eq!(bench.run(ask(epoch)), Ok(Answer::Objects(ObjectNumber(101), 100)));
    let forget = |first| Command::ForgetRange { volume: VOLUME, first: ObjectNumber(first) };
    assert_eq!(bench.run(forget(101)), Err(Rejection::NotReclaimable), "its epoch is not over");
    assert_eq!(bench.run(forget(1)), Ok(Answer::Done));
}

#[test]
fn a_cursor_never_moves_back_nor_past_the_head() {
    let mut bench = Bench::new();
    let epoch = bench.own();
    bench.append(epoch, 1, 1, 1).unwrap();
    bench.append(epoch, 2, 2, 2).unwrap();
    let mut to = |cloud: &str, seq| {
        bench.run(Command::MoveCursor { volume: VOLUME, cloud: CloudName(cloud.into()), seq: Seq(seq) })
    };
    assert_eq!(to("a", 3), Err(Rejection::CursorUnfit));
    assert_eq!(to("nowhere", 1), Err(Rejection::CursorUnfit));
    to("a", 2).unwrap();
    to("a", 1).unwrap();
    to("b", 1).unwrap();
    let volume = &bench.state.volumes[&VOLUME];
    assert_eq!(volume.cursors[&CloudName("a".into())], Seq(2));
    assert_eq!(volume.durable_seq(2), Seq(1), "d2 is what two clouds have");
    assert_eq!(volume.durable_seq(3), Seq(0), "the third cloud has nothing");
}

#[test]
fn a_cloud_that_begins_anew_has_nothing_and_holds_back_what_it_needs() {
    let mut bench = Bench::new();
    let epoch = bench.own();
    bench.append(epoch, 1, 1, 4).unwrap();
    for cloud in ["a", "b", "c"] {
        bench.move_cursor(cloud, 1).unwrap();
    }
    bench.checkpoint(epoch, 1, 1, &[]).unwrap();
    bench.hold_checkpoint("c", 1).unwrap();
    let resync = |cloud: &str| Command::ResyncCloud { cloud: CloudName(cloud.into()) };
    assert_eq!(bench.run(resync("x")), Err(Rejection::CursorUnfit));
    bench.run(resync("c")).unwrap();
    let volume = &bench.state.volumes[&VOLUME];
    let c = CloudName("c".into());
    assert_eq!((volume.cursors.get(&c), volume.checkpoint_cursors.get(&c)), (Some(&Seq(0)), None));
    assert_eq!(volume.durable_seq(2), Seq(1), "the other two still have it");
    assert_eq!(volume.durable_seq(3), Seq(0));
    bench.append(epoch, 2, 5, 6).unwrap();
    bench.checkpoint(epoch, 2, 2, &[]).unwrap();
    assert!(bench.state.volumes[&VOLUME].records.contains_key(&Seq(2)), "cloud c lacks it");
}

/// A record that came to a cloud just after it was emptied lay far below the checkpoint that the cloud was given then, and
/// nothing told where: it stayed for ever.
#[test]
fn how_far_a_cloud_reached_is_known_until_it_is_there_again() {
    let mut bench = Bench::new();
    let epoch = bench.own();
    for seq in 1..=4 {
        bench.append(epoch, seq, seq, seq).unwrap();
    }
    let left = |bench: &Bench| bench.state.left.get(&(VOLUME, CloudName("c".into()))).copied();
    let resync = || Command::ResyncCloud { cloud: CloudName("c".into()) };
    bench.run(resync()).unwrap();
    assert_eq!(left(&bench), None, "it never had anything");
    bench.move_cursor("c", 3).unwrap();
    bench.run(resync()).unwrap();
    bench.move_cursor("c", 2).unwrap();
    assert_eq!(left(&bench), Some(Seq(3)));
    bench.run(resync()).unwrap();
    assert_eq!(left(&bench), Some(Seq(3)), "the first time counts as long as it may have come farther");
    bench.move_cursor("c", 3).unwrap();
    assert_eq!(left(&bench), None);
    bench.run(resync()).unwrap();
    bench.run(Command::DeleteVolume { volume: VOLUME }).unwrap();
    bench.run(Command::ForgetVolume { volume: VOLUME }).unwrap();
    assert!(bench.state.left.is_empty());
}

#[test]
fn a_checkpoint_takes_the_records_it_covers_and_must_fit_the_chain() {
    let mut bench = Bench::new();
    let epoch = bench.own();
    for seq in 1..=3 {
        bench.append(epoch, seq, seq, seq).unwrap();
    }
    assert_eq!(bench.checkpoint(epoch, 2, 2, &[]), Err(Rejection::CheckpointUnfit), "number 1 comes first");
    assert_eq!(bench.checkpoint(epoch, 1, 9, &[]), Err(Rejection::CheckpointUnfit), "there is no record 9");
    assert_eq!(bench.checkpoint(epoch, 1, 2, &[]), Ok(Answer::Done));
    for cloud in ["a", "b", "c"] {
        bench.move_cursor(cloud, 3).unwrap();
    }
    let volume = &bench.state.volumes[&VOLUME];
    assert_eq!(volume.records.keys().copied().collect::<Vec<_>>(), [Seq(3)]);
    assert_eq!(bench.checkpoint(epoch, 2, 1, &[]), Err(Rejection::CheckpointUnfit), "it would go back");
    bench.append(epoch, 4, 4, 4).unwrap();
    assert_eq!(bench.checkpoint(epoch, 2, 2, &[]), Ok(Answer::Done), "the same place again, though its record is gone");
}

#[test]
fn records_that_a_cloud_lacks_are_kept_until_the_next_checkpoint() {
    let mut bench = Bench::new();
    let epoch = bench.own();
    for seq in 1..=3 {
        bench.append(epoch, seq, seq, seq).unwrap();
    }
    let kept = |bench: &Bench| bench.state.volumes[&VOLUME].records.keys().map(|seq| seq.0).collect::<Vec<_>>();
    bench.move_cursor("a", 3).unwrap();
    bench.move_cursor("b", 3).unwrap();
    bench.checkpoint(epoch, 1, 2, &[]).unwrap();
    assert_eq!(kept(&bench), [1, 2, 3], "cloud c has none of them");
    bench.move_cursor("c", 1).unwrap();
    assert_eq!(kept(&bench), [2, 3]);
    bench.checkpoint(epoch, 2, 3, &[]).unwrap();
    assert_eq!(kept(&bench), [3], "cloud c has to jump now");
    bench.move_cursor("c", 3).unwrap();
    assert!(kept(&bench).is_empty());
}

#[test]
fn condemned_objects_are_reclaimed_only_behind_a_checkpoint_that_a_quorum_of_clouds_holds() {
    let mut bench = Bench::new();
    let epoch = bench.own();
    bench.append(epoch, 1, 1, 1).unwrap();
    bench.checkpoint(epoch, 1, 1, &[5]).unwrap();
    let approve = |numbers| Command::CommitReclaim { volume: VOLUME, epoch, numbers };
    let gone =
        |cloud: &str| Command::FinishReclaim { volume: VOLUME, cloud: CloudName(cloud.into()), numbers: numbers(&[5]) };
    assert_eq!(bench.run(approve(numbers(&[5]))), Err(Rejection::NotReclaimable));
    bench.hold_checkpoint("a", 1).unwrap();
    assert_eq!(bench.run(approve(numbers(&[5]))), Err(Rejection::NotReclaimable), "one cloud is no quorum");
    bench.hold_checkpoint("b", 1).unwrap();
    assert_eq!(bench.run(approve(numbers(&[6]))), Err(Rejection::NotReclaimable), "number 6 is not condemned");
    bench.run(gone("a")).unwrap();
    assert!(
        bench.state.volumes[&VOLUME].condemned.values().all(|entry| entry.gone_from.is_empty()),
        "not approved yet"
    );
    bench.run(approve(numbers(&[5]))).unwrap();
    for cloud in ["a", "b", "c"] {
        assert_eq!(bench.state.volumes[&VOLUME].condemned.len(), 1);
        bench.run(gone(cloud)).unwrap();
    }
    assert!(bench.state.volumes[&VOLUME].condemned.is_empty());
}

#[test]
fn the_last_matching_acl_entry_decides_for_every_block_of_a_range() {
    let entry = |principal: &str, range: Option<(u64, u64)>, right| AclEntry {
        principal: principal.into(),
        range: range.map(|(first, end)| (BlockIndex(first), BlockIndex(end))),
        right,
    };
    let acl = [
        entry("*", None, Right::Read),
        entry("uid:1", Some((16_384, 32_768)), Right::Write),
        entry("uid:2", None, Right::Write),
        entry("uid:2", Some((16_384, 32_768)), Right::None),
    ];
    let over = |principal, first, count| right_over(&acl, principal, BlockIndex(first), BlockCount(count));
    assert_eq!(over("uid:1", 16_384, 16_384), Right::Write);
    assert_eq!(over("uid:1", 16_383, 2), Right::Read, "the first block lies before the region");
    assert_eq!(over("uid:1", 32_767, 2), Right::Read, "the last block lies behind the region");
    assert_eq!(over("uid:2", 0, 100_000), Right::None, "a forbidden region in the middle");
    assert_eq!(over("uid:3", 0, 1), Right::Read);
    assert_eq!(widest_right(&acl, "uid:1"), Right::Write);
    assert_eq!(widest_right(&acl[1..], "uid:3"), Right::None);
}

#[test]
fn an_acl_entry_off_the_region_bounds_is_refused() {
    let mut bench = Bench::new();
    for range in [(0, 1), (16_384, 16_384), (32_768, 16_384)] {
        let entry = AclEntry {
            principal: "uid:1".into(),
            range: Some((BlockIndex(range.0), BlockIndex(range.1))),
            right: Right::Write,
        };
        assert_eq!(bench.run(Command::SetAcl { volume: VOLUME, entry }), Err(Rejection::BadAcl), "{range:?}");
    }
}

#[test]
fn saved_state_reads_back_and_damaged_or_newer_ones_are_refused() {
    let bench = Bench::new();
    let saved = bench.state.save();
    assert_eq!(State::load(&saved).unwrap(), bench.state);
    for cut in 0..saved.len() {
        assert!(State::load(&saved[..cut]).is_err(), "cut at {cut}");
    }
    let mut newer = saved.to_vec();
    newer[4..6].copy_from_slice(&(super::state::STATE_VERSION + 1).to_le_bytes());
    assert!(State::load(&newer).is_err());
}

#[test]
fn a_nodes_number_is_never_used_again() {
    let mut bench = Bench::new();
    let admit = |node| Command::AdmitNode { node: NodeId(node), address: "host:9891".into() };
    assert_eq!(bench.run(admit(2)), Ok(Answer::Done));
    assert_eq!(bench.run(admit(2)), Err(Rejection::NodeUsed(NodeId(2))));
    let elsewhere = Command::MoveNode { node: NodeId(2), address: "other:9891".into() };
    assert_eq!(bench.run(elsewhere.clone()), Ok(Answer::Done));
    assert_eq!(bench.state.nodes[&NodeId(2)].address, "other:9891");
    assert!(bench.state.hears(NodeId(2)));
    assert_eq!(bench.run(Command::RetireNode { node: NodeId(2) }), Ok(Answer::Done));
    assert!(!bench.state.hears(NodeId(2)));
    assert_eq!(bench.run(admit(2)), Err(Rejection::NodeUsed(NodeId(2))), "also after it is gone");
    assert_eq!(bench.run(elsewhere), Err(Rejection::NoSuchNode(NodeId(2))));
    assert_eq!(bench.run(Command::RetireNode { node: NodeId(9) }), Err(Rejection::NoSuchNode(NodeId(9))));
    for (node, address) in [(0, "host:1"), (3, ""), (3, "a b:1"), (3, &*"x".repeat(256))] {
        let bad = Command::AdmitNode { node: NodeId(node), address: address.into() };
        assert_eq!(bench.run(bad), Err(Rejection::BadNode), "{node} {address}");
    }
}

#[test]
fn a_place_is_taken_once_and_by_one_newcomer() {
    let mut bench = Bench::new();
    let (token, key) = (Hash([1; 32]), Hash([2; 32]));
    let take = |node, token, key| Command::TakePlace { node: NodeId(node), token, key, address: "host:1".into() };
    assert_eq!(bench.run(take(2, token, key)), Err(Rejection::NoOffer), "nothing was offered");
    bench.run(Command::OfferPlace { node: NodeId(2), token }).unwrap();
    assert_eq!(bench.run(Command::OfferPlace { node: NodeId(2), token: key }), Err(Rejection::NodeUsed(NodeId(2))));
    let admit = Command::AdmitNode { node: NodeId(2), address: "host:1".into() };
    assert_eq!(bench.run(admit), Err(Rejection::NodeUsed(NodeId(2))), "the number is kept for who has the token");
    assert_eq!(bench.run(take(2, Hash([9; 32]), key)), Err(Rejection::NoOffer), "another token");
    assert_eq!(bench.run(take(3, token, key)), Err(Rejection::NoOffer), "another number");
    bench.run(take(2, token, key)).unwrap();
    assert!(bench.state.stays(NodeId(2)));
    bench.run(take(2, token, key)).unwrap();
    assert_eq!(
        bench.run(take(2, token, Hash([9; 32]))),
        Err(Rejection::NoOffer),
        "another newcomer with the same token"
    );
    assert_eq!(bench.run(Command::WithdrawOffer { node: NodeId(2) }), Err(Rejection::NoOffer), "it was taken");
    bench.run(Command::RetireNode { node: NodeId(2) }).unwrap();
    assert_eq!(bench.run(take(2, token, key)), Err(Rejection::NoOffer));
    bench.run(Command::OfferPlace { node: NodeId(3), token }).unwrap();
    bench.run(Command::WithdrawOffer { node: NodeId(3) }).unwrap();
    assert_eq!(bench.run(take(3, token, key)), Err(Rejection::NoOffer), "it has expired");
}

#[test]
fn a_node_that_owns_volumes_or_is_the_last_one_stays_and_one_that_leaves_owns_nothing_more() {
    let mut bench = Bench::new();
    let dismiss = |node| Command::DismissNode { node: NodeId(node) };
    let grant = |node, after| Command::GrantOwner { volume: VOLUME, node: NodeId(node), after: Epoch(after) };
    for node in 1..=2 {
        bench.run(Command::AdmitNode { node: NodeId(node), address: "host:1".into() }).unwrap();
    }
    bench.run(grant(1, 0)).unwrap();
    assert_eq!(bench.run(dismiss(1)), Err(Rejection::OwnsVolumes(NodeId(1), 1)));
    assert_eq!(bench.run(dismiss(3)), Err(Rejection::NoSuchNode(NodeId(3))));
    bench.run(dismiss(2)).unwrap();
    assert_eq!(bench.run(grant(2, 1)), Err(Rejection::NoSuchNode(NodeId(2))));
    bench.run(Command::RetireNode { node: NodeId(2) }).unwrap();
    assert!(bench.state.leaving.is_empty());
    bench.run(Command::DeleteVolume { volume: VOLUME }).unwrap();
    assert_eq!(bench.run(dismiss(1)), Err(Rejection::LastNode(NodeId(1))));
}

/// States of earlier versions end before what they had no room for.
#[test]
fn states_of_earlier_versions_are_read() {
    let mut bench = Bench::new();
    let mut old = bench.state.save().to_vec();
    for (version, fields) in [(5_u16, 1), (4, 1), (3, 3), (2, 1), (1, 1)] {
        for _ in 0..fields {
            assert_eq!(old.pop(), Some(0), "what there is nothing of is one byte at the end");
        }
        old[4..6].copy_from_slice(&version.to_le_bytes());
        assert_eq!(State::load(&old).unwrap(), bench.state);
    }
    bench.run(Command::AdmitNode { node: NodeId(2), address: "host:9891".into() }).unwrap();
    let mut old = bench.state.save().to_vec();
    old.truncate(old.len() - 6);
    old[4..6].copy_from_slice(&2_u16.to_le_bytes());
    assert_eq!(State::load(&old).unwrap(), bench.state, "the second version has nodes");
}

/// With several nodes a cursor may be moved by one that is late: another owns the volume, or the cloud was emptied since.
#[test]
fn a_cursor_is_moved_by_the_owner_alone_and_only_when_it_saw_the_cloud_begin_anew() {
    let mut bench = Bench::new();
    let first = bench.own();
    bench.append(first, 1, 1, 1).unwrap();
    bench.checkpoint(first, 1, 1, &[]).unwrap();
    let cloud = || CloudName("a".into());
    let seq =
        |epoch, beginning| Command::AdvanceCursor { volume: VOLUME, epoch, cloud: cloud(), beginning, seq: Seq(1) };
    let number = |epoch, beginning| Command::AdvanceCheckpointCursor {
        volume: VOLUME,
        epoch,
        cloud: cloud(),
        beginning,
        number: 1,
    };
    bench.run(seq(first, 0)).unwrap();
    bench.run(number(first, 0)).unwrap();
    bench.run(Command::ResyncCloud { cloud: cloud() }).unwrap();
    for late in [seq(first, 0), number(first, 0), seq(first, 2)] {
        assert_eq!(bench.run(late), Err(Rejection::BegunAnew));
    }
    let volume = &bench.state.volumes[&VOLUME];
    assert_eq!((volume.cursors[&cloud()], volume.checkpoint_cursors.get(&cloud())), (Seq(0), None));
    let second = bench.own();
    for deposed in [seq(first, 1), number(first, 1)] {
        assert_eq!(bench.run(deposed), Err(Rejection::StaleEpoch(second)));
    }
    bench.run(seq(second, 1)).unwrap();
    bench.run(number(second, 1)).unwrap();
    assert_eq!(bench.state.volumes[&VOLUME].cursors[&cloud()], Seq(1));
}

fn grant_ensemble(after: u64, node: u64, members: &[u64]) -> Command {
    let members = members.iter().copied().map(NodeId).collect();
    Command::GrantEnsemble { volume: VOLUME, node: NodeId(node), after: Epoch(after), members }
}

fn close(epoch: u64, closes: u64, last: u64, lineage_changes: bool) -> Command {
    let (epoch, closes, last) = (Epoch(epoch), Epoch(closes), Jseq(last));
    let chain = if last.0 == 0 { Hash::ZERO } else { Hash([9; 32]) };
    Command::CloseEpoch { volume: VOLUME, epoch, closes, last, chain, lineage_changes }
}

/// An epoch makes sequence records only when the one before it is closed: once, by the epoch that is granted now, at an end
/// that agrees with the sequence.
#[test]
fn an_epoch_with_an_ensemble_opens_once() {
    let mut bench = Bench::new();
    assert_eq!(bench.run(grant_ensemble(0, 1, &[1, 2, 3])), Ok(Answer::Epoch(Epoch(1))));
    assert_eq!(bench.append(Epoch(1), 1, 1, 5), Err(Rejection::NotOpen(Epoch(0))));
    assert_eq!(bench.run(close(1, 0, 0, false)), Ok(Answer::Done));
    assert_eq!(bench.run(close(1, 0, 0, false)), Err(Rejection::NotOpen(Epoch(1))), "once");
    assert_eq!(bench.append(Epoch(1), 1, 1, 5), Ok(Answer::Done));

    assert_eq!(bench.run(grant_ensemble(1, 2, &[2, 3, 4])), Ok(Answer::Epoch(Epoch(2))));
    assert_eq!(bench.run(grant_ensemble(2, 3, &[2, 3, 4])), Ok(Answer::Epoch(Epoch(3))));
    let kept = bench.state.ensembles[&VOLUME].clone();
    assert_eq!((kept.opened, kept.opened_members), (Epoch(1), vec![NodeId(1), NodeId(2), NodeId(3)]));
    assert_eq!(bench.run(close(2, 1, 9, false)), Err(Rejection::StaleEpoch(Epoch(3))), "somebody else came");
    assert_eq!(bench.run(close(3, 2, 9, false)), Err(Rejection::NotOpen(Epoch(1))), "epoch 2 never opened");
    assert_eq!(bench.run(close(3, 1, 4, false)), Err(Rejection::CloseUnfit), "the sequence reaches 5");
    let elsewhere = Command::CloseEpoch {
        volume: VOLUME,
        epoch: Epoch(3),
        closes: Epoch(1),
        last: Jseq(5),
        chain: Hash([8; 32]),
        lineage_changes: false,
    };
    assert_eq!(bench.run(elsewhere), Err(Rejection::CloseUnfit), "another chain than the sequence's");
    let lineage = bench.state.volumes[&VOLUME].lineage;
    assert_eq!(bench.run(close(3, 1, 9, true)), Ok(Answer::Done));
    assert_eq!(bench.state.volumes[&VOLUME].lineage, lineage.next());
    let kept = &bench.state.ensembles[&VOLUME];
    assert_eq!((kept.opened, kept.base), (Epoch(3), (Jseq(9), Hash([9; 32]))));
    assert_eq!(kept.opened_members, [NodeId(2), NodeId(3), NodeId(4)]);
    assert_eq!(State::load(&bench.state.save()).unwrap(), bench.state);

    bench.run(grant_ensemble(3, 2, &[2, 3, 4])).unwrap();
    assert_eq!(bench.run(close(4, 3, 8, false)), Err(Rejection::CloseUnfit), "below where epoch 3 began");
    let other_base = Command::CloseEpoch {
        volume: VOLUME,
        epoch: Epoch(4),
        closes: Epoch(3),
        last: Jseq(9),
        chain: Hash([7; 32]),
        lineage_changes: false,
    };
    assert_eq!(bench.run(other_base), Err(Rejection::CloseUnfit), "not what epoch 3 began with");
    assert_eq!(bench.run(close(4, 3, 9, false)), Ok(Answer::Done));
    assert_eq!(bench.state.volumes[&VOLUME].lineage, lineage.next(), "nothing was lost");
    bench.run(Command::DeleteVolume { volume: VOLUME }).unwrap();
    bench.run(Command::ForgetVolume { volume: VOLUME }).unwrap();
    assert!(bench.state.ensembles.is_empty());
}

#[test]
fn ensembles_that_cannot_be_are_refused() {
    let mut bench = Bench::new();
    for members in [&[][..], &[2, 3], &[1, 1, 2], &[2, 1, 3], &[0, 1], &[1, 2, 3, 4, 5, 6, 7, 8]] {
        assert_eq!(bench.run(grant_ensemble(0, 1, members)), Err(Rejection::BadEnsemble), "{members:?}");
    }
    assert_eq!(bench.run(close(0, 0, 0, false)), Err(Rejection::KeptAlone));
    bench.run(Command::AdmitNode { node: NodeId(2), address: "host:1".into() }).unwrap();
    bench.run(Command::RetireNode { node: NodeId(2) }).unwrap();
    assert_eq!(bench.run(grant_ensemble(0, 1, &[1, 2, 3])), Err(Rejection::NoSuchNode(NodeId(2))));
    bench.run(grant_ensemble(0, 1, &[1, 3, 4])).unwrap();
    let alone = Command::GrantOwner { volume: VOLUME, node: NodeId(1), after: Epoch(1) };
    assert_eq!(bench.run(alone), Err(Rejection::HasEnsemble), "it would pass by the fence");
    let mut bench = Bench::new();
    let epoch = bench.own();
    assert_eq!(bench.run(grant_ensemble(epoch.0, 2, &[1, 2, 3])), Err(Rejection::KeptAlone));
    assert_eq!(bench.run(grant_ensemble(epoch.0, 1, &[1, 2, 3])), Ok(Answer::Epoch(epoch.next())));
    let kept = &bench.state.ensembles[&VOLUME];
    assert_eq!((kept.opened, kept.opened_members.as_slice()), (epoch, &[NodeId(1)][..]), "its own journal is the copy");
}

/// The bytes as `docs/format.md` counts them: number of the command, then its fields.
#[test]
fn commands_about_ensembles_keep_their_bytes() {
    let encoded = |command| velum_protocol::codec::encode(&command);
    let volume = [7; 16];
    assert_eq!(encoded(grant_ensemble(4, 2, &[1, 2, 3])), [&[28][..], &volume, &[2, 4, 3, 1, 2, 3]].concat());
    assert_eq!(encoded(close(5, 4, 9, true)), [&[29][..], &volume, &[5, 4, 9], &[9; 32], &[1]].concat());
}
