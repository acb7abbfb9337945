//! `velum key`: the root key.

use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;

use crate::{
    error::Failure,
    files,
    output::{self, Format, Table},
    secret, serve,
};

/// What can be done with the root key.
#[derive(Subcommand, Debug)]
pub(crate) enum Key {
    /// Make a new keyfile that only its owner can read; an existing one is never written over
    Init {
        /// Where to put it
        #[arg(long, value_name = "FILE")]
        keyfile: PathBuf,
    },
}

#[derive(Serialize)]
struct Made {
    keyfile: PathBuf,
}

impl Table for Made {
    fn rows(&self) -> Vec<Vec<String>> {
        vec![vec!["keyfile".to_owned(), self.keyfile.display().to_string()]]
    }
}

/// Does it.
pub(crate) fn run(key: &Key, format: Format) -> Result<(), Failure> {
    match key {
        Key::Init { keyfile } => {
            secret::create_keyfile(keyfile, &*serve::environment()?.entropy)?;
            output::say(
                "made a new root key, mode 0600. Keep a copy elsewhere: without it no cloud's data can be read again",
            );
            output::print(format, &Made { keyfile: files::absolute(keyfile)? });
        }
    }
    Ok(())
}
