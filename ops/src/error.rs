//! Why a command failed: what happened, to what, and what to do; for people as text, for programs as JSON.

use std::{fmt, process::ExitCode};

use serde::Serialize;

use velum_node::config::ConfigError;
use velum_protocol::admin::{Problem, ProblemKind};

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
    /// 2: the command line or a settings file is at fault, whatever the state of the world. Nothing was tried.
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

    /// The same, of one of several.
    pub(crate) fn of(self, whose: &str) -> Self {
        Self { what: format!("{whose}: {}", self.what), ..self }
    }

    /// The exit code: 1 failed, 2 usage.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    const fn code(&self) -> u8 {
        match self.kind {
            Kind::Failed => 1,
            Kind::Usage => 2,
        }
    }

    /// The failure for a program that asked for JSON: on one line, with the exit code beside.
    pub(crate) fn json(&self) -> String {
        let shown = Shown { error: &self.what, remedy: self.remedy.as_deref(), exit_code: self.code() };
        serde_json::to_string(&shown).expect("a failure has a JSON form")
    }
}

/// A failure as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    error: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'a str>,
    exit_code: u8,
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
        match problem.kind {
            ProblemKind::Invalid => Self::usage(problem.detail, problem.remedy),
            _ => Self::new(problem.detail, problem.remedy),
        }
    }
}

impl From<clap::Error> for Failure {
    /// The parser's words without its colours; it says itself what to do.
    fn from(error: clap::Error) -> Self {
        let text = error.render().to_string();
        let what = text.trim_start_matches("error: ").trim_end().to_owned();
        Self { kind: Kind::Usage, what, remedy: None }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self { kind: Kind::Usage, what: error.to_string(), remedy: None }
    }
}
