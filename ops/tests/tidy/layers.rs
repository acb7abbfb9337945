//! Inside the node, imports point strictly downwards; siblings meet through messages.

use std::collections::BTreeMap;

use crate::{
    report,
    source::{Source, sources},
};

/// From the top; a module may import modules of lower rows only.
const LAYERS: &[&[&str]] = &[
    &["node"],
    &["server"],
    &["volume", "array", "consensus", "peer"],
    &["ensemble"],
    &["cache", "journal", "cloud", "metadata"],
    &["keyring", "extent", "config"],
    &["actor", "audit"],
    &["env"],
    &["limits", "metrics"],
];

/// Imports that the rule would refuse and that are right all the same, each with its reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

fn rank(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

/// The module of the node that a file belongs to.
fn module(path: &str) -> &str {
    let inside = path.strip_prefix("node/src/").expect("the file is the node's");
    inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
}

/// What a file imports from the node's other modules, as (module, rest of the path).
fn imports(code: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let after = &code[at + "crate::".len()..];
        match after.strip_prefix('{') {
            Some(group) => found.extend(group_members(group)),
            None => found.push(split(after)),
        }
    }
    found
}

/// `name::rest` as (name, rest).
fn split(path: &str) -> (String, String) {
    let path: String = path.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
    let (module, rest) = path.split_once("::").unwrap_or((&path, ""));
    (module.to_owned(), rest.to_owned())
}

/// The first segments of `{a::b, c::{d, e}}`, after its opening brace.
fn group_members(group: &str) -> Vec<(String, String)> {
    let (mut depth, mut start, mut found) = (0_i32, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                let member = group[start..at].trim();
                if !member.is_empty() {
                    found.push(split(member));
                }
                if c == '}' {
                    break;
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    found
}

fn judge(source: &Source, used: &mut BTreeMap<(String, String), usize>) -> Vec<String> {
    let own = module(&source.path);
    let Some(own_rank) = rank(own) else {
        return if own == "lib" { Vec::new() } else { vec![format!("{}: `{own}` stands in no layer", source.path)] };
    };
    let mut findings = Vec::new();
    for (other, rest) in imports(&source.production()) {
        let Some(other_rank) = rank(&other).filter(|_| other != own) else { continue };
        let through_messages = other_rank == own_rank && rest.starts_with("messages");
        if other_rank > own_rank || through_messages {
            continue;
        }
        let excepted = EXCEPTIONS.iter().any(|(path, module, _)| *path == source.path && *module == other);
        if excepted {
            *used.entry((source.path.clone(), other)).or_default() += 1;
            continue;
        }
        let remedy = if other_rank == own_rank { "meet in messages.rs" } else { "turn the dependency round" };
        findings.push(format!("{}: `{own}` imports `{other}::{rest}`; {remedy}", source.path));
    }
    findings
}

#[test]
fn imports_point_down() {
    let mut used = BTreeMap::new();
    let mut findings: Vec<String> = sources("node/src/").iter().flat_map(|source| judge(source, &mut used)).collect();
    for (path, module, _) in EXCEPTIONS {
        if !used.contains_key(&((*path).to_owned(), (*module).to_owned())) {
            findings.push(format!("{path}: the exception for `{module}` is not needed any more; remove it"));
        }
    }
    findings.dedup();
    report("layers of node/src", &findings);
}

#[test]
fn an_import_upwards_is_found_in_every_form() {
    let code = "use crate::{\n    env::Env,\n    server::{a, b},\n};\nfn f() { crate::volume::x() }";
    let names: Vec<String> = imports(code).into_iter().map(|(module, _)| module).collect();
    assert_eq!(names, ["env", "server", "volume"]);
}

#[test]
fn crates_depend_in_one_direction() {
    let allowed: &[(&str, &[&str])] = &[
        ("protocol", &[]),
        ("node", &["velum-protocol"]),
        ("sim", &["velum-protocol", "velum-node"]),
        ("ops", &["velum-protocol", "velum-node"]),
    ];
    let mut findings = Vec::new();
    for (folder, others) in allowed {
        let manifest: toml::Table =
            crate::source::read(&format!("{folder}/Cargo.toml")).parse().expect("a manifest is TOML");
        let dependencies = manifest.get("dependencies").and_then(toml::Value::as_table).cloned().unwrap_or_default();
        let wrong = dependencies.keys().filter(|name| name.starts_with("velum-") && !others.contains(&name.as_str()));
        findings.extend(wrong.map(|name| format!("{folder} depends on {name}")));
    }
    report("direction of crates", &findings);
}
