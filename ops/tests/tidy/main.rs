//! Rules of the house that no compiler checks: layers, who may name which crate, words, shape, and that what documents,
//! dashboards and alerts speak of exists. Each rule says in its failure what to change.

mod alerts;
mod crates;
mod documents;
mod layers;
mod metrics;
mod shape;
mod source;
mod words;

/// Fails with all findings of a rule, one a line.
fn report(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}
