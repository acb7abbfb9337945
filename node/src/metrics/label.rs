//! Labels whose values are known in advance, so that nothing from outside can make a series.

use std::marker::PhantomData;

/// A label whose values are known in advance.
pub trait Label: Copy + 'static {
    /// All values, in order of [`Label::index`].
    const ALL: &'static [Self];
    /// The label's name.
    const NAME: &'static str;
    /// The value's text.
    fn text(self) -> &'static str;
    /// The value's place in [`Label::ALL`].
    fn index(self) -> usize;
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident $label:literal { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            const NAME: &'static str = $label;

            fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// What a guest asked for.
    GuestRequest "kind" {
        /// READ.
        Read = "read",
        /// WRITE.
        Write = "write",
        /// FLUSH.
        Barrier = "barrier",
        /// TRIM.
        Trim = "trim",
        /// WRITE_ZEROES.
        WriteZeroes = "write_zeroes",
        /// CACHE.
        Prefetch = "prefetch",
        /// BLOCK_STATUS.
        Status = "status",
    }
}
label! {
    /// What says that a node still owns a volume that is read.
    ReadsBy "by" {
        /// Leases that the members granted.
        Lease = "lease",
        /// What they answered to a question.
        Question = "question",
    }
}
label! {
    /// How a guest's request ended.
    GuestOutcome "outcome" {
        /// Done.
        Done = "done",
        /// Not allowed, out of range or malformed: the guest's fault.
        Refused = "refused",
        /// The node could not.
        Failed = "failed",
    }
}
label! {
    /// Why input of an NBD client was turned away.
    RefusedInput "reason" {
        /// Flags, magics or lengths that the protocol does not allow.
        Malformed = "malformed",
        /// Longer than a bound.
        TooLong = "too_long",
        /// An option or command that is not known.
        Unknown = "unknown",
        /// An export that does not exist or may not be seen.
        UnknownExport = "unknown_export",
        /// Too slow, too many options or too many connections.
        Limit = "limit",
    }
}
label! {
    /// A decision point that can say no.
    Gate "gate" {
        /// Gate 1, in the server: principal and volume.
        Volume = "volume",
        /// Gate 2, in the cache: principal and region.
        Region = "region",
        /// Gate 3, in the array: the flush.
        Flush = "flush",
    }
}
label! {
    /// Which part a node has in a forwarded request.
    Side "side" {
        /// It asks the owner on behalf of its guest.
        Asking = "asking",
        /// It is the owner.
        Serving = "serving",
    }
}
label! {
    /// Where an extent was found.
    Tier "tier" {
        /// Among the dirty extents.
        Buffer = "buffer",
        /// Clean, in memory.
        Memory = "memory",
        /// Clean, on local disk.
        Disk = "disk",
    }
}
label! {
    /// The parts of a flush, in order.
    FlushPhase "phase" {
        /// Gate 3.
        Grant = "grant",
        /// Sealing frames and segments.
        Seal = "seal",
        /// Segments to enough clouds.
        Put = "put",
        /// The sequence record through Raft.
        Commit = "commit",
        /// The sequence record to enough clouds: from here on the window is cloud-durable.
        Publish = "publish",
    }
}
label! {
    /// How a piece of background work ended.
    WorkOutcome "outcome" {
        /// Done.
        Done = "done",
        /// Given up; it starts over.
        Failed = "failed",
    }
}
label! {
    /// What a node is in the group that agrees on metadata.
    NodeRole "role" {
        /// Votes; one of these leads.
        Voter = "voter",
        /// Is told everything and has no vote yet.
        Learner = "learner",
        /// May join and is not told anything yet.
        Joining = "joining",
        /// Is on its way out.
        Leaving = "leaving",
    }
}
label! {
    /// What was asked of a cloud.
    CloudRequest "kind" {
        /// Store an object.
        Put = "put",
        /// Store an object of a name that must be free.
        Create = "create",
        /// Read an object.
        Get = "get",
        /// Read a part of an object.
        GetRange = "get_range",
        /// Ask for an object's length.
        Head = "head",
        /// Remove an object.
        Delete = "delete",
        /// List names.
        List = "list",
    }
}
label! {
    /// What can be done with a cloud.
    CloudState "state" {
        /// It answers and takes what is stored.
        Up = "up",
        /// It does not answer, or refuses the credentials.
        Away = "away",
        /// It answers and does not take what is stored.
        ReadOnly = "read_only",
        /// Its identity object is gone.
        Emptied = "emptied",
        /// It holds another cluster's identity.
        Foreign = "foreign",
        /// Its identity is back; how far it reaches is looked at again.
        Returned = "returned",
    }
}
label! {
    /// How one attempt at a cloud ended.
    CloudOutcome "outcome" {
        /// Done.
        Done = "done",
        /// No such object.
        NotFound = "not_found",
        /// A create found the name taken.
        AlreadyExists = "already_exists",
        /// No answer, or a passing fault.
        Unavailable = "unavailable",
        /// The cloud asks for fewer requests.
        Throttled = "throttled",
        /// Credentials.
        Denied = "denied",
        /// A fault that stays.
        Refused = "refused",
        /// Bytes came that are not what was stored.
        Damaged = "damaged",
    }
}

/// One metric for each value of a label.
#[derive(Clone, Debug)]
pub struct By<L, M> {
    each: Vec<M>,
    label: PhantomData<L>,
}

impl<L: Label, M> By<L, M> {
    pub(super) fn new(make: impl FnMut(&L) -> M) -> Self {
        Self { each: L::ALL.iter().map(make).collect(), label: PhantomData }
    }

    /// The metric of one value.
    ///
    /// # Panics
    /// Never: there is one for each value.
    pub fn of(&self, value: L) -> &M {
        self.each.get(value.index()).expect("there is a metric for each value of the label")
    }
}
