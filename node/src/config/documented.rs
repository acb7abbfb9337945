//! `docs/node.toml` says all there is to set, and what holds when it is not set.

use std::collections::BTreeSet;

use toml::{Table, Value};

use super::{keys::ANY, *};

const TEXT: &str = include_str!("../../../docs/node.toml");

/// True for a line that gives a key.
fn gives_a_key(line: &str) -> bool {
    let name = line.split_once(" = ").map_or("", |(name, _)| name);
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// The file with the keys that stand there as comments, because only one of several may be given.
fn with_alternatives() -> Table {
    let uncommented = |line: &str| line.strip_prefix("# ").filter(|rest| gives_a_key(rest)).unwrap_or(line).to_owned();
    TEXT.lines().map(uncommented).collect::<Vec<_>>().join("\n").parse().unwrap()
}

/// The paths of all keys; what lies below names of the operator's choice is one.
fn paths(at: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Table(table) => {
            for (name, value) in table {
                let name = if at == "clouds.options" { ANY } else { name };
                paths(format!("{at}.{name}").trim_start_matches('.'), value, found);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_table) => {
            items.iter().for_each(|item| paths(at, item, found));
        }
        _ => drop(found.insert(at.to_owned())),
    }
}

fn keys_of(table: Table) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    paths("", &Value::Table(table), &mut found);
    found
}

#[test]
fn every_setting_is_documented_and_nothing_else() {
    assert_eq!(keys_of(with_alternatives()), keys_of(Table::try_from(NodeConfig::complete()).unwrap()));
}

#[test]
fn the_documented_file_is_in_order_and_gives_what_holds_without_it() {
    let (documented, warnings) = NodeConfig::parse(TEXT.as_bytes(), "docs/node.toml").unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let plain = NodeConfig::new(documented.dir.clone(), documented.clouds.clone(), documented.key.clone());
    let door = PeersConfig::default();
    let expected = NodeConfig {
        quorum: Some(plain.cloud_quorum()),
        peers: Some(PeersConfig { advertise: Some(door.listen.clone()), ..door }),
        // What is said of it beside.
        plain_exports: true,
        ..plain
    };
    assert_eq!(documented, expected);
}

#[test]
fn each_key_has_words_before_it() {
    let lines: Vec<&str> = TEXT.lines().collect();
    for pair in lines.windows(2) {
        let key = pair[1].strip_prefix("# ").unwrap_or(pair[1]);
        let is_told = pair[0].starts_with("# ") && !gives_a_key(pair[0].trim_start_matches("# "));
        assert!(!gives_a_key(key) || is_told, "{}", pair[1]);
    }
}
