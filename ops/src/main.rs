//! `velum`: what an operator types.
//!
//! One file for each noun. Data goes to stdout, everything else to stderr, with `--output json` an error too as JSON. Exit
//! code 0 means done, 1 failed, 2 that the command line or a settings file is at fault: nothing was tried then.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tracing_subscriber::EnvFilter;

mod client;
mod cloud;
mod clouds;
mod cluster;
mod error;
mod files;
mod inspect;
mod key;
mod nodes;
mod output;
mod preflight;
mod recover;
mod secret;
mod serve;
mod settings;
mod up;
mod volume;

use error::Failure;
use output::Format;

const AFTER_HELP: &str = "Data is printed to stdout, everything else to stderr. Exit code: 0 done; 1 failed; 2 the \
                          command line\nor a settings file is at fault. VELUM_LOG=debug shows more of what a node does.";

/// Encrypted block volumes over several clouds.
#[derive(Parser, Debug)]
#[command(name = "velum", version, after_help = AFTER_HELP)]
struct Velum {
    /// How data is printed
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serve a volume from one directory, without a config; make it on the first run
    Up(up::Up),
    /// Run one host node with a config
    Node {
        /// The node's settings
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Make, list, show, resize, flush, attach and delete volumes, and say who may use them
    Volume {
        #[command(flatten)]
        target: client::Target,
        #[command(subcommand)]
        volume: volume::Volume,
    },
    /// List, check and resync the clouds of a node
    Cloud {
        #[command(flatten)]
        target: client::Target,
        #[command(subcommand)]
        cloud: cloud::Cloud,
    },
    /// Make a cluster of several nodes, let nodes join and leave, show them
    Cluster {
        #[command(flatten)]
        target: client::Target,
        #[command(subcommand)]
        cluster: cluster::Cluster,
    },
    /// Make a root key
    Key {
        #[command(subcommand)]
        key: key::Key,
    },
    /// Bring all volumes back from the clouds and the root key alone, into a new directory
    Recover(recover::Recover),
    /// Show what a stored file or object is, and whether it is whole
    Inspect(inspect::Inspect),
    /// Judge a config file
    Config {
        #[command(subcommand)]
        config: settings::Config,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

fn main() -> ExitCode {
    let velum = match Velum::try_parse() {
        Ok(velum) => velum,
        // Help and version are no errors; a wrong line is one for whoever asked for JSON, too.
        Err(error) if error.use_stderr() && wants_json() => return fail(&error.into(), Format::Json),
        Err(error) => error.exit(),
    };
    log(&velum.command);
    match run(&velum) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure, velum.output),
    }
}

fn fail(failure: &Failure, format: Format) -> ExitCode {
    match format {
        Format::Table => output::say(&format!("velum: {failure}")),
        Format::Json => output::say(&failure.json()),
    }
    failure.exit_code()
}

/// Whether a line that cannot be read asks for JSON.
fn wants_json() -> bool {
    let words: Vec<_> = std::env::args_os().collect();
    let follows = words.windows(2).any(|pair| matches!(pair, [flag, format] if flag == "--output" && format == "json"));
    follows || words.iter().any(|word| word == "--output=json")
}

fn run(velum: &Velum) -> Result<(), Failure> {
    let format = velum.output;
    match &velum.command {
        Command::Up(up) => up::run(up, format),
        Command::Node { config } => serve::with_config(config, format),
        Command::Volume { target, volume } => volume::run(volume, target, format),
        Command::Cloud { target, cloud } => cloud::run(cloud, target, format),
        Command::Cluster { target, cluster } => cluster::run(cluster, target, format),
        Command::Key { key } => key::run(key, format),
        Command::Recover(recover) => recover::run(recover, format),
        Command::Inspect(inspect) => inspect::run(inspect, format),
        Command::Config { config } => settings::run(config, format),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Velum::command(), "velum", &mut script);
            output::line(String::from_utf8_lossy(&script).trim_end());
            Ok(())
        }
    }
}

/// Log lines go to stderr, for a node from `info`, else from `warn`; `VELUM_LOG` says otherwise.
fn log(command: &Command) {
    let level = if matches!(command, Command::Up(_) | Command::Node { .. }) { "info" } else { "warn" };
    let filter = EnvFilter::try_from_env("VELUM_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Velum::command().debug_assert();
    }

    #[test]
    fn the_documented_lines_are_understood() {
        for line in [
            "velum up",
            "velum up --dir d --cloud file:///a --cloud b=s3://x/y --volume demo --size 1GiB --nbd 127.0.0.1:1 --admin 127.0.0.1:2",
            "velum up --nodes 3 --peers 127.0.0.1:9900",
            "velum node --config node.toml",
            "velum volume create demo --size 1GiB",
            "velum volume list --output json",
            "velum --output json volume show demo --admin http://127.0.0.1:1",
            "velum volume resize demo --size 2GiB --force",
            "velum volume flush demo",
            "velum volume delete demo --confirm demo",
            "velum volume allow demo uid:1000 write --range 0..64MiB",
            "velum volume deny demo anonymous",
            "velum volume acl demo",
            "velum cloud list",
            "velum cloud check",
            "velum cloud resync c",
            "velum cluster init --config node.toml",
            "velum cluster token",
            "velum cluster join --config node.toml --token velum1.x",
            "velum cluster status --output json",
            "velum cluster remove 3",
            "velum cluster transfer 2",
            "velum key init --keyfile root.key",
            "velum recover --cloud file:///a --cloud file:///b --keyfile k --dir d --accept-missing c --verify full",
            "velum inspect journal FILE",
            "velum inspect segment FILE --config node.toml",
            "velum config check node.toml",
            "velum completions bash",
        ] {
            Velum::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn lines_that_make_no_sense_are_refused() {
        for line in [
            "velum",
            "velum volume create Demo --size 1GiB",
            "velum volume create demo --size 1.5GiB",
            "velum volume allow demo anonymous none",
            "velum up --nbd 10809",
            "velum up --nodes 2",
            "velum up --nodes 7",
            "velum up --cloud /srv/a",
            "velum volume delete demo",
        ] {
            assert!(Velum::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
