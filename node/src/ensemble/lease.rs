//! Leases for reads, and how both sides count them: the owner of an epoch answers reads without a question while enough members
//! have granted it one, and a member that granted one answers no fence before it has ended.
//!
//! A fence and the members that an owner needs share one, so no later epoch opens while an owner may still read. The member
//! counts from when the question came, the owner from when it asked, and less: both clocks may run 5 % off. Both count by a clock that
//! goes on while a machine is suspended, and only differences of it.

use std::{collections::BTreeMap, time::Duration};

use velum_protocol::id::{Epoch, NodeId};

use crate::env::Instant;

/// How long a member holds to what it has granted. No longer than it takes to suspect an owner that is silent: by then it has ended.
pub const TTL: Duration = Duration::from_secs(1);

/// So much of it the owner counts.
pub const COUNTED: Duration = Duration::from_millis(900);

/// By how much a clock may be wrong, in percent.
const SKEW_PERCENT: u128 = 5;

// The longest that the owner may take for it, and the shortest that a member may.
const _: () = assert!(
    COUNTED.as_micros() * (100 + SKEW_PERCENT) < TTL.as_micros() * (100 - SKEW_PERCENT),
    "an owner stops reading before a member stops waiting, however wrong their clocks are"
);

/// What an owner was granted, by whom.
#[derive(Clone, Debug, Default, Hash)]
pub struct Leases(BTreeMap<NodeId, Instant>);

impl Leases {
    /// A member has granted one to a question that was sent then, or later.
    pub fn granted(&mut self, by: NodeId, sent: Instant) {
        let since = self.0.entry(by).or_insert(sent);
        *since = sent.max(*since);
    }

    /// None of them is used any more.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    /// What is left of what `needed` members have granted; zero when too little is.
    #[must_use]
    pub fn left(&self, needed: usize, now: Instant) -> Duration {
        let mut since: Vec<Instant> = self.0.values().copied().collect();
        since.sort_unstable_by(|left, right| right.cmp(left));
        let since = needed.checked_sub(1).and_then(|place| since.get(place));
        since.map_or(Duration::ZERO, |since| COUNTED.saturating_sub(now.since(*since)))
    }
}

/// What a member has granted last.
#[derive(Clone, Debug, Hash)]
pub struct Granted(Option<Grant>);

#[derive(Clone, Copy, Debug, Hash)]
struct Grant {
    epoch: Epoch,
    /// Nobody who is known, after a start.
    to: Option<NodeId>,
    ticket: u64,
    ends: Instant,
}

impl Granted {
    /// Nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// What the process before may have granted to anybody, for one that has started then.
    #[must_use]
    pub fn before(started: Instant) -> Self {
        Self(Some(Grant { epoch: Epoch(0), to: None, ticket: 0, ends: started + TTL }))
    }

    /// Grants one to the owner of an open epoch, whose question has come. There is none of an earlier epoch any more: that was waited
    /// for before this one opened.
    pub fn grant(&mut self, now: Instant, epoch: Epoch, to: NodeId, ticket: u64) {
        let ticket = self.0.filter(|last| last.epoch == epoch).map_or(ticket, |last| ticket.max(last.ticket));
        self.0 = Some(Grant { epoch, to: Some(to), ticket, ends: now + TTL });
    }

    /// Its owner uses nothing of what questions up to this one brought.
    pub fn release(&mut self, epoch: Epoch, by: NodeId, ticket: u64) {
        self.0.take_if(|last| last.epoch == epoch && last.to == Some(by) && last.ticket <= ticket);
    }

    /// A node takes over in an epoch. When it is the one that holds the lease it has stopped to read by it, or its process has ended.
    pub fn takes_over(&mut self, node: NodeId, epoch: Epoch) {
        self.0.take_if(|last| last.epoch < epoch && last.to == Some(node));
    }

    /// For how long a promise of this epoch is not to be told to whoever takes over; zero when it may be.
    #[must_use]
    pub fn wait(&self, now: Instant, promise: Epoch) -> Duration {
        self.0.filter(|last| last.epoch < promise).map_or(Duration::ZERO, |last| last.ends.since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Instant {
        Instant(ms * 1_000)
    }

    fn left_ms(leases: &Leases, now_ms: u64) -> u128 {
        leases.left(2, ms(now_ms)).as_millis()
    }

    #[test]
    fn an_owner_counts_from_when_it_asked_and_needs_enough_members() {
        let mut leases = Leases::default();
        leases.granted(NodeId(1), ms(1_000));
        assert_eq!(left_ms(&leases, 1_000), 0, "one of three");
        leases.granted(NodeId(1), ms(1_100));
        assert_eq!(left_ms(&leases, 1_100), 0, "one member counts once");
        leases.granted(NodeId(3), ms(1_000));
        assert_eq!([left_ms(&leases, 1_100), left_ms(&leases, 1_899), left_ms(&leases, 1_900)], [800, 1, 0]);
        leases.granted(NodeId(2), ms(1_500));
        assert_eq!(left_ms(&leases, 1_500), 500, "as long as the second one that lasts longest");
        leases.granted(NodeId(1), ms(900));
        assert_eq!(left_ms(&leases, 1_500), 500, "an answer that comes late takes nothing back");
        leases.forget();
        assert_eq!(left_ms(&leases, 1_500), 0);
    }

    #[test]
    fn a_member_holds_to_what_it_granted_from_when_the_question_came() {
        let mut granted = Granted::none();
        assert_eq!(granted.wait(ms(0), Epoch(9)), Duration::ZERO);
        granted.grant(ms(1_000), Epoch(4), NodeId(1), 7);
        assert_eq!(granted.wait(ms(1_200), Epoch(5)), Duration::from_millis(800));
        assert_eq!(granted.wait(ms(1_200), Epoch(4)), Duration::ZERO, "the epoch of the lease itself");
        assert_eq!(granted.wait(ms(2_000), Epoch(5)), Duration::ZERO, "it has ended");
        granted.grant(ms(1_500), Epoch(4), NodeId(1), 6);
        assert_eq!(granted.wait(ms(1_500), Epoch(5)), TTL, "longer, for a question that was overtaken");
        granted.release(Epoch(4), NodeId(1), 6);
        assert_eq!(granted.wait(ms(1_500), Epoch(5)), TTL, "the later question's is not released");
        granted.release(Epoch(4), NodeId(2), 7);
        granted.release(Epoch(3), NodeId(1), 7);
        assert_eq!(granted.wait(ms(1_500), Epoch(5)), TTL, "by nobody else, and for no other epoch");
        granted.release(Epoch(4), NodeId(1), 7);
        assert_eq!(granted.wait(ms(1_500), Epoch(5)), Duration::ZERO);
    }

    #[test]
    fn whoever_holds_it_and_takes_over_itself_waits_for_nothing() {
        let mut granted = Granted::none();
        granted.grant(ms(0), Epoch(4), NodeId(1), 7);
        granted.takes_over(NodeId(2), Epoch(5));
        granted.takes_over(NodeId(1), Epoch(4));
        assert_eq!(
            granted.wait(ms(0), Epoch(5)),
            TTL,
            "another node, or a word that was on its way before the epoch began"
        );
        granted.takes_over(NodeId(1), Epoch(5));
        assert_eq!(granted.wait(ms(0), Epoch(5)), Duration::ZERO);
    }

    #[test]
    fn what_a_process_before_may_have_granted_is_waited_for_by_everybody() {
        let mut granted = Granted::before(ms(500));
        granted.takes_over(NodeId(1), Epoch(5));
        granted.release(Epoch(0), NodeId(1), 9);
        assert_eq!(granted.wait(ms(700), Epoch(1)), Duration::from_millis(800));
        assert_eq!(granted.wait(ms(1_500), Epoch(1)), Duration::ZERO);
    }
}
