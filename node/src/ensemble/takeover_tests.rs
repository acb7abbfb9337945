//! The rules of a takeover, one by one, with members that are played by hand.

use velum_protocol::peer::ensemble::Life;

use super::*;
use crate::ensemble::member::tests::{LIFE, START, VOLUME, records};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);

type Records = Vec<(Bytes, Point)>;

/// A copy of a member.
#[derive(Clone, Debug)]
struct Copy {
    base: Point,
    records: Records,
    epoch: u64,
    durable: u64,
    condition: Condition,
}

impl Copy {
    fn of(epoch: u64, records: &[(Bytes, Point)]) -> Self {
        Self { base: START, records: records.to_vec(), epoch, durable: 0, condition: Condition::Whole }
    }

    fn amnesic(self) -> Self {
        Self { condition: Condition::Amnesic, ..self }
    }

    fn damaged(self) -> Self {
        Self { condition: Condition::Damaged, ..self }
    }

    fn fenced(&self) -> Fenced {
        let tail = self.records.last().map_or(self.base, |(_, point)| *point);
        let life: Life = LIFE;
        let tail_epoch = Epoch(if self.records.is_empty() { 0 } else { self.epoch });
        let (condition, base, durable) = (self.condition, self.base, Jseq(self.durable));
        Fenced { volume: VOLUME, promise: Epoch(9), life, condition, base, tail, tail_epoch, durable }
    }

    /// The records asked for, at most `most` of them.
    fn tail(&self, read: ReadTail, most: u64) -> Tail {
        let is_in = |point: &Point| point.at > read.after && point.at <= read.through.min(Jseq(read.after.0 + most));
        let at = |(_, point): &&(Bytes, Point)| point.at == read.after;
        let prev = if read.after == self.base.at { self.base } else { self.records.iter().find(at).unwrap().1 };
        let records = self.records.iter().filter(|(_, point)| is_in(point)).map(|(bytes, _)| bytes.clone()).collect();
        Tail { volume: VOLUME, epoch: Epoch(9), prev, records }
    }
}

/// What was chosen: base, records, end, d1, lineage.
type Chosen = (u64, usize, Point, u64, bool);

struct Bench {
    takeover: Takeover,
    effects: Vec<Effect>,
    asked: Vec<(NodeId, ReadTail)>,
    /// Records in a frame.
    most: u64,
}

impl Bench {
    fn new(opening: Opening) -> Self {
        let mut effects = Vec::new();
        let takeover = Takeover::new(opening, &mut effects);
        Self { takeover, effects, asked: Vec::new(), most: 100 }
    }

    fn step(&mut self, input: Input) {
        self.takeover.step(input, &mut self.effects);
    }

    fn says(&mut self, node: NodeId, copy: &Copy) {
        self.step(Input::Fenced(node, copy.fenced()));
    }

    fn ticks(&mut self, count: u32) {
        (0..count).for_each(|_| self.step(Input::Tick));
    }

    /// The question for records that is open.
    fn question(&mut self) -> Option<(NodeId, ReadTail)> {
        let asked =
            self.effects.extract_if(.., |effect| matches!(effect, Effect::Send { frame: Frame::ReadTail(_), .. }));
        let asked = asked.filter_map(|effect| match effect {
            Effect::Send { to, frame: Frame::ReadTail(read) } => Some((to, read)),
            _ => None,
        });
        asked.last().inspect(|asked| self.asked.push(*asked))
    }

    /// Answers questions for records until there are none; what was chosen then.
    fn serve(&mut self, copies: &[(NodeId, &Copy)]) -> Option<Chosen> {
        while let Some((to, read)) = self.question() {
            let (_, copy) = copies.iter().find(|(node, _)| *node == to).unwrap();
            let tail = copy.tail(read, self.most);
            self.step(Input::Tail(to, tail));
        }
        self.chosen()
    }

    fn chosen(&self) -> Option<Chosen> {
        self.effects.iter().find_map(|effect| match effect {
            Effect::Chosen { base, records, end, durable, lineage_changes } => {
                Some((base.at.0, records.len(), *end, durable.0, *lineage_changes))
            }
            _ => None,
        })
    }

    fn waits(&mut self) -> Vec<Reason> {
        let told = self.effects.extract_if(.., |effect| matches!(effect, Effect::Waiting(_)));
        told.filter_map(|effect| if let Effect::Waiting(why) = effect { Some(why) } else { None }).collect()
    }

    fn fences(&mut self, node: NodeId) -> usize {
        let is_fence =
            |effect: &mut Effect| matches!(effect, Effect::Send { to, frame: Frame::Fence(_) } if *to == node);
        self.effects.extract_if(.., is_fence).count()
    }
}

/// Node 3 takes over in epoch 9 from the open epoch 5, which began at `base`.
fn opening(base: Point) -> Opening {
    let fenced = vec![A, B, C];
    let (epoch, closes) = (Epoch(9), Epoch(5));
    Opening { volume: VOLUME, node: C, epoch, closes, fenced, base, head: START, durable: None }
}

fn end(records: &[(Bytes, Point)]) -> Point {
    records.last().unwrap().1
}

#[test]
fn nothing_is_read_before_enough_are_fenced_and_then_the_highest_end_is_taken() {
    let all = records(5, START, 8, 0);
    let (b, c) = (Copy::of(5, &all), Copy::of(5, &all[..6]));
    let mut bench = Bench::new(opening(START));
    assert_eq!([A, B, C].map(|node| bench.fences(node)), [1, 1, 1]);
    bench.says(B, &b);
    bench.says(B, &b);
    assert_eq!(bench.question(), None, "one member, told twice");
    bench.says(C, &c);
    bench.most = 3;
    assert_eq!(bench.serve(&[(B, &b), (C, &c)]), Some((0, 8, end(&all), 0, false)));
    assert_eq!(bench.asked.iter().map(|(_, read)| read.after.0).collect::<Vec<_>>(), [0, 3, 6]);
}

#[test]
fn the_own_copy_is_read_where_it_reaches() {
    let all = records(5, START, 4, 0);
    let copy = Copy::of(5, &all);
    let mut bench = Bench::new(opening(START));
    bench.says(A, &copy);
    bench.says(C, &copy);
    assert_eq!(bench.question().unwrap().0, C);
}

/// An end of an earlier epoch, which a node that was away still holds, was never acked: it must not win by being longer.
#[test]
fn an_end_of_an_earlier_epoch_counts_up_to_where_the_open_one_began() {
    let old = records(3, START, 9, 0);
    let mut now = old[..2].to_vec();
    now.extend(records(5, old[1].1, 2, 0));
    let (a, b) = (Copy::of(3, &old), Copy::of(5, &now));
    let mut bench = Bench::new(opening(old[1].1));
    bench.says(A, &a);
    bench.says(B, &b);
    assert_eq!(bench.serve(&[(A, &a), (B, &b)]), Some((0, 4, end(&now), 0, false)));
}

/// It counts as long as it agrees up to there; another past is found out, and still holds all that its member answered for.
#[test]
fn a_copy_that_missed_the_open_epoch_is_read_if_it_agrees_and_counts_if_it_does_not() {
    let past = records(3, START, 9, 0);
    let other = records(2, START, 9, 1);
    let (a, b, c) = (Copy::of(2, &other), Copy::of(3, &past), Copy::of(2, &other));
    let mut bench = Bench::new(opening(past[3].1));
    bench.says(C, &c);
    bench.says(B, &b);
    assert_eq!(bench.serve(&[(A, &a), (B, &b), (C, &c)]), Some((0, 4, past[3].1, 0, false)));
    assert_eq!(bench.asked.iter().map(|(node, _)| *node).collect::<Vec<_>>(), [C, B], "the own copy was another past");
}

#[test]
fn a_volume_kept_alone_goes_on_from_its_copy_whatever_epoch_it_is_of() {
    let all = records(3, START, 7, 0);
    let copy = Copy::of(3, &all);
    let mut bench = Bench::new(Opening { fenced: vec![C], ..opening(START) });
    bench.says(C, &copy);
    assert_eq!(bench.serve(&[(C, &copy)]), Some((0, 7, end(&all), 0, false)));
}

#[test]
fn where_nothing_was_ever_open_nobody_is_asked() {
    let head = end(&records(1, START, 3, 0));
    let bench = Bench::new(Opening { fenced: vec![], closes: Epoch(0), head, ..opening(START) });
    assert_eq!(bench.chosen(), Some((3, 0, head, 0, false)));
}

#[test]
fn amnesic_copies_change_the_lineage_after_a_grace_and_a_whole_one_keeps_it() {
    let all = records(5, START, 4, 0);
    let (a, b) = (Copy::of(5, &all).amnesic(), Copy::of(5, &all[..3]));
    let fenced = || {
        let mut bench = Bench::new(opening(START));
        bench.says(A, &a);
        bench.says(B, &b);
        bench.ticks(GRACE_TICKS - 1);
        assert_eq!(bench.question(), None);
        bench
    };
    let mut bench = fenced();
    bench.ticks(1);
    assert_eq!(bench.serve(&[(A, &a)]), Some((0, 4, end(&all), 0, true)));
    let mut bench = fenced();
    let c = Copy::of(5, &all[..1]);
    bench.says(C, &c);
    assert_eq!(bench.serve(&[(A, &a)]), Some((0, 4, end(&all), 0, false)));
    let mut bench = Bench::new(opening(START));
    bench.says(A, &a);
    bench.says(B, &b);
    bench.says(C, &c.amnesic());
    assert_eq!(bench.serve(&[(A, &a)]), Some((0, 4, end(&all), 0, true)), "nobody is left to wait for");
}

/// A copy that lacked what it had synced was taken for one that had lost power. When the copy that had it all was away for longer than
/// the grace, the volume went on with less than barriers had covered.
#[test]
fn a_damaged_copy_is_no_answer_however_long_the_others_are_away() {
    let all = records(5, START, 6, 0);
    let (a, b) = (Copy::of(5, &all[..4]), Copy::of(5, &all[..2]).damaged());
    let mut bench = Bench::new(opening(START));
    bench.says(A, &a);
    bench.says(B, &b);
    bench.ticks(GRACE_TICKS * 10);
    assert_eq!((bench.question(), bench.chosen()), (None, None));
    let why = Reason::TooDamaged { answered: 1, needed: 2, damaged: vec![B], missing: vec![C] };
    assert_eq!(bench.waits()[0], why);
    assert_eq!(
        why.to_string(),
        "1 of the 2 journals needed have answered; the journal of node 2 is damaged and may lack what was synced; start node 3"
    );
    let c = Copy::of(5, &all).amnesic();
    bench.says(C, &c);
    assert_eq!(bench.serve(&[(C, &c)]), Some((0, 6, end(&all), 0, true)), "nobody is left to wait for");
}

#[test]
fn where_all_have_answered_and_too_many_are_damaged_the_volume_stays_closed() {
    let all = records(5, START, 4, 0);
    let (whole, damaged) = (Copy::of(5, &all), Copy::of(5, &all).damaged());
    let mut bench = Bench::new(opening(START));
    bench.says(A, &whole);
    bench.says(B, &damaged);
    bench.says(C, &damaged);
    bench.ticks(GRACE_TICKS * 10);
    assert_eq!((bench.question(), bench.chosen()), (None, None));
    assert!(bench.waits()[0].to_string().ends_with("all have answered, and what is missing is lost"));
}

/// Its end is no end, but what it holds is what it is: the chain says so.
#[test]
fn a_damaged_copy_is_read_where_no_other_goes_on() {
    let all = records(5, START, 6, 0);
    let late = Copy { base: all[2].1, ..Copy::of(5, &all[3..5]) };
    let (a, b, c) = (late, Copy::of(5, &all[..1]), Copy::of(5, &all).damaged());
    let mut bench = Bench::new(opening(START));
    bench.says(A, &a);
    bench.says(B, &b);
    assert_eq!(bench.question(), None, "the first copy begins late");
    bench.says(C, &c);
    assert_eq!(bench.serve(&[(A, &a), (C, &c)]), Some((0, 5, all[4].1, 0, false)), "up to where the others end");
}

#[test]
fn an_end_below_what_was_synced_is_damage_until_more_answer() {
    let all = records(5, START, 6, 0);
    let (a, b) = (Copy::of(5, &all[..3]), Copy { durable: 5, ..Copy::of(5, &all[..4]) });
    let mut bench = Bench::new(opening(START));
    bench.says(A, &a);
    bench.says(B, &b);
    bench.ticks(100);
    assert_eq!(bench.question(), None);
    let damaged = Reason::Damaged { needed: Jseq(5), end: Jseq(4), missing: vec![C] };
    let told = bench.waits();
    assert!(told.len() == 10 && told.iter().all(|why| *why == damaged), "{told:?}");
    let c = Copy::of(5, &all);
    bench.says(C, &c);
    assert_eq!(bench.serve(&[(C, &c)]), Some((0, 6, end(&all), 5, false)));
}

#[test]
fn an_end_below_the_heads_is_the_head_and_one_above_goes_through_it() {
    let all = records(5, START, 6, 0);
    let short = Copy::of(5, &all[..2]).amnesic();
    let sequence = |at: usize| Opening { head: all[at - 1].1, ..opening(START) };
    let mut bench = Bench::new(sequence(4));
    [A, B, C].into_iter().for_each(|node| bench.says(node, &short));
    assert_eq!(bench.serve(&[]), Some((4, 0, all[3].1, 0, true)));
    let long = Copy::of(5, &all);
    let mut bench = Bench::new(sequence(4));
    [A, B].into_iter().for_each(|node| bench.says(node, &long));
    assert_eq!(bench.serve(&[(A, &long), (B, &long)]), Some((0, 6, end(&all), 0, false)));
    let mut bench = Bench::new(Opening { durable: Some(all[3].1), ..sequence(4) });
    [A, B].into_iter().for_each(|node| bench.says(node, &long));
    assert_eq!(bench.serve(&[(A, &long), (B, &long)]), Some((4, 2, end(&all), 0, false)), "not what is in the clouds");
    let mut bench = Bench::new(Opening { durable: Some(end(&all)), ..sequence(6) });
    [A, B].into_iter().for_each(|node| bench.says(node, &long));
    assert_eq!(bench.serve(&[]), Some((6, 0, end(&all), 0, false)));
}

#[test]
fn a_copy_that_denies_the_head_is_not_counted() {
    let (all, other) = (records(5, START, 6, 0), records(5, START, 6, 1));
    let (a, b) = (Copy::of(5, &other), Copy::of(5, &all));
    let mut bench = Bench::new(Opening { head: all[3].1, ..opening(START) });
    bench.says(A, &a);
    bench.says(B, &b);
    bench.serve(&[(A, &a), (B, &b)]);
    bench.ticks(10);
    if bench.asked.iter().any(|(node, _)| *node == A) {
        assert!(matches!(bench.waits()[..], [Reason::TooFew { answered: 1, needed: 2, .. }]));
    }
    let c = Copy::of(5, &all[..5]);
    bench.says(C, &c);
    assert_eq!(bench.serve(&[(B, &b), (C, &c)]), Some((0, 6, end(&all), 0, false)));
}

#[test]
fn a_copy_that_begins_above_the_head_is_said_and_waited_out() {
    let all = records(5, START, 6, 0);
    let late = Copy { base: all[1].1, ..Copy::of(5, &all[2..]) };
    let mut bench = Bench::new(opening(START));
    bench.says(A, &late);
    bench.says(B, &Copy::of(5, &all[..1]));
    bench.ticks(10);
    let why = bench.waits();
    assert_eq!(why, [Reason::BeginsLate { node: A, begins: Jseq(2), head: Jseq(0), missing: vec![C] }]);
    assert!(why[0].to_string().ends_with("start node 3"), "{}", why[0]);
    let c = Copy::of(5, &all);
    bench.says(C, &c);
    assert_eq!(bench.serve(&[(C, &c)]), Some((0, 6, end(&all), 0, false)));
}

#[test]
fn one_copy_goes_on_where_another_ended() {
    let all = records(5, START, 6, 0);
    let (a, c) = (Copy::of(5, &all[..5]), Copy { base: all[1].1, ..Copy::of(5, &all[2..]) });
    let mut bench = Bench::new(opening(START));
    bench.most = 3;
    bench.says(A, &a);
    bench.says(B, &Copy::of(5, &[]));
    let (_, read) = bench.question().unwrap();
    bench.step(Input::Tail(A, a.tail(read, 3)));
    bench.says(C, &c);
    assert_eq!(bench.serve(&[(C, &c)]), Some((0, 6, end(&all), 0, false)));
}

/// What was read of a copy that is gone ended below where the copies that are left begin, which is fine: the clouds have what is
/// before. The takeover waited for ever.
#[test]
fn what_nobody_can_go_on_from_is_read_anew() {
    let all = records(5, START, 8, 0);
    let (a, c) = (Copy::of(5, &all), Copy { base: all[3].1, ..Copy::of(5, &all[4..]) });
    let mut bench = Bench::new(Opening { head: all[5].1, ..opening(START) });
    bench.says(A, &a);
    bench.says(B, &Copy::of(5, &[]));
    let (_, read) = bench.question().unwrap();
    bench.step(Input::Tail(A, a.tail(read, 2)));
    bench.says(C, &c);
    bench.ticks(PAUSE_MAX + 1);
    assert_eq!(bench.serve(&[(C, &c)]), Some((4, 4, end(&all), 0, false)));
}

/// A member that lost power after it was fenced holds less than it said.
#[test]
fn a_copy_that_is_not_any_more_what_was_said_is_fenced_again() {
    let all = records(5, START, 6, 0);
    let (b, c) = (Copy::of(5, &all), Copy::of(5, &all[..4]));
    let mut bench = Bench::new(opening(START));
    bench.says(B, &b);
    bench.says(C, &c);
    assert!(bench.question().is_some());
    bench.fences(B);
    bench.step(Input::Tail(B, Tail { volume: VOLUME, epoch: Epoch(9), prev: START, records: vec![] }));
    bench.ticks(1);
    assert_eq!((bench.fences(B), bench.question()), (1, None));
    bench.says(B, &Copy::of(5, &all[..2]).amnesic());
    bench.ticks(GRACE_TICKS);
    assert_eq!(bench.serve(&[(C, &c)]), Some((0, 4, end(&all[..4]), 0, true)));
}

#[test]
fn a_source_that_falls_silent_is_waited_for_or_replaced() {
    let all = records(5, START, 6, 0);
    let copy = Copy::of(5, &all);
    let mut bench = Bench::new(opening(START));
    bench.says(A, &copy);
    bench.says(B, &copy);
    let (silent, _) = bench.question().unwrap();
    bench.ticks(PAUSE_MAX + 1);
    assert_eq!((bench.question(), bench.chosen()), (None, None));
    let other = if silent == A { B } else { A };
    bench.says(C, &copy);
    assert!(bench.serve(&[(other, &copy), (C, &copy)]).is_some());
}

#[test]
fn it_asks_again_ever_more_seldom_and_says_whom_it_waits_for() {
    let mut bench = Bench::new(opening(START));
    bench.says(A, &Copy::of(5, &[]));
    bench.fences(B);
    bench.ticks(100);
    assert!((9..=14).contains(&bench.fences(B)));
    let why = Reason::TooFew { answered: 1, needed: 2, missing: vec![B, C] };
    assert_eq!(bench.waits()[0], why);
    assert_eq!(why.to_string(), "1 of the 2 journals needed have answered; start node 2 and node 3");
}

#[test]
fn a_later_promise_ends_it_and_words_of_others_change_nothing() {
    let copy = Copy::of(5, &records(5, START, 2, 0));
    let mut bench = Bench::new(opening(START));
    bench.says(NodeId(7), &copy);
    bench.step(Input::Fenced(A, Fenced { promise: Epoch(8), ..copy.fenced() }));
    bench.says(B, &copy);
    assert_eq!(bench.question(), None);
    bench.step(Input::Fenced(A, Fenced { promise: Epoch(10), ..copy.fenced() }));
    assert!(bench.effects.contains(&Effect::Overtaken(Epoch(10))));
    bench.effects.clear();
    bench.says(C, &copy);
    bench.ticks(20);
    assert!(bench.effects.is_empty());
}

#[test]
fn five_members_need_three() {
    let all = records(5, START, 4, 0);
    let fenced = (1..=5).map(NodeId).collect();
    let mut bench = Bench::new(Opening { fenced, ..opening(START) });
    let copy = Copy::of(5, &all);
    bench.says(A, &copy);
    bench.says(B, &copy);
    assert_eq!(bench.question(), None);
    bench.says(NodeId(5), &Copy::of(5, &[]));
    assert_eq!(bench.serve(&[(A, &copy), (B, &copy)]), Some((0, 4, end(&all), 0, false)));
}
