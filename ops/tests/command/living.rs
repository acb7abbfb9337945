//! A node's life as its operator sees it: stopping, moving, and what is served under which name.

use std::{fs, time::Duration};

use rustix::process::Signal;

use crate::{
    bench::{Bench, Node, settings},
    nbd::{INFO, UNKNOWN, ask_for},
};

/// What `node-1/boot` says after a clean stop.
const STOPPED_CLEANLY: u8 = 2;

fn lineage(bench: &Bench, node: &Node) -> serde_json::Value {
    let shown = bench.velum(&["--output", "json", "volume", "show", "demo", "--admin", &node.admin]).expect(0, &[]);
    shown.json()["lineage"].clone()
}

#[test]
fn both_words_to_stop_end_a_node_cleanly() {
    let bench = Bench::new();
    let folder = bench.prepare("data", &settings(""));
    let mut first = None;
    for signal in [Signal::INT, Signal::TERM] {
        let node = bench.up("data", &[]);
        let now = lineage(&bench, &node);
        assert_eq!(*first.get_or_insert(now.clone()), now, "a clean stop changes no lineage");
        node.stop(signal).expect(0, &["stopping"]);
        assert_eq!(fs::read(folder.join("node-1/boot")).unwrap()[48], STOPPED_CLEANLY, "{signal:?}");
    }
}

/// Whenever the word to stop comes, also while a node starts, the next start finds everything as it was.
#[test]
fn a_start_can_be_stopped_at_any_time() {
    let bench = Bench::new();
    bench.prepare("data", &settings(""));
    let dir = bench.text("data");
    for delay in [0, 10, 20, 40, 80, 160, 320] {
        let running = bench.spawn(&["up", "--dir", &dir], &[]);
        std::thread::sleep(Duration::from_millis(delay));
        // Not SIGINT: a shell without job control has its background jobs ignore that until they listen to it.
        running.signal(Signal::TERM);
        let ended = running.ended();
        // Before the command listens to signals, the system ends it.
        assert!(matches!(ended.code, Some(0) | None), "after {delay} ms: {:?} {}", ended.code, ended.stderr);
    }
    let node = bench.up("data", &[]);
    assert_eq!((node.volumes.as_slice(), lineage(&bench, &node)), (&["demo".to_owned()][..], 1.into()));
    node.stop(Signal::TERM).expect(0, &[]);
}

/// A volume that is made waits until enough clouds know of it; a stop does not wait with it.
#[test]
fn a_node_whose_clouds_are_away_stops_cleanly() {
    let bench = Bench::new();
    let folder = bench.prepare("data", &settings(""));
    let node = bench.up("data", &[]);
    fs::rename(folder.join("clouds"), folder.join("away")).unwrap();
    let waiting = bench.spawn(&["volume", "create", "late", "--size", "1GiB", "--admin", &node.admin], &[]);
    let known = || bench.velum(&["volume", "list", "--admin", &node.admin]).expect(0, &[]).stdout.contains("late");
    while !known() {}
    node.stop(Signal::TERM).expect(0, &["stopping"]);
    waiting.ended().expect(1, &["before it gave an answer", "ask for the present state"]);
    assert_eq!(fs::read(folder.join("node-1/boot")).unwrap()[48], STOPPED_CLEANLY);
    fs::rename(folder.join("away"), folder.join("clouds")).unwrap();
    let node = bench.up("data", &[]);
    assert!(node.volumes.contains(&"late".to_owned()), "{:?}", node.volumes);
    node.stop(Signal::TERM).expect(0, &[]);
}

/// Settings and metadata once named the clouds by absolute paths.
#[test]
fn a_directory_may_be_moved_with_all_that_is_in_it() {
    let bench = Bench::new();
    bench.prepare("data", &settings(""));
    let node = bench.up("data", &[]);
    let before = lineage(&bench, &node);
    node.stop(Signal::TERM).expect(0, &[]);
    fs::create_dir(bench.path("elsewhere")).unwrap();
    fs::rename(bench.path("data"), bench.path("elsewhere/moved")).unwrap();
    let node = bench.up("elsewhere/moved", &[]);
    assert_eq!(lineage(&bench, &node), before);
    bench.velum(&["volume", "flush", "demo", "--admin", &node.admin]).expect(0, &[]);
    let listed = bench.velum(&["cloud", "list", "--output", "json", "--admin", &node.admin]).expect(0, &[]).json();
    for cloud in listed.as_array().unwrap() {
        assert_eq!(cloud["state"], "up");
        assert!(cloud["url"].as_str().unwrap().contains("/elsewhere/moved/clouds/"), "{cloud}");
    }
    assert!(!bench.path("data").exists(), "nothing is made where it was");
    node.stop(Signal::TERM).expect(0, &[]);
    // A new one is laid out movable without anybody's care.
    let dir = bench.text("fresh");
    let free = ["--nbd", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    bench.serve(&[&["--output", "json", "up", "--dir", &dir], &free[..]].concat()).stop(Signal::TERM).expect(0, &[]);
    let written = fs::read_to_string(bench.path("fresh/node.toml")).unwrap();
    assert!(!written.contains(&dir) && written.contains("url = \"file:clouds/a\""), "{written}");
}

/// The setting once did nothing: names were served whatever it said.
#[test]
fn without_plain_exports_no_name_is_served_and_the_log_says_so() {
    let bench = Bench::new();
    let folder = bench.prepare("data", &settings(""));
    let node = bench.up("data", &[]);
    assert_eq!(ask_for(&node.nbd, "demo").1, INFO);
    node.stop(Signal::TERM).expect(0, &[]);
    fs::write(folder.join("node.toml"), settings("").replace("plain_exports = true", "plain_exports = false")).unwrap();
    let config = bench.text("data/node.toml");
    let node = bench.serve(&["--output", "json", "node", "--config", &config]);
    assert_eq!((ask_for(&node.nbd, "demo").1, ask_for(&node.nbd, "").1), (UNKNOWN, UNKNOWN));
    assert!(node.said().contains("plain_exports is false"), "{}", node.said());
    node.stop(Signal::TERM).expect(0, &["plain_exports"]);
    let checked = bench.velum(&["config", "check", &config]).expect(0, &[]);
    assert!(
        checked.stdout.contains("plain_exports") && checked.stdout.contains("under no name of its own"),
        "{}",
        checked.stdout
    );
}
