//! The member's rules, one by one, on records as they stand in journals.

use velum_protocol::{
    format::record::{HEADER_BYTES, RecordHeader, RecordKind, chain},
    id::{BlockCount, BlockIndex, KeyEpoch, Lineage},
    peer::ensemble::Marks,
};

use super::*;

pub(in crate::ensemble) const VOLUME: VolumeId = VolumeId([7; 16]);
pub(in crate::ensemble) const BOOT: BootId = BootId([1; 16]);
pub(in crate::ensemble) const OTHER_BOOT: BootId = BootId([2; 16]);
const OWNER: NodeId = NodeId(1);
const TAKER: NodeId = NodeId(3);
pub(in crate::ensemble) const LIFE: Life = Life { process: [9; 16], boot: BOOT };
pub(in crate::ensemble) const START: Point = Point { at: Jseq(0), chain: Hash::ZERO };

/// Records of one epoch behind a point, and the points they end at. `salt` tells apart what would else be the same.
pub(in crate::ensemble) fn records(epoch: u64, after: Point, count: u64, salt: u8) -> Vec<(Bytes, Point)> {
    let (mut before, mut made) = (after, Vec::new());
    for _ in 0..count {
        let header = RecordHeader {
            kind: RecordKind::Unmap,
            key_epoch: KeyEpoch(1),
            jseq: before.at.next(),
            epoch: Epoch(epoch),
            lineage: Lineage(1),
            start: BlockIndex(0),
            count: BlockCount(1),
            durable: Jseq(0),
            prev: before.chain,
        };
        let bytes: Bytes = [&header.encode()[..], &[salt; 40]].concat().into();
        before = Point { at: header.jseq, chain: chain(&header.encode(), &[salt; 40]) };
        assert_eq!(bytes.len(), HEADER_BYTES + 40);
        made.push((bytes, before));
    }
    made
}

fn append(epoch: u64, prev: Point, records: &[(Bytes, Point)]) -> Append {
    let marks = Marks { written: Jseq(0), durable: Jseq(0), trimmed: Jseq(0) };
    let records = records.iter().map(|(bytes, _)| bytes.clone()).collect();
    Append { volume: VOLUME, epoch: Epoch(epoch), prev, marks, heals: None, sync: false, records }
}

fn found(promise: Option<(u64, BootId)>, held: Vec<Held>) -> Found {
    let promise = promise.map(|(epoch, boot)| (Epoch(epoch), boot));
    Found { volume: VOLUME, life: LIFE, promise, stopped_cleanly: false, verifies: true, base: START, held }
}

/// A member that has promised epoch 1 in this boot, durably.
fn member() -> Member {
    Member::new(found(Some((1, BOOT)), vec![]))
}

fn held(records: &[(Bytes, Point)]) -> Vec<Held> {
    let records: Vec<Bytes> = records.iter().map(|(bytes, _)| bytes.clone()).collect();
    judge(START, Epoch(u64::MAX), &records).unwrap()
}

fn step(member: &mut Member, input: Input) -> Vec<Effect> {
    let mut effects = Vec::new();
    member.step(input, &mut effects);
    effects
}

/// Whoever takes over in that epoch has fenced the member.
fn promise(member: &mut Member, epoch: u64) {
    step(member, fence(epoch));
    step(member, Input::Stored);
}

fn answer(effects: &[Effect]) -> Appended {
    match effects.iter().rev().find_map(|effect| match effect {
        Effect::Send { frame: Frame::Appended(appended), .. } => Some(*appended),
        _ => None,
    }) {
        Some(appended) => appended,
        None => panic!("no answer in {effects:?}"),
    }
}

fn told(effects: &[Effect]) -> Fenced {
    match effects.last() {
        Some(Effect::Send { frame: Frame::Fenced(fenced), .. }) => *fenced,
        other => panic!("no answer to a fence: {other:?}"),
    }
}

fn kept(effects: &[Effect]) -> Vec<u64> {
    effects.iter().filter_map(|effect| if let Effect::Keep { at, .. } = effect { Some(at.0) } else { None }).collect()
}

fn fence(epoch: u64) -> Input {
    Input::Fence(TAKER, Fence { volume: VOLUME, epoch: Epoch(epoch) })
}

#[test]
fn records_are_taken_in_order_once_and_told_after_they_are_kept() {
    let mut member = member();
    let all = records(1, START, 5, 0);
    let effects = step(&mut member, Input::Append(OWNER, append(1, START, &all[..3])));
    assert_eq!((kept(&effects), answer(&effects).at), (vec![1, 2, 3], Jseq(3)));
    assert!(matches!(effects.last(), Some(Effect::Send { .. })), "told after they are kept");
    let effects = step(&mut member, Input::Append(OWNER, append(1, all[1].1, &all[2..4])));
    assert_eq!((kept(&effects), answer(&effects).at), (vec![4], Jseq(4)), "what is held is not kept twice");
    let gap = step(&mut member, Input::Append(OWNER, append(1, Point { at: Jseq(9), chain: Hash([1; 32]) }, &[])));
    assert_eq!((answer(&gap).verdict, answer(&gap).at), (Verdict::Lacks, Jseq(4)));
    let mut broken = append(1, all[3].1, &all[4..]);
    broken.prev.chain = Hash([5; 32]);
    assert!(step(&mut member, Input::Append(OWNER, broken)).is_empty(), "records that follow something else");
}

#[test]
fn another_chain_is_not_followed() {
    let mut member = member();
    let all = records(1, START, 4, 0);
    step(&mut member, Input::Append(OWNER, append(1, START, &all)));
    let other = records(1, START, 5, 1);
    let effects = step(&mut member, Input::Append(OWNER, append(1, other[3].1, &other[4..])));
    assert_eq!((answer(&effects).verdict, kept(&effects)), (Verdict::Lacks, vec![]));
    assert_eq!(answer(&effects).at, Jseq(0), "the next try is where that epoch began");
}

/// Two pasts of one epoch: somebody was wrong, and the copy is not for anybody to build on.
#[test]
fn a_record_that_differs_within_an_epoch_ends_it() {
    let mut member = member();
    step(&mut member, Input::Append(OWNER, append(1, START, &records(1, START, 4, 0))));
    let effects = step(&mut member, Input::Append(OWNER, append(1, START, &records(1, START, 4, 1))));
    assert_eq!((answer(&effects).verdict as u8, kept(&effects)), (4, vec![]));
    step(&mut member, fence(2));
    assert!(told(&step(&mut member, Input::Stored)).amnesic);
}

/// What a deposed owner left on one member was never acked; the next epoch takes its place.
#[test]
fn records_of_a_later_epoch_void_what_was_left() {
    let mut member = member();
    let left = records(1, START, 6, 0);
    let mut first = append(1, START, &left);
    first.sync = true;
    step(&mut member, Input::Append(OWNER, first));
    let next = records(2, left[3].1, 1, 0);
    step(&mut member, Input::Append(TAKER, append(2, left[3].1, &[])));
    let probe = step(&mut member, Input::Stored);
    assert_eq!(answer(&probe).at, Jseq(4), "not what is held beyond: it is not known to agree");
    let effects = step(&mut member, Input::Append(TAKER, append(2, left[3].1, &next)));
    assert_eq!((kept(&effects), answer(&effects).at), (vec![5], Jseq(5)));
    // The sync began before position 5 was another record.
    assert_eq!(answer(&step(&mut member, Input::Synced)).synced, Jseq(4));
    step(&mut member, fence(3));
    let fenced = told(&step(&mut member, Input::Stored));
    assert_eq!((fenced.tail, fenced.tail_epoch), (next[0].1, Epoch(2)));
}

#[test]
fn a_record_in_the_place_of_a_synced_one_is_not_synced() {
    let mut member = member();
    let left = records(1, START, 6, 0);
    step(&mut member, Input::Append(OWNER, Append { sync: true, ..append(1, START, &left) }));
    assert_eq!(answer(&step(&mut member, Input::Synced)).synced, Jseq(6));
    promise(&mut member, 2);
    let effects = step(&mut member, Input::Append(TAKER, append(2, left[3].1, &records(2, left[3].1, 1, 0))));
    assert_eq!((answer(&effects).at, answer(&effects).synced), (Jseq(5), Jseq(4)));
}

#[test]
fn a_fence_is_answered_when_the_promise_is_durable_and_holds_at_once() {
    let mut member = member();
    let all = records(1, START, 4, 0);
    step(&mut member, Input::Append(OWNER, append(1, START, &all[..3])));
    assert_eq!(step(&mut member, fence(2)), [Effect::Store { epoch: Epoch(2), whole_in: BOOT }], "not a word yet");
    let late = step(&mut member, Input::Append(OWNER, append(1, all[2].1, &all[3..])));
    assert_eq!((answer(&late).verdict, kept(&late)), (Verdict::Stale, vec![]));
    let fenced = told(&step(&mut member, Input::Stored));
    assert_eq!((fenced.promise, fenced.tail, fenced.amnesic), (Epoch(2), all[2].1, false));
    assert_eq!(told(&step(&mut member, fence(2))), fenced, "asked again, told again");
    assert_eq!(told(&step(&mut member, fence(1))).promise, Epoch(2), "somebody else was first");
}

#[test]
fn whoever_is_overtaken_while_a_promise_is_stored_is_not_told_that_he_has_it() {
    let mut member = member();
    step(&mut member, fence(2));
    step(&mut member, Input::Fence(OWNER, Fence { volume: VOLUME, epoch: Epoch(3) }));
    assert!(step(&mut member, Input::Stored).is_empty());
    assert_eq!(told(&step(&mut member, Input::Stored)).promise, Epoch(3));
}

/// A question for an earlier epoch may come late, when whoever asked takes over in a later one and would believe the answer.
#[test]
fn no_promise_is_told_that_is_not_durable() {
    let mut member = member();
    step(&mut member, fence(3));
    assert_eq!(step(&mut member, fence(2)), [Effect::Store { epoch: Epoch(3), whole_in: BOOT }], "not a word yet");
    assert_eq!(told(&step(&mut member, Input::Stored)).promise, Epoch(3));
    let mut member = self::member();
    step(&mut member, Input::Append(OWNER, append(4, START, &[])));
    assert_eq!(step(&mut member, fence(2)), [Effect::Store { epoch: Epoch(4), whole_in: BOOT }]);
}

/// Without the file a loss of power could take the unsynced copy and the memory of it alike: "empty" would be believed.
#[test]
fn nothing_is_taken_before_there_is_a_promise_on_disk() {
    let mut member = Member::new(found(None, vec![]));
    let all = records(1, START, 2, 0);
    let effects = step(&mut member, Input::Append(OWNER, append(1, START, &all)));
    assert_eq!(effects, [Effect::Store { epoch: Epoch(1), whole_in: BOOT }]);
    assert_eq!(step(&mut member, Input::Append(OWNER, append(1, START, &all))), [], "stored once");
    let effects = step(&mut member, Input::Stored);
    let ready = answer(&effects);
    assert_eq!((ready.verdict, ready.at, ready.amnesic, kept(&effects)), (Verdict::Took, Jseq(0), false, vec![]));
    assert_eq!(kept(&step(&mut member, Input::Append(OWNER, append(1, START, &all)))), [1, 2]);
}

/// A member that had not been fenced took records of a new owner, lost them with power and with them what it knew of that owner's
/// epoch. The owner before, cut off from all others, filled the copy up and called it whole, and the next takeover believed it.
#[test]
fn records_of_a_new_epoch_are_taken_when_its_promise_is_durable() {
    let mut member = member();
    let all = records(1, START, 3, 0);
    step(&mut member, Input::Append(OWNER, append(1, START, &all[..2])));
    let new = append(4, all[1].1, &records(4, all[1].1, 2, 0));
    let effects = step(&mut member, Input::Append(TAKER, new.clone()));
    assert_eq!(effects, [Effect::Store { epoch: Epoch(4), whole_in: BOOT }]);
    let late = step(&mut member, Input::Append(OWNER, append(1, all[1].1, &all[2..])));
    assert_eq!((answer(&late).verdict, kept(&late)), (Verdict::Stale, vec![]), "promised at once");
    assert_eq!(answer(&step(&mut member, Input::Stored)).at, Jseq(2), "where the new owner asked");
    assert_eq!(kept(&step(&mut member, Input::Append(TAKER, new))), [3, 4]);
}

#[test]
fn a_copy_is_amnesic_in_another_boot_or_without_its_end_and_not_after_a_crash_of_the_process() {
    let all = records(1, START, 2, 0);
    let is_amnesic = |found: Found| Member::new(found).amnesic;
    assert!(!is_amnesic(found(None, vec![])), "never used");
    assert!(!is_amnesic(found(Some((1, BOOT)), held(&all))));
    assert!(is_amnesic(found(Some((1, OTHER_BOOT)), held(&all))));
    assert!(is_amnesic(found(Some((1, OTHER_BOOT)), vec![])), "what is gone leaves no trace");
    assert!(is_amnesic(found(None, held(&all))), "records, and no promise");
    assert!(is_amnesic(Found { verifies: false, ..found(Some((1, BOOT)), held(&all)) }));
    assert!(!is_amnesic(Found { stopped_cleanly: true, ..found(Some((1, OTHER_BOOT)), held(&all)) }));
    let still = Found { stopped_cleanly: true, ..found(Some((1, BootId::ZERO)), held(&all)) };
    assert!(is_amnesic(still), "a clean stop makes nothing whole");
}

/// A node lost power, started, was stopped cleanly before anybody spoke to it, and started: its promise still named the boot in which
/// the copy had been whole, and what it had lost was lost without a word.
#[test]
fn amnesia_is_noted_by_the_start_that_finds_it() {
    let all = records(1, START, 2, 0);
    let mut start = found(Some((1, OTHER_BOOT)), held(&all));
    assert!(start.note_amnesia() && start.promise == Some((Epoch(1), BootId::ZERO)) && start.is_amnesic());
    assert!(!start.note_amnesia(), "noted already");
    let mut torn = Found { verifies: false, ..found(Some((1, BOOT)), held(&all)) };
    assert!(torn.note_amnesia());
    assert!(Found { verifies: true, ..torn }.is_amnesic());
    for mut whole in [found(Some((1, BOOT)), held(&all)), found(None, vec![])] {
        assert!(!whole.note_amnesia() && !whole.is_amnesic());
    }
    let again = Found { stopped_cleanly: true, ..start };
    assert!(again.is_amnesic(), "a clean stop makes nothing whole");
}

#[test]
fn an_amnesic_copy_is_whole_when_it_is_full_and_the_owner_says_so_and_that_is_stored() {
    let all = records(1, START, 5, 0);
    let mut member = Member::new(found(Some((1, OTHER_BOOT)), held(&all[..2])));
    step(&mut member, Input::Append(OWNER, append(1, START, &[])));
    step(&mut member, Input::Stored);
    let heal = |prev: Point, records: &[(Bytes, Point)], process| {
        let marks = Marks { written: Jseq(4), durable: Jseq(0), trimmed: Jseq(0) };
        Input::Append(OWNER, Append { marks, heals: Some(process), ..append(1, prev, records) })
    };
    let early = step(&mut member, heal(all[1].1, &all[2..3], LIFE.process));
    assert!(answer(&early).amnesic && !early.iter().any(|effect| matches!(effect, Effect::Store { .. })), "not full");
    let other = step(&mut member, heal(all[2].1, &all[3..4], [8; 16]));
    assert!(!other.iter().any(|effect| matches!(effect, Effect::Store { .. })), "another process was meant");
    let healed = step(&mut member, heal(all[3].1, &[], LIFE.process));
    assert!(healed.contains(&Effect::Store { epoch: Epoch(1), whole_in: BOOT }) && answer(&healed).amnesic);
    assert!(!answer(&step(&mut member, Input::Stored)).amnesic);
}

#[test]
fn behind_what_the_clouds_hold_a_copy_begins_anew_and_never_before_it() {
    let mut member = member();
    let all = records(1, START, 9, 0);
    let trimmed = |at: u64, prev: Point, records: &[(Bytes, Point)]| {
        let marks = Marks { written: Jseq(at), durable: Jseq(at), trimmed: Jseq(at) };
        Input::Append(OWNER, Append { marks, ..append(1, prev, records) })
    };
    step(&mut member, trimmed(0, START, &all[..2]));
    let skipped = step(&mut member, trimmed(5, all[5].1, &all[6..8]));
    assert_eq!(answer(&skipped).verdict, Verdict::Lacks, "position 6 is not in the clouds");
    let effects = step(&mut member, trimmed(6, all[5].1, &all[6..8]));
    assert_eq!((kept(&effects), answer(&effects).at), (vec![7, 8], Jseq(8)));
    let effects = step(&mut member, trimmed(7, all[7].1, &all[8..]));
    assert!(effects.contains(&Effect::Trim { epoch: Epoch(1), through: Jseq(7) }));
    let back = step(&mut member, trimmed(2, all[1].1, &all[2..3]));
    assert_eq!((answer(&back).verdict, answer(&back).at), (Verdict::Lacks, Jseq(7)), "an old mark takes nothing away");
}

/// Whoever syncs the journal then, the records of the new beginning may have come after.
#[test]
fn a_sync_begun_before_a_copy_began_anew_does_not_count_for_what_comes() {
    let mut member = member();
    let all = records(1, START, 9, 0);
    step(&mut member, Input::Append(OWNER, Append { sync: true, ..append(1, START, &all[..2]) }));
    let marks = Marks { written: Jseq(6), durable: Jseq(6), trimmed: Jseq(6) };
    let anew = Append { marks, sync: true, ..append(1, all[5].1, &all[6..]) };
    let effects = step(&mut member, Input::Append(OWNER, anew));
    assert_eq!(effects.first(), Some(&Effect::Trim { epoch: Epoch(1), through: Jseq(2) }), "what it held is let go");
    assert_eq!((answer(&effects).at, answer(&effects).synced), (Jseq(9), Jseq(6)));
    let effects = step(&mut member, Input::Synced);
    assert_eq!((answer(&effects[..1]).synced, &effects[1..]), (Jseq(6), &[Effect::Sync][..]));
    assert_eq!(answer(&step(&mut member, Input::Synced)).synced, Jseq(9));
}

/// What a sync under way covers shrinks with the end that became void, also when more is asked for meanwhile.
#[test]
fn a_sync_begun_before_an_end_became_void_does_not_count_for_what_took_its_place() {
    let mut member = member();
    let left = records(1, START, 6, 0);
    step(&mut member, Input::Append(OWNER, Append { sync: true, ..append(1, START, &left) }));
    let next = records(2, left[3].1, 3, 0);
    promise(&mut member, 2);
    step(&mut member, Input::Append(TAKER, Append { sync: true, ..append(2, left[3].1, &next) }));
    let effects = step(&mut member, Input::Synced);
    assert_eq!((answer(&effects).at, answer(&effects).synced), (Jseq(7), Jseq(4)));
    assert_eq!(effects.last(), Some(&Effect::Sync));
    assert_eq!(answer(&step(&mut member, Input::Synced)).synced, Jseq(7));
}

/// A void end reaches from below what agrees to above it. The member told to go on below what it called synced, and no peer reads
/// such an answer.
#[test]
fn no_more_is_called_synced_than_the_place_to_go_on_at() {
    let mut member = member();
    let left = records(1, START, 6, 0);
    step(&mut member, Input::Append(OWNER, Append { sync: true, ..append(1, START, &left) }));
    step(&mut member, Input::Synced);
    promise(&mut member, 2);
    step(&mut member, Input::Append(TAKER, append(2, left[3].1, &[])));
    let other = Point { at: Jseq(5), chain: Hash([5; 32]) };
    let told = answer(&step(&mut member, Input::Append(TAKER, append(2, other, &[]))));
    assert_eq!((told.verdict, told.at, told.synced), (Verdict::Lacks, Jseq(0), Jseq(0)));
    let agrees = answer(&step(&mut member, Input::Append(TAKER, append(2, left[3].1, &[]))));
    assert_eq!((agrees.at, agrees.synced), (Jseq(4), Jseq(4)));
}

#[test]
fn records_are_served_to_whoever_fenced_last_and_to_nobody_else() {
    let mut member = member();
    let all = records(1, START, 4, 0);
    step(&mut member, Input::Append(OWNER, append(1, START, &all)));
    let read = |epoch, through| {
        let (epoch, after, through) = (Epoch(epoch), Jseq(1), Jseq(through));
        Input::ReadTail(TAKER, ReadTail { volume: VOLUME, epoch, after, through })
    };
    let is_served = |effects: &[Effect]| matches!(effects, [Effect::Send { frame: Frame::Tail(tail), .. }] if tail.prev == all[0].1 && !tail.records.is_empty());
    step(&mut member, fence(2));
    assert!(!is_served(&step(&mut member, read(2, 4))), "read before the fence is durable");
    step(&mut member, Input::Stored);
    assert!(is_served(&step(&mut member, read(2, 4))));
    assert!(!is_served(&step(&mut member, read(1, 4))) && !is_served(&step(&mut member, read(2, 5))));
}
