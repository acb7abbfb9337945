//! `velum inspect`: what a stored file or object is, and whether it is whole.
//!
//! What stands in the clear is always shown. With a node's config (and with it the root key) the sealed header of an object
//! is opened too: which volume, which number, which window. Block contents are never shown.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use serde::Serialize;
use velum_node::{
    env::Env,
    journal::{self, RecordKind, RecordState, StreamId},
    keyring::{self, Keyring, ObjectKind},
    node::Layout,
};
use velum_protocol::{
    checksum,
    format::{
        bind::ObjectHeader,
        checkpoint::{PAGE_OBJECT_BYTES_MAX, ROOT_OBJECT_BYTES_MAX, RootLink, STUB_BYTES_MAX},
        object::{self, Header},
        segment::{Outline, SEGMENT_BYTES_MAX},
        sequence::{Link, RECORD_BYTES_MAX},
    },
    version::{Format as StoredFormat, LeadError},
};

use crate::{
    error::Failure,
    files,
    output::{self, Format, Table},
    secret, serve, settings,
};

/// How `inspect` is asked.
#[derive(Args, Debug)]
pub(crate) struct Inspect {
    /// What it should be
    what: What,
    /// A file, or the URL of an object
    #[arg(value_name = "FILE|URL")]
    place: String,
    /// The settings of a node of the cluster: opens the sealed header
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Kinds of stored things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// A journal file of a node
    Journal,
    /// Sealed frames
    Segment,
    /// A sequence record
    Sequence,
    /// A checkpoint's page, root or stub
    Checkpoint,
}

/// What was found, in the order it is printed.
#[derive(Serialize)]
struct Found {
    place: String,
    facts: Vec<(&'static str, String)>,
}

impl Table for Found {
    fn rows(&self) -> Vec<Vec<String>> {
        let place = vec!["place".to_owned(), self.place.clone()];
        std::iter::once(place)
            .chain(self.facts.iter().map(|(name, value)| vec![(*name).to_owned(), value.clone()]))
            .collect()
    }
}

/// Does it.
pub(crate) fn run(inspect: &Inspect, format: Format) -> Result<(), Failure> {
    let facts = serve::on_node_thread(async {
        let env = serve::environment()?;
        if inspect.what == What::Journal {
            return journal_facts(&env, Path::new(&inspect.place)).await;
        }
        let bytes = fetch(&env, &inspect.place).await?;
        let keyring = inspect.config.as_deref().map(open_keyring).transpose()?;
        object(inspect.what, &inspect.place, &bytes, keyring.as_ref())
    })??;
    output::print(format, &Found { place: inspect.place.clone(), facts });
    Ok(())
}

/// A file's bytes, or an object's.
async fn fetch(env: &Env, place: &str) -> Result<Vec<u8>, Failure> {
    if !place.contains("://") {
        return files::read(Path::new(place));
    }
    let (folder, name) = place
        .rsplit_once('/')
        .filter(|(folder, name)| !folder.ends_with('/') && !name.is_empty())
        .ok_or_else(|| {
            Failure::usage(format!("`{place}` names no object"), "give the cloud's URL, a slash, and the object's name")
        })?;
    let cloud = |error| {
        Failure::new(format!("cannot read {place}: {error}"), "check the URL and the provider's environment variables")
    };
    let store = env.clouds.open(folder, &BTreeMap::new()).map_err(cloud)?;
    Ok(store.get(name, ROOT_OBJECT_BYTES_MAX as u64).await.map_err(cloud)?.to_vec())
}

/// The keys of the node that a config describes, from its directory.
fn open_keyring(config: &Path) -> Result<Keyring, Failure> {
    let config = settings::read_resolved(config)?;
    let secret = secret::fetch(&config.key)?;
    let layout = Layout::new(&config.dir);
    let (identity, slots) = (files::read(&layout.identity())?, files::read(&layout.slots())?);
    keyring::open_cluster(&identity, &slots, &secret).map_err(|error| Failure::told(&error))
}

fn object(
    what: What,
    place: &str,
    bytes: &[u8],
    keyring: Option<&Keyring>,
) -> Result<Vec<(&'static str, String)>, Failure> {
    let kinds: &[(ObjectKind, usize)] = match what {
        What::Journal => &[],
        What::Segment => &[(ObjectKind::Segment, SEGMENT_BYTES_MAX)],
        What::Sequence => &[(ObjectKind::Record, RECORD_BYTES_MAX)],
        What::Checkpoint => &[
            (ObjectKind::Page, PAGE_OBJECT_BYTES_MAX),
            (ObjectKind::Root, ROOT_OBJECT_BYTES_MAX),
            (ObjectKind::Stub, STUB_BYTES_MAX),
        ],
    };
    let unfit = |error: &dyn std::error::Error| {
        Failure::new(format!("{place} is no whole {what:?} object: {error}"), "compare it with another cloud's copy")
    };
    for (kind, bytes_max) in kinds {
        let version = match kind.format().check(bytes) {
            Ok((version, _)) => version,
            Err(LeadError::OtherKind { .. }) => continue,
            Err(error) => return Err(unfit(&error)),
        };
        let parts = object::split(kind.format(), bytes, *bytes_max).map_err(|error| unfit(&error))?;
        let mut facts = vec![
            ("kind", format!("{kind:?}").to_lowercase()),
            ("format version", version.to_string()),
            ("length", bytes.len().to_string()),
            ("BLAKE3", checksum::hash(bytes).to_string()),
        ];
        match keyring {
            Some(keyring) => header(keyring, *kind, kind.format(), parts.sealed_header, &mut facts)
                .map_err(|error| unfit(&*error))?,
            None => facts.push(("sealed header", "not opened; give --config".to_owned())),
        }
        return Ok(facts);
    }
    let lead: String = bytes.iter().take(4).map(|byte| std::ascii::escape_default(*byte).to_string()).collect();
    let remedy = "name the kind it is: journal, segment, sequence or checkpoint";
    Err(Failure::new(format!("{place} begins with `{lead}`, not as a {what:?} object does"), remedy))
}

/// Opens a sealed header and adds what it says.
fn header(
    keyring: &Keyring,
    kind: ObjectKind,
    format: StoredFormat,
    sealed: &[u8],
    facts: &mut Vec<(&'static str, String)>,
) -> Result<(), Box<dyn std::error::Error>> {
    let aad = ObjectHeader { cluster: keyring.cluster(), magic: format.magic }.aad();
    let header = Header::decode(&keyring.state().open(&aad, sealed)?)?;
    facts.extend([
        ("cluster", keyring.cluster().to_string()),
        ("volume", header.volume.to_string()),
        ("incarnation", header.incarnation.to_string()),
        ("key epoch", header.key_epoch.to_string()),
        ("number", header.number.to_string()),
    ]);
    match kind {
        ObjectKind::Segment => {
            let outline = Outline::from_detail(&header.detail)?;
            facts.extend([("epoch", outline.epoch.to_string()), ("frames", outline.frames.to_string())]);
        }
        ObjectKind::Record => {
            let link = Link::from_detail(&header.detail)?;
            facts.extend([
                ("epoch", link.epoch.to_string()),
                ("journal window", format!("{}..={}", link.first, link.last)),
                ("record before", link.prev_hash.to_string()),
            ]);
        }
        ObjectKind::Root => {
            let link = RootLink::from_detail(&header.detail)?;
            facts.extend([("seq", link.seq.to_string()), ("chain hash", link.chain.to_string())]);
        }
        ObjectKind::Page | ObjectKind::Stub | ObjectKind::Catalogue | ObjectKind::Claim => {}
    }
    Ok(())
}

/// A journal file: its header, its streams, and what is damaged in it.
async fn journal_facts(env: &Env, path: &Path) -> Result<Vec<(&'static str, String)>, Failure> {
    let found = journal::inspect(env, path).await.map_err(|error| Failure::told(&error))?;
    let header = found.header.map_err(|error| {
        Failure::new(
            format!("{} is no journal file: {error}", path.display()),
            "give a file of a node's journal folder",
        )
    })?;
    let mut streams: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let (mut damaged, mut end) = (Vec::new(), 0);
    for record in &found.records {
        if record.state == RecordState::Whole {
            end = end.max(record.end);
        } else {
            damaged.push(format!("{:?} at {}..{}", record.state, record.offset, record.end));
        }
        let stream = match record.kind {
            Some(RecordKind::Stream(StreamId::Raft, _)) => "raft".to_owned(),
            Some(RecordKind::Stream(StreamId::Volume(volume), _)) => format!("volume {volume}"),
            Some(RecordKind::Ring) => "ring".to_owned(),
            None => "unreadable".to_owned(),
        };
        let (records, bytes) = streams.entry(stream).or_default();
        *records += 1;
        *bytes += u64::from(record.body_bytes);
    }
    let mut facts = vec![
        ("kind", "journal file".to_owned()),
        ("header", format!("{header:?}")),
        ("end of records", end.to_string()),
    ];
    facts.extend(
        streams
            .into_iter()
            .map(|(stream, (records, bytes))| ("stream", format!("{stream}: {records} records, {bytes} bytes"))),
    );
    facts.push(("damage", if damaged.is_empty() { "none".to_owned() } else { damaged.join("; ") }));
    Ok(facts)
}
