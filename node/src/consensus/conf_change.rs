//! Membership changes between their own layout and the one that raft-rs keeps in its entries.
//!
//! raft-rs has them as protobuf. Only that one message is read and written here, and only as raft-rs itself writes it: what
//! is stored and sent has the layout of [`MembershipChange`], and bytes of peers never reach a protobuf parser.

use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};
use velum_protocol::format::{
    raft::{MEMBERS_MAX, MemberChange, MembershipChange, Transition},
    reader::{ReadError, Reader},
};

/// `transition = 1`, a number.
const TRANSITION: u64 = 1 << 3;
/// `changes = 2`, a message.
const CHANGE: u64 = 2 << 3 | 2;
/// `change_type = 1` of a change, a number.
const CHANGE_TYPE: u64 = 1 << 3;
/// `node_id = 2` of a change, a number.
const NODE_ID: u64 = 2 << 3;

/// The data of raft-rs's entry for a change.
pub(super) fn to_entry(change: &MembershipChange) -> Vec<u8> {
    let mut out = Vec::new();
    // Zeros are left out.
    let number = |out: &mut Vec<u8>, tag: u64, value: u64| {
        if value != 0 {
            put_varint(out, tag);
            put_varint(out, value);
        }
    };
    number(&mut out, TRANSITION, change.transition as u64);
    for (kind, node) in &change.changes {
        let mut one = Vec::new();
        number(&mut one, CHANGE_TYPE, *kind as u64);
        number(&mut one, NODE_ID, *node);
        put_varint(&mut out, CHANGE);
        put_varint(&mut out, u64::try_from(one.len()).expect("a change is short"));
        out.extend_from_slice(&one);
    }
    out
}

/// Reads the data of raft-rs's entry.
pub(super) fn from_entry(data: &[u8]) -> Result<MembershipChange, ReadError> {
    let mut fields = Reader::new(data);
    let mut change = MembershipChange { transition: Transition::Auto, changes: Vec::new() };
    while fields.left() > 0 {
        match fields.varint()? {
            TRANSITION => {
                change.transition = match fields.varint()? {
                    0 => Transition::Auto,
                    1 => Transition::Implicit,
                    2 => Transition::Explicit,
                    _ => return Err(ReadError::Field("transition")),
                };
            }
            CHANGE if change.changes.len() < MEMBERS_MAX => {
                let length = usize::try_from(fields.varint()?).map_err(|_| ReadError::Field("change"))?;
                change.changes.push(one(Reader::new(fields.take(length)?))?);
            }
            _ => return Err(ReadError::Field("field")),
        }
    }
    Ok(change)
}

fn one(mut fields: Reader<'_>) -> Result<(MemberChange, u64), ReadError> {
    let (mut kind, mut node) = (0, 0);
    while fields.left() > 0 {
        match fields.varint()? {
            CHANGE_TYPE => kind = fields.varint()?,
            NODE_ID => node = fields.varint()?,
            _ => return Err(ReadError::Field("field")),
        }
    }
    let kind = match kind {
        0 => MemberChange::Voter,
        1 => MemberChange::Remove,
        2 => MemberChange::Learner,
        _ => return Err(ReadError::Field("change")),
    };
    Ok((kind, node))
}

/// As raft-rs takes it.
pub(super) fn to_raft(change: &MembershipChange) -> ConfChangeV2 {
    let transition = match change.transition {
        Transition::Auto => ConfChangeTransition::Auto,
        Transition::Implicit => ConfChangeTransition::Implicit,
        Transition::Explicit => ConfChangeTransition::Explicit,
    };
    let changes = change.changes.iter().map(|(kind, node)| {
        let change_type = match kind {
            MemberChange::Voter => ConfChangeType::AddNode,
            MemberChange::Remove => ConfChangeType::RemoveNode,
            MemberChange::Learner => ConfChangeType::AddLearnerNode,
        };
        ConfChangeSingle { change_type, node_id: *node, ..ConfChangeSingle::default() }
    });
    let changes: Vec<_> = changes.collect();
    ConfChangeV2 { transition, changes: changes.into(), ..ConfChangeV2::default() }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).expect("seven bits") | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).expect("seven bits"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_keep_the_bytes_that_raft_writes() {
        let change = MembershipChange {
            transition: Transition::Implicit,
            changes: vec![(MemberChange::Voter, 300), (MemberChange::Learner, 2)],
        };
        let bytes = [0x08, 1, 0x12, 3, 0x10, 0xac, 0x02, 0x12, 4, 0x08, 2, 0x10, 2];
        assert_eq!(to_entry(&change), bytes);
        assert_eq!(from_entry(&bytes), Ok(change));
        let empty = MembershipChange { transition: Transition::Auto, changes: Vec::new() };
        assert_eq!(from_entry(&[]), Ok(empty));
        for length in 1..bytes.len() {
            let cut = from_entry(&bytes[..length]);
            assert!(cut.is_err() || length == 2 || length == 7, "{length} bytes: {cut:?}");
        }
    }
}
