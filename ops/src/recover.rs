//! `velum recover`: all volumes back from the clouds and the root key alone.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use velum_node::{
    array::recover::{self, Plan, RecoverError, Recovered, Report, Standing, Verify},
    config::{KeyConfig, NodeConfig},
    env::Env,
    node,
};
use velum_protocol::format::metadata::CloudName;

use crate::{
    clouds::{self, CloudArgs},
    error::Failure,
    files,
    output::{self, Format, Table, bytes},
    secret, serve,
    settings::{self, CONFIG_NAME, KEYFILE_NAME, NODE_DIR_NAME},
};

/// Fewer clouds than this need a word of the operator in the settings.
const CLOUDS_FOR_SAFETY: usize = 3;

/// How `recover` is asked.
#[derive(Args, Debug)]
pub(crate) struct Recover {
    #[command(flatten)]
    clouds: CloudArgs,
    /// The root key
    #[arg(long, value_name = "FILE", required_unless_present = "passphrase", conflicts_with = "passphrase")]
    keyfile: Option<PathBuf>,
    /// Where the passphrase comes from: tty, stdin, fd:N or env:NAME
    #[arg(long, value_name = "SOURCE")]
    passphrase: Option<String>,
    /// A new directory; `velum up --dir` serves it afterwards
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Go on without this cloud of the catalogue; then no other one may be faulty. Once for each
    #[arg(long, value_name = "NAME")]
    accept_missing: Vec<String>,
    /// How much is looked at before the volumes can be served
    #[arg(long, value_enum, default_value_t = Depth::Present)]
    verify: Depth,
}

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Depth {
    /// Only what leads to the volumes' state: served at once, however large; damage shows when it is read
    Chain,
    /// Whether every object is there in at least one cloud
    Present,
    /// Read and open every object in every cloud
    Full,
}

/// Does it.
pub(crate) fn run(recover: &Recover, format: Format) -> Result<(), Failure> {
    let dir = files::absolute(&recover.dir)?;
    if files::names(&dir)?.iter().any(|name| name != KEYFILE_NAME) {
        let what = format!("{} is not empty", dir.display());
        return Err(Failure::new(what, "name a new or empty directory: what a node left behind is never written over"));
    }
    files::can_be_made(&dir.join(NODE_DIR_NAME)).map_err(|why| {
        let what = format!("{} cannot be written: {why}", dir.display());
        Failure::new(what, "name a directory that you may write to with --dir")
    })?;
    let config = config(recover, &dir)?;
    let mut resolved = config.clone();
    resolved.resolve(&dir);
    let plan = Plan {
        clouds: resolved.clouds.iter().map(clouds::at).collect(),
        secret: secret::fetch(&resolved.key)?,
        accept_missing: recover.accept_missing.iter().cloned().map(CloudName).collect(),
        verify: match recover.verify {
            Depth::Chain => Verify::Chain,
            Depth::Present => Verify::Present,
            Depth::Full => Verify::Full,
        },
    };
    let missing = files::missing_folders(&dir);
    let report = bring_back(&dir, &config, &resolved, &plan).inspect_err(|_| files::remove_empty(&missing))?;
    output::print(format, &report);
    output::say(&format!("serve it with `velum up --dir {}`", recover.dir.display()));
    let lost: usize = report.volumes.iter().map(|volume| volume.lost.len()).sum();
    if lost > 0 {
        let what = format!("{lost} objects are in no cloud any more; reads of what they held will fail");
        return Err(Failure::new(what, "bring back a cloud that holds them, and recover into another directory"));
    }
    Ok(())
}

/// Recovers and writes what was found to the new directory.
fn bring_back(dir: &Path, config: &NodeConfig, resolved: &NodeConfig, plan: &Plan) -> Result<Report, Failure> {
    // Before anything is claimed in the clouds: a claim fences a node that may still live.
    files::create_folder(dir)?;
    serve::on_node_thread(async {
        let env = serve::environment()?;
        let spinner = output::spinner("recovering");
        let found = recover::recover(&env, plan, &|step| spinner.set_message(step.to_owned())).await;
        spinner.finish_and_clear();
        let found = found.map_err(|error| refusal(&error))?;
        adopt(&env, dir, config, resolved, &found).await?;
        Ok(found.report)
    })?
}

/// Why a recovery was refused; what the command line got wrong is told apart.
fn refusal(error: &RecoverError) -> Failure {
    match error {
        RecoverError::NotListed { .. } => Failure::usage(error.to_string(), "leave it out, or name one of these"),
        _ => Failure::told(error),
    }
}

/// Writes the recovered node and its settings.
async fn adopt(
    env: &Env,
    dir: &Path,
    config: &NodeConfig,
    resolved: &NodeConfig,
    found: &Recovered,
) -> Result<(), Failure> {
    let adopted = node::adopt(env, resolved, &found.identity, &found.keyring, &found.state).await;
    adopted.map_err(|error| Failure::told(&error))?;
    files::replace(&dir.join(CONFIG_NAME), settings::written("velum recover", config).as_bytes())
}

/// Settings of the recovered node.
fn config(recover: &Recover, dir: &Path) -> Result<NodeConfig, Failure> {
    let clouds = clouds::named(&recover.clouds.clouds)?;
    if clouds.is_empty() {
        let remedy = "name each cloud that is left with --cloud NAME=URL";
        return Err(Failure::usage("no cloud is given to recover from", remedy));
    }
    // A key that lies in the directory moves with it.
    let keyfile = recover.keyfile.as_deref().map(files::absolute).transpose()?;
    let keyfile = keyfile.map(|path| path.strip_prefix(dir).map(Path::to_path_buf).unwrap_or(path));
    let key = KeyConfig { keyfile, passphrase: recover.passphrase.clone(), ..KeyConfig::default() };
    let mut config = NodeConfig::new(NODE_DIR_NAME.into(), clouds, key);
    config.plain_exports = true;
    if config.clouds.len() < CLOUDS_FOR_SAFETY {
        config.few_clouds = true;
        output::say("the recovered node has fewer than three clouds, few_clouds = true stands in its settings");
    }
    settings::warn(&config.check("the command line")?);
    clouds::expect_apart(&config.clouds)?;
    Ok(config)
}

impl Table for Report {
    fn rows(&self) -> Vec<Vec<String>> {
        let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut rows = vec![
            vec!["cluster".to_owned(), self.cluster.to_string()],
            vec!["incarnation".to_owned(), self.incarnation.to_string()],
            vec!["rests on".to_owned(), self.assumption.clone()],
            vec!["verified".to_owned(), self.verified.to_owned()],
        ];
        for volume in &self.volumes {
            let at = format!("{}, seq {}, from checkpoint {}", bytes(volume.size_bytes), volume.seq, volume.checkpoint);
            rows.push(vec![format!("volume {}", volume.name), at]);
            rows.extend(volume.lost.iter().map(|object| row(&["  lost", object])));
        }
        for cloud in &self.clouds {
            let sum = |counts: &std::collections::BTreeMap<&'static str, u64>| counts.values().sum::<u64>();
            let (authentic, corrupt, missing) = (sum(&cloud.authentic), sum(&cloud.corrupt), sum(&cloud.missing));
            let objects = format!("{authentic} objects authentic, {corrupt} corrupt, {missing} missing");
            let found = match cloud.standing {
                Standing::Good => objects,
                Standing::Damaged => format!("counted as holding nothing: {}; {objects}", cloud.why),
                Standing::Empty | Standing::Foreign => format!("counted as holding nothing: {}", cloud.why),
                Standing::Silent | Standing::Absent => format!("missing: {}", cloud.why),
            };
            rows.push(vec![format!("cloud {}", cloud.name), found]);
            if cloud.mended + cloud.unmended > 0 {
                let mended = format!("{} of {} damaged objects replaced", cloud.mended, cloud.mended + cloud.unmended);
                rows.push(row(&["  mended", &mended]));
            }
            rows.push(row(&["  follows", cloud.follows]));
            rows.extend(cloud.details.iter().map(|detail| row(&["  fault", detail])));
        }
        rows
    }
}
