//! Runs the cloud conformance suite against any cloud, for example a real S3 server:
//!
//! ```text
//! cargo run -p velum-sim --example cloud_conformance -- s3://bucket/prefix endpoint=http://127.0.0.1:5601
//! ```
//!
//! Options are the provider's, as in a node's config; the usual environment variables fill in the rest. `--no-races` leaves
//! out concurrent creates, for stores that do not decide them. Leaves its objects behind under `conformance/`.

use std::{collections::BTreeMap, process::ExitCode};

use velum_node::env::real::{RealSettings, real_env};
use velum_sim::conformance::clouds::{self, Abilities};

#[expect(clippy::print_stderr, reason = "a command speaks to its user")]
fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = arguments.len();
    arguments.retain(|argument| argument != "--no-races");
    let abilities = Abilities { decides_races: arguments.len() == given };
    let mut arguments = arguments.into_iter();
    let Some(url) = arguments.next() else {
        eprintln!("usage: cloud_conformance URL [OPTION=VALUE]... [--no-races]");
        return ExitCode::from(2);
    };
    let mut options = BTreeMap::new();
    for argument in arguments {
        let Some((key, value)) = argument.split_once('=') else {
            eprintln!("`{argument}` is no OPTION=VALUE");
            return ExitCode::from(2);
        };
        options.insert(key.to_owned(), value.to_owned());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    let env = real_env(RealSettings::default()).expect("threads can be started");
    // A broken contract panics, which ends the process with a failure.
    runtime.block_on(clouds::run(&env, &url, &options, abilities));
    eprintln!("{url}: the cloud conformance suite passes");
    ExitCode::SUCCESS
}
