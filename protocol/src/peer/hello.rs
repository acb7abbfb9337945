//! The first frame of a link in each direction, and the signs of life that follow.

use crate::{
    format::reader::{ReadError, Reader},
    id::{ClusterId, Incarnation, NodeId},
};

/// The longest address a node names for itself.
pub const ADDRESS_BYTES_MAX: usize = 255;

/// Who speaks, and to whom. Its layout is the same in every version, so that any two builds can tell why they do not talk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The cluster of the speaker.
    pub cluster: ClusterId,
    /// The speaker.
    pub from: NodeId,
    /// Whom it believes to speak to.
    pub to: NodeId,
    /// The oldest version of frames it speaks.
    pub version_min: u16,
    /// The newest.
    pub version_max: u16,
    /// Random, the same for as long as the speaker's process lives.
    pub life: [u8; 16],
    /// Counts the links that this process has begun to this peer, from 1: of two, the lower one is stale.
    pub link: u64,
    /// The life of the cluster that the speaker belongs to; zero for a newcomer, which does not know yet.
    pub incarnation: Incarnation,
    /// Where the speaker listens for peers.
    pub address: String,
}

impl Hello {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.cluster.0);
        out.extend_from_slice(&self.from.0.to_le_bytes());
        out.extend_from_slice(&self.to.0.to_le_bytes());
        out.extend_from_slice(&self.version_min.to_le_bytes());
        out.extend_from_slice(&self.version_max.to_le_bytes());
        out.extend_from_slice(&self.life);
        out.extend_from_slice(&self.link.to_le_bytes());
        out.extend_from_slice(&self.incarnation.0.to_le_bytes());
        let length = u8::try_from(self.address.len()).expect("a node's address is bounded by its settings");
        out.push(length);
        out.extend_from_slice(self.address.as_bytes());
    }

    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        let (cluster, from, to) = (ClusterId(fields.array()?), NodeId(fields.u64()?), NodeId(fields.u64()?));
        let (version_min, version_max) = (u16::from_le_bytes(fields.array()?), u16::from_le_bytes(fields.array()?));
        if version_min == 0 || version_min > version_max {
            return Err(ReadError::Field("versions"));
        }
        if from == to || from.0 == 0 {
            return Err(ReadError::Field("node"));
        }
        let (life, link) = (fields.array()?, fields.u64()?);
        let incarnation = Incarnation(u32::from_le_bytes(fields.array()?));
        let [length] = fields.array()?;
        let address = fields.take(usize::from(length))?;
        let address = std::str::from_utf8(address).map_err(|_| ReadError::Field("address"))?.to_owned();
        if address.chars().any(char::is_control) {
            return Err(ReadError::Field("address"));
        }
        Ok(Self { cluster, from, to, version_min, version_max, life, link, incarnation, address })
    }
}

/// A sign of life. The side that takes frames says how many bytes it has taken; the other side says zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Bytes of frames taken since the link began.
    pub taken_bytes: u64,
}

impl Beat {
    pub(super) fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.taken_bytes.to_le_bytes());
    }

    pub(super) fn read(fields: &mut Reader<'_>) -> Result<Self, ReadError> {
        Ok(Self { taken_bytes: fields.u64()? })
    }
}
