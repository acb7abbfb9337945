//! What is accepted, what is refused, and that a refusal says where and what to do.

use super::*;

const GOOD: &str = r#"
dir = "node-1"
[[clouds]]
name = "a"
url = "file:///srv/a"
[[clouds]]
name = "b"
url = "s3://bucket/velum"
options = { region = "eu-1", endpoint = "https://s3.example" }
[[clouds]]
name = "c"
url = "gs://bucket/velum"
[key]
keyfile = "root.key"
"#;

fn refusal(text: &str) -> Vec<Finding> {
    NodeConfig::parse(text.as_bytes(), "node.toml").expect_err("the file is at fault").findings
}

fn peers(listen: &str, advertise: Option<&str>) -> Option<PeersConfig> {
    let address = |text| Listen::parse(text).unwrap();
    Some(PeersConfig { listen: address(listen), advertise: advertise.map(address) })
}

/// What passes between nodes is sealed, so their door may be reached from other machines.
#[test]
fn nodes_may_meet_over_any_network_when_they_can_find_each_other() {
    let (alone, _) = NodeConfig::parse(GOOD.as_bytes(), "node.toml").unwrap();
    assert_eq!(alone.peers, None, "a node without the table is alone");
    let text = format!("{GOOD}[peers]\nlisten = \"0.0.0.0:9891\"\nadvertise = \"host-1:9891\"\n");
    let (config, _) = NodeConfig::parse(text.as_bytes(), "node.toml").unwrap();
    assert_eq!(config.peers, peers("0.0.0.0:9891", Some("host-1:9891")));
    let (again, _) = NodeConfig::parse(config.to_toml().as_bytes(), "node.toml").unwrap();
    assert_eq!(again, config);
}

/// `GOOD` with more lines at its start, where top-level keys go.
fn good_with(lines: &str) -> String {
    format!("{lines}\n{GOOD}")
}

#[test]
fn a_short_file_gets_the_documented_defaults() {
    let (config, warnings) = NodeConfig::parse(GOOD.as_bytes(), "node.toml").unwrap();
    let warned: Vec<_> = warnings.iter().map(|warning| (warning.key.as_str(), warning.what.as_str())).collect();
    assert_eq!(
        warned,
        [("plain_exports", "a volume is served to whoever is attached to it, and under no name of its own")]
    );
    assert_eq!((config.node, config.cloud_quorum()), (NodeId(1), 2));
    assert_eq!((config.memory, config.dirty_bytes_max()), (Size::mib(512), 256 << 20));
    assert_eq!((config.flush.bytes, config.flush.interval), (Size::mib(8), Duration::from_secs(5)));
    assert_eq!((config.journal.file_bytes, config.journal.files_initial), (Size::mib(64), 4));
    assert_eq!((config.journal.bytes_max, config.cache.disk_bytes), (Size::mib(2048), Size::mib(4096)));
    assert_eq!((config.checkpoint.records, config.checkpoint.bytes), (1024, Size::mib(4)));
    assert_eq!(config.reclaim.grace, Duration::from_secs(3600));
    assert_eq!(config.admin.listen, Listen::tcp("127.0.0.1:9890"));
    assert_eq!(config.nbd.listen, [Listen::tcp("127.0.0.1:10809")]);
    assert!(!config.plain_exports && !config.few_clouds && !config.allow_insecure);
}

#[test]
fn a_cloud_in_memory_is_warned_of() {
    let text = format!("plain_exports = true\n{GOOD}").replace("file:///srv/a", "memory:///");
    let (_, warnings) = NodeConfig::parse(text.as_bytes(), "node.toml").unwrap();
    let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
    assert_eq!((warning.key.as_str(), warning.line), ("clouds[0].url", Some(6)));
    assert!(warning.remedy.contains("nothing in it survives a restart"), "{warning}");
    assert!(is_in_memory("memory:///x") && !is_in_memory("file:///memory:") && !is_in_memory("memory"));
}

#[test]
fn the_written_form_reads_back() {
    let (mut config, _) = NodeConfig::parse(GOOD.as_bytes(), "node.toml").unwrap();
    config.quorum = Some(3);
    config.flush.interval = Duration::from_millis(1500);
    config.nbd.listen.push(Listen::unix("velum.sock".into()));
    let (again, _) = NodeConfig::parse(config.to_toml().as_bytes(), "node.toml").unwrap();
    assert_eq!(again, config);
}

#[test]
fn relative_paths_count_from_the_file() {
    let (mut config, _) = NodeConfig::parse(GOOD.as_bytes(), "node.toml").unwrap();
    config.nbd.listen = vec![Listen::unix("velum.sock".into())];
    config.resolve(Path::new("/srv/velum"));
    assert_eq!(config.dir, Path::new("/srv/velum/node-1"));
    assert_eq!(config.key.keyfile.as_deref(), Some(Path::new("/srv/velum/root.key")));
    assert_eq!(config.nbd.listen, [Listen::unix("/srv/velum/velum.sock".into())]);
}

#[test]
fn a_cloud_below_the_file_moves_with_it_and_is_written_as_it_was_given() {
    let text = GOOD.replacen("file:///srv/a", "file:clouds/a%20b", 1);
    let (mut config, _) = NodeConfig::parse(text.as_bytes(), "node.toml").unwrap();
    let written = config.to_toml();
    for base in ["/srv/velum", "/mnt/else where"] {
        config.resolve(Path::new(base));
        let base = base.replace(' ', "%20");
        assert_eq!(config.placed_clouds()[0].url, format!("file://{base}/clouds/a%20b"));
        assert_eq!(config.placed_clouds()[1..], config.clouds[1..], "other clouds are where they are");
        assert_eq!(config.clouds[0].url, "file:clouds/a%20b");
    }
    assert!(written.contains("file:clouds/a%20b"));
}

#[test]
fn only_a_directory_below_the_base_is_named_from_there() {
    for (url, movable) in [
        ("file:///srv/velum/clouds/a", "file:clouds/a"),
        ("file:///srv/velum/clouds/a/", "file:clouds/a"),
        ("file:///srv/velum", "file:///srv/velum"),
        ("file:///srv/velum/", "file:///srv/velum/"),
        ("file:///srv/velum-2/a", "file:///srv/velum-2/a"),
        ("file:clouds/a", "file:clouds/a"),
        ("s3://bucket/velum", "s3://bucket/velum"),
    ] {
        let cloud = CloudConfig { name: "a".into(), url: url.into(), options: BTreeMap::new() };
        assert_eq!(cloud.movable(Path::new("/srv/velum")).url, movable);
    }
}

#[test]
fn one_place_under_a_relative_and_an_absolute_url_is_refused() {
    let text = GOOD.replacen("s3://bucket/velum", "file:clouds/a", 1).replacen(
        "options = { region = \"eu-1\", endpoint = \"https://s3.example\" }\n",
        "",
        1,
    );
    let (mut config, _) = NodeConfig::parse(text.as_bytes(), "node.toml").unwrap();
    config.clouds[0].url = "file:///srv/velum/clouds".into();
    config.resolve(Path::new("/srv/velum"));
    let refused = config.check("node.toml").unwrap_err().to_string();
    assert!(refused.contains("clouds[1].url") && refused.contains("same place as clouds[0]"), "{refused}");
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_a_suggestion() {
    let findings = refusal(&good_with("memmory = \"1GiB\"\n[flush]\nintervall = \"5s\"\n[jornal]\n"));
    let told: Vec<_> = findings.iter().map(|f| (f.key.as_str(), f.line, f.remedy.as_str())).collect();
    assert!(told.contains(&("memmory", Some(1), "did you mean `memory`?")), "{told:?}");
    assert!(told.contains(&("flush.intervall", Some(3), "did you mean `interval`?")), "{told:?}");
    assert!(told.contains(&("jornal", Some(4), "did you mean `journal`?")), "{told:?}");
    let nested = refusal(&GOOD.replacen("name = \"b\"", "name = \"b\"\nurI = \"\"", 1));
    assert_eq!((nested[0].key.as_str(), nested[0].line), ("clouds[1].urI", Some(8)));
    let strange = refusal(&good_with("xyzzy = 1"));
    assert!(strange[0].remedy.contains("known here: ") && strange[0].remedy.contains("memory"));
}

#[test]
fn a_wrong_type_is_refused_with_its_line() {
    for (line, word) in [
        ("quorum = \"two\"", "expected usize"),
        ("memory = \"lots\"", "`lots` is not a size"),
        ("memory = \"20000PiB\"", "64 bits"),
        ("memory = -1", "size"),
        ("plain_exports = \"yes\"", "boolean"),
        ("node = -1", "-1"),
        ("flush = 5", "flush"),
        ("nbd = { listen = [\"10809\"] }", "`10809` is not an address"),
        ("flush = { interval = \"soon\" }", "duration"),
    ] {
        let findings = refusal(&good_with(line));
        let told = findings[0].to_string();
        assert_eq!(findings[0].line, Some(1), "{line}: {told}");
        assert!(told.contains(word) || word == "flush", "{line}: {told}");
    }
}

#[test]
fn files_that_are_no_utf8_toml_are_refused() {
    let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain(GOOD.bytes().flat_map(|byte| [byte, 0])).collect();
    for (bytes, word) in [
        (utf16, "UTF-16"),
        (b"dir = \"a\xff\"".to_vec(), "UTF-8"),
        (vec![b'#'; CONFIG_FILE_BYTES_MAX + 1], "bytes"),
        (b"dir = ".to_vec(), ""),
        (b"dir = \"a\"\ndir = \"b\"".to_vec(), "duplicate"),
        (b"".to_vec(), "missing field"),
        (vec![b'['; 100_000], ""),
    ] {
        let error = NodeConfig::parse(&bytes, "node.toml").expect_err(word);
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
}

#[test]
fn line_ends_and_byte_order_marks_of_other_systems_are_accepted() {
    let text = format!("\u{feff}{}", GOOD.replace('\n', "\r\n"));
    NodeConfig::parse(text.as_bytes(), "node.toml").unwrap();
}

/// One fault each: what to change in a good config, the key that must be named, and a word of the message.
type Case = (fn(&mut NodeConfig), &'static str, &'static str);

#[test]
fn every_rule_refuses_its_breach_by_name() {
    let cases: &[Case] = &[
        (|c| c.node = NodeId(0), "node", "start at 1"),
        (|c| c.dir = PathBuf::new(), "dir", "empty"),
        (|c| c.clouds.clear(), "clouds", "no cloud"),
        (|c| c.clouds.truncate(2), "clouds", "few_clouds"),
        (|c| c.clouds[1].name = "Cloud B".to_owned(), "clouds[1].name", "no name"),
        (|c| c.clouds[1].name = "a".to_owned(), "clouds[1].name", "clouds[0]"),
        (|c| c.clouds[1].name = "x".repeat(64), "clouds[1].name", "1 to 63"),
        (|c| c.clouds[1].url = "file:///srv/a/".to_owned(), "clouds[1].url", "clouds[0]"),
        (|c| c.clouds[1].url = "file:///srv/a/inner".to_owned(), "clouds[1].url", "same place"),
        (|c| c.clouds[0].url = "ftp://host/x".to_owned(), "clouds[0].url", "s3://"),
        (|c| c.clouds[0].url = "srv/a".to_owned(), "clouds[0].url", "cannot be read"),
        (|c| c.clouds[0].url = "file:///".to_owned(), "clouds[0].url", "names no bucket"),
        (|c| c.clouds[0].url = "s3:///x".to_owned(), "clouds[0].url", "names no bucket"),
        (|c| c.clouds[0].url = "s3://key:secret@bucket/x".to_owned(), "clouds[0].url", "credentials"),
        (
            |c| drop(c.clouds[1].options.insert("endpoint".into(), "http://s3.example".into())),
            "clouds[1].options.endpoint",
            "plain HTTP",
        ),
        (|c| c.quorum = Some(4), "quorum", "can never answer"),
        (|c| c.quorum = Some(1), "quorum", "set at least 2"),
        (|c| c.key = KeyConfig::default(), "key", "nothing says"),
        (|c| c.key.env = Some("KEY".into()), "key", "keyfile and env"),
        (
            |c| c.key = KeyConfig { inline_passphrase: Some("x".into()), ..KeyConfig::default() },
            "key.inline_passphrase",
            "allow_inline_secret",
        ),
        (
            |c| c.key = KeyConfig { passphrase: Some("hunter2".into()), ..KeyConfig::default() },
            "key.passphrase",
            "tty, stdin",
        ),
        (|c| c.key = KeyConfig { exec: Some(vec![]), ..KeyConfig::default() }, "key.exec", "empty"),
        (|c| c.nbd.listen = vec![Listen::tcp("0.0.0.0:10809")], "nbd.listen[0]", "allow_insecure"),
        (|c| c.admin.listen = Listen::tcp("[::]:9890"), "admin.listen", "reachable"),
        (|c| c.admin.listen = Listen::tcp("127.0.0.1:10809"), "admin.listen", "nbd.listen[0]"),
        (|c| c.admin.listen = Listen::unix("/run/a".into()), "admin.listen", "TCP"),
        (|c| c.peers = peers("127.0.0.1:9890", None), "peers.listen", "admin.listen"),
        (|c| c.peers = peers("unix:/run/p", None), "peers.listen", "TCP"),
        (|c| c.peers = peers("0.0.0.0:9891", None), "peers.listen", "cannot find"),
        (|c| c.peers = peers("0.0.0.0:9891", Some("[::]:9891")), "peers.advertise", "cannot find"),
        (|c| c.memory = Size::mib(1), "memory", "64MiB"),
        (|c| c.memory = Size::mib(8192), "journal.bytes_max", "half of memory"),
        (|c| c.journal.file_bytes = Size::mib(1), "journal.file_bytes", "16MiB"),
        (|c| c.journal.bytes_max = Size::mib(192), "journal.bytes_max", "256MiB"),
        (|c| c.journal.files_initial = 1, "journal.files_initial", "2 files"),
        (|c| c.journal.files_initial = 1000, "journal.files_initial", "bytes_max"),
        (|c| c.flush.bytes = Size::default(), "flush.bytes", "cannot start"),
        (|c| c.flush.bytes = Size::mib(300), "flush.bytes", "half of memory"),
        (|c| c.flush.interval = Duration::ZERO, "flush.interval", "out of bounds"),
        (|c| c.checkpoint.records = 0, "checkpoint", "never end"),
    ];
    let (good, _) = NodeConfig::parse(GOOD.as_bytes(), "node.toml").unwrap();
    for (spoil, key, word) in cases {
        let mut config = good.clone();
        spoil(&mut config);
        let findings = config.check("flags").expect_err(key).findings;
        let told: Vec<_> = findings.iter().map(ToString::to_string).collect();
        assert!(findings.iter().any(|f| f.key == *key && f.to_string().contains(word)), "{key} {word}: {told:?}");
    }
}

#[test]
fn all_faults_are_reported_at_once_with_their_lines() {
    let text = good_with("memory = \"1MiB\"\nquorum = 9").replace("name = \"b\"", "name = \"B\"");
    let lines: Vec<_> = refusal(&text).into_iter().map(|f| (f.key, f.line)).collect();
    let expected = [("memory", 1), ("flush.bytes", 0), ("quorum", 2), ("clouds[1].name", 9)];
    for (key, line) in expected {
        let line = (line > 0).then_some(line);
        assert!(lines.contains(&(key.to_owned(), line)), "{key}: {lines:?}");
    }
}

#[test]
fn what_is_unwise_but_possible_is_a_warning() {
    let (mut config, _) = NodeConfig::parse(GOOD.as_bytes(), "node.toml").unwrap();
    config.clouds.truncate(2);
    config.few_clouds = true;
    config.plain_exports = true;
    config.key = KeyConfig { env: Some("VELUM_ROOT_KEY".into()), ..KeyConfig::default() };
    let keys: Vec<_> = config.check("flags").unwrap().into_iter().map(|warning| warning.key).collect();
    assert_eq!(keys, ["clouds", "key.env"]);
}

#[test]
fn naming_the_risk_allows_what_is_refused_otherwise() {
    let (mut config, _) = NodeConfig::parse(GOOD.as_bytes(), "node.toml").unwrap();
    config.allow_insecure = true;
    config.nbd.listen = vec![Listen::tcp("0.0.0.0:10809")];
    config.clouds[1].options.insert("endpoint".into(), "http://s3.example".into());
    config.check("flags").unwrap();
    config.clouds = (0..3)
        .map(|n| CloudConfig { name: format!("m{n}"), url: "memory:///".into(), options: BTreeMap::new() })
        .collect();
    config.check("flags").unwrap();
}
