//! Who may name which crate, so that each can be replaced in one place; and what may be linked at all.

use std::{collections::BTreeSet, process::Command};

use crate::{
    report,
    source::{read, root, sources},
};

/// A crate and the paths that may name it.
const HOMES: &[(&str, &[&str])] = &[
    ("actix", &["node/src/actor.rs"]),
    ("object_store", &["node/src/env/real/", "ops/examples/bench_object_store.rs"]),
    ("raft", &["node/src/consensus/"]),
    ("protobuf", &[]),
    ("bincode", &["protocol/src/codec.rs"]),
    ("chacha20poly1305", &["node/src/keyring/"]),
    ("chacha20", &["node/src/keyring/"]),
    ("aws_lc_rs", &["node/src/keyring/", "node/src/env/real/certificate.rs", "node/src/env/real/peers.rs"]),
    ("rustls", &["node/src/env/real/peers.rs"]),
    ("tokio_rustls", &["node/src/env/real/peers.rs"]),
    ("argon2", &["node/src/keyring/"]),
    ("hkdf", &["node/src/keyring/"]),
    ("prometheus", &["node/src/metrics.rs", "node/src/metrics/"]),
    ("axum", &["node/src/server/admin/"]),
    ("hyper", &["node/src/server/admin/", "ops/examples/bench_commits.rs"]),
    ("getrandom", &["node/src/env/real/"]),
    ("clap", &["ops/", "sim/"]),
    ("reqwest", &["ops/src/client.rs", "node/src/env/real/"]),
    (
        "thread::Builder",
        &["node/src/env/real/", "node/src/server/admin/http.rs", "sim/src/runtime.rs", "ops/src/nodes.rs"],
    ),
    ("crc32c", &["protocol/src/checksum.rs"]),
];

/// Most packages in Cargo.lock.
const PACKAGES_MAX: usize = 350;

/// True when `code` names the crate `name` as a path's first segment.
fn names_crate(code: &str, name: &str) -> bool {
    let path = format!("{name}::");
    code.match_indices(&path).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || (c == ':' && !name.contains("::")))
    })
}

#[test]
fn each_crate_is_named_at_home_only() {
    let mut findings = Vec::new();
    for source in sources("") {
        for (name, homes) in HOMES {
            let at_home = homes.iter().any(|home| source.path.starts_with(home));
            if !at_home && !source.path.starts_with("ops/tests/tidy/") && names_crate(&source.code, name) {
                findings.push(format!("{}: names `{name}`, whose home is {}", source.path, homes.join(", ")));
            }
        }
    }
    report("homes of crates", &findings);
}

#[test]
fn a_crate_is_told_from_a_module_of_its_name() {
    assert!(names_crate("use raft::RawNode;", "raft") && names_crate("let x = raft::Config::default();", "raft"));
    assert!(!names_crate("use crate::raft::Status; draft::x(); layout.raft()", "raft"));
}

#[test]
fn every_dependency_is_used() {
    let mut findings = Vec::new();
    for folder in ["protocol", "node", "sim", "ops"] {
        let manifest: toml::Table = read(&format!("{folder}/Cargo.toml")).parse().expect("a manifest is TOML");
        let code: String = sources(&format!("{folder}/")).into_iter().map(|source| source.code).collect();
        for table in ["dependencies", "dev-dependencies"] {
            let Some(dependencies) = manifest.get(table).and_then(toml::Value::as_table) else { continue };
            for name in dependencies.keys() {
                let ident = name.replace('-', "_");
                // Named in an attribute's text, not in a path.
                let in_attributes = name == "humantime-serde";
                // The library is called otherwise than its package.
                let ident = if name == "rustls-webpki" { "webpki" } else { &ident };
                if !in_attributes && !code.contains(ident) {
                    findings.push(format!("{folder}/Cargo.toml: `{name}` is not used; remove the line"));
                }
            }
        }
    }
    report("dependencies", &findings);
}

#[test]
fn packages_have_allowed_licences_and_stay_few() {
    let policy: toml::Table = read("deny.toml").parse().expect("deny.toml is TOML");
    let strings = |table: &str, key: &str| -> BTreeSet<String> {
        let list = policy.get(table).and_then(|table| table.get(key)).and_then(toml::Value::as_array);
        let list = list.expect("deny.toml has the lists that are judged");
        list.iter()
            .filter_map(|item| item.as_str().or_else(|| item.get("crate")?.as_str()))
            .map(str::to_owned)
            .collect()
    };
    let (licences, banned) = (strings("licenses", "allow"), strings("bans", "deny"));
    let cargo = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--offline",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(cargo.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&cargo.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&cargo.stdout).expect("cargo metadata prints JSON");
    let mut findings = Vec::new();
    for package in metadata["packages"].as_array().expect("there are packages") {
        let (name, licence) =
            (package["name"].as_str().unwrap_or_default(), package["license"].as_str().unwrap_or("none"));
        if !licence_allowed(licence, &licences) {
            findings.push(format!("{name}: licence `{licence}` is not allowed by deny.toml"));
        }
        if banned.contains(name) {
            findings.push(format!("{name}: banned by deny.toml"));
        }
    }
    let packages = read("Cargo.lock").matches("\n[[package]]").count();
    if packages > PACKAGES_MAX {
        findings.push(format!("Cargo.lock holds {packages} packages, more than {PACKAGES_MAX}"));
    }
    report("packages", &findings);
}

/// Judges an SPDX expression: of alternatives one must be allowed, of conjunctions all.
fn licence_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let expression = expression.replace('/', " OR ");
    split_outside(&expression, " AND ").iter().all(|part| {
        split_outside(part, " OR ").iter().any(|choice| {
            let choice = choice.trim();
            match choice.strip_prefix('(').and_then(|choice| choice.strip_suffix(')')) {
                Some(inner) => licence_allowed(inner, allowed),
                None => allowed.contains(choice),
            }
        })
    })
}

/// Splits at `separator` outside of parentheses.
fn split_outside(text: &str, separator: &str) -> Vec<String> {
    let (mut depth, mut start, mut parts) = (0_i32, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 && at >= start && text[at..].starts_with(separator) => {
                parts.push(text[start..at].to_owned());
                start = at + separator.len();
            }
            _ => {}
        }
    }
    parts.push(text[start..].to_owned());
    parts
}

#[test]
fn licence_expressions_are_judged() {
    let allowed = BTreeSet::from(["MIT".to_owned(), "ISC".to_owned()]);
    for (expression, good) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT OR GPL-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("ISC AND (GPL-3.0 OR MIT)", true),
        ("GPL-3.0/MIT", true),
        ("none", false),
    ] {
        assert_eq!(licence_allowed(expression, &allowed), good, "{expression}");
    }
}
