//! The keys of a config file: where each stands, and which are unknown.

use std::collections::BTreeMap;

use toml::{
    Spanned, Table, Value,
    de::{DeTable, DeValue},
};

use super::{CONFIG_FILE_BYTES_MAX, Finding, NodeConfig};

/// A key of [`NodeConfig::complete`] under which any name is known.
pub(super) const ANY: &str = "*";

/// Below this likeness a guess would confuse more than help.
const LIKENESS_MIN: f64 = 0.75;

/// Lines by key, as in `clouds[1].url`.
pub(super) type Lines = BTreeMap<String, usize>;

/// The file's text without a byte order mark.
pub(super) fn text(bytes: &[u8]) -> Result<&str, Finding> {
    if bytes.len() > CONFIG_FILE_BYTES_MAX {
        let what = format!("the file has {} bytes, more than {CONFIG_FILE_BYTES_MAX}", bytes.len());
        return Err(Finding::of_file(what, "give the path of a node.toml"));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(Finding::of_file("the file is UTF-16", "save it as UTF-8"));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes.iter().take(error.valid_up_to()).filter(|byte| **byte == b'\n').count() + 1;
        Finding { line: Some(line), ..Finding::of_file("the file is not UTF-8", "save it as UTF-8") }
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// A fault that the TOML reader found.
pub(super) fn located(text: &str, error: &toml::de::Error) -> Finding {
    Finding {
        line: error.span().map(|span| line_at(text, span.start)),
        ..Finding::of_file(error.message().trim_end(), "correct it and run `velum config check` again")
    }
}

/// Finds the line of every key; refuses text that is not TOML, and every key that no setting has.
pub(super) fn walk(text: &str) -> Result<Lines, Vec<Finding>> {
    let table = DeTable::parse(text).map_err(|error| vec![located(text, &error)])?;
    let known = Table::try_from(NodeConfig::complete()).expect("every setting has a TOML form");
    let mut walk = Walk { text, lines: Lines::new(), unknown: Vec::new() };
    walk.table("", table.get_ref(), &known);
    if walk.unknown.is_empty() { Ok(walk.lines) } else { Err(walk.unknown) }
}

struct Walk<'a> {
    text: &'a str,
    lines: Lines,
    unknown: Vec<Finding>,
}

impl Walk<'_> {
    fn table(&mut self, path: &str, table: &DeTable<'_>, known: &Table) {
        for (name, value) in table {
            let key = if path.is_empty() { name.get_ref().to_string() } else { format!("{path}.{}", name.get_ref()) };
            let line = line_at(self.text, name.span().start);
            match known.get(name.get_ref().as_ref()).or_else(|| known.get(ANY)) {
                Some(known) => {
                    self.lines.insert(key.clone(), line);
                    self.value(&key, value, known);
                }
                None => self.unknown.push(unknown(key, line, name.get_ref(), known)),
            }
        }
    }

    /// Goes on below a known key. A value of another shape than the setting's is left to the typed reader.
    fn value(&mut self, path: &str, value: &Spanned<DeValue<'_>>, known: &Value) {
        match (value.get_ref(), known) {
            (DeValue::Table(table), Value::Table(known)) => self.table(path, table, known),
            (DeValue::Array(items), Value::Array(known)) => {
                for (index, item) in items.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    self.lines.insert(path.clone(), line_at(self.text, item.span().start));
                    if let Some(known) = known.first() {
                        self.value(&path, item, known);
                    }
                }
            }
            _ => {}
        }
    }
}

fn unknown(key: String, line: usize, name: &str, known: &Table) -> Finding {
    let likeness = |known: &&String| strsim::jaro_winkler(name, known);
    let nearest = known.keys().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let remedy = match nearest.filter(|known| likeness(known) >= LIKENESS_MIN) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => format!("known here: {}", known.keys().map(String::as_str).collect::<Vec<_>>().join(", ")),
    };
    Finding { key, line: Some(line), what: "there is no such setting".to_owned(), remedy }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}
