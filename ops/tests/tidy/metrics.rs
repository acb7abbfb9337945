//! Metrics: those that dashboards, alerts and documents speak of exist, and those that exist are documented.

use std::collections::BTreeSet;

use crate::{
    report,
    source::{files, read},
};

/// Endings that a histogram adds to its name.
const HISTOGRAM_ENDINGS: [&str; 3] = ["_bucket", "_sum", "_count"];

/// All words of `text` that look like a metric's name.
fn mentioned(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    words
        .filter(|word| word.starts_with("velum_") && !word.contains(':') && !word.ends_with('_'))
        .map(str::to_owned)
        .collect()
}

/// Names of the metrics that the node registers.
fn registered() -> BTreeSet<String> {
    let sources = ["node/src/metrics.rs", "node/src/metrics/cluster.rs", "node/src/metrics/make.rs"].map(read);
    let quoted = sources.iter().flat_map(|text| text.split('"').skip(1).step_by(2));
    let names: BTreeSet<String> = quoted
        .filter(|text| text.starts_with("velum_") && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
        .map(str::to_owned)
        .collect();
    assert!(names.len() > 40, "metrics.rs registers metrics");
    names
}

fn base(name: &str, registered: &BTreeSet<String>) -> Option<String> {
    if registered.contains(name) {
        return Some(name.to_owned());
    }
    let stripped = HISTOGRAM_ENDINGS.iter().find_map(|ending| name.strip_suffix(ending));
    stripped.filter(|stem| registered.contains(*stem)).map(str::to_owned)
}

#[test]
fn every_metric_spoken_of_exists() {
    let registered = registered();
    // Crates and scripts are named like metrics.
    let others = ["velum_node", "velum_protocol", "velum_sim", "velum_ops", "velum_data"];
    let speakers = files().into_iter().filter(|path| {
        path.starts_with("grafana/")
            || path.starts_with("ops/prometheus/")
            || path == "docs/metrics.md"
            || path == "README.md"
    });
    let mut findings = Vec::new();
    for path in speakers {
        for name in mentioned(&read(&path)) {
            if !others.contains(&name.as_str()) && base(&name, &registered).is_none() {
                findings.push(format!("{path}: `{name}` is not registered in node/src/metrics.rs"));
            }
        }
    }
    report("metrics spoken of", &findings);
}

#[test]
fn every_metric_is_documented() {
    let documented = mentioned(&read("docs/metrics.md"));
    let missing = registered().into_iter().filter(|name| !documented.contains(name));
    report("metrics", &missing.map(|name| format!("`{name}` is not in docs/metrics.md")).collect::<Vec<_>>());
}

#[test]
fn metric_names_have_their_unit_last() {
    let units = ["bytes", "seconds", "total", "records", "objects", "requests", "sessions", "seq", "index", "blocks"];
    let states = [
        "velum_node_build",
        "velum_journal_poisoned",
        "velum_raft_term",
        "velum_raft_leader",
        "velum_raft_has_leader",
        "velum_raft_halted",
        "velum_raft_voters",
        "velum_peer_links",
        "velum_peer_down_links",
        "velum_cluster_nodes",
        "velum_ensemble_members",
        "velum_attachments",
        "velum_attachment_connections",
        "velum_attachment_permits",
        "velum_ensemble_wanted_members",
        "velum_volume_lineage",
        "velum_cloud_up",
        "velum_cloud_state",
    ];
    let wrong = registered().into_iter().filter(|name| {
        let last = name.rsplit('_').next().unwrap_or_default();
        !units.contains(&last) && !states.contains(&name.as_str())
    });
    report("names of metrics", &wrong.collect::<Vec<_>>());
}

/// Names of the alerts in a rules file.
fn alerts(rules: &str) -> BTreeSet<&str> {
    rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect()
}

/// Of the tests in a file for `promtool test rules`: alerts that are said to fire, and alerts that are said not to.
fn tested(tests: &str) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let (mut firing, mut quiet) = (BTreeSet::new(), BTreeSet::new());
    let mut lines = tests.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        let Some((before, name)) = line.split_once("alertname: ") else { continue };
        let expects = !before.starts_with("- {") && lines.peek().is_some_and(|line| line.starts_with("exp_alerts:"));
        if expects {
            firing.insert(name);
        } else {
            quiet.insert(name.trim_end_matches('}'));
        }
    }
    (firing, quiet)
}

#[test]
fn every_alert_is_tested_firing_and_quiet() {
    let (rules, tests) = (read("ops/prometheus/alerts.yml"), read("ops/prometheus/tests.yml"));
    let (firing, quiet) = tested(&tests);
    let mut findings = Vec::new();
    for alert in alerts(&rules) {
        if !firing.contains(alert) {
            findings.push(format!("ops/prometheus/tests.yml: no test in which {alert} fires"));
        }
        if !quiet.contains(alert) {
            findings.push(format!("ops/prometheus/tests.yml: no test in which {alert} stays quiet"));
        }
    }
    // A series that no test gives makes an alert quiet whatever its rule says.
    let given = mentioned(&tests);
    for metric in mentioned(&rules).difference(&given) {
        findings.push(format!("ops/prometheus/tests.yml: no test gives a series of `{metric}`"));
    }
    report("tests of alerts", &findings);
}

#[test]
fn tests_of_alerts_are_told_apart() {
    let tests = "- {eval_time: 2m, alertname: A}\n- eval_time: 5m\n  alertname: B\n  exp_alerts:\n";
    assert_eq!(tested(tests), (BTreeSet::from(["B"]), BTreeSet::from(["A"])));
    assert_eq!(alerts("rules:\n  - alert: A\n    expr: up == 0\n"), BTreeSet::from(["A"]));
}
