//! The flag fields of the protocol.

macro_rules! flags {
    ($(#[$doc:meta])* $name:ident($inner:ty) { $($(#[$flag_doc:meta])* $flag:ident = $bit:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(pub $inner);

        impl $name {
            $($(#[$flag_doc])* pub const $flag: Self = Self(1 << $bit);)*
            /// No flag.
            pub const NONE: Self = Self(0);

            /// True when all flags of `other` are set.
            #[must_use]
            pub const fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// The flags of both.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// The flags of both when `wanted`, else these.
            #[must_use]
            pub const fn with_if(self, wanted: bool, other: Self) -> Self {
                if wanted { self.with(other) } else { self }
            }

            /// True when no flag outside `allowed` is set.
            #[must_use]
            pub const fn only(self, allowed: Self) -> bool {
                self.0 & !allowed.0 == 0
            }
        }
    };
}

flags! {
    /// What the server says of itself in the greeting.
    HandshakeFlags(u16) {
        /// Options are answered with option replies.
        FIXED_NEWSTYLE = 0;
        /// The 124 zero bytes after an export name can be left out.
        NO_ZEROES = 1;
    }
}

flags! {
    /// The client's answer to the greeting.
    ClientFlags(u32) {
        /// The client knows option replies.
        FIXED_NEWSTYLE = 0;
        /// The client wants the 124 zero bytes left out.
        NO_ZEROES = 1;
    }
}

flags! {
    /// What an export can do.
    TransmissionFlags(u16) {
        /// Always set.
        HAS_FLAGS = 0;
        /// Writes are refused.
        READ_ONLY = 1;
        /// Flush requests are known.
        SEND_FLUSH = 2;
        /// Force unit access is known.
        SEND_FUA = 3;
        /// The medium turns.
        ROTATIONAL = 4;
        /// Trim requests are known.
        SEND_TRIM = 5;
        /// Write zeroes requests are known.
        SEND_WRITE_ZEROES = 6;
        /// Reads can be asked for in one piece.
        SEND_DF = 7;
        /// A flush on one connection covers all of them.
        CAN_MULTI_CONN = 8;
        /// Resize requests are known (an extension).
        SEND_RESIZE = 9;
        /// Cache requests are known.
        SEND_CACHE = 10;
        /// Fast zero is known.
        SEND_FAST_ZERO = 11;
    }
}

flags! {
    /// How a request is to be done.
    CommandFlags(u16) {
        /// Answer when the data is durable.
        FUA = 0;
        /// Write zeroes without making a hole.
        NO_HOLE = 1;
        /// Answer a read in one piece.
        DF = 2;
        /// Answer a block status with one extent.
        REQ_ONE = 3;
        /// Write zeroes only if that is faster than writing them.
        FAST_ZERO = 4;
        /// The length is that of a payload (an extension).
        PAYLOAD_LEN = 5;
    }
}

flags! {
    /// What a descriptor of `base:allocation` says of its extent.
    StatusFlags(u32) {
        /// Nothing is stored there.
        HOLE = 0;
        /// It reads as zeros.
        ZERO = 1;
    }
}
