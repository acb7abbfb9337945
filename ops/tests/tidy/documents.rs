//! Documents: the commands they show are understood, and their links lead somewhere.

use std::process::Command;

use crate::{
    report,
    source::{files, read, root},
};

/// Command lines in fenced blocks, without comments, as (document, line).
fn commands() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for path in files().into_iter().filter(|path| path.ends_with(".md")) {
        let mut fenced = false;
        for line in read(&path).replace("\\\n", " ").lines() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            } else if fenced {
                let line = line.split(" #").next().unwrap_or_default().trim().trim_start_matches("$ ");
                let line = line.replace("cargo run --release -- ", "velum ");
                if line.starts_with("velum ") {
                    found.push((path.clone(), line));
                }
            }
        }
    }
    found
}

/// The words of a line before its first flag that name a command: the noun, and the verb where the noun has verbs.
fn subcommand(line: &str) -> Vec<&str> {
    let nouns_with_verbs = ["volume", "cloud", "cluster", "key", "config"];
    let mut words = line.split_whitespace().skip(1).filter(|word| !word.starts_with('-'));
    let Some(noun) = words.next() else { return Vec::new() };
    if nouns_with_verbs.contains(&noun) { std::iter::once(noun).chain(words.next()).collect() } else { vec![noun] }
}

#[test]
fn documented_commands_exist_with_their_flags() {
    let commands = commands();
    assert!(commands.len() >= 5, "the documents show commands");
    let mut findings = Vec::new();
    for (path, line) in commands {
        let words = subcommand(&line);
        let help =
            Command::new(env!("CARGO_BIN_EXE_velum")).args(&words).arg("--help").output().expect("the command runs");
        if !help.status.success() {
            findings.push(format!("{path}: `{line}`: there is no `velum {}`", words.join(" ")));
            continue;
        }
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        for flag in line.split_whitespace().filter(|word| word.starts_with("--")) {
            let flag = flag.split('=').next().unwrap_or(flag).trim_end_matches([',', ']']);
            if !help.split_whitespace().any(|word| word.trim_end_matches(',') == flag) {
                findings.push(format!("{path}: `{line}`: there is no flag {flag}"));
            }
        }
    }
    report("documented commands", &findings);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut findings = Vec::new();
    for path in files().into_iter().filter(|path| path.ends_with(".md")) {
        let folder = root().join(&path).parent().expect("a file lies in a folder").to_path_buf();
        for target in read(&path).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            let outside = target.contains("://") || target.starts_with("mailto:");
            if !outside && !file.is_empty() && !folder.join(file).exists() {
                findings.push(format!("{path}: the link to {target} leads nowhere"));
            }
        }
    }
    report("links", &findings);
}

#[test]
fn subcommands_are_told_from_their_arguments() {
    assert_eq!(subcommand("velum volume show demo --output json"), ["volume", "show"]);
    assert_eq!(subcommand("velum recover --cloud x"), ["recover"]);
    assert_eq!(subcommand("velum inspect journal FILE"), ["inspect"]);
}
