//! Ids and quantities as types of their own, so that a position cannot be passed where a block is meant.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes in one block, the smallest unit the cache, the map and the clouds know.
pub const BLOCK_BYTES: u64 = 4096;

/// [`BLOCK_BYTES`] for use with slices.
pub const BLOCK_LEN: usize = 4096;

/// Blocks in one region (64 MiB), the unit of write authority.
pub const REGION_BLOCKS: u64 = 16_384;

/// The largest volume: 64 TiB.
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The next one in order.
            ///
            /// # Panics
            /// When the number space is used up, which takes longer than any hardware lasts.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("the number space outlives the hardware"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident($len:literal)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// The id of all zero bytes, which names nothing.
            pub const ZERO: Self = Self([0; $len]);

            /// Reads the lower-case or upper-case hexadecimal form that `Display` writes.
            #[must_use]
            pub fn from_hex(text: &str) -> Option<Self> {
                parse_hex(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

impl KeyEpoch {
    /// The first one in a life of the cluster that a recovery began: no life before can have had it, whatever of its last
    /// catalogue records the recovery has seen. Two keys never share a number.
    #[must_use]
    pub const fn first_of(life: Incarnation) -> Self {
        let life = if life.0 < 1 << 16 { life.0 } else { (1 << 16) - 1 };
        Self(life << 16)
    }
}

impl Lineage {
    /// The first one in a life of the cluster that a recovery began: above all that any volume can have had before, whatever
    /// of them the recovery has seen.
    #[must_use]
    pub const fn first_of(life: Incarnation) -> Self {
        Self((life.0 as u64) << 32)
    }
}

bytes_id! {
    /// One Velum cluster: its nodes, its clouds and its root key.
    ClusterId(16)
}
bytes_id! {
    /// One volume, for ever; names may change, ids do not.
    VolumeId(16)
}
bytes_id! {
    /// One boot of a machine: its page cache lives as long.
    BootId(16)
}
bytes_id! {
    /// A BLAKE3 hash: of a stored object, or one link of a chain.
    Hash(32)
}

/// What an attachment is known by: random, and with the volume's name in front the name under which guests find the volume.
/// Its text is 16 characters of RFC 4648's base 32, lower case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Handle(pub [u8; 10]);

impl Handle {
    /// Characters of the text.
    pub const CHARS: usize = 16;
    const ALPHABET: [char; 32] = [
        'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o', 'p', 'q', 'r', 's', 't', 'u', 'v',
        'w', 'x', 'y', 'z', '2', '3', '4', '5', '6', '7',
    ];

    /// Reads the text that `Display` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bits: u128 = 0;
        for character in text.chars() {
            let digit = Self::ALPHABET.iter().position(|known| *known == character)?;
            bits = bits << 5 | u128::try_from(digit).ok()?;
        }
        let [_, _, _, _, _, _, handle @ ..] = bits.to_be_bytes();
        (text.len() == Self::CHARS).then_some(Self(handle))
    }
}

/// By what a session is let in: an attachment, and the number of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pass {
    /// The attachment.
    pub handle: Handle,
    /// The connection; from 1, given once for each volume.
    pub connection: u64,
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0.iter().fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
        let digit = |place: usize| usize::try_from(bits >> (5 * place) & 31).unwrap_or_default();
        let text: String = (0..Self::CHARS).rev().filter_map(|place| Self::ALPHABET.get(digit(place))).collect();
        f.pad(&text)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({self})")
    }
}

number! {
    /// A host node; given once and never again.
    NodeId(u64)
}
number! {
    /// The fencing number of a volume's owner, issued by Raft, strictly rising.
    Epoch(u64)
}
number! {
    /// Counts the key generations of a volume.
    KeyEpoch(u32)
}
number! {
    /// Changes only when acked writes of a volume may have been lost.
    Lineage(u64)
}
number! {
    /// Counts the lives of a cluster; a recovery from clouds alone starts the next one.
    Incarnation(u32)
}
number! {
    /// The journal position of a write: contiguous per volume and epoch, given before the write is acked.
    Jseq(u64)
}
number! {
    /// The place of a sequence record in its volume's sequence.
    Seq(u64)
}
number! {
    /// Names an object (segment or checkpoint page) within (volume, incarnation); handed out by Raft in ranges, never twice.
    ObjectNumber(u64)
}
number! {
    /// A block of a volume, counted from its start.
    BlockIndex(u64)
}
number! {
    /// A number of blocks.
    BlockCount(u64)
}
number! {
    /// A region of a volume, counted from its start.
    RegionIndex(u64)
}
number! {
    /// One guest connection after login, unique on its node since the node started.
    SessionId(u64)
}

impl BlockIndex {
    /// The region this block lies in.
    #[must_use]
    pub const fn region(self) -> RegionIndex {
        RegionIndex(self.0 / REGION_BLOCKS)
    }

    /// The block `count` further on.
    ///
    /// # Panics
    /// When the sum leaves the 64-bit space; callers check ranges against the volume's size first.
    #[must_use]
    pub const fn plus(self, count: BlockCount) -> Self {
        Self(self.0.checked_add(count.0).expect("block ranges are checked against the volume's size"))
    }
}

fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != N * 2 {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        if pair.starts_with('+') {
            return None;
        }
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_form_reads_back() {
        let id = VolumeId([0xa5; 16]);
        assert_eq!(VolumeId::from_hex(&id.to_string()), Some(id));
    }

    #[test]
    fn handles_have_one_spelling() {
        let handle = Handle([0x00, 0x44, 0x32, 0x14, 0xc7, 0x42, 0x54, 0xb6, 0x35, 0xcf]);
        assert_eq!(handle.to_string(), "abcdefghijklmnop");
        for handle in [handle, Handle([0; 10]), Handle([0xff; 10]), Handle([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])] {
            assert_eq!(Handle::parse(&handle.to_string()), Some(handle));
        }
        for text in
            ["", "abcdefghijklmno", "abcdefghijklmnopq", "abcdefghijklmno1", "ABCDEFGHIJKLMNOP", "abcdefghijklmnö"]
        {
            assert_eq!(Handle::parse(text), None, "{text}");
        }
    }

    #[test]
    fn malformed_hexadecimal_is_refused() {
        for text in ["", "a5", "zz", "+5+5+5+5+5+5+5+5+5+5+5+5+5+5+5+5", &"a".repeat(33)] {
            assert_eq!(VolumeId::from_hex(text), None, "{text}");
        }
    }

    #[test]
    fn a_block_lies_in_the_region_of_64_mib() {
        assert_eq!(BlockIndex(REGION_BLOCKS - 1).region(), RegionIndex(0));
        assert_eq!(BlockIndex(REGION_BLOCKS).region(), RegionIndex(1));
    }
}
