//! Every error has an exit code that tells what kind it is, says what happened to what, and what to do. The tables are the
//! promise: 1 when it could not be done, 2 when the command line or a settings file is at fault; data on stdout only.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    thread,
};

use rustix::process::Signal;

use crate::bench::{Bench, settings};

/// One line: what is typed, the exit code, words of stderr.
type Case<'a> = (&'a str, i32, &'a [&'a str]);

/// Runs each line, and again as one who asks for JSON.
fn judge(bench: &Bench, cases: &[Case<'_>]) {
    for (line, code, words) in cases {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let ended = bench.velum(&arguments).expect(*code, words);
        assert_eq!(ended.stdout, "", "{line}: an error is no data");
        let json = bench.velum(&[&["--output", "json"], &arguments[..]].concat()).expect(*code, &[]);
        let last = json.stderr.lines().last().unwrap_or_default();
        let error: serde_json::Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{line}: {e}: {last}"));
        assert_eq!(error["exit_code"], *code, "{line}");
        assert!(!error["error"].as_str().unwrap().is_empty(), "{line}");
    }
}

#[test]
fn a_wrong_line_is_refused_before_anything_is_done() {
    let bench = Bench::new();
    judge(
        &bench,
        &[
            ("volume", 2, &["Usage"]),
            ("volumes list", 2, &["unrecognized subcommand", "volume"]),
            ("volume lits", 2, &["'list'"]),
            ("volume create", 2, &["--size"]),
            ("volume create demo --size 5000", 2, &["multiple of 4KiB"]),
            ("volume create demo --size 0", 2, &["multiple of 4KiB"]),
            ("volume create demo --size 65TiB", 2, &["at most 64TiB"]),
            ("volume create demo --size big", 2, &["whole number and a unit"]),
            ("volume create Demo --size 1GiB", 2, &["a-z, 0-9"]),
            ("volume allow demo bob write", 2, &["uid:NUMBER"]),
            ("volume allow demo * write --range 0..1MiB", 2, &["64MiB"]),
            ("volume allow demo * write --range 64MiB..0", 2, &["END must lie behind START"]),
            ("volume delete demo --confirm dmeo", 2, &["dmeo", "repeat the name"]),
            ("volume list --admin https://127.0.0.1:1", 2, &["http://127.0.0.1:9890"]),
            ("volume list --admin nonsense", 2, &["--admin"]),
            ("up --nbd 10809", 2, &["HOST:PORT"]),
            ("up --cloud /srv/a", 2, &["file:///"]),
            ("recover --dir x --keyfile k", 2, &["no cloud is given", "--cloud"]),
            ("recover --dir x --cloud file:///a", 2, &["--keyfile"]),
            ("inspect blob x", 2, &["journal", "segment"]),
            ("inspect journal file:///a/b", 2, &["is a URL"]),
            ("completions tcsh", 2, &["bash"]),
            ("cluster remove x", 2, &["NODE"]),
            ("cluster join --config x --token y", 2, &["the token is none", "velum cluster token"]),
            ("cluster join --config x", 2, &["--token"]),
        ],
    );
}

#[test]
fn what_cannot_be_done_says_what_to_do() {
    let bench = Bench::new();
    bench.prepare("data", &settings(""));
    let node = bench.up("data", &[]);
    let admin = &node.admin;
    let line = |rest: &str| format!("volume {rest} --admin {admin}");
    let (show, resize, range) =
        (line("show nosuch"), line("resize demo --size 64MiB"), line("allow demo uid:1 write --range 1GiB..2GiB"));
    let (create, flush, nbd) =
        (line("create demo --size 1GiB"), line("flush nosuch"), format!("volume list --admin http://{}", node.nbd));
    let (token, remove) = (format!("cluster token --admin {admin}"), format!("cluster remove 1 --admin {admin}"));
    let data = bench.text("data");
    let (again, recover) = (format!("up --dir {data}"), format!("recover --dir {data} --keyfile k --cloud file:///a"));
    judge(
        &bench,
        &[
            (&show, 1, &["nosuch", "velum volume list"]),
            (&flush, 1, &["nosuch", "velum volume list"]),
            (&resize, 1, &["would be lost", "--force"]),
            (&create, 1, &["exists already", "choose another name"]),
            (&range, 2, &["1GiB..2GiB", "beyond volume `demo`", "ends at 1GiB"]),
            (&token, 1, &["meant to be alone", "[peers]"]),
            (&remove, 1, &["meant to be alone", "[peers]"]),
            (&nbd, 1, &["gave an answer", "not one for NBD"]),
            (&again, 1, &["another process uses this directory", "stop it"]),
            (&recover, 1, &["is not empty", "new or empty directory"]),
            ("volume list --admin http://127.0.0.1:1", 1, &["no node answers", "velum up", "VELUM_ADMIN"]),
            ("cluster init --config nosuch.toml", 1, &["nosuch.toml", "check the path"]),
            ("node --config nosuch.toml", 1, &["nosuch.toml", "check the path"]),
            ("inspect journal nosuch", 1, &["nosuch", "journal folder"]),
            ("inspect segment file:///nosuch/a/b", 1, &["file:///nosuch/a/b", "check the URL"]),
        ],
    );
    node.stop(Signal::TERM).expect(0, &[]);
}

/// Smaller and larger again: lines of the ACL stay, new ones must fit what is there now.
#[test]
fn an_acl_line_lies_in_the_volume_when_it_is_made() {
    let bench = Bench::new();
    bench.prepare("data", &settings(""));
    let node = bench.up("data", &["--size", "192MiB"]);
    let volume = |arguments: &[&str]| bench.velum(&[&["volume"], arguments, &["--admin", &node.admin]].concat());
    volume(&["allow", "demo", "uid:7", "write", "--range", "128MiB..192MiB"]).expect(0, &[]);
    volume(&["resize", "demo", "--size", "100MiB", "--force"]).expect(0, &[]);
    volume(&["allow", "demo", "uid:8", "read", "--range", "64MiB..128MiB"]).expect(0, &[]);
    volume(&["allow", "demo", "uid:8", "read", "--range", "64MiB..192MiB"])
        .expect(2, &["has 100MiB", "ends at 128MiB"]);
    volume(&["deny", "demo", "uid:7", "--range", "128MiB..192MiB"]).expect(0, &[]);
    let acl = volume(&["acl", "demo"]).expect(0, &[]).stdout;
    assert!(acl.contains("uid:7      none    128MiB..192MiB"), "{acl}");
    node.stop(Signal::TERM).expect(0, &[]);
}

/// Answers one request with `status`.
fn answer(listener: &TcpListener, status: &str) {
    let (mut stream, _) = listener.accept().unwrap();
    let _ = stream.read(&mut [0; 4096]);
    let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
}

#[test]
fn another_program_at_the_admin_address_is_told_from_a_node() {
    let bench = Bench::new();
    for (status, word) in [
        ("401 Unauthorized", "asks for a login"),
        ("403 Forbidden", "asks for a login"),
        ("404 Not Found", "another program serves there"),
        ("200 OK", "same version"),
        ("500 Internal Server Error", "same version"),
    ] {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", door.local_addr().unwrap());
        thread::scope(|scope| {
            scope.spawn(|| answer(&door, status));
            let code = status.split(' ').next().unwrap();
            bench.velum(&["volume", "list", "--admin", &url]).expect(1, &[code, word]);
        });
    }
}

#[test]
fn a_key_that_does_not_do_is_refused_with_a_way_out() {
    let bench = Bench::new();
    let folder = bench.prepare("data", &settings(""));
    bench.up("data", &[]).stop(Signal::TERM).expect(0, &[]);
    let (key, config, dir) = (folder.join("root.key"), bench.text("data/node.toml"), bench.text("data"));
    let good = fs::read(&key).unwrap();
    let lines = [["up", "--dir", &dir], ["node", "--config", &config]];
    let refused = |words: &[&str]| lines.iter().for_each(|line| drop(bench.velum(line).expect(1, words)));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    refused(&["root.key", "0644", "chmod 600"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&key, "short").unwrap();
    refused(&["root.key", "32 raw bytes", "velum key init"]);
    fs::write(&key, [7; 32]).unwrap();
    refused(&["root.key", "no random key", "velum key init"]);
    fs::write(&key, good.trim_ascii().iter().rev().copied().collect::<Vec<_>>()).unwrap();
    refused(&["another cluster's", "root key that the cluster was made with"]);
    fs::remove_file(&key).unwrap();
    refused(&["root.key"]);
    assert!(!key.exists(), "a key that is gone is not replaced by one that opens nothing");
    fs::write(&key, &good).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    bench.up("data", &[]).stop(Signal::TERM).expect(0, &[]);
    bench.velum(&["key", "init", "--keyfile", &key.display().to_string()]).expect(1, &["root.key", "exists"]);
}

#[test]
fn clouds_that_are_not_the_clusters_are_told_of() {
    let bench = Bench::new();
    let folder = bench.prepare("data", &settings(""));
    bench.up("data", &[]).stop(Signal::TERM).expect(0, &[]);
    let url = |name: &str| format!("{name}=file://{}", folder.join("clouds").join(name).display());
    let key = folder.join("root.key").display().to_string();
    let recover = |clouds: &[&str]| {
        let new = bench.text("recovered");
        let mut line = vec!["recover".to_owned(), "--dir".into(), new, "--keyfile".into(), key.clone()];
        clouds.iter().for_each(|cloud| line.extend(["--cloud".to_owned(), (*cloud).to_owned()]));
        bench.velum(&line.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let (a, b, gone) = (url("a"), url("b"), format!("c=file://{}/typo", folder.display()));
    recover(&[&a, &b]).expect(1, &["cloud c", "--accept-missing c"]);
    recover(&[&a, &b, &gone]).expect(1, &["cloud c", "--accept-missing c"]);
    assert!(!folder.join("typo").exists(), "a recovery makes no cloud");
    let other = bench.text("other.key");
    bench.velum(&["key", "init", "--keyfile", &other]).expect(0, &["made a new root key"]);
    let line = ["recover", "--dir", "x", "--keyfile", &other, "--cloud", &a, "--cloud", &b, "--accept-missing", "c"];
    bench.velum(&line).expect(1, &["no cloud holds a cluster that this key opens", "root key"]);
    // A node whose settings name other clouds than the cluster has.
    let renamed = settings("").replace("name = \"c\"", "name = \"d\"");
    fs::write(folder.join("node.toml"), renamed).unwrap();
    let config = bench.text("data/node.toml");
    bench
        .velum(&["node", "--config", &config])
        .expect(1, &["d=file:clouds/c", "c=file:clouds/c", "configure the same"]);
}

#[test]
fn a_config_is_judged_as_a_whole() {
    let bench = Bench::new();
    let folder = bench.prepare("data", &settings(""));
    bench.velum(&["key", "init", "--keyfile", &bench.text("data/root.key")]).expect(0, &[]);
    let config = bench.text("data/node.toml");
    let check = |text: &[u8]| {
        fs::write(folder.join("node.toml"), text).unwrap();
        bench.velum(&["config", "check", &config])
    };
    let good = settings("");
    let with = |from: &str, to: &str| good.replace(from, to).into_bytes();
    assert!(check(good.as_bytes()).expect(0, &[]).stdout.contains("in order"));
    assert!(
        check(format!("\u{feff}{}", good.replace('\n', "\r\n")).as_bytes()).expect(0, &[]).stdout.contains("in order")
    );
    let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain(good.bytes().flat_map(|byte| [byte, 0])).collect();
    let absolute = format!("file://{}", folder.join("clouds/a").display());
    let cases: &[(Vec<u8>, &[&str])] = &[
        (with("memory", "memmory"), &["line 3", "`memmory`", "did you mean `memory`?"]),
        (with("\"64MiB\"", "64.5"), &["line 3"]),
        (with("\"64MiB\"", "\"99999999TiB\""), &["64 bits"]),
        (with("memory", "quorum = 4\nmemory"), &["quorum", "4 of 3"]),
        (with("memory", "quorum = 1\nmemory"), &["quorum", "may share none"]),
        (with("file:clouds/b", "file:clouds/a"), &["clouds[1].url", "same place as clouds[0]"]),
        (with("file:clouds/b", &absolute), &["clouds[1].url", "same place as clouds[0]"]),
        (with("file:clouds/b", "file:clouds/a/below"), &["same place as clouds[0]"]),
        (with("file:clouds/b", "http://cloud.example/b"), &["plain HTTP", "allow_insecure"]),
        (with("name = \"b\"", "name = \"a\""), &["clouds[1].name"]),
        (with("keyfile = \"root.key\"", "inline_passphrase = \"a b c d e f\""), &["allow_inline_secret"]),
        (with("keyfile = \"root.key\"", "keyfile = \"gone.key\""), &["key.keyfile", "gone.key", "velum key init"]),
        (with("[\"127.0.0.1:0\"]", "[\"127.0.0.1:9\", \"127.0.0.1:9\"]"), &["nbd.listen[1]"]),
        (with("[\"127.0.0.1:0\"]", "[\"0.0.0.0:9\"]"), &["without TLS", "allow_insecure"]),
        (with("dir = \"node-1\"", "dir = \"node-1\"\nnode = 0"), &["`node`", "start at 1"]),
        (with("bytes_max = \"128MiB\"", "bytes_max = \"9000PiB\""), &["journal.bytes_max", "file system"]),
        (utf16, &["UTF-16"]),
        (vec![b'#'; 10 << 20], &["bytes"]),
        (b"".to_vec(), &["missing field"]),
    ];
    for (text, words) in cases {
        let ended = check(text).expect(2, words);
        assert_eq!(ended.stdout, "", "{words:?}");
    }
    fs::set_permissions(folder.join("root.key"), fs::Permissions::from_mode(0o604)).unwrap();
    check(good.as_bytes()).expect(2, &["key.keyfile", "chmod 600"]);
    fs::remove_file(folder.join("node.toml")).unwrap();
    std::os::unix::fs::symlink("node.toml", folder.join("node.toml")).unwrap();
    bench.velum(&["config", "check", &config]).expect(1, &["node.toml", "links to itself"]);
    bench.velum(&["config", "check", &bench.text("data")]).expect(1, &["no regular file"]);
}

#[test]
fn the_config_of_another_nodes_directory_is_refused() {
    let bench = Bench::new();
    let folder = bench.prepare("data", &settings(""));
    bench.up("data", &[]).stop(Signal::TERM).expect(0, &[]);
    let config = bench.text("data/node.toml");
    bench.velum(&["config", "check", &config]).expect(0, &[]);
    fs::write(folder.join("node.toml"), settings("node = 7")).unwrap();
    bench.velum(&["config", "check", &config]).expect(2, &["`node`", "node 1"]);
    fs::write(folder.join("node.toml"), settings("")).unwrap();
    fs::remove_file(folder.join("root.key")).unwrap();
    bench.velum(&["key", "init", "--keyfile", &bench.text("data/root.key")]).expect(0, &[]);
    bench.velum(&["config", "check", &config]).expect(2, &["`key`", "does not open"]);
}

#[test]
fn help_is_there_for_every_command_and_errors_are_not_coloured_in_files() {
    let bench = Bench::new();
    for words in [
        "",
        "up",
        "node",
        "volume",
        "volume create",
        "volume list",
        "volume show",
        "volume resize",
        "volume flush",
        "volume delete",
        "volume allow",
        "volume deny",
        "volume acl",
        "volume attach",
        "volume detach",
        "volume attachments",
        "volume permit",
        "cloud",
        "cloud list",
        "cloud check",
        "key",
        "key init",
        "recover",
        "inspect",
        "config",
        "config check",
        "completions",
    ] {
        let line: Vec<&str> = words.split_whitespace().chain(["--help"]).collect();
        let ended = bench.velum(&line).expect(0, &[]);
        assert!(ended.stdout.contains("Usage: velum") && ended.stderr.is_empty(), "{words}");
        assert!(ended.stdout.lines().all(|text| text.chars().count() <= 120), "{words}: {}", ended.stdout);
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = bench.velum(&["completions", shell]).expect(0, &[]).stdout;
        assert!(script.contains("recover") && script.contains("accept-missing"), "{shell}");
    }
    let refused = bench.velum(&["volume", "lits"]).expect(2, &[]);
    assert!(!refused.stderr.contains('\u{1b}'), "{}", refused.stderr);
}
