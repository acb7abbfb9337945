//! `velum up`: everything in one process and one directory, with no config to write first.
//!
//! The first run makes a cluster: a root key, `node.toml`, a node and a volume. Later runs carry on with what `node.toml`
//! says; a flag that says otherwise is refused by name, so that nobody believes to have changed something.

use std::path::{Path, PathBuf};

use clap::Args;
use velum_node::config::{KeyConfig, Listen, NodeConfig, Size};

use crate::{
    clouds::{self, CloudArgs},
    error::Failure,
    files,
    output::{self, Format},
    secret,
    serve::{self, Wishes},
    settings::{self, CONFIG_NAME, KEYFILE_NAME, NODE_DIR_NAME},
    volume::volume_name,
};

/// The volume of a first run that names none.
const VOLUME_DEFAULT: &str = "demo";
/// Its size.
const SIZE_DEFAULT: Size = Size::mib(1024);

/// How `up` is asked.
#[derive(Args, Debug)]
pub(crate) struct Up {
    /// Where everything is kept
    #[arg(long, default_value = "velum-data", value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    clouds: CloudArgs,
    /// Accept fewer than three clouds, and that losing one may lose data
    #[arg(long)]
    few_clouds: bool,
    /// The volume to make on the first run [default: demo]
    #[arg(long, value_parser = volume_name, value_name = "NAME")]
    volume: Option<String>,
    /// Its size [default: 1GiB]
    #[arg(long)]
    size: Option<Size>,
    /// Where to serve volumes: HOST:PORT or unix:/PATH; once for each [default: 127.0.0.1:10809]
    #[arg(long, value_parser = listen, value_name = "ADDRESS")]
    nbd: Vec<Listen>,
    /// Where to answer operators [default: 127.0.0.1:9890]
    #[arg(long, value_parser = listen, value_name = "HOST:PORT")]
    admin: Option<Listen>,
    /// Memory for buffer and caches [default: 512MiB]
    #[arg(long)]
    memory: Option<Size>,
}

/// Runs until it is told to stop.
pub(crate) fn run(up: &Up, format: Format) -> Result<(), Failure> {
    let dir = files::absolute(&up.dir)?;
    let path = dir.join(CONFIG_NAME);
    let config = if files::exists(&path) { again(up, &path)? } else { begin(up, &dir, &path)? };
    let mut resolved = config;
    resolved.resolve(&dir);
    make_keyfile(&resolved)?;
    let secret = secret::fetch(&resolved.key)?;
    let wishes = Wishes {
        create: true,
        volume: up.volume.clone(),
        size: up.size,
        first_volume: Some((VOLUME_DEFAULT.to_owned(), SIZE_DEFAULT)),
    };
    serve::run(resolved, &secret, &wishes, format)
}

/// A first run: settles the settings and writes them down before anything else is made.
fn begin(up: &Up, dir: &Path, path: &Path) -> Result<NodeConfig, Failure> {
    let config = first(up, dir)?;
    output::say(&format!("{} is empty: making a new cluster there", dir.display()));
    files::create_folder(dir)?;
    files::replace(path, settings::written("velum up", &config).as_bytes())?;
    Ok(config)
}

/// Makes the root key on first use. A node that has been made knows its key; then a missing one is a fault, found later.
fn make_keyfile(config: &NodeConfig) -> Result<(), Failure> {
    let Some(keyfile) = config.key.keyfile.as_deref().filter(|path| !files::exists(path)) else { return Ok(()) };
    if !files::names(&config.dir)?.is_empty() {
        let what =
            format!("the root key {} is gone, and the node in {} needs it", keyfile.display(), config.dir.display());
        return Err(Failure::new(what, "put the copy of it back; a new key opens nothing"));
    }
    secret::create_keyfile(keyfile, &*serve::environment()?.entropy)?;
    output::say(&format!(
        "made the root key {} (mode 0600). Keep a copy elsewhere: without it no cloud's data can be read again",
        keyfile.display()
    ));
    Ok(())
}

/// Settings of a first run, with paths that count from `dir`.
fn first(up: &Up, dir: &Path) -> Result<NodeConfig, Failure> {
    let others: Vec<String> = files::names(dir)?.into_iter().filter(|name| name != KEYFILE_NAME).collect();
    if !others.is_empty() {
        let what = format!("{} is not empty, and no {CONFIG_NAME} in it says that `velum up` made it", dir.display());
        return Err(Failure::new(what, "name a new or empty directory with --dir"));
    }
    let clouds = match up.clouds.clouds.as_slice() {
        [] => clouds::local(dir)?,
        given => clouds::named(given)?,
    };
    let key = KeyConfig { keyfile: Some(KEYFILE_NAME.into()), ..KeyConfig::default() };
    let mut config = NodeConfig::new(NODE_DIR_NAME.into(), clouds, key);
    config.plain_exports = true;
    config.few_clouds = up.few_clouds;
    if !up.nbd.is_empty() {
        config.nbd.listen.clone_from(&up.nbd);
    }
    if let Some(admin) = &up.admin {
        config.admin.listen = admin.clone();
    }
    if let Some(memory) = up.memory {
        config.memory = memory;
    }
    settings::warn(&config.check("the command line")?);
    Ok(config)
}

/// Settings of a later run: those of the first.
fn again(up: &Up, path: &Path) -> Result<NodeConfig, Failure> {
    let config = settings::read(path)?;
    let given = match up.clouds.clouds.as_slice() {
        [] => config.clouds.clone(),
        given => clouds::named(given)?,
    };
    let places = |clouds: &[velum_node::config::CloudConfig]| {
        clouds.iter().map(|cloud| (cloud.name.clone(), cloud.url.clone())).collect::<Vec<_>>()
    };
    let contradictions = [
        ("--cloud", places(&given) != places(&config.clouds)),
        ("--few-clouds", up.few_clouds && !config.few_clouds),
        ("--nbd", !up.nbd.is_empty() && up.nbd != config.nbd.listen),
        ("--admin", up.admin.as_ref().is_some_and(|admin| *admin != config.admin.listen)),
        ("--memory", up.memory.is_some_and(|memory| memory != config.memory)),
    ];
    let flags: Vec<&str> = contradictions.iter().filter(|(_, differs)| *differs).map(|(flag, _)| *flag).collect();
    if flags.is_empty() {
        return Ok(config);
    }
    let what = format!("{} says otherwise than {}", flags.join(", "), path.display());
    Err(Failure::usage(what, "leave the flag out to carry on as before, or edit the file while nothing runs"))
}

fn listen(text: &str) -> Result<Listen, String> {
    Listen::parse(text).ok_or_else(|| "write HOST:PORT or unix:/PATH".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        up: Up,
    }

    fn asked(arguments: &[&str]) -> Up {
        Line::parse_from(["up"].iter().chain(arguments)).up
    }

    #[test]
    fn a_first_run_needs_an_empty_directory() {
        let folder = tempfile::tempdir().unwrap();
        first(&asked(&[]), folder.path()).unwrap();
        files::replace(&folder.path().join(KEYFILE_NAME), b"key").unwrap();
        first(&asked(&[]), folder.path()).unwrap();
        files::replace(&folder.path().join("thesis.tex"), b"years of work").unwrap();
        let refused = first(&asked(&[]), folder.path()).unwrap_err().to_string();
        assert!(refused.contains("is not empty") && refused.contains("--dir"), "{refused}");
    }

    #[test]
    fn a_first_run_lays_three_clouds_beside_the_node() {
        let folder = tempfile::tempdir().unwrap();
        let config = first(&asked(&["--nbd", "unix:velum.sock"]), folder.path()).unwrap();
        let urls: Vec<_> = config.clouds.iter().map(|cloud| cloud.url.clone()).collect();
        assert_eq!(urls, ["a", "b", "c"].map(|name| format!("file://{}/clouds/{name}/", folder.path().display())));
        assert_eq!((config.cloud_quorum(), config.plain_exports), (2, true));
        assert_eq!(config.nbd.listen, [Listen::unix("velum.sock".into())]);
    }

    #[test]
    fn a_later_flag_that_contradicts_the_settings_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CONFIG_NAME);
        let config = first(&asked(&["--admin", "127.0.0.1:9000"]), folder.path()).unwrap();
        files::replace(&path, settings::written("velum up", &config).as_bytes()).unwrap();
        assert_eq!(again(&asked(&[]), &path).unwrap(), config);
        assert_eq!(again(&asked(&["--admin", "127.0.0.1:9000"]), &path).unwrap(), config);
        for (arguments, flag) in [
            (["--cloud", "memory:///"], "--cloud"),
            (["--nbd", "127.0.0.1:1"], "--nbd"),
            (["--admin", "127.0.0.1:1"], "--admin"),
            (["--memory", "1GiB"], "--memory"),
        ] {
            let refused = again(&asked(&arguments), &path).unwrap_err().to_string();
            assert!(refused.starts_with(&format!("{flag} says otherwise")), "{refused}");
        }
    }
}
