//! How a newcomer asks to be let into the cluster, and how a node is told whether it is part of it.

use std::fmt;

use super::hello::ADDRESS_BYTES_MAX;
use crate::{
    format::reader::{ReadError, Reader},
    invitation::TokenSecret,
};

/// A newcomer asks for the place that a token stands for. Asked again until it is in the group, always with the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// The token's secret.
    pub secret: TokenSecret,
    /// The newcomer's own random key: a token that was taken with one is good for no other.
    pub key: [u8; 32],
    /// Where peers will find it.
    pub address: String,
}

impl Join {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.secret.0);
        out.extend_from_slice(&self.key);
        out.push(u8::try_from(self.address.len()).expect("a node's address is bounded by its settings"));
        out.extend_from_slice(self.address.as_bytes());
    }

    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let (secret, key) = (TokenSecret(fields.array()?), fields.array()?);
        let [length] = fields.array()?;
        let length = usize::from(length);
        if length == 0 || length > ADDRESS_BYTES_MAX {
            return Err(ReadError::Field("address"));
        }
        let address = std::str::from_utf8(fields.take(length)?).map_err(|_| ReadError::Field("address"))?;
        if !address.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ReadError::Field("address"));
        }
        Ok(Self { secret, key, address: address.to_owned() })
    }
}

/// Whether a node is part of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// It was removed, for ever.
    Removed = 1,
    /// Its token stands for no place: unknown, expired, or taken by another.
    NoPlace = 2,
    /// The place is its own. Before it hears this a newcomer takes no part in anything.
    Welcome = 3,
    /// It belongs to an older life of the cluster than the one that goes on.
    Outlived = 4,
}

impl Verdict {
    pub(super) fn put(self, out: &mut Vec<u8>) {
        out.push(self as u8);
    }

    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        match fields.array()? {
            [1] => Ok(Self::Removed),
            [2] => Ok(Self::NoPlace),
            [3] => Ok(Self::Welcome),
            [4] => Ok(Self::Outlived),
            _ => Err(ReadError::Field("verdict")),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "the node was removed from the cluster",
            Self::NoPlace => "the token is unknown, has expired or was used by another node",
            Self::Welcome => "the node is let in",
            Self::Outlived => "the cluster was recovered since; this node belongs to an older life of it",
        })
    }
}
