//! Bugs planted on purpose in how the machines are used: each makes the right machines behave as ones with the bug would.

use bytes::Bytes;
use velum_node::{
    ensemble::member::{self, Member, Noted},
    env::Instant,
};
use velum_protocol::{
    format::record::{HEADER_BYTES, chain},
    id::{BootId, Epoch, Jseq, NodeId},
    peer::{
        Frame,
        ensemble::{Append, Condition, Fence, Fenced, Point},
    },
};

use super::machine::{Machine, VOLUME, whole};

/// A planted bug. The numbers are those of the list of bugs that this family of systems is known for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bug {
    /// 2: a write is acked with one copy.
    AckAtOne,
    /// 4: a barrier is acked when the owner's disk is synced.
    SyncAtOwner,
    /// 5: a fence is answered before the promise is durable.
    UnstoredPromise,
    /// 6: copies are looked at before their members are fenced.
    ReadBeforeFence,
    /// 7: the lowest end is taken.
    LowestEnd,
    /// 8: members take records of an epoch below their promise.
    StaleEpoch,
    /// 9: members take records that follow something else.
    NoChainCheck,
    /// 10: amnesic copies count as whole in a takeover.
    CountedAmnesic,
    /// 11: the lineage stays.
    KeptLineage,
    /// The owner's own copy counts twice.
    OwnCopyTwice,
    /// 12: an owner counts a lease from when the answer came.
    LeaseFromReply,
    /// 13: a fence is answered while a lease is out.
    NoLeaseWait,
    /// 14: an owner reads by a lease that has ended.
    ReadAfterLease,
    /// 15: raft takes a record of the sequence whose owner's epoch is over.
    StaleAppend,
    /// 16: raft takes a record of the sequence that follows another one than the last.
    UnlinkedAppend,
    /// 20: members trim what is not in the clouds yet.
    TrimBeforeDurable,
    /// 30: a copy whose journal is damaged in the middle is cut there and counts as whole.
    CutAtDamage,
    /// A copy that lacks what was synced is taken for one that lost power.
    DamagedAsAmnesic,
    /// A promise that is stored behind the word that a copy was filled says again that it is damaged.
    FillTakenBack,
    /// An end of an earlier epoch is believed.
    BelievedVoidEnd,
    /// Copies are called whole before the epoch is open.
    HealedBeforeOpen,
    /// d1 of an earlier ensemble is taken for d1 of this one.
    InheritedDurable,
}

/// The bugs that are looked for under seeds. [`Bug::FillTakenBack`] takes them a minute, and [`crate::model`] an instant.
pub const ALL: [Bug; 21] = [
    Bug::AckAtOne,
    Bug::SyncAtOwner,
    Bug::UnstoredPromise,
    Bug::ReadBeforeFence,
    Bug::LowestEnd,
    Bug::StaleEpoch,
    Bug::NoChainCheck,
    Bug::CountedAmnesic,
    Bug::KeptLineage,
    Bug::OwnCopyTwice,
    Bug::LeaseFromReply,
    Bug::NoLeaseWait,
    Bug::ReadAfterLease,
    Bug::StaleAppend,
    Bug::UnlinkedAppend,
    Bug::TrimBeforeDurable,
    Bug::CutAtDamage,
    Bug::DamagedAsAmnesic,
    Bug::BelievedVoidEnd,
    Bug::HealedBeforeOpen,
    Bug::InheritedDurable,
];

impl Bug {
    /// The member that takes what it should not, if it is one with the bug and that is what comes.
    pub(crate) fn bent(self, machine: &Machine, append: &Append, now: Instant) -> Option<Member> {
        let mut found = machine.find();
        let promised = found.promise.map_or(Epoch(0), |noted| noted.epoch);
        let end = found.held.last().map_or(found.base.chain, |held| held.chain);
        let last = found.base.at.0 + found.held.len() as u64;
        let is_stale = self == Self::StaleEpoch && append.epoch < promised;
        let is_unchained = self == Self::NoChainCheck
            && append.prev.at.0 <= last
            && append.prev.chain != end
            && !append.records.is_empty();
        if !is_stale && !is_unchained {
            return None;
        }
        found.promise = Some(whole(promised.min(append.epoch), found.life.boot));
        if is_unchained {
            (found.base, found.held) = (append.prev, Vec::new());
        } else {
            found.held.retain(|held| held.epoch <= append.epoch);
        }
        Some(Member::new(found, now))
    }
}

/// What a start makes of a journal that is found so.
pub(crate) fn found(bug: Option<Bug>, reads: Condition) -> Condition {
    match bug {
        Some(Bug::CutAtDamage) => Condition::Whole,
        Some(Bug::DamagedAsAmnesic) => reads.min(Condition::Amnesic),
        _ => reads,
    }
}

/// What a node stores when it is to store `noted`.
pub(crate) fn stores(bug: Option<Bug>, machine: &Machine, mut noted: Noted) -> Noted {
    // Within the life in which it was found damaged, and is filled in the file alone.
    noted.is_damaged |= bug == Some(Bug::FillTakenBack)
        && machine.disk.promise.is_some_and(|promise| promise.is_damaged)
        && machine.disk.storing.iter().any(|storing| !storing.is_damaged);
    noted
}

/// True when with that promise nothing is missing any more that damage took.
pub(crate) fn is_filled(bug: Option<Bug>, promise: &Noted) -> bool {
    match bug {
        // Nobody fills what passes for whole, and what passes for amnesic is filled when it is called whole.
        Some(Bug::CutAtDamage) => false,
        Some(Bug::DamagedAsAmnesic) => promise.whole_in != BootId::ZERO,
        _ => !promise.is_damaged,
    }
}

/// What a member would say to `by` if it were fenced, before it is.
pub(crate) fn unfenced(machine: &Machine, by: NodeId, epoch: Epoch) -> Option<Fenced> {
    let mut found = machine.find();
    found.promise = Some(whole(epoch, found.life.boot));
    let (mut member, mut effects) = (Member::new(found, Instant(0)), Vec::new());
    // Long after its start, so that nothing is waited for.
    member.step(Instant(u64::MAX), member::Input::Fence(by, Fence { volume: VOLUME, epoch }), &mut effects);
    effects.into_iter().find_map(|effect| match effect {
        member::Effect::Send { frame: Frame::Fenced(fenced), .. } => Some(fenced),
        _ => None,
    })
}

/// What was chosen, cut at the lowest of the `tails` instead of the highest; the same when that cannot be below `head`.
pub(crate) fn lowest(chosen: Chosen, tails: &[Jseq], head: Jseq) -> Chosen {
    let Chosen { base, mut records, end, durable } = chosen;
    let Some(tail) = tails.iter().min().copied().filter(|tail| *tail >= head && *tail < end.at) else {
        return Chosen { base, records, end, durable };
    };
    records.truncate(tail.0.saturating_sub(base.at.0) as usize);
    let link = |record: &Bytes| {
        let (lead, sealed) = record.split_first_chunk::<HEADER_BYTES>().expect("a record has a header");
        chain(lead, sealed)
    };
    let end = Point { at: tail, chain: records.last().map_or(base.chain, link) };
    Chosen { base, records, end, durable: durable.min(end.at) }
}

/// What a takeover has chosen.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) base: Point,
    pub(crate) records: Vec<Bytes>,
    pub(crate) end: Point,
    pub(crate) durable: Jseq,
}
