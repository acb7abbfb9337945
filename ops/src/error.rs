//! Why a command failed: what happened, to what, and what to do.

use std::{fmt, process::ExitCode};

use velum_node::config::ConfigError;
use velum_protocol::admin::Problem;

/// A command that did not do what was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    what: String,
    remedy: Option<String>,
}

/// Which exit code a failure gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// 1: it could not be done.
    Failed,
    /// 2: the command line or the settings are at fault.
    Usage,
}

impl Failure {
    /// Something could not be done.
    pub(crate) fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind: Kind::Failed, what: what.into(), remedy: Some(remedy.into()) }
    }

    /// The command line is at fault.
    pub(crate) fn usage(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, ..Self::new(what, remedy) }
    }

    /// An error that says itself what to do.
    pub(crate) fn told(error: &dyn std::error::Error) -> Self {
        let mut what = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !what.contains(&cause_text) {
                what = format!("{what}: {cause_text}");
            }
            source = cause.source();
        }
        Self { kind: Kind::Failed, what, remedy: None }
    }

    /// The exit code: 1 failed, 2 usage.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self.kind {
            Kind::Failed => ExitCode::from(1),
            Kind::Usage => ExitCode::from(2),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n  {remedy}"),
            None => Ok(()),
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::new(problem.detail, problem.remedy)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self { kind: Kind::Usage, what: error.to_string(), remedy: None }
    }
}
