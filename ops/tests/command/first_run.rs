//! The first `velum up`. It once made a cluster before it knew whether the rest would do: an address in use or a cloud that
//! refused left a cluster without a volume, and settings that refused the corrected flags.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    thread,
};

use rustix::process::Signal;

use crate::bench::{Bench, SAID, settings, tree};

#[test]
fn a_first_run_that_is_refused_changes_nothing_and_a_corrected_one_succeeds() {
    let bench = Bench::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_address = taken.local_addr().unwrap().to_string();
    fs::write(bench.path("file"), "no directory").unwrap();
    let other = bench.path("other");
    fs::create_dir_all(other.join("velum")).unwrap();
    fs::write(other.join("velum/identity"), "of another cluster").unwrap();
    let url = |name: &str| format!("file://{}", bench.path(name).display());
    let (a, b, inside, foreign) = (url("a"), url("b"), url("file/c"), url("other"));
    let same = format!("{a}/");
    let free = ["--nbd", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let dir = bench.text("new");
    let before = tree(&bench.path("."));
    let cases: &[(&[&str], i32, &[&str])] = &[
        (
            &["--nbd", &taken_address, "--admin", "127.0.0.1:0"],
            1,
            &["cannot listen", &taken_address, "--nbd", "in use"],
        ),
        (&["--nbd", "127.0.0.1:0", "--admin", &taken_address], 1, &["cannot listen", &taken_address, "--admin"]),
        (&[&free[..], &["--cloud", &a, "--cloud", &b, "--cloud", &foreign]].concat(), 1, &["cloud c", "velum recover"]),
        (&[&free[..], &["--cloud", &a, "--cloud", &b, "--cloud", &inside]].concat(), 1, &["cloud c", "no directory"]),
        (&[&free[..], &["--cloud", &a, "--cloud", &b, "--cloud", &same]].concat(), 2, &["same place"]),
        (&[&free[..], &["--cloud", &a, "--cloud", &b]].concat(), 2, &["few_clouds"]),
        (&[&free[..], &["--cloud", "ftp://x/y", "--cloud", &a, "--cloud", &b]].concat(), 2, &["clouds[0].url"]),
        (&[&free[..], &["--size", "5000"]].concat(), 2, &["--size", "multiple of 4KiB"]),
        (&[&free[..], &["--memory", "1MiB"]].concat(), 2, &["memory", "64MiB"]),
        (&["--nbd", "0.0.0.0:0", "--admin", "127.0.0.1:0"], 2, &["allow_insecure"]),
    ];
    for (arguments, code, words) in cases {
        let ended = bench.velum(&[&["up", "--dir", &dir], *arguments].concat()).expect(*code, words);
        assert_eq!(ended.stdout, "", "{arguments:?}");
        let after: Vec<_> = tree(&bench.path(".")).into_iter().filter(|(path, _)| !is_output(path)).collect();
        assert_eq!(after, before, "{arguments:?} left something behind");
    }
    let node = bench.up("new", &[&free[..], &["--cloud", &a, "--cloud", &b, "--cloud", &url("c")]].concat());
    assert_eq!(node.volumes, ["demo"]);
    node.stop(Signal::TERM).expect(0, &["made volume demo"]);
}

/// Where the bench keeps what commands said.
fn is_output(path: &std::path::Path) -> bool {
    path.components().any(|part| part.as_os_str().to_string_lossy().starts_with(SAID))
}

/// Answers every request as a store does that does not know the credentials.
fn refuse_everyone(listener: &TcpListener, requests: usize) {
    for stream in listener.incoming().take(requests) {
        let mut stream = stream.unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
}

#[test]
fn a_cloud_that_refuses_the_credentials_is_found_before_any_cloud_is_claimed() {
    let bench = Bench::new();
    let store = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", store.local_addr().unwrap());
    let url = |name: &str| format!("file://{}", bench.path(name).display());
    let (a, b, dir) = (url("a"), url("b"), bench.text("new"));
    let arguments =
        ["up", "--dir", &dir, "--nbd", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cloud", &a, "--cloud", &b];
    thread::scope(|scope| {
        scope.spawn(|| refuse_everyone(&store, 1));
        let variables = [
            ("AWS_ENDPOINT", endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_REGION", "here"),
        ];
        let running = bench.spawn(&[&arguments[..], &["--cloud", "s3://bucket/velum"]].concat(), &variables);
        running.ended().expect(1, &["cloud c (s3://bucket/velum)", "refuses the credentials", "nothing was made"]);
    });
    for name in ["new", "a", "b"] {
        assert!(!bench.path(name).exists(), "{name} was made");
    }
}

#[test]
fn a_first_run_that_was_broken_off_is_gone_on_with_under_corrected_flags() {
    let bench = Bench::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_address = taken.local_addr().unwrap().to_string();
    let unfinished = settings("").replace("[\"127.0.0.1:0\"]", &format!("[\"{taken_address}\"]"));
    bench.prepare("data", &unfinished);
    let dir = bench.text("data");
    bench.velum(&["up", "--dir", &dir]).expect(1, &["did not get to its end", "cannot listen", &taken_address]);
    let node = bench.up("data", &["--nbd", "127.0.0.1:0", "--volume", "disk", "--size", "64MiB"]);
    assert_eq!(node.volumes, ["disk"]);
    node.stop(Signal::TERM).expect(0, &["made the root key", "made volume disk"]);
    // From now on the settings stand.
    bench.velum(&["up", "--dir", &dir, "--memory", "1GiB"]).expect(2, &["--memory says otherwise than", "node.toml"]);
}

#[test]
fn a_volume_that_was_deleted_is_not_made_again() {
    let bench = Bench::new();
    bench.prepare("data", &settings(""));
    let node = bench.up("data", &[]);
    bench.velum(&["volume", "delete", "demo", "--confirm", "demo", "--admin", &node.admin]).expect(0, &[]);
    node.stop(Signal::TERM).expect(0, &[]);
    let node = bench.up("data", &[]);
    assert_eq!(node.volumes, [""; 0]);
    node.stop(Signal::TERM).expect(0, &["velum volume create"]);
}
