//! Gets the root secret from where the settings say it is.

use std::{
    io::{self, Read},
    path::Path,
    process::{Command, Stdio},
};

use velum_node::{
    config::KeyConfig,
    env::Entropy,
    keyring::{self, PASSPHRASE_BYTES_MAX, ProviderError, ProviderSecret},
};
use zeroize::Zeroizing;

use crate::{error::Failure, files};

/// Permission bits reported for secrets that are in no file.
const OWNER_ONLY: u32 = 0o600;

/// Fetches the secret.
pub(crate) fn fetch(key: &KeyConfig) -> Result<ProviderSecret, Failure> {
    if let Some(path) = &key.keyfile {
        return from_keyfile(path);
    }
    if let Some(source) = &key.passphrase {
        return passphrase(source);
    }
    if let Some(name) = &key.env {
        let text = variable(name)?;
        let what = format!("the key in the environment variable {name}");
        return ProviderSecret::from_keyfile(OWNER_ONLY, text.as_bytes().to_vec())
            .map_err(|error| refused(&what, error));
    }
    if let Some(command) = &key.exec {
        return from_command(command);
    }
    match &key.inline_passphrase {
        Some(text) => accept("the passphrase in the settings", text.clone()),
        None => Err(Failure::usage("nothing says where the root key comes from", "set key.keyfile")),
    }
}

/// A keyfile's secret.
pub(crate) fn from_keyfile(path: &Path) -> Result<ProviderSecret, Failure> {
    let (mode, contents) = files::read_secret(path)?;
    ProviderSecret::from_keyfile(mode, contents.to_vec()).map_err(|error| refused(&path.display().to_string(), error))
}

/// Makes a new keyfile.
pub(crate) fn create_keyfile(path: &Path, entropy: &dyn Entropy) -> Result<(), Failure> {
    files::create_secret(path, &keyring::new_keyfile(entropy))
}

fn passphrase(source: &str) -> Result<ProviderSecret, Failure> {
    let text = match source.split_once(':') {
        None if source == "tty" => {
            rpassword::prompt_password("passphrase: ").map_err(|error| unread("the terminal", &error))?
        }
        None if source == "stdin" => bounded("stdin", io::stdin().lock())?,
        Some(("fd", number)) => bounded(source, open_descriptor(number)?)?,
        Some(("env", name)) => variable(name)?.to_string(),
        _ => {
            return Err(Failure::usage(
                format!("`{source}` is no source of a passphrase"),
                "use tty, stdin, fd:N or env:NAME",
            ));
        }
    };
    accept(&format!("the passphrase from {source}"), text)
}

fn open_descriptor(number: &str) -> Result<impl Read, Failure> {
    let path = format!("/proc/self/fd/{number}");
    std::fs::OpenOptions::new().read(true).open(path).map_err(|error| unread(&format!("descriptor {number}"), &error))
}

fn bounded(what: &str, from: impl Read) -> Result<String, Failure> {
    let mut text = Zeroizing::new(String::new());
    let limit = PASSPHRASE_BYTES_MAX as u64 + 2;
    from.take(limit + 1).read_to_string(&mut text).map_err(|error| unread(what, &error))?;
    Ok(std::mem::take(&mut *text))
}

fn variable(name: &str) -> Result<Zeroizing<String>, Failure> {
    #[expect(clippy::disallowed_methods, reason = "the settings name this variable as the place of the secret")]
    let value = std::env::var(name);
    value.map(Zeroizing::new).map_err(|_| {
        Failure::new(
            format!("the environment variable {name} is not set"),
            "set it, or name another source of the root key",
        )
    })
}

fn from_command(command: &[String]) -> Result<ProviderSecret, Failure> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| Failure::usage("key.exec is empty", "name a program"))?;
    let run = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = run.map_err(|error| unread(&format!("`{program}`"), &error))?;
    let printed = Zeroizing::new(output.stdout);
    if !output.status.success() {
        let what = format!("`{program}`, which should print the root key, ended with {}", output.status);
        return Err(Failure::new(what, "run it by hand and mend it"));
    }
    ProviderSecret::from_keyfile(OWNER_ONLY, printed.to_vec())
        .map_err(|error| refused(&format!("what `{program}` printed"), error))
}

fn accept(what: &str, text: String) -> Result<ProviderSecret, Failure> {
    ProviderSecret::from_passphrase(text).map_err(|error| refused(what, error))
}

fn unread(what: &str, error: &io::Error) -> Failure {
    Failure::new(
        format!("cannot read the secret from {what}: {error}"),
        "check the source named under `key` in the settings",
    )
}

fn refused(what: &str, error: ProviderError) -> Failure {
    let remedy = match error {
        ProviderError::OpenToOthers { .. } => {
            "run the command again then; if others may have read it, make a new cluster"
        }
        ProviderError::KeyfileForm { .. } | ProviderError::KeyfileNotRandom => {
            "give the right file, or make a new root key with `velum key init --keyfile FILE`"
        }
        ProviderError::PassphraseShort | ProviderError::PassphraseLong | ProviderError::PassphraseKnown => {
            "choose another one: a few words drawn at random"
        }
    };
    Failure::new(format!("{what} is not accepted: {error}"), remedy)
}
