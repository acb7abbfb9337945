//! One word per idea: names that say nothing, and words the glossary gives to no idea.

use crate::{
    report,
    source::{Source, files, sources},
};

/// Words no module, file, type or function is named with.
const BANNED: &[&str] = &[
    "manager",
    "helper",
    "helpers",
    "util",
    "utils",
    "common",
    "misc",
    "tmp",
    "gc",
    "vacuum",
    "purge",
    "destage",
    "writeback",
    "wal",
    "lsn",
    "lun",
    "manifest",
    "shard",
];

/// Names of modules, files and types that say nothing when they stand alone.
const BANNED_ALONE: &[&str] = &["data", "info", "process", "Data"];

/// Names after `keyword` in the production code, with their line.
fn declared(source: &Source, keyword: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in source.production().lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        for pair in words.windows(2) {
            if let [before, name] = pair
                && *before == keyword
            {
                let name: String = name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                found.push((number + 1, name));
            }
        }
    }
    found
}

/// `FooBar_baz` as `foo`, `bar`, `baz`.
fn parts(name: &str) -> Vec<String> {
    let mut parts: Vec<String> = vec![String::new()];
    for c in name.chars() {
        if c == '_' || c == '-' || c.is_uppercase() {
            parts.push(String::new());
        }
        if c != '_' && c != '-' {
            parts.last_mut().expect("there is a part").extend(c.to_lowercase());
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

fn fault(name: &str, is_function: bool) -> Option<String> {
    if (BANNED_ALONE.contains(&name) && !is_function) || name.starts_with("do_") {
        return Some(name.to_owned());
    }
    parts(name).into_iter().find(|part| BANNED.contains(&part.as_str()))
}

#[test]
fn names_say_what_they_mean() {
    let mut findings = Vec::new();
    for source in sources("") {
        for keyword in ["mod", "fn", "struct", "enum", "trait", "type", "const", "static"] {
            for (line, name) in declared(&source, keyword) {
                if let Some(word) = fault(&name, keyword == "fn") {
                    findings.push(format!("{}:{line}: `{name}` uses `{word}`; say what it does", source.path));
                }
            }
        }
    }
    for path in files() {
        let stem = path.rsplit('/').next().unwrap_or_default().split('.').next().unwrap_or_default().to_owned();
        let folders = path.split('/').rev().skip(1).map(str::to_owned);
        for name in folders.chain([stem]) {
            if let Some(word) = fault(&name, false) {
                findings.push(format!("{path}: named with `{word}`"));
            }
        }
    }
    report("names", &findings);
}

#[test]
fn names_are_split_into_words() {
    assert_eq!(parts("UploadManager"), ["upload", "manager"]);
    assert_eq!(fault("flush_helpers", true).as_deref(), Some("helpers"));
    assert_eq!(fault("do_flush", true).as_deref(), Some("do_flush"));
    assert_eq!(fault("commonality", false), None);
}
