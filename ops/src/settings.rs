//! `velum config`, and reading and writing `node.toml` for the other commands.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use rustix::fs::statfs;
use serde::Serialize;
use velum_node::{
    config::{Finding, NodeConfig},
    keyring,
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
    let finding = |key: &str, what: String, remedy: &str| Finding {
        key: key.to_owned(),
        line: None,
        what,
        remedy: remedy.to_owned(),
    };
    if let Some(keyfile) = &config.key.keyfile {
        match files::read_secret(keyfile) {
            Err(refused) => {
                faults.push(finding("key.keyfile", refused.to_string(), "or make one with `velum key init`"))
            }
            Ok((mode, _)) => {
                if let Err(error) = keyring::check_mode(mode) {
                    faults.push(finding("key.keyfile", error.to_string(), "then check again"));
                }
            }
        }
    }
    let existing = config.dir.ancestors().find(|path| files::exists(path));
    let Some(existing) = existing else { return faults };
    match statfs(existing).map(|found| u64::try_from(found.f_type).unwrap_or_default()) {
        Ok(TMPFS) => {
            let what = format!("{} is in memory (tmpfs)", config.dir.display());
            warnings.push(finding("dir", what, "a power cut loses what is not in the clouds; use a disk"));
        }
        Ok(NFS) => {
            let what = format!("{} is on NFS", config.dir.display());
            warnings.push(finding("dir", what, "its locks and syncs promise less; use a local disk"));
        }
        Ok(_) | Err(_) => {}
    }
    let own = rustix::process::geteuid().as_raw();
    if files::exists(&config.dir) && files::owner(&config.dir).is_some_and(|owner| owner != own) {
        let what = format!("{} belongs to another user", config.dir.display());
        warnings.push(finding("dir", what, "run the node as its owner"));
    }
    faults
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
            files::create_secret(&key, b"x").unwrap();
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
