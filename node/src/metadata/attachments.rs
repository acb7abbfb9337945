//! Who is attached to a volume, by which connections, and who may write where among those who share it.
//!
//! An attachment ends when it is detached, when another one takes its place, and with its lineage: an acked write may be missing
//! then, and whoever connects again by its handle must not find that out by reading. Connections are numbered here and nowhere
//! else, so that every node agrees on which ones are over.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use velum_protocol::{
    format::metadata::{Attaching, Command},
    id::{BLOCK_BYTES, BlockIndex, Handle, Pass, REGION_BLOCKS, VOLUME_BYTES_MAX, VolumeId},
};

use super::{
    apply::{Answer, Rejection},
    state::State,
};

/// Attachments of one volume.
pub(super) const ATTACHMENTS_MAX: usize = 64;

/// Connections of one attachment.
pub(super) const CONNECTIONS_MAX: u32 = 16;

/// Permits of one volume.
pub(super) const PERMITS_MAX: usize = 1024;

/// Characters of a host's name.
const HOST_LEN_MAX: usize = 63;

/// All about the attachments of one volume. It stays when they end, for numbers are given once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachments {
    /// By handle.
    pub live: BTreeMap<Handle, Attachment>,
    /// The number of the last connection that began.
    pub last_connection: u64,
    /// Disjoint, by first block: one past the last, and who may write there.
    pub permits: BTreeMap<BlockIndex, (BlockIndex, Handle)>,
}

/// One attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// What it was made with.
    pub made: Attaching,
    /// The connections that live, oldest first.
    pub connections: VecDeque<u64>,
}

impl Attachments {
    /// Whether a session may be there: by a connection that lives; without one only while nobody is attached.
    #[must_use]
    pub fn admits(&self, pass: Option<Pass>) -> bool {
        match pass {
            None => self.live.is_empty(),
            Some(Pass { handle, connection }) => {
                self.live.get(&handle).is_some_and(|attachment| attachment.connections.contains(&connection))
            }
        }
    }

    /// Whether what an attachment writes takes a permit.
    #[must_use]
    pub fn takes_permits(&self, handle: Handle) -> bool {
        self.live.get(&handle).is_some_and(|attachment| attachment.made.shared)
    }

    fn end(&mut self, handle: Handle) -> Result<(), Rejection> {
        self.live.remove(&handle).ok_or(Rejection::NotAttached)?;
        self.permits.retain(|_, (_, holder)| *holder != handle);
        Ok(())
    }

    fn end_all(&mut self) {
        self.live.clear();
        self.permits.clear();
    }

    fn set_permit(&mut self, (first, end): (BlockIndex, BlockIndex), holder: Option<Handle>) {
        // What lies across a bound is cut there.
        for bound in [first, end] {
            let across = self.permits.range_mut(..bound).next_back().filter(|(_, (until, _))| *until > bound);
            if let Some((_, permit)) = across {
                let rest = *permit;
                permit.0 = bound;
                self.permits.insert(bound, rest);
            }
        }
        self.permits.retain(|from, _| *from < first || *from >= end);
        if let Some(holder) = holder {
            self.permits.insert(first, (end, holder));
        }
    }
}

impl State {
    pub(super) fn apply_to_attachments(&mut self, command: &Command) -> Result<Answer, Rejection> {
        match command {
            Command::Attach { volume, handle, attaching, steal } => {
                check(attaching)?;
                self.live_volume_mut(*volume)?;
                if self.attachments.values().any(|of_volume| of_volume.live.contains_key(handle)) {
                    return Err(Rejection::HandleUsed);
                }
                let of_volume = self.attachments.entry(*volume).or_default();
                if *steal {
                    of_volume.end_all();
                }
                let may_share = attaching.shared && of_volume.live.values().all(|attachment| attachment.made.shared);
                if !of_volume.live.is_empty() && !may_share {
                    return Err(Rejection::Attached);
                }
                if of_volume.live.len() >= ATTACHMENTS_MAX {
                    return Err(Rejection::TooManyAttachments);
                }
                let attachment = Attachment { made: attaching.clone(), connections: VecDeque::new() };
                of_volume.live.insert(*handle, attachment);
            }
            Command::Detach { volume, handle } => self.attached(*volume)?.end(*handle)?,
            Command::Connect { volume, handle } => {
                let of_volume = self.attached(*volume)?;
                let number = of_volume.last_connection + 1;
                let attachment = of_volume.live.get_mut(handle).ok_or(Rejection::NotAttached)?;
                let connections = &mut attachment.connections;
                let most = usize::try_from(attachment.made.connections_max).unwrap_or(usize::MAX);
                while connections.len() >= most {
                    connections.pop_front();
                }
                connections.push_back(number);
                of_volume.last_connection = number;
                return Ok(Answer::Connection(number));
            }
            Command::Disconnect { volume, handle, connection } => {
                let attachment = self.attached(*volume)?.live.get_mut(handle).ok_or(Rejection::NotAttached)?;
                attachment.connections.retain(|live| live != connection);
            }
            Command::SetPermit { volume, first, end, holder, steal } => {
                check_range(*first, *end)?;
                self.live_volume_mut(*volume)?;
                let of_volume = self.attached(*volume)?;
                if holder.is_some_and(|holder| !of_volume.takes_permits(holder)) {
                    return Err(Rejection::NotShared);
                }
                let is_anothers = |(from, (until, other)): (&BlockIndex, &(BlockIndex, Handle))| {
                    *from < *end && *until > *first && holder.is_some_and(|holder| holder != *other)
                };
                if !steal && of_volume.permits.iter().any(is_anothers) {
                    return Err(Rejection::Permitted);
                }
                // A cut adds two at most.
                if of_volume.permits.len() + 2 > PERMITS_MAX && holder.is_some() {
                    return Err(Rejection::TooManyPermits);
                }
                of_volume.set_permit((*first, *end), *holder);
            }
            _ => unreachable!("apply_command routes commands about attachments only"),
        }
        Ok(Answer::Done)
    }

    /// The attachments of a volume go with its lineage.
    pub(super) fn end_attachments(&mut self, volume: VolumeId) {
        if let Some(of_volume) = self.attachments.get_mut(&volume) {
            of_volume.end_all();
        }
    }

    /// Whether a session may be at a volume now, as far as attachments say.
    #[must_use]
    pub fn admits(&self, volume: VolumeId, pass: Option<Pass>) -> bool {
        self.attachments.get(&volume).map_or(pass.is_none(), |of_volume| of_volume.admits(pass))
    }

    /// Whether exactly one guest is attached to a volume, and does not share it.
    #[must_use]
    pub fn is_attached_once(&self, volume: VolumeId) -> bool {
        let live = self.attachments.get(&volume).map(|of_volume| &of_volume.live);
        live.is_some_and(|live| live.len() == 1 && live.values().all(|attachment| !attachment.made.shared))
    }

    fn attached(&mut self, volume: VolumeId) -> Result<&mut Attachments, Rejection> {
        self.attachments.get_mut(&volume).ok_or(Rejection::NotAttached)
    }
}

fn check(attaching: &Attaching) -> Result<(), Rejection> {
    let Attaching { connections_max, host, .. } = attaching;
    let is_printable = host.chars().all(|character| character.is_ascii_graphic() || character == ' ');
    let fits = (1..=CONNECTIONS_MAX).contains(connections_max) && host.len() <= HOST_LEN_MAX && is_printable;
    if fits { Ok(()) } else { Err(Rejection::BadAttachment) }
}

fn check_range(first: BlockIndex, end: BlockIndex) -> Result<(), Rejection> {
    let is_bound = |bound: BlockIndex| bound.0.is_multiple_of(REGION_BLOCKS);
    let fits = first < end && is_bound(first) && is_bound(end) && end.0 <= VOLUME_BYTES_MAX / BLOCK_BYTES;
    if fits { Ok(()) } else { Err(Rejection::BadPermit) }
}

#[cfg(test)]
#[path = "attachments_tests.rs"]
mod tests;
