//! Journal files: checksums of all that is in them, and with keys the seals of every record.

use std::{collections::BTreeMap, path::Path};

use velum_node::{
    consensus::{self, Member},
    env::Env,
    journal::{self, InspectedRecord, RecordKind, RecordState, StreamId},
    volume::sealing,
};
use velum_protocol::{format::record::RecordHeader, id::NodeId};

use super::{Found, Proof, keys::Keys};
use crate::error::Failure;

/// Examines a journal file. Whether a record is still needed stands in other files, and is not known here.
pub(super) async fn examine(env: &Env, path: &Path, keys: Option<&Keys>) -> Result<Found, Failure> {
    let read = journal::inspect(env, path).await.map_err(|error| {
        Failure::new(error.to_string(), "give the path of a file of a node's journal folder, as a user who may read it")
    })?;
    let header = read.header.map_err(|error| {
        let remedy = "give a file of a node's journal folder; if it is one, its header is damaged in both places";
        Failure::new(format!("{} does not begin as a journal file does: {error}", path.display()), remedy)
    })?;
    let mut found = Found::of(&path.display().to_string());
    found.fact(Proof::Checksum, "kind", "journal file");
    found.fact(Proof::Checksum, "cluster", header.cluster);
    found.fact(Proof::Checksum, "node", header.node);
    found.fact(Proof::Checksum, "file", header.file);
    found.fact(Proof::Checksum, "lap", header.lap);
    found.fact(Proof::Checksum, "length", header.file_bytes);
    if read.doubtful {
        found.damage.push("bytes 0..1024: one of the two headers does not read; a later lap may have begun".to_owned());
    }
    let mut streams: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut end = 0;
    for record in &read.records {
        end = end.max(record.end);
        let stream = stream(record);
        if record.state != RecordState::Whole {
            found.damage.push(format!("bytes {}..{}, {stream}: {}", record.offset, record.end, words(record.state)));
            continue;
        }
        if let Some(keys) = keys {
            let fault = sealed(keys, header.node, record);
            found
                .damage
                .extend(fault.map(|fault| format!("bytes {}..{}, {stream}: {fault}", record.offset, record.end)));
        }
        let (records, bytes) = streams.entry(stream).or_default();
        *records += 1;
        *bytes += u64::from(record.body_bytes);
    }
    found.fact(Proof::Checksum, "end of records", end);
    for (stream, (records, bytes)) in streams {
        found.fact(Proof::Checksum, "stream", format!("{stream}: {records} records, {bytes} bytes"));
    }
    match keys {
        None => found.unchecked.push("the seals of the records; give the node's settings with --config".to_owned()),
        Some(keys) if keys.keyring.cluster() != header.cluster => {
            found.damage.push(format!("its header names cluster {}, not the one of the keys", header.cluster));
        }
        Some(keys) => unopened(keys, &read.records, &mut found),
    }
    Ok(found)
}

fn stream(record: &InspectedRecord) -> String {
    match record.kind {
        Some(RecordKind::Stream(StreamId::Raft, _)) => "raft".to_owned(),
        Some(RecordKind::Stream(StreamId::Volume(volume), _)) => format!("volume {volume}"),
        Some(RecordKind::Ring) => "ring".to_owned(),
        None => "no record".to_owned(),
    }
}

const fn words(state: RecordState) -> &'static str {
    match state {
        RecordState::Whole => "whole",
        RecordState::BodyDamaged => "the body does not match its checksum",
        RecordState::Gap => "nothing readable, or a record is missing, and others follow",
        RecordState::HeaderDamaged => {
            "a header that does not match its checksum; a killed process may leave one last record so"
        }
    }
}

/// Why a whole record is not what its stream's owner sealed. Records of volumes without keys are told of elsewhere.
fn sealed(keys: &Keys, node: NodeId, record: &InspectedRecord) -> Option<String> {
    match record.kind? {
        RecordKind::Ring => record.ring.is_none().then(|| "the ring record does not read".to_owned()),
        RecordKind::Stream(StreamId::Raft, at) => {
            let member = Member { node, cluster: keys.keyring.cluster(), seal: keys.keyring.state().clone() };
            let authentic = consensus::is_authentic(member, at, &record.body);
            (!authentic).then(|| format!("the raft record {at} does not open"))
        }
        RecordKind::Stream(StreamId::Volume(volume), at) => {
            let keys = keys.volume(volume).ok()?;
            let opened = RecordHeader::decode(&record.body).map_err(|error| error.to_string());
            let opened = opened.and_then(|(header, body)| {
                if (header.epoch.0, header.jseq.0) != (at.epoch, at.number) {
                    return Err(format!("it says it is {}, and stands at {at}", header.jseq));
                }
                sealing::open(keys, &header, body).map(drop).map_err(|error| error.to_string())
            });
            opened.err().map(|error| format!("the record {at} does not open: {error}"))
        }
    }
}

/// Names the streams whose seals could not be tried.
fn unopened(keys: &Keys, records: &[InspectedRecord], found: &mut Found) {
    let mut reasons: Vec<String> = Vec::new();
    for record in records {
        if let Some(RecordKind::Stream(StreamId::Volume(volume), _)) = record.kind
            && let Err(why) = keys.volume(volume)
        {
            let reason = format!("the records of volume {volume}: {why}");
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
    }
    found.unchecked.extend(reasons);
}
