//! The member's rules, one by one, on records as they stand in journals.

use velum_protocol::{
    format::record::{HEADER_BYTES, RecordHeader, RecordKind, chain},
    id::{BlockCount, BlockIndex, KeyEpoch, Lineage},
    peer::ensemble::{Heal, Marks},
};

use super::*;

pub(in crate::ensemble) const VOLUME: VolumeId = VolumeId([7; 16]);
pub(in crate::ensemble) const BOOT: BootId = BootId([1; 16]);
pub(in crate::ensemble) const OTHER_BOOT: BootId = BootId([2; 16]);
const OWNER: NodeId = NodeId(1);
const TAKER: NodeId = NodeId(3);
/// When no lease is out that was granted before the start.
const LATER: Instant = Instant(10_000_000);
pub(in crate::ensemble) const LIFE: Life = Life { process: [9; 16], boot: BOOT };
pub(crate) const START: Point = Point { at: Jseq(0), chain: Hash::ZERO };

/// Records of one epoch behind a point, and the points they end at. `salt` tells apart what would else be the same.
pub(crate) fn records(epoch: u64, after: Point, count: u64, salt: u8) -> Vec<(Bytes, Point)> {
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

fn noted(epoch: u64, whole_in: BootId) -> Noted {
    Noted { epoch: Epoch(epoch), whole_in, is_damaged: false }
}

/// What is stored of a copy that is whole.
fn stored(epoch: u64) -> Effect {
    Effect::Store(noted(epoch, BOOT))
}

fn found(promise: Option<(u64, BootId)>, held: Vec<Held>) -> Found {
    let promise = promise.map(|(epoch, boot)| noted(epoch, boot));
    Found { volume: VOLUME, life: LIFE, promise, stopped_cleanly: false, reads: Condition::Whole, base: START, held }
}

/// A member that has promised epoch 1 in this boot, durably.
fn member() -> Member {
    Member::new(found(Some((1, BOOT)), vec![]), Instant(0))
}

fn held(records: &[(Bytes, Point)]) -> Vec<Held> {
    let records: Vec<Bytes> = records.iter().map(|(bytes, _)| bytes.clone()).collect();
    judge(START, Epoch(u64::MAX), &records).unwrap()
}

fn step(member: &mut Member, input: Input) -> Vec<Effect> {
    let mut effects = Vec::new();
    member.step(LATER, input, &mut effects);
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
    assert_eq!(told(&step(&mut member, Input::Stored)).condition, Condition::Amnesic);
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
    assert_eq!(step(&mut member, fence(2)), [stored(2)], "not a word yet");
    let late = step(&mut member, Input::Append(OWNER, append(1, all[2].1, &all[3..])));
    assert_eq!((answer(&late).verdict, kept(&late)), (Verdict::Stale, vec![]));
    let fenced = told(&step(&mut member, Input::Stored));
    assert_eq!((fenced.promise, fenced.tail, fenced.condition), (Epoch(2), all[2].1, Condition::Whole));
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
    assert_eq!(step(&mut member, fence(2)), [stored(3)], "not a word yet");
    assert_eq!(told(&step(&mut member, Input::Stored)).promise, Epoch(3));
    let mut member = self::member();
    step(&mut member, Input::Append(OWNER, append(4, START, &[])));
    assert_eq!(step(&mut member, fence(2)), [stored(4)]);
}

/// Without the file a loss of power could take the unsynced copy and the memory of it alike: "empty" would be believed.
#[test]
fn nothing_is_taken_before_there_is_a_promise_on_disk() {
    let mut member = Member::new(found(None, vec![]), Instant(0));
    let all = records(1, START, 2, 0);
    let effects = step(&mut member, Input::Append(OWNER, append(1, START, &all)));
    assert_eq!(effects, [stored(1)]);
    assert_eq!(step(&mut member, Input::Append(OWNER, append(1, START, &all))), [], "stored once");
    let effects = step(&mut member, Input::Stored);
    let ready = answer(&effects);
    assert_eq!((ready.verdict, ready.at, kept(&effects)), (Verdict::Took, Jseq(0), vec![]));
    assert_eq!(ready.condition, Condition::Whole);
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
    assert_eq!(effects, [stored(4)]);
    let late = step(&mut member, Input::Append(OWNER, append(1, all[1].1, &all[2..])));
    assert_eq!((answer(&late).verdict, kept(&late)), (Verdict::Stale, vec![]), "promised at once");
    assert_eq!(answer(&step(&mut member, Input::Stored)).at, Jseq(2), "where the new owner asked");
    assert_eq!(kept(&step(&mut member, Input::Append(TAKER, new))), [3, 4]);
}

#[test]
fn a_copy_is_amnesic_in_another_boot_or_without_its_end_and_not_after_a_crash_of_the_process() {
    use Condition::{Amnesic, Damaged, Whole};
    let all = records(1, START, 2, 0);
    let is = |condition: Condition, found: Found| assert_eq!(found.condition(), condition, "{found:?}");
    is(Whole, found(None, vec![]));
    is(Whole, found(Some((1, BOOT)), held(&all)));
    is(Amnesic, found(Some((1, OTHER_BOOT)), held(&all)));
    // What is gone leaves no trace.
    is(Amnesic, found(Some((1, OTHER_BOOT)), vec![]));
    // Records, and no promise.
    is(Amnesic, found(None, held(&all)));
    is(Amnesic, Found { reads: Amnesic, ..found(Some((1, BOOT)), held(&all)) });
    is(Whole, Found { stopped_cleanly: true, ..found(Some((1, OTHER_BOOT)), held(&all)) });
    // A clean stop makes nothing whole.
    is(Amnesic, Found { stopped_cleanly: true, ..found(Some((1, BootId::ZERO)), held(&all)) });
    // Damage is worse than a loss of power, whatever was stored.
    for boot in [BOOT, OTHER_BOOT] {
        is(Damaged, Found { reads: Damaged, stopped_cleanly: true, ..found(Some((1, boot)), held(&all)) });
    }
    // Nothing was answered for, so nothing can be missing.
    is(Whole, Found { reads: Damaged, ..found(None, vec![]) });
}

/// A node lost power, started, was stopped cleanly before anybody spoke to it, and started: its promise still named the boot in which
/// the copy had been whole, and what it had lost was lost without a word.
#[test]
fn what_a_copy_may_lack_is_noted_by_the_start_that_finds_it() {
    let all = records(1, START, 2, 0);
    let mut start = found(Some((1, OTHER_BOOT)), held(&all));
    assert!(start.note_condition() && start.promise == Some(noted(1, BootId::ZERO)));
    assert!(!start.note_condition(), "noted already");
    let mut torn = Found { reads: Condition::Amnesic, ..found(Some((1, BOOT)), held(&all)) };
    assert!(torn.note_condition());
    assert_eq!(Found { reads: Condition::Whole, ..torn }.condition(), Condition::Amnesic);
    for mut whole in [found(Some((1, BOOT)), held(&all)), found(None, vec![])] {
        assert!(!whole.note_condition() && whole.condition() == Condition::Whole);
    }
    let again = Found { stopped_cleanly: true, ..start };
    assert_eq!(again.condition(), Condition::Amnesic, "a clean stop makes nothing whole");
    let mut damaged = Found { reads: Condition::Damaged, ..again };
    assert!(damaged.note_condition() && !damaged.note_condition());
    let later = Found { reads: Condition::Whole, stopped_cleanly: true, ..damaged };
    assert_eq!(later.condition(), Condition::Damaged, "also when what is left reads well");
}

/// Marks and a word for a process: what an owner sends to a copy that is not whole.
fn heal(to: Condition, process: [u8; 16], marks: Marks, prev: Point, records: &[(Bytes, Point)]) -> Input {
    let heals = Some(Heal { process, to });
    Input::Append(OWNER, Append { marks, heals, ..append(1, prev, records) })
}

fn stores(effects: &[Effect]) -> Vec<Noted> {
    effects.iter().filter_map(|effect| if let Effect::Store(noted) = effect { Some(*noted) } else { None }).collect()
}

#[test]
fn an_amnesic_copy_is_whole_when_it_is_full_and_the_owner_says_so_and_that_is_stored() {
    let all = records(1, START, 5, 0);
    let mut member = Member::new(found(Some((1, OTHER_BOOT)), held(&all[..2])), Instant(0));
    step(&mut member, Input::Append(OWNER, append(1, START, &[])));
    step(&mut member, Input::Stored);
    let marks = Marks { written: Jseq(4), durable: Jseq(0), trimmed: Jseq(0) };
    let heal = |prev, records: &[_], process| heal(Condition::Whole, process, marks, prev, records);
    let early = step(&mut member, heal(all[1].1, &all[2..3], LIFE.process));
    assert_eq!((answer(&early).condition, stores(&early)), (Condition::Amnesic, vec![]), "not full");
    let other = step(&mut member, heal(all[2].1, &all[3..4], [8; 16]));
    assert_eq!(stores(&other), [], "another process was meant");
    let healed = step(&mut member, heal(all[3].1, &[], LIFE.process));
    assert_eq!((answer(&healed).condition, stores(&healed)), (Condition::Amnesic, vec![noted(1, BOOT)]));
    assert_eq!(answer(&step(&mut member, Input::Stored)).condition, Condition::Whole);
}

/// A member whose copy may lack what it had synced, and where its first record stands.
fn damaged(base: Point, held: Vec<Held>) -> Member {
    let mut found = Found { reads: Condition::Damaged, base, ..found(Some((1, BOOT)), held) };
    found.note_condition();
    Member::new(found, Instant(0))
}

/// A copy that lost power while it was filled would else have all that was synced by its promise, and not on its disk.
#[test]
fn a_damaged_copy_is_amnesic_when_it_is_filled_and_synced_and_the_owner_says_so_and_that_is_stored() {
    let all = records(1, START, 5, 0);
    let mut member = damaged(START, held(&all[..2]));
    let marks = Marks { written: Jseq(4), durable: Jseq(4), trimmed: Jseq(0) };
    let heal = |prev, records: &[_], to| heal(to, LIFE.process, marks, prev, records);
    let early = step(&mut member, heal(all[1].1, &all[2..3], Condition::Amnesic));
    assert_eq!((answer(&early).condition, stores(&early)), (Condition::Damaged, vec![]), "not full");
    let leap = step(&mut member, heal(all[2].1, &all[3..4], Condition::Whole));
    assert_eq!((stores(&leap), answer(&leap).synced), (vec![], Jseq(2)), "not in one step");
    let full = step(&mut member, heal(all[3].1, &[], Condition::Amnesic));
    assert_eq!((full.iter().filter(|effect| **effect == Effect::Sync).count(), stores(&full)), (1, vec![]));
    let synced = step(&mut member, Input::Synced);
    assert_eq!((stores(&synced), answer(&synced).condition), (vec![noted(1, BootId::ZERO)], Condition::Damaged));
    let filled = step(&mut member, Input::Stored);
    assert_eq!((answer(&filled).condition, filled.first()), (Condition::Amnesic, Some(&Effect::MadeUp)));
    let whole = step(&mut member, heal(all[3].1, &[], Condition::Whole));
    assert_eq!(stores(&whole), [noted(1, BOOT)]);
    let whole = step(&mut member, Input::Stored);
    assert_eq!((answer(&whole).condition, whole.len()), (Condition::Whole, 1));
}

#[test]
fn what_was_filled_by_an_owner_counts_for_no_later_one() {
    let all = records(1, START, 3, 0);
    let mut member = damaged(START, held(&all[..2]));
    let marks = Marks { written: Jseq(0), durable: Jseq(0), trimmed: Jseq(0) };
    let full = step(&mut member, heal(Condition::Amnesic, LIFE.process, marks, all[1].1, &all[2..]));
    assert!(full.contains(&Effect::Sync));
    step(&mut member, fence(2));
    assert_eq!(stores(&step(&mut member, Input::Synced)), []);
    let told = told(&step(&mut member, Input::Stored));
    assert_eq!((told.promise, told.condition), (Epoch(2), Condition::Damaged));
}

/// A fence that came between wrote the damage into the file again: two copies of three were damaged in the end, each healed long
/// before the other one was, and their volume waited for ever.
#[test]
fn a_promise_does_not_take_back_that_a_copy_was_filled() {
    let all = records(1, START, 3, 0);
    let marks = Marks { written: Jseq(3), durable: Jseq(3), trimmed: Jseq(0) };
    let mut member = damaged(START, held(&all[..2]));
    step(&mut member, heal(Condition::Amnesic, LIFE.process, marks, all[1].1, &all[2..]));
    assert_eq!(stores(&step(&mut member, Input::Synced)), [noted(1, BootId::ZERO)]);
    assert_eq!(stores(&step(&mut member, fence(2))), [noted(2, BootId::ZERO)]);
    let mut member = Member::new(found(Some((1, OTHER_BOOT)), held(&all)), Instant(0));
    step(&mut member, Input::Append(OWNER, append(1, START, &[])));
    step(&mut member, Input::Stored);
    assert_eq!(
        stores(&step(&mut member, heal(Condition::Whole, LIFE.process, marks, all[2].1, &[]))),
        [noted(1, BOOT)]
    );
    assert_eq!(stores(&step(&mut member, fence(2))), [noted(2, BOOT)]);
    step(&mut member, Input::Stored);
    assert_eq!(told(&step(&mut member, Input::Stored)).condition, Condition::Whole);
}

/// What it holds agrees with the owner's, and what stood before it is gone: at that place a copy that had lost power would only be
/// told to go on.
#[test]
fn a_damaged_copy_is_filled_from_where_the_owner_begins() {
    let all = records(1, START, 8, 0);
    let held = judge(all[4].1, Epoch(u64::MAX), &[all[5].0.clone(), all[6].0.clone()]).unwrap();
    let mut member = damaged(all[4].1, held.clone());
    let owner = |prev: Point, records: &[(Bytes, Point)]| {
        let marks = Marks { written: Jseq(2), durable: Jseq(2), trimmed: Jseq(2) };
        Input::Append(OWNER, Append { marks, ..append(1, prev, records) })
    };
    let asked = step(&mut member, owner(all[6].1, &[]));
    assert_eq!((answer(&asked).verdict, answer(&asked).at), (Verdict::Lacks, Jseq(2)));
    let begun = step(&mut member, owner(all[1].1, &all[2..5]));
    assert_eq!((kept(&begun), answer(&begun).at, answer(&begun).synced), (vec![3, 4, 5], Jseq(5), Jseq(2)));
    let trims = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Trim { .. }));
    assert!(!trims(&begun), "what was held is part of what comes");
    let old =
        Append { marks: Marks { written: Jseq(1), durable: Jseq(1), trimmed: Jseq(1) }, ..append(1, all[0].1, &[]) };
    assert_eq!(answer(&step(&mut member, Input::Append(OWNER, old))).at, Jseq(2), "an old mark takes nothing away");
    assert_eq!(kept(&step(&mut member, owner(all[4].1, &all[5..]))), [6, 7, 8]);
    let mut amnesic = Member::new(Found { base: all[4].1, ..found(Some((1, BootId::ZERO)), held) }, Instant(0));
    assert_eq!(answer(&step(&mut amnesic, owner(all[6].1, &[]))).verdict, Verdict::Took);
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

fn step_at(member: &mut Member, now: Instant, input: Input) -> Vec<Effect> {
    let mut effects = Vec::new();
    member.step(now, input, &mut effects);
    effects
}

fn confirm(epoch: u64, ticket: u64) -> Input {
    Input::Confirm(OWNER, Confirm { volume: VOLUME, epoch: Epoch(epoch), ticket, wants_lease: true })
}

fn confirmed(effects: &[Effect]) -> (u64, bool) {
    match effects {
        [Effect::Send { frame: Frame::Confirmed(confirmed), .. }] => (confirmed.promise.0, confirmed.is_leased),
        other => panic!("no answer to a question: {other:?}"),
    }
}

#[test]
fn a_fence_is_promised_at_once_and_answered_when_the_lease_has_ended() {
    let mut member = member();
    assert_eq!(confirmed(&step(&mut member, confirm(1, 1))), (1, true));
    assert_eq!(step(&mut member, fence(2)), [stored(2)], "nothing of epoch 1 is taken from now on");
    let later = LATER + Duration::from_millis(300);
    assert_eq!(step_at(&mut member, later, Input::Stored), [Effect::WakeAfter(Duration::from_millis(700))]);
    assert_eq!(
        confirmed(&step_at(&mut member, later, confirm(1, 2))),
        (2, false),
        "the owner hears of it, and no lease grows"
    );
    assert_eq!(step_at(&mut member, later, fence(2)), [], "asked again it waits as before");
    // A timer may come early by another clock.
    let early = LATER + Duration::from_millis(999);
    assert_eq!(step_at(&mut member, early, Input::Wake), [Effect::WakeAfter(Duration::from_millis(1))]);
    let ended = LATER + Duration::from_secs(1);
    let effects = step_at(&mut member, ended, Input::Wake);
    assert_eq!((effects.len(), told(&effects).promise), (1, Epoch(2)));
    assert_eq!(step_at(&mut member, ended, Input::Wake), []);
}

#[test]
fn a_lease_that_is_released_keeps_nobody_waiting() {
    let mut member = member();
    step(&mut member, confirm(1, 1));
    step(&mut member, fence(2));
    step(&mut member, Input::Stored);
    let release = |ticket| Input::Release(OWNER, Release { volume: VOLUME, epoch: Epoch(1), ticket });
    assert!(matches!(step(&mut member, release(0))[..], [Effect::WakeAfter(_)]), "that was of an earlier question");
    assert_eq!(told(&step(&mut member, release(1))).promise, Epoch(2));
}

#[test]
fn the_owner_itself_takes_over_without_a_wait() {
    let mut member = member();
    step(&mut member, confirm(1, 1));
    step(&mut member, Input::Fence(OWNER, Fence { volume: VOLUME, epoch: Epoch(2) }));
    assert_eq!(told(&step(&mut member, Input::Stored)).promise, Epoch(2));
}

#[test]
fn a_lease_is_granted_by_a_promise_that_is_stored() {
    let mut member = Member::new(found(None, vec![]), LATER);
    assert_eq!(confirmed(&step(&mut member, confirm(1, 1))), (0, false));
    step(&mut member, Input::Append(OWNER, append(1, START, &[])));
    assert_eq!(confirmed(&step(&mut member, confirm(1, 2))), (1, false), "on its way to the disk");
    step(&mut member, Input::Stored);
    assert_eq!(confirmed(&step(&mut member, confirm(1, 3))), (1, true));
    let question = Confirm { volume: VOLUME, epoch: Epoch(1), ticket: 4, wants_lease: false };
    assert_eq!(confirmed(&step(&mut member, Input::Confirm(OWNER, question))), (1, false), "only to who wants one");
}

#[test]
fn a_start_waits_for_what_may_have_been_granted_before_unless_nothing_can_have_been() {
    let mut restarted = Member::new(found(Some((1, BOOT)), vec![]), LATER);
    step(&mut restarted, fence(2));
    let later = LATER + Duration::from_millis(400);
    assert_eq!(step_at(&mut restarted, later, Input::Stored), [Effect::WakeAfter(Duration::from_millis(600))]);
    let ended = LATER + Duration::from_secs(1);
    assert_eq!(told(&step_at(&mut restarted, ended, Input::Wake)).promise, Epoch(2));
    // The fence may have been promised before the start already, and waited for what was granted before that.
    let mut promised = Member::new(found(Some((2, BOOT)), vec![]), LATER);
    assert!(matches!(step(&mut promised, fence(2))[..], [Effect::WakeAfter(_)]));
    let mut fresh = Member::new(found(None, vec![]), LATER);
    step(&mut fresh, fence(2));
    assert_eq!(told(&step(&mut fresh, Input::Stored)).promise, Epoch(2));
}

/// Somebody waited for a lease while somebody else fenced, and was told the later promise before it was durable.
#[test]
fn whoever_waits_is_told_a_later_promise_only_once_it_is_stored() {
    let mut member = member();
    step(&mut member, confirm(1, 1));
    step(&mut member, fence(2));
    step(&mut member, Input::Stored);
    let other = Input::Fence(NodeId(4), Fence { volume: VOLUME, epoch: Epoch(3) });
    assert_eq!(step(&mut member, other), [stored(3)]);
    let ended = LATER + Duration::from_secs(1);
    assert_eq!(step_at(&mut member, ended, Input::Wake), []);
    let effects = step_at(&mut member, ended, Input::Stored);
    let told: Vec<_> = effects
        .iter()
        .map(|effect| match effect {
            Effect::Send { to, frame: Frame::Fenced(fenced) } => (to.0, fenced.promise.0),
            other => panic!("no answer to a fence: {other:?}"),
        })
        .collect();
    assert_eq!(told, [(3, 3), (4, 3)]);
}
