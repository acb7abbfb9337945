//! Takes what raft-rs has to say to `tracing`.

use std::fmt::{self, Write};

use slog::{Drain, KV, Level, Logger, OwnedKVList, Record, Serializer};

/// A logger for raft-rs. What it calls information is for those who debug consensus.
pub(super) fn logger() -> Logger {
    Logger::root(ToTracing, slog::o!())
}

struct ToTracing;

impl Drain for ToTracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, context: &OwnedKVList) -> Result<(), slog::Never> {
        let mut line = Line(record.msg().to_string());
        // Writing into a string does not fail; a value that refuses to be written is left out.
        let _ = record.kv().serialize(record, &mut line);
        let _ = context.serialize(record, &mut line);
        let line = line.0;
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "velum_node::consensus", "{line}"),
            Level::Warning => tracing::warn!(target: "velum_node::consensus", "{line}"),
            Level::Info => tracing::debug!(target: "velum_node::consensus", "{line}"),
            Level::Debug | Level::Trace => tracing::trace!(target: "velum_node::consensus", "{line}"),
        }
        Ok(())
    }
}

struct Line(String);

impl Serializer for Line {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, ", {key} {value}").map_err(slog::Error::from)
    }
}
