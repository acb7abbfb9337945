//! Alerts: whoever reads one and is sent to the log finds there the line that it names.

use crate::{
    report,
    source::{files, read},
};

const RULES: &str = "ops/prometheus/alerts.yml";

/// An alert's name, its texts for people, and the log lines it names.
struct Alert {
    name: String,
    texts: Vec<String>,
    logs: Vec<String>,
}

fn alerts(rules: &str) -> Vec<Alert> {
    let blocks = rules.split("- alert: ").skip(1);
    let quoted = |line: &str| line.split_once(": \"").and_then(|(_, text)| text.strip_suffix('"')).map(str::to_owned);
    let lines = |block: &str, key: &str| {
        let own = |line: &&str| line.trim_start().starts_with(&format!("{key}: "));
        block.lines().filter(own).filter_map(quoted).collect::<Vec<_>>()
    };
    let alert = |block: &str| Alert {
        name: block.lines().next().unwrap_or_default().trim().to_owned(),
        texts: [lines(block, "summary"), lines(block, "action")].concat(),
        logs: lines(block, "log"),
    };
    blocks.map(alert).collect()
}

/// The messages that `code` logs for operators to see.
fn messages(code: &str) -> Vec<String> {
    let calls = ["error", "warn", "info"].map(|level| format!("tracing::{level}!("));
    let starts = calls.iter().flat_map(|call| code.match_indices(call.as_str()).map(|(at, call)| at + call.len()));
    let arguments = starts.filter_map(|at| code.get(at..)).filter_map(|rest| rest.split(");").next());
    arguments.flat_map(|text| text.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn logged() -> Vec<String> {
    let sources = files().into_iter().filter(|path| path.starts_with("node/src/") && path.ends_with(".rs"));
    sources.flat_map(|path| messages(&read(&path))).collect()
}

/// What is wrong with alerts that send their reader to the log.
fn judge(alerts: &[Alert], logged: &[String]) -> Vec<String> {
    let mut findings = Vec::new();
    for Alert { name, texts, logs } in alerts {
        let sends = texts.iter().any(|text| text.split(|c: char| !c.is_alphabetic()).any(|word| word == "log"));
        if sends && logs.is_empty() {
            findings.push(format!("{RULES}: {name} speaks of the log; name the line in an annotation `log`"));
        }
        for line in logs.iter().filter(|line| !logged.contains(line)) {
            findings.push(format!("{RULES}: {name} names the line `{line}`, which no node logs"));
        }
    }
    findings
}

#[test]
fn alerts_name_log_lines_that_are_written() {
    let alerts = alerts(&read(RULES));
    assert!(alerts.len() > 10 && alerts.iter().all(|alert| alert.texts.len() == 2), "the rules are read");
    report("log lines of alerts", &judge(&alerts, &logged()));
}

#[test]
fn an_alert_that_leads_nowhere_is_found() {
    let rules = "- alert: A\n  summary: \"x\"\n  action: \"The node's log says why.\"\n\
                 - alert: B\n  summary: \"x\"\n  action: \"y\"\n  log: \"gone\"\n\
                 - alert: C\n  summary: \"x\"\n  action: \"log in\"\n  log: \"here\"\n";
    let logged = messages("tracing::warn!(cloud, %error, \"here\"); let not = \"gone\"; tracing::debug!(\"gone\");");
    let findings = judge(&alerts(rules), &logged);
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert!(findings[0].contains("A speaks") && findings[1].contains("B names"), "{findings:?}");
}
