//! The owner's rules, one by one, with members that are played by hand.

use velum_protocol::{
    id::{BootId, Hash},
    peer::ensemble::Life,
};

use super::*;
use crate::ensemble::member::tests::{BOOT, START, VOLUME, records};

const OWN: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);

struct Bench {
    owner: Owner,
    end: Point,
    effects: Vec<Effect>,
}

fn life(node: NodeId, boot: BootId) -> Life {
    Life { process: [u8::try_from(node.0).unwrap() | boot.0[0] << 4; 16], boot }
}

impl Bench {
    /// An owner of epoch 2 with so many records of epoch 1.
    fn new(left: u64, durable: u64) -> Self {
        let left = records(1, START, left, 0);
        let end = left.last().map_or(START, |(_, point)| *point);
        let records = left.into_iter().map(|(bytes, _)| bytes).collect();
        let members = vec![OWN, B, C];
        let opening = Opening {
            volume: VOLUME,
            node: OWN,
            epoch: Epoch(2),
            members,
            base: START,
            records,
            durable: Jseq(durable),
        };
        let mut effects = Vec::new();
        let owner = Owner::new(opening, &mut effects);
        Self { owner, end, effects }
    }

    /// As above, with all members heard of and holding all.
    fn settled(left: u64) -> Self {
        let mut bench = Self::new(left, 0);
        [OWN, B, C].into_iter().for_each(|node| bench.took(node, left, left));
        bench.step(Input::Opened);
        bench.effects.clear();
        bench
    }

    fn step(&mut self, input: Input) {
        self.owner.step(input, &mut self.effects);
    }

    fn make(&mut self, count: u64, salt: u8) {
        for (record, end) in records(2, self.end, count, salt) {
            self.step(Input::Made { record });
            self.end = end;
        }
        self.step(Input::Push);
    }

    fn answer(&mut self, node: NodeId, boot: BootId, condition: Condition, verdict: Verdict, at: u64, synced: u64) {
        let (volume, epoch, life) = (VOLUME, Epoch(2), life(node, boot));
        let (at, synced) = (Jseq(at), Jseq(synced));
        self.step(Input::Appended(
            node,
            Appended { volume, epoch, promise: epoch, life, verdict, condition, at, synced },
        ));
    }

    fn took(&mut self, node: NodeId, at: u64, synced: u64) {
        self.answer(node, BOOT, Condition::Whole, Verdict::Took, at, synced);
    }

    fn lacks(&mut self, node: NodeId, at: u64) {
        self.answer(node, BOOT, Condition::Whole, Verdict::Lacks, at, 0);
    }

    fn ticks(&mut self, count: u32) {
        (0..count).for_each(|_| self.step(Input::Tick));
    }

    /// What was sent to a member since the last look: behind what, how many records, whether to be synced.
    fn sent(&mut self, node: NodeId) -> Vec<(u64, usize, bool)> {
        let frames = self.frames(node);
        frames.iter().map(|append| (append.prev.at.0, append.records.len(), append.sync)).collect()
    }

    fn frames(&mut self, node: NodeId) -> Vec<Append> {
        let is_his = |effect: &mut Effect| matches!(effect, Effect::Send { to, .. } if *to == node);
        let his = self.effects.extract_if(.., is_his).filter_map(|effect| match effect {
            Effect::Send { frame: Frame::Append(append), .. } => Some(append),
            _ => None,
        });
        his.collect()
    }

    fn marks(&mut self) -> (u64, u64) {
        let marks = self.owner.marks();
        (marks.written.0, marks.durable.0)
    }

    fn told(&mut self) -> Vec<Effect> {
        self.effects.extract_if(.., |effect| !matches!(effect, Effect::Send { .. })).collect()
    }
}

#[test]
fn each_member_is_asked_first_and_then_sent_what_it_lacks() {
    let mut bench = Bench::new(4, 0);
    assert_eq!(bench.sent(B), [(4, 0, false)]);
    bench.took(B, 4, 4);
    assert_eq!(bench.sent(B), []);
    bench.lacks(C, 1);
    assert_eq!(bench.sent(C)[1..], [(1, 0, false)], "asked once more where it says");
    bench.took(C, 1, 0);
    assert_eq!(bench.sent(C), [(1, 3, false)]);
    bench.make(2, 0);
    assert_eq!((bench.sent(B), bench.sent(C)), (vec![(4, 2, false)], vec![(4, 2, false)]));
}

#[test]
fn a_write_counts_with_two_of_three_and_nobody_twice() {
    let mut bench = Bench::settled(0);
    bench.make(3, 0);
    bench.took(OWN, 3, 0);
    bench.took(OWN, 3, 0);
    assert_eq!(bench.told(), [], "one copy, told of twice");
    bench.took(C, 2, 0);
    assert!(matches!(bench.told()[..], [Effect::Written(Point { at: Jseq(2), .. })]));
    bench.took(B, 3, 0);
    let end = bench.end;
    assert_eq!(bench.told(), [Effect::Written(end)]);
    bench.took(B, 3, 3);
    bench.took(C, 3, 2);
    assert_eq!(bench.told(), [Effect::Durable(Jseq(2))], "the owner's own disk is one of three");
}

/// The mark of an earlier owner says that its ensemble synced the records. This one may not hold them at all: whoever waits for
/// d1 before the epoch is closed would wait for nothing.
#[test]
fn what_an_earlier_ensemble_synced_is_not_d1_of_this_one() {
    let mut bench = Bench::new(4, 4);
    assert_eq!(bench.told(), []);
    assert_eq!(
        bench.frames(B)[0].marks,
        Marks { written: Jseq(4), durable: Jseq(4), trimmed: Jseq(0) },
        "it stays true"
    );
    bench.took(OWN, 4, 4);
    assert_eq!(bench.told(), []);
    bench.took(B, 4, 3);
    assert!(bench.told().contains(&Effect::Durable(Jseq(3))));
}

/// An owner had written its end back and told it as d1, and raft closed the epoch for another one, lower, before it could. What its
/// members had been told was damage to every later takeover.
#[test]
fn what_is_written_back_is_no_mark_before_the_epoch_is_open() {
    let mut bench = Bench::new(4, 2);
    [OWN, B].into_iter().for_each(|node| bench.took(node, 4, 4));
    assert!(bench.told().contains(&Effect::Durable(Jseq(4))), "it may be closed");
    bench.ticks(12);
    assert!(bench.frames(C).iter().all(|append| append.marks.durable == Jseq(2) && append.marks.written == Jseq(2)));
    bench.step(Input::Opened);
    bench.ticks(12);
    assert_eq!(bench.frames(B).last().unwrap().marks.durable, Jseq(4));
}

#[test]
fn an_amnesic_copy_counts_for_d1_only_and_makes_it_d0() {
    let mut bench = Bench::settled(0);
    bench.make(3, 0);
    bench.took(OWN, 3, 0);
    bench.answer(B, BootId([7; 16]), Condition::Amnesic, Verdict::Took, 3, 0);
    assert_eq!(bench.told(), []);
    bench.step(Input::Sync);
    bench.took(OWN, 3, 2);
    bench.answer(B, BootId([7; 16]), Condition::Amnesic, Verdict::Took, 3, 3);
    assert!(matches!(bench.told()[..], [Effect::Written(Point { at: Jseq(2), .. }), Effect::Durable(Jseq(2))]));
}

/// While this node writes its own copy, the others work on theirs.
#[test]
fn records_go_to_the_other_members_first() {
    let mut bench = Bench::settled(0);
    bench.make(1, 0);
    let to = |effect: &Effect| if let Effect::Send { to, .. } = effect { Some(*to) } else { None };
    assert_eq!(bench.effects.iter().filter_map(to).collect::<Vec<_>>(), [B, C, OWN]);
    assert_eq!(bench.owner.status().iter().map(|member| member.node).collect::<Vec<_>>(), [OWN, B, C]);
}

/// It may lack what stood before the records that agree, and what it was called for is not for itself to judge.
#[test]
fn a_damaged_copy_counts_for_nothing_until_it_is_amnesic() {
    let mut bench = Bench::settled(0);
    bench.make(3, 0);
    bench.step(Input::Sync);
    bench.took(OWN, 3, 3);
    bench.answer(B, BOOT, Condition::Damaged, Verdict::Took, 3, 3);
    assert_eq!((bench.told(), bench.owner.status()[1].condition), (vec![], Condition::Damaged));
    bench.answer(B, BOOT, Condition::Amnesic, Verdict::Took, 3, 3);
    let end = bench.end;
    assert_eq!(bench.told(), [Effect::Written(end), Effect::Durable(Jseq(3))]);
}

/// A takeover may need it to bring the end of the epoch before to enough members, and which records were synced is known by then.
#[test]
fn a_damaged_copy_is_filled_before_the_epoch_is_open_and_called_whole_after() {
    let mut bench = Bench::new(4, 4);
    let words = |bench: &mut Bench| {
        let heals =
            bench.frames(C).into_iter().map(|append| (append.prev.at.0 + append.records.len() as u64, append.heals));
        heals.filter_map(|(end, heal)| Some((end, heal?.to))).collect::<Vec<_>>()
    };
    bench.answer(C, BOOT, Condition::Damaged, Verdict::Lacks, 0, 0);
    assert_eq!(words(&mut bench), [], "nothing is known of what it holds");
    bench.answer(C, BOOT, Condition::Damaged, Verdict::Took, 2, 2);
    assert_eq!(words(&mut bench), [(4, Condition::Amnesic)], "with what fills it, and not before");
    bench.answer(C, BOOT, Condition::Damaged, Verdict::Took, 4, 2);
    bench.ticks(4);
    assert!(words(&mut bench).contains(&(4, Condition::Amnesic)), "until it is");
    bench.answer(C, BOOT, Condition::Amnesic, Verdict::Took, 4, 4);
    bench.ticks(20);
    assert_eq!(words(&mut bench), []);
    bench.step(Input::Opened);
    assert_eq!(words(&mut bench), [(4, Condition::Whole)]);
}

/// What it said before it lost power is no more there.
#[test]
fn what_a_member_said_in_a_life_that_ended_does_not_count() {
    let mut bench = Bench::settled(0);
    bench.make(3, 0);
    bench.took(B, 3, 0);
    bench.answer(B, BootId([7; 16]), Condition::Amnesic, Verdict::Lacks, 0, 0);
    bench.took(B, 3, 3);
    assert_eq!(bench.owner.status()[1].at, Jseq(0), "an answer that comes late");
    bench.took(OWN, 3, 3);
    assert_eq!(bench.told(), []);
}

/// Two members lost power with acked writes, and the owner that filled them up again ended before raft had changed the lineage:
/// whoever came next found whole copies, and nothing told that writes were gone.
#[test]
fn no_copy_is_called_whole_before_the_epoch_is_open() {
    let mut bench = Bench::new(4, 0);
    let other = BootId([7; 16]);
    let healed = |bench: &mut Bench| {
        bench
            .frames(C)
            .iter()
            .any(|append| append.heals == Some(Heal { process: life(C, other).process, to: Condition::Whole }))
    };
    bench.answer(C, other, Condition::Amnesic, Verdict::Took, 4, 4);
    bench.ticks(20);
    assert!(!healed(&mut bench));
    bench.step(Input::Opened);
    assert!(healed(&mut bench));
}

/// Everything up to the end of the opening may have been acked by earlier owners, whatever this one's mark says.
#[test]
fn no_copy_is_called_whole_that_lacks_what_earlier_owners_acked() {
    let mut bench = Bench::new(4, 0);
    let other = BootId([7; 16]);
    let healed = |bench: &mut Bench| bench.frames(C).iter().map(|append| append.heals.is_some()).collect::<Vec<_>>();
    bench.step(Input::Opened);
    bench.answer(C, other, Condition::Amnesic, Verdict::Lacks, 2, 2);
    bench.answer(C, other, Condition::Amnesic, Verdict::Took, 2, 2);
    assert_eq!(healed(&mut bench), [false, false, true], "with what makes it full, and not before");
}

#[test]
fn what_is_made_while_a_member_lags_goes_in_one_frame() {
    let mut bench = Bench::settled(0);
    (0..20).for_each(|salt| bench.make(1, salt));
    let sent = bench.sent(C);
    assert_eq!((sent.len(), sent[7]), (8, (7, 1, false)), "no more frames are under way");
    assert_eq!(bench.sent(B).len(), 8);
    bench.took(C, 1, 0);
    assert_eq!(bench.sent(C), [(8, 12, false)]);
}

#[test]
fn a_member_that_is_silent_is_asked_ever_more_seldom_and_sent_nothing_again() {
    let mut bench = Bench::settled(0);
    (0..20).for_each(|salt| bench.make(1, salt));
    bench.effects.clear();
    bench.ticks(100);
    let sent = bench.sent(C);
    assert!((8..=14).contains(&sent.len()) && sent.iter().all(|frame| *frame == (8, 0, false)), "{sent:?}");
    for _ in 0..5 {
        bench.step(Input::Lost(C));
    }
    bench.ticks(10);
    assert_eq!(bench.sent(C).len(), 1, "losses told of many times");
}

#[test]
fn what_was_lost_is_sent_again_from_where_it_is_missing_and_once() {
    let mut bench = Bench::settled(0);
    (0..5).for_each(|salt| bench.make(1, salt));
    bench.effects.clear();
    // The first frame was lost: each of the others is answered.
    (0..4).for_each(|_| bench.lacks(C, 0));
    assert_eq!(bench.sent(C), [(0, 0, false)]);
    bench.took(C, 0, 0);
    assert_eq!(bench.sent(C), [(0, 5, false)]);
}

#[test]
fn a_member_behind_d2_begins_anew_there() {
    let mut bench = Bench::settled(4);
    bench.make(6, 0);
    [OWN, B].into_iter().for_each(|node| bench.took(node, 10, 10));
    bench.effects.clear();
    bench.step(Input::Trimmed(Jseq(8)));
    bench.lacks(C, 2);
    let asked = bench.frames(C);
    assert_eq!((asked[0].prev.at, asked[0].marks.trimmed), (Jseq(8), Jseq(8)));
    bench.took(C, 8, 8);
    assert_eq!(bench.sent(C), [(8, 2, false)]);
    assert_eq!(bench.owner.records.len(), 2, "what is in the clouds is let go");
}

#[test]
fn a_copy_that_begins_above_the_base_is_gone_on_with() {
    let mut bench = Bench::new(9, 0);
    bench.lacks(C, 2);
    bench.lacks(C, 5);
    assert_eq!(bench.sent(C), [(9, 0, false), (2, 0, false)], "it may be an answer to what came before");
    bench.ticks(2);
    assert_eq!(bench.sent(C), [(5, 0, false)]);
    bench.took(C, 5, 5);
    assert_eq!(bench.sent(C), [(5, 4, false)]);
}

#[test]
fn a_barrier_asks_for_a_sync_where_the_last_record_is_and_until_it_is_done() {
    let mut bench = Bench::settled(0);
    bench.make(2, 0);
    bench.effects.clear();
    bench.step(Input::Sync);
    bench.step(Input::Sync);
    assert_eq!(bench.sent(B), [(2, 0, true)], "asked once");
    bench.took(B, 2, 0);
    assert_eq!(bench.sent(B), []);
    bench.ticks(2);
    assert_eq!(bench.sent(B), [(2, 0, true)], "no answer came");
    (0..10).for_each(|salt| bench.make(1, salt));
    bench.effects.clear();
    bench.step(Input::Sync);
    assert_eq!(bench.sent(B), [], "the window is full");
    bench.took(B, 5, 0);
    assert!(bench.sent(B).last().is_some_and(|(prev, count, sync)| *sync && prev + *count as u64 == 12));
}

#[test]
fn a_later_promise_ends_it_and_an_answer_that_cannot_be_changes_nothing() {
    let mut bench = Bench::settled(2);
    let answer = Appended {
        volume: VOLUME,
        epoch: Epoch(2),
        promise: Epoch(2),
        life: life(B, BOOT),
        verdict: Verdict::Took,
        condition: Condition::Whole,
        at: Jseq(9),
        synced: Jseq(9),
    };
    bench.step(Input::Appended(B, answer));
    bench.step(Input::Appended(NodeId(9), Appended { at: Jseq(2), promise: Epoch(7), ..answer }));
    bench.step(Input::Appended(B, Appended { epoch: Epoch(1), ..answer }));
    assert_eq!((bench.told(), bench.marks()), (vec![], (2, 2)));
    let stale = Appended { verdict: Verdict::Stale, promise: Epoch(5), ..answer };
    bench.step(Input::Appended(C, stale));
    assert_eq!(bench.told(), [Effect::Deposed(Epoch(5))]);
    bench.step(Input::Push);
    bench.ticks(50);
    assert!(bench.effects.is_empty());
}

#[test]
fn a_copy_that_cannot_be_counts_for_nothing() {
    let mut bench = Bench::settled(0);
    bench.answer(B, BOOT, Condition::Whole, Verdict::Conflict, 0, 0);
    bench.answer(B, BOOT, Condition::Whole, Verdict::Conflict, 0, 0);
    assert_eq!(bench.told(), [Effect::Conflict(B)]);
    bench.make(2, 0);
    assert_eq!(bench.sent(B), []);
    bench.took(B, 2, 2);
    bench.took(OWN, 2, 2);
    assert_eq!(bench.told(), []);
}

#[test]
fn chains_are_those_of_the_records() {
    let mut bench = Bench::settled(1);
    bench.make(1, 0);
    let frame = bench.frames(B).pop().unwrap();
    assert_ne!(frame.prev.chain, Hash::ZERO);
    assert!(judge(frame.prev, Epoch(2), &frame.records).is_ok());
}

/// Seen in a world without delays: a member whose journal had no room let a long frame pass and answered the short one behind it; it was
/// sent both again at once, for ever, and time stood still.
#[test]
fn a_member_that_lets_records_pass_rests_before_it_is_sent_them_again() {
    let mut bench = Bench::settled(0);
    bench.make(2, 0);
    bench.effects.clear();
    bench.lacks(B, 0);
    assert_eq!(bench.sent(B), [(0, 0, false)], "it may have been lost");
    bench.took(B, 0, 0);
    assert_eq!(bench.sent(B), [(0, 2, false)]);
    (0..3).for_each(|_| bench.lacks(B, 0));
    assert_eq!(bench.effects, [], "nothing is sent before time passes");
    let mut resent = 0;
    for _ in 0..40 {
        bench.effects.clear();
        bench.step(Input::Tick);
        let ships = |effect: &Effect| matches!(effect, Effect::Send { to: B, frame: Frame::Append(append) } if !append.records.is_empty());
        let asks = bench.effects.iter().any(|effect| matches!(effect, Effect::Send { to: B, .. }));
        let before = bench.effects.len();
        if asks && !bench.effects.iter().any(ships) {
            bench.took(B, 0, 0);
        }
        if bench.effects.iter().any(ships) {
            resent += 1;
            bench.effects.truncate(before);
            bench.lacks(B, 0);
        }
    }
    assert!((2..=12).contains(&resent), "more and more seldom: {resent} times in 40 ticks");
    bench.effects.clear();
    bench.took(B, 2, 0);
    bench.make(1, 0);
    assert!(
        bench.effects.iter().any(|effect| matches!(effect, Effect::Send { to: B, .. })),
        "once it has room, at once"
    );
}
