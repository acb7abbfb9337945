//! The shape of the code: files and functions short enough to read, each file reachable and introduced, nothing unfinished.

use std::collections::BTreeSet;

use crate::{
    report,
    source::{Source, files, read, sources},
};

/// Production lines of a file.
const FILE_LINES_MAX: usize = 600;
/// Lines of a function.
const FUNCTION_LINES_MAX: usize = 70;

#[test]
fn files_are_short_enough_to_read() {
    let long = sources("").into_iter().filter(|source| source.production_lines() > FILE_LINES_MAX);
    let findings: Vec<_> = long
        .map(|source| format!("{}: {} production lines; split it", source.path, source.production_lines()))
        .collect();
    report("length of files", &findings);
}

#[test]
fn functions_are_short_enough_to_read() {
    let mut findings = Vec::new();
    for source in sources("").iter().filter(|source| !source.is_test()) {
        for (line, length) in functions(&source.production()) {
            if length > FUNCTION_LINES_MAX {
                findings.push(format!("{}:{line}: a function of {length} lines; split it", source.path));
            }
        }
    }
    report("length of functions", &findings);
}

/// Line and length of each function: from its `fn` to the brace that closes it at its own indent.
fn functions(code: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let head = trimmed.split('(').next().unwrap_or_default();
        if !head.split_whitespace().any(|word| word == "fn") || trimmed.ends_with(';') {
            continue;
        }
        let close = format!("{}}}", &line[..line.len() - trimmed.len()]);
        let end = lines.iter().enumerate().skip(start + 1).find(|(_, line)| line.trim_end() == close);
        if let Some((end, _)) = end {
            found.push((start + 1, end - start + 1));
        }
    }
    found
}

#[test]
fn every_file_says_what_it_is() {
    let silent = sources("").into_iter().filter(|source| !source.text.trim_start().starts_with("//!"));
    let findings: Vec<_> =
        silent.map(|source| format!("{}: begin it with `//!` and its purpose", source.path)).collect();
    report("purpose of files", &findings);
}

#[test]
fn nothing_is_left_unfinished() {
    // Spelt in two pieces, so that this file does not find itself.
    let marks =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK"), concat!("(skele", "ton)")];
    let mut findings = Vec::new();
    for path in files().iter().filter(|path| !path.ends_with(".lock") && !path.contains("golden")) {
        let Ok(text) = std::fs::read_to_string(crate::source::root().join(path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            let words: BTreeSet<&str> = line.split(|c: char| !c.is_alphanumeric() && c != '(' && c != ')').collect();
            if let Some(mark) = marks.iter().find(|mark| words.contains(**mark)) {
                findings.push(format!("{path}:{}: `{mark}`; finish it or file it as an issue", number + 1));
            }
        }
    }
    report("unfinished work", &findings);
}

#[test]
fn every_file_is_part_of_its_crate() {
    let all = sources("");
    let findings: Vec<_> = all
        .iter()
        .filter(|source| !is_declared(source, &all))
        .map(|source| format!("{}: no `mod` line leads to it", source.path))
        .collect();
    report("dead files", &findings);
}

/// True for roots of crates, and for files that their parent declares.
fn is_declared(source: &Source, all: &[Source]) -> bool {
    let (folder, name) = source.path.rsplit_once('/').unwrap_or(("", &source.path));
    let stem = name.trim_end_matches(".rs");
    let is_root = ["lib.rs", "main.rs", "build.rs"].contains(&name)
        || folder.ends_with("/tests")
        || folder.ends_with("/benches")
        || folder.ends_with("/examples")
        || folder.ends_with("/src/bin")
        || folder.contains("/fuzz");
    if is_root {
        return true;
    }
    let (module, home) = if stem == "mod" {
        let (above, last) = folder.rsplit_once('/').unwrap_or(("", folder));
        (last, above)
    } else {
        (stem, folder)
    };
    let parents = [format!("{home}/mod.rs"), format!("{home}/lib.rs"), format!("{home}/main.rs"), format!("{home}.rs")];
    if home.ends_with("/tests") {
        // Each test of a crate is a root of its own and may take in what stands beside it.
        let line = format!("mod {module};");
        return all
            .iter()
            .any(|other| other.path.rsplit_once('/').is_some_and(|(at, _)| at == home) && other.code.contains(&line));
    }
    let line = format!("mod {module};");
    let by_path = format!("#[path = \"{name}\"]");
    let beside = |other: &&Source| other.path.rsplit_once('/').is_some_and(|(beside, _)| beside == folder);
    all.iter().filter(|other| parents.contains(&other.path)).any(|parent| parent.code.contains(&line))
        || all.iter().filter(beside).any(|other| other.text.contains(&by_path))
}

#[test]
fn every_ban_has_a_reason() {
    let clippy: toml::Table = read("clippy.toml").parse().expect("clippy.toml is TOML");
    let mut findings = Vec::new();
    for list in ["disallowed-methods", "disallowed-types", "disallowed-macros"] {
        let entries = clippy.get(list).and_then(toml::Value::as_array).expect("the list is there");
        assert!(!entries.is_empty(), "{list} bans something");
        for entry in entries {
            if entry.get("reason").and_then(toml::Value::as_str).is_none_or(str::is_empty) {
                findings.push(format!("clippy.toml {list}: {entry} has no reason"));
            }
        }
    }
    report("bans", &findings);
}

#[test]
fn functions_are_measured() {
    let code = "impl A {\n    fn a() {\n        x\n    }\n    fn b();\n}\npub async fn c(\n    y: u8,\n) {\n    z\n}\n";
    assert_eq!(functions(code), [(2, 3), (7, 5)]);
}
