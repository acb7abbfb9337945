//! `velum inspect`: what a stored file or object is, and whether it is whole.
//!
//! Each fact is printed with what it rests on, for bytes that say something about themselves prove nothing. Without keys
//! that is little: leads, lengths, checksums. With a node's config the sealed header is opened, and with the volume's keys,
//! which the clouds' catalogue holds, everything else: the object is then what it says, or the damage is named by its place.
//! Block contents are never shown.

mod journal;
mod keys;
mod object;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use serde::Serialize;
use velum_node::env::Env;
use velum_protocol::format::segment::SEGMENT_BYTES_MAX;

use crate::{
    clouds,
    error::Failure,
    files,
    output::{self, Format, Table},
    serve,
};
use keys::Keys;

/// How `inspect` is asked.
#[derive(Args, Debug)]
pub(crate) struct Inspect {
    /// What it should be
    what: What,
    /// A file, or the URL of an object
    #[arg(value_name = "FILE|URL")]
    place: String,
    /// The settings of a node of the cluster, which say where its keys are: opens what is sealed
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

/// What a fact rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Proof {
    /// Counted or computed from the bytes.
    Measured,
    /// A checksum matches: not changed by accident.
    Checksum,
    /// A seal opened: written by somebody with the cluster's keys.
    Seal,
    /// The bytes say so; nothing proves it.
    None,
}

impl Proof {
    const fn in_words(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Checksum => "by checksum",
            Self::Seal => "authentic",
            Self::None => "not authenticated",
        }
    }
}

/// One thing found.
#[derive(Serialize)]
struct Fact {
    name: &'static str,
    value: String,
    proof: Proof,
}

/// What was found, in the order it is printed.
#[derive(Serialize)]
struct Found {
    place: String,
    facts: Vec<Fact>,
    /// Each damage with its place in the file or object.
    damage: Vec<String>,
    /// What could not be looked at, and why.
    unchecked: Vec<String>,
}

impl Found {
    fn of(place: &str) -> Self {
        Self { place: place.to_owned(), facts: Vec::new(), damage: Vec::new(), unchecked: Vec::new() }
    }

    fn fact(&mut self, proof: Proof, name: &'static str, value: impl ToString) {
        self.facts.push(Fact { name, value: value.to_string(), proof });
    }
}

impl Table for Found {
    fn rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![vec!["place".to_owned(), self.place.clone()]];
        let fact = |fact: &Fact| vec![fact.name.to_owned(), fact.value.clone(), fact.proof.in_words().to_owned()];
        rows.extend(self.facts.iter().map(fact));
        let named = |name: &str, text: &String| vec![name.to_owned(), text.clone()];
        rows.extend(self.unchecked.iter().map(|text| named("not checked", text)));
        rows.extend(self.damage.iter().map(|text| named("damage", text)));
        if self.damage.is_empty() {
            let verdict = if self.unchecked.is_empty() { "none" } else { "none in what was checked" };
            rows.push(named("damage", &verdict.to_owned()));
        }
        rows
    }
}

/// Does it. Damage is a failure, after everything that was found has been printed.
pub(crate) fn run(inspect: &Inspect, format: Format) -> Result<(), Failure> {
    let place = inspect.place.as_str();
    let found = serve::on_node_thread(async {
        let env = serve::environment()?;
        let keys = match &inspect.config {
            Some(config) => Some(Keys::of(&env, config).await?),
            None => None,
        };
        if inspect.what == What::Journal {
            if place.contains("://") {
                let what = format!("{place} is a URL, and journals lie in nodes' directories");
                return Err(Failure::usage(what, "give the path of a file of a node's journal folder"));
            }
            return journal::examine(&env, Path::new(place), keys.as_ref()).await;
        }
        let bytes = fetch(&env, place).await?;
        object::examine(inspect.what, place, &bytes, keys.as_ref())
    })??;
    output::print(format, &found);
    match found.damage.len() {
        0 => Ok(()),
        1 => Err(Failure::new(format!("{place} is damaged"), remedy(inspect.what))),
        count => Err(Failure::new(format!("{place} is damaged in {count} places"), remedy(inspect.what))),
    }
}

const fn remedy(what: What) -> &'static str {
    match what {
        What::Journal => "keep the file as it is; a start says which volumes need what is damaged",
        What::Segment | What::Sequence | What::Checkpoint => "compare it with another cloud's copy",
    }
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
    let store = env.clouds.open(folder, &clouds::looked_at(folder, &BTreeMap::new())).map_err(cloud)?;
    Ok(store.get(name, SEGMENT_BYTES_MAX as u64).await.map_err(cloud)?.to_vec())
}
