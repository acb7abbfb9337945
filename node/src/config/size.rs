//! Byte counts as people write them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Units, largest first; the first name of each is the one written.
const UNITS: [(u64, &[&str]); 10] = [
    (1 << 50, &["PiB", "Pi"]),
    (1 << 40, &["TiB", "Ti"]),
    (1 << 30, &["GiB", "Gi"]),
    (1 << 20, &["MiB", "Mi"]),
    (1 << 10, &["KiB", "Ki"]),
    (1_000_000_000_000, &["TB"]),
    (1_000_000_000, &["GB"]),
    (1_000_000, &["MB"]),
    (1_000, &["kB", "KB"]),
    (1, &["B", ""]),
];

/// A number of bytes: `8MiB`, `8 MiB`, `8MB`, `8388608`. Whole numbers only, and none that overflows: what is written
/// is what is meant, to the byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No digits at the start, or something else than a known unit after them.
    #[error("`{0}` is not a size; write a whole number and a unit, as in 8MiB or 1GiB")]
    Malformed(String),
    /// More than 2^64 - 1 bytes.
    #[error("`{0}` is more bytes than 64 bits can count")]
    Overflow(String),
}

impl Size {
    /// `count` bytes.
    #[must_use]
    pub const fn from_bytes(count: u64) -> Self {
        Self(count)
    }

    /// `count` MiB.
    #[must_use]
    pub const fn mib(count: u32) -> Self {
        Self((count as u64) << 20)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let text = text.trim();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start();
        let factor = UNITS.iter().find(|(_, names)| names.iter().any(|name| name.eq_ignore_ascii_case(unit)));
        let Some((factor, _)) = factor.filter(|_| !number.is_empty()) else {
            return Err(SizeError::Malformed(text.to_owned()));
        };
        let number: u64 = number.parse().map_err(|_| SizeError::Overflow(text.to_owned()))?;
        number.checked_mul(*factor).map(Self).ok_or_else(|| SizeError::Overflow(text.to_owned()))
    }
}

impl fmt::Display for Size {
    /// The largest binary unit that says it exactly.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact =
            UNITS.iter().find(|(factor, _)| factor.is_power_of_two() && self.0.is_multiple_of(*factor) && self.0 > 0);
        match exact {
            Some((factor, [name, ..])) => write!(f, "{}{name}", self.0 / factor),
            Some((_, [])) | None => write!(f, "{}B", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"8MiB\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, count: u64) -> Result<Size, E> {
                Ok(Size(count))
            }

            fn visit_i64<E: de::Error>(self, count: i64) -> Result<Size, E> {
                u64::try_from(count).map(Size).map_err(|_| E::invalid_value(de::Unexpected::Signed(count), &self))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_to_the_byte() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("8MiB", 8 << 20),
            ("8 mib", 8 << 20),
            ("1GB", 1_000_000_000),
            ("3 kB", 3000),
            ("64TiB", 64 << 40),
            ("18446744073709551615B", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "MiB", "-1", "1.5GiB", "8 furlongs", "8MiB!", "0x10", "٣MiB"] {
            assert!(matches!(text.parse::<Size>(), Err(SizeError::Malformed(_))), "{text}");
        }
        for text in ["18446744073709551616", "16384PiB", "99999999999999999999GiB"] {
            assert!(matches!(text.parse::<Size>(), Err(SizeError::Overflow(_))), "{text}");
        }
    }

    #[test]
    fn the_written_form_reads_back() {
        for bytes in [0, 1, 4095, 4096, 8 << 20, (8 << 20) + 1, 1_000_000, 3 << 50, u64::MAX] {
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
        assert_eq!(Size(8 << 20).to_string(), "8MiB");
    }
}
