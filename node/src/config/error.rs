//! What is wrong with a config file, said so that it can be mended.

use std::fmt;

/// One fault or warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The key, as in `clouds[1].url`; empty when the file as a whole is meant.
    pub key: String,
    /// The line in the file, from 1, when it is known.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    /// A finding about the file as a whole.
    #[must_use]
    pub fn of_file(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { key: String::new(), line: None, what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "`{}`: ", self.key)?;
        }
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

/// A config that a node does not start with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file's name, or what else the settings came from.
    pub file: String,
    /// Everything that is wrong, in the order of the file as far as it is known.
    pub findings: Vec<Finding>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the settings in {} are refused:", self.file)?;
        self.findings.iter().try_for_each(|finding| write!(f, "\n  {finding}"))
    }
}
