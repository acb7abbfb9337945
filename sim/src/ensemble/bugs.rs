//! Bugs planted on purpose in how the machines are used: each makes the right machines behave as ones with the bug would.

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
    /// An end of an earlier epoch is believed.
    BelievedVoidEnd,
    /// Copies are called whole before the epoch is open.
    HealedBeforeOpen,
    /// d1 of an earlier ensemble is taken for d1 of this one.
    InheritedDurable,
}

/// All planted bugs.
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
