//! What a command prints: data on stdout, as a table for people or as JSON for programs; all else on stderr.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns.
    #[default]
    Table,
    /// One JSON value.
    Json,
}

/// What can be printed as a table.
pub(crate) trait Table {
    /// Rows of cells; the first row is the head.
    fn rows(&self) -> Vec<Vec<String>>;
}

/// Prints data.
pub(crate) fn print<T: Serialize + Table>(format: Format, data: &T) {
    match format {
        Format::Table => line(align(&data.rows()).trim_end_matches('\n')),
        Format::Json => json(data),
    }
}

/// Prints one JSON value on one line.
pub(crate) fn json<T: Serialize>(data: &T) {
    line(&serde_json::to_string(data).expect("data of commands has a JSON form"));
}

/// Prints a line of data. A reader that went away (`| head`) is no fault.
pub(crate) fn line(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Tells a person something beside the data.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A bar over `total` bytes; only on a terminal.
pub(crate) fn bytes_bar(total: u64, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .expect("the template is well-formed");
    bar(ProgressBar::new(total).with_style(style), what)
}

/// Something turns while work of unknown length goes on; only on a terminal.
pub(crate) fn spinner(what: &str) -> ProgressBar {
    let bar = bar(ProgressBar::new_spinner(), what);
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    bar
}

fn bar(bar: ProgressBar, what: &str) -> ProgressBar {
    let target = if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    bar.set_draw_target(target);
    bar.set_message(what.to_owned());
    bar
}

/// A number of bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    bytesize::ByteSize(count).display().iec().to_string()
}

/// A time span for people.
pub(crate) fn seconds(span: f64) -> String {
    match span {
        span if span < 0.001 => format!("{:.0} us", span * 1e6),
        span if span < 1.0 => format!("{:.1} ms", span * 1e3),
        span if span < 120.0 => format!("{span:.1} s"),
        span => format!("{:.0} min", span / 60.0),
    }
}

/// A value that may be missing.
pub(crate) fn optional<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

/// Cells in columns, two spaces apart.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_blanks_at_their_end() {
        let rows = [vec!["NAME", "SIZE"], vec!["a-long-name", "1"], vec!["b", ""]];
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect();
        assert_eq!(align(&rows), "NAME         SIZE\na-long-name  1\nb\n");
    }

    #[test]
    fn time_spans_are_shown_in_the_unit_that_fits() {
        for (span, text) in [(0.000_25, "250 us"), (0.0125, "12.5 ms"), (5.0, "5.0 s"), (600.0, "10 min")] {
            assert_eq!(seconds(span), text);
        }
    }
}
