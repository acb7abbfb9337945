//! `velum recover` asked wrongly: each case gets its own words and exit code, and nothing is changed anywhere.
//!
//! Runs the real binary on a small cluster in a scratch directory; its port is the kernel's choice.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that meets the unexpected has failed, and says where")]
#![allow(clippy::disallowed_methods, reason = "the test looks at the files of other processes")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

const VELUM: &str = env!("CARGO_BIN_EXE_velum");

/// A passphrase.
const WORDS: &str = "correct horse battery staple now";

/// A node that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Makes a cluster with three clouds in `dir`, flushes its volume and kills the node.
fn found(dir: &Path) {
    let socket = dir.with_extension("sock");
    let mut up = Command::new(VELUM);
    up.args(["--output", "json", "up", "--size", "4MiB", "--dir"]).arg(dir).env("WORDS", WORDS);
    if !dir.join("node.toml").exists() {
        up.args(["--admin", "127.0.0.1:0", "--nbd"]).arg(format!("unix:{}", socket.display()));
    }
    up.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut node = Running(up.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(node.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let admin =
        line.split('"').find(|word| word.starts_with("http://")).expect("`up` says where it answers").to_owned();
    let flushed = Command::new(VELUM).args(["volume", "flush", "demo", "--admin", &admin]).output().unwrap();
    assert!(flushed.status.success(), "{}", words(&flushed));
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every file below `folder` with its contents, and every folder.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut tree = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tree.extend(self::tree(&path));
            tree.insert(path, Vec::new());
        } else if path.is_file() {
            tree.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    tree
}

/// What is wrong, the arguments, the exit code, and what must be said.
type Case<'a> = (&'a str, Vec<String>, i32, &'a [&'a str]);

#[test]
fn what_is_asked_wrongly_is_refused_in_words_and_changes_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    found(&at("own"));
    found(&at("other"));
    // A cluster whose root key is a passphrase, made from settings.
    fs::create_dir(at("worded")).unwrap();
    let settings = fs::read_to_string(at("own/node.toml")).unwrap();
    let own_root = at("own").display().to_string();
    let settings = settings
        .replace(&own_root, &at("worded").display().to_string())
        .replace("keyfile = \"root.key\"", "passphrase = \"env:WORDS\"");
    fs::write(at("worded/node.toml"), settings).unwrap();
    found(&at("worded"));
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full").join("thesis.tex"), b"years of work").unwrap();
    let wrong_key: String =
        (0..32_u8).map(|place| format!("{:02x}", place.wrapping_mul(83).wrapping_add(29))).collect();
    fs::write(at("wrong.key"), wrong_key).unwrap();
    fs::set_permissions(at("wrong.key"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink(at("own/clouds/a"), at("link")).unwrap();

    let own = |name: &str| format!("{name}=file://{}", at("own/clouds").join(name).display());
    let other = |name: &str| format!("{name}=file://{}", at("other/clouds").join(name).display());
    let key = at("own/root.key").display().to_string();
    let asked = |clouds: &[String], rest: &[&str]| {
        let clouds = clouds.iter().flat_map(|cloud| ["--cloud".to_owned(), cloud.clone()]);
        clouds.chain(rest.iter().map(ToString::to_string)).collect::<Vec<_>>()
    };
    let all = ["a", "b", "c"].map(own);
    let worded = ["a", "b", "c"].map(|name| format!("{name}=file://{}", at("worded/clouds").join(name).display()));
    let (wrong, full, twice) =
        (at("wrong.key").display().to_string(), at("full").display().to_string(), own("a").replacen('a', "b", 1));
    let cases: Vec<Case<'_>> = vec![
        ("a wrong key", asked(&all, &["--keyfile", &wrong]), 1, &["no cloud holds a cluster that this key opens"]),
        (
            "a passphrase where there is none",
            asked(&all, &["--passphrase", "env:WORDS"]),
            1,
            &["no cloud holds a cluster"],
        ),
        ("no passphrase", asked(&all, &["--passphrase", "env:NOT_SET"]), 1, &["NOT_SET"]),
        ("no key at all", asked(&all, &[]), 2, &["--keyfile"]),
        (
            "two of three clouds are another cluster's",
            asked(&[own("a"), other("b"), other("c")], &["--keyfile", &key]),
            1,
            &["of cloud b, it holds another cluster", "of cloud c, it holds another cluster", "bring one of them back"],
        ),
        ("one cloud under two names", asked(&[own("a"), twice, own("c")], &["--keyfile", &key]), 2, &["same place"]),
        (
            "one cloud under two names, through a link",
            asked(&[own("a"), format!("b=file://{}", at("link").display()), own("c")], &["--keyfile", &key]),
            2,
            &["same place"],
        ),
        (
            "one name for two clouds",
            asked(&[own("a"), own("b").replacen('b', "a", 1)], &["--keyfile", &key]),
            2,
            &["name"],
        ),
        (
            "a cloud accepted as missing that there is not",
            asked(&all, &["--keyfile", &key, "--accept-missing", "d"]),
            2,
            &["lists no cloud d", "a, b, c"],
        ),
        (
            "a cloud left out without a word",
            asked(&[own("a"), own("b")], &["--keyfile", &key]),
            1,
            &["--accept-missing c"],
        ),
        (
            "two clouds left out",
            asked(&[own("a")], &["--keyfile", &key, "--accept-missing", "b", "--accept-missing", "c"]),
            1,
            &["1 of 3 clouds can be counted on"],
        ),
        (
            "two clouds mistyped",
            asked(
                &[own("a"), own("x").replacen('x', "b", 1), own("y/z").replacen("y/z", "c", 1)],
                &["--keyfile", &key],
            ),
            1,
            &["cloud b cannot be opened", "correct its URL"],
        ),
        (
            "a keyfile where there is a passphrase",
            asked(&worded, &["--keyfile", &wrong]),
            1,
            &["no cloud holds a cluster that this key opens"],
        ),
        ("another passphrase", asked(&worded, &["--passphrase", "env:OTHERS"]), 1, &["no cloud holds a cluster"]),
        ("a directory in use", asked(&all, &["--keyfile", &key, "--dir", &full]), 1, &["is not empty", "new or empty"]),
    ];
    // The nodes' own files are not in a recovery's reach, and large.
    let clouds = ["own/clouds", "other/clouds", "worded/clouds", "full"].map(at);
    let all_there = || {
        let entries = fs::read_dir(scratch.path()).unwrap().map(|entry| (entry.unwrap().path(), Vec::new()));
        clouds.iter().flat_map(|folder| tree(folder)).chain(entries).collect::<BTreeMap<_, _>>()
    };
    let before = all_there();
    assert!(before.len() > 20, "two clusters are there");
    for (what, mut arguments, code, said) in cases {
        let new = at("new");
        if !arguments.contains(&"--dir".to_owned()) {
            arguments.extend(["--dir".to_owned(), new.display().to_string()]);
        }
        let mut recover = Command::new(VELUM);
        recover.arg("recover").args(&arguments).env("WORDS", WORDS).env("OTHERS", "another battery of stapled horses");
        let refused = recover.output().unwrap();
        let told = words(&refused);
        assert_eq!(refused.status.code(), Some(code), "{what}: {told}");
        for text in said {
            assert!(told.contains(text), "{what}: `{text}` is not said: {told}");
        }
        assert!(refused.stdout.is_empty(), "{what}: nothing was recovered");
        assert!(tree(&new).is_empty(), "{what}: the new directory holds something");
        drop(fs::remove_dir(&new));
        assert_eq!(all_there(), before, "{what}: something was changed");
    }
}
