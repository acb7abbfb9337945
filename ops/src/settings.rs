//! `velum config`, and reading and writing `node.toml` for the other commands.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use rustix::fs::statfs;
use serde::Serialize;
use velum_node::{
    config::{Finding, NodeConfig},
    keyring::{self, ProviderSecret},
    node::Layout,
};
use velum_protocol::{
    format::journal::{FILE_HEADERS_BYTES, FileHeaders},
    id::NodeId,
};

use crate::{
    error::Failure,
    files,
    output::{self, Format, Table},
};

/// The config's name in the directory of `up` and `recover`.
pub(crate) const CONFIG_NAME: &str = "node.toml";
/// The root key's name there.
pub(crate) const KEYFILE_NAME: &str = "root.key";
/// The node's directory there.
pub(crate) const NODE_DIR_NAME: &str = "node-1";

/// `TMPFS_MAGIC` and `NFS_SUPER_MAGIC` of the kernel.
const TMPFS: u64 = 0x0102_1994;
const NFS: u64 = 0x6969;

/// What can be done with a config file.
#[derive(Subcommand, Debug)]
pub(crate) enum Config {
    /// Judge a config file without starting anything
    Check {
        /// The file
        file: PathBuf,
    },
}

/// Does it.
pub(crate) fn run(config: &Config, format: Format) -> Result<(), Failure> {
    let Config::Check { file } = config;
    let bytes = files::read(file)?;
    let name = file.display().to_string();
    let (mut parsed, mut warnings) = NodeConfig::parse(&bytes, &name)?;
    parsed.resolve(&folder(file)?);
    parsed.check(&name)?;
    let faults = on_this_machine(&parsed, &mut warnings);
    if !faults.is_empty() {
        return Err(velum_node::config::ConfigError { file: name, findings: faults }.into());
    }
    output::print(format, &Judged { file: file.clone(), warnings: warnings.iter().map(ToString::to_string).collect() });
    Ok(())
}

/// A config that is in order.
#[derive(Serialize)]
struct Judged {
    file: PathBuf,
    warnings: Vec<String>,
}

impl Table for Judged {
    fn rows(&self) -> Vec<Vec<String>> {
        let good = vec!["in order".to_owned(), self.file.display().to_string()];
        let warnings = self.warnings.iter().map(|warning| vec!["warning".to_owned(), warning.clone()]);
        std::iter::once(good).chain(warnings).collect()
    }
}

/// Reads settings; says warnings aloud. Paths stay as they are written.
pub(crate) fn read(path: &Path) -> Result<NodeConfig, Failure> {
    let (config, warnings) = NodeConfig::parse(&files::read(path)?, &path.display().to_string())?;
    warn(&warnings);
    Ok(config)
}

/// Reads settings, with paths that count from the folder of the file.
pub(crate) fn read_resolved(path: &Path) -> Result<NodeConfig, Failure> {
    let mut config = read(path)?;
    config.resolve(&folder(path)?);
    // Once more: only now clouds that are named by relative paths can be told apart from the others.
    config.check(&path.display().to_string())?;
    Ok(config)
}

/// Says warnings aloud.
pub(crate) fn warn(warnings: &[Finding]) {
    for warning in warnings {
        output::say(&format!("warning: {warning}"));
    }
}

/// The text of a config that a command chose.
pub(crate) fn written(command: &str, config: &NodeConfig) -> String {
    format!(
        "# Written by `{command}`. Relative paths count from this file's folder. `velum config check` judges it;\n\
         # `velum node --config` runs it.\n\n{}",
        config.to_toml()
    )
}

/// The folder of a file, from the root.
fn folder(file: &Path) -> Result<PathBuf, Failure> {
    let file = files::absolute(file)?;
    Ok(file.parent().unwrap_or(Path::new("/")).to_path_buf())
}

/// What only this machine can tell: the keyfile, the file system under the journal, whose the directory is.
fn on_this_machine(config: &NodeConfig, warnings: &mut Vec<Finding>) -> Vec<Finding> {
    let mut faults = Vec::new();
    keyfile(config, &mut faults);
    file_system(config, &mut faults, warnings);
    let own = rustix::process::geteuid().as_raw();
    if files::exists(&config.dir) && files::owner(&config.dir).is_some_and(|owner| owner != own) {
        let what = format!("{} belongs to another user", config.dir.display());
        warnings.push(finding("dir", what, "run the node as its owner"));
    }
    if let Some(found) = journal_owner(&config.dir).filter(|found| *found != config.node) {
        let what = format!("{} is the directory of node {found}", config.dir.display());
        faults.push(finding("node", what, "give the node its number back, or a directory of its own"));
    }
    faults
}

fn finding(key: &str, what: String, remedy: &str) -> Finding {
    Finding { key: key.to_owned(), line: None, what, remedy: remedy.to_owned() }
}

/// Whether the keyfile can be used, and opens what lies in the node's directory.
fn keyfile(config: &NodeConfig, faults: &mut Vec<Finding>) {
    let Some(keyfile) = &config.key.keyfile else { return };
    let secret = match files::read_secret(keyfile) {
        Err(refused) => {
            return faults.push(finding("key.keyfile", refused.to_string(), "or make one with `velum key init`"));
        }
        Ok((mode, contents)) => ProviderSecret::from_keyfile(mode, contents.to_vec()),
    };
    let secret = match secret {
        Ok(secret) => secret,
        Err(error) => {
            let what = format!("{}: {error}", keyfile.display());
            return faults.push(finding("key.keyfile", what, "give the right file, then check again"));
        }
    };
    let layout = Layout::new(&config.dir);
    if let (Ok(identity), Ok(slots)) = (files::read(&layout.identity()), files::read(&layout.slots()))
        && let Err(error) = keyring::open_cluster(&identity, &slots, &secret)
    {
        let what = format!("{} does not open the keys in {}: {error}", keyfile.display(), config.dir.display());
        faults.push(finding("key", what, "give the root key that the cluster was made with"));
    }
}

/// What the file system under the node's directory is, and whether the journal will fit.
fn file_system(config: &NodeConfig, faults: &mut Vec<Finding>, warnings: &mut Vec<Finding>) {
    let Some(existing) = config.dir.ancestors().find(|path| files::exists(path)) else { return };
    let Ok(found) = statfs(existing) else { return };
    match u64::try_from(found.f_type).unwrap_or_default() {
        TMPFS => {
            let what = format!("{} is in memory (tmpfs)", config.dir.display());
            warnings.push(finding("dir", what, "a power cut loses what is not in the clouds; use a disk"));
        }
        NFS => {
            let what = format!("{} is on NFS", config.dir.display());
            warnings.push(finding("dir", what, "its locks and syncs promise less; use a local disk"));
        }
        _ => {}
    }
    let size = found.f_blocks.saturating_mul(u64::try_from(found.f_bsize).unwrap_or_default());
    let (journal, cache) = (config.journal.bytes_max.bytes(), config.cache.disk_bytes.bytes());
    if journal > size {
        let what = format!("the file system of {} is smaller than the journal may grow", config.dir.display());
        faults.push(finding("journal.bytes_max", what, "lower it, and memory with it, or use a larger disk"));
    } else if journal.saturating_add(cache) > size {
        let what = format!("journal and cache may grow larger than the file system of {}", config.dir.display());
        warnings.push(finding("cache.disk_bytes", what, "lower it; a full disk stops the node"));
    }
}

/// The node whose journal lies in a node's directory, if there is one that can be read.
fn journal_owner(dir: &Path) -> Option<NodeId> {
    let folder = Layout::new(dir).journal();
    let first = files::names(&folder).ok()?.into_iter().find(|name| name.ends_with(".journal"))?;
    let head = files::read_start(&folder.join(first), FILE_HEADERS_BYTES).ok()?;
    FileHeaders::decode(&head).current.ok().map(|(header, _)| header.node)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
dir = "node-1"
few_clouds = true
[[clouds]]
name = "a"
url = "memory:///"
[key]
keyfile = "root.key"
"#;

    fn check(config: &str, key_mode: Option<u32>) -> Result<(), Failure> {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(CONFIG_NAME);
        files::replace(&file, config.as_bytes()).unwrap();
        if let Some(mode) = key_mode {
            let key = folder.path().join(KEYFILE_NAME);
            files::create_secret(&key, &(0..32).collect::<Vec<u8>>()).unwrap();
            std::fs::set_permissions(key, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        run(&Config::Check { file }, Format::Json)
    }

    #[test]
    fn a_good_config_passes() {
        check(CONFIG, Some(0o600)).unwrap();
    }

    #[test]
    fn a_missing_or_open_keyfile_is_named() {
        let refused = check(CONFIG, None).unwrap_err().to_string();
        assert!(refused.contains("`key.keyfile`") && refused.contains("root.key"), "{refused}");
        let refused = check(CONFIG, Some(0o644)).unwrap_err().to_string();
        assert!(refused.contains("`key.keyfile`") && refused.contains("chmod 600"), "{refused}");
    }

    #[test]
    fn the_written_text_reads_back() {
        let (config, _) = NodeConfig::parse(CONFIG.as_bytes(), "x").unwrap();
        let (again, _) = NodeConfig::parse(written("velum up", &config).as_bytes(), "x").unwrap();
        assert_eq!(again, config);
    }
}
