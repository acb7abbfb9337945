//! `velum inspect`. It once printed the facts of a damaged object and said that all was well: only the header was opened.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::process::Signal;
use velum_protocol::version;

use crate::bench::{Bench, Ended, settings};

/// A folder of a node that has flushed a write, and one object of each kind of its cloud `a`.
struct Stored {
    bench: Bench,
    config: String,
    objects: Vec<(&'static str, PathBuf)>,
}

impl Stored {
    fn new() -> Self {
        let bench = Bench::new();
        let folder = bench.prepare("data", &settings("[checkpoint]\nrecords = 1"));
        let node = bench.up("data", &["--size", "64MiB"]);
        crate::nbd::write(&node.nbd, "demo", 0, &[0x5a; 256 << 10]);
        bench.velum(&["volume", "flush", "demo", "--admin", &node.admin]).expect(0, &[]);
        let kinds = [
            ("segment", version::SEGMENT),
            ("sequence", version::SEQUENCE_RECORD),
            ("checkpoint", version::CHECKPOINT_PAGE),
            ("checkpoint", version::CHECKPOINT_ROOT),
            ("checkpoint", version::CHECKPOINT_STUB),
        ];
        let cloud = folder.join("clouds/a");
        let find = |format: version::Format| {
            let files = crate::bench::tree(&cloud).into_iter().map(|(path, _)| path).filter(|path| path.is_file());
            files.into_iter().find(|path| fs::read(path).unwrap_or_default().starts_with(&format.magic))
        };
        let began = std::time::Instant::now();
        while kinds.iter().any(|(_, format)| find(*format).is_none()) {
            assert!(began.elapsed().as_secs() < 60, "no checkpoint is made");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        node.stop(Signal::TERM).expect(0, &[]);
        let objects = kinds.iter().map(|(word, format)| (*word, find(*format).expect("it was there"))).collect();
        let config = bench.text("data/node.toml");
        Self { bench, config, objects }
    }

    fn inspect(&self, what: &str, place: &str, with_key: bool) -> Ended {
        let line = ["--output", "json", "inspect", what, place];
        let key = ["--config", self.config.as_str()];
        self.bench.velum(&[&line[..], if with_key { &key[..] } else { &[] }].concat())
    }

    /// A copy of a file with one byte changed, or with its length changed.
    fn changed(&self, file: &Path, change: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut bytes = fs::read(file).unwrap();
        change(&mut bytes);
        let copy = self.bench.path("copy").join(file.file_name().unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::write(&copy, bytes).unwrap();
        copy.display().to_string()
    }
}

fn proofs(found: &serde_json::Value) -> Vec<&str> {
    found["facts"].as_array().unwrap().iter().map(|fact| fact["proof"].as_str().unwrap()).collect()
}

#[test]
fn objects_are_verified_whole_and_damage_is_named_by_its_place() {
    let stored = Stored::new();
    for (what, path) in &stored.objects {
        let place = path.display().to_string();
        let bare = stored.inspect(what, &place, false).expect(0, &[]).json();
        assert!(proofs(&bare).contains(&"none") && !proofs(&bare).contains(&"seal"), "{bare}");
        assert_eq!(bare["unchecked"].as_array().unwrap().len(), 1, "{bare}");
        let url = format!("file://{place}");
        for place in [&place, &url] {
            let full = stored.inspect(what, place, true).expect(0, &[]).json();
            assert!(!proofs(&full).contains(&"none") && proofs(&full).contains(&"seal"), "{full}");
            assert_eq!(full["unchecked"].as_array().unwrap().len(), 0, "{full}");
        }
        let length = fs::read(path).unwrap().len();
        for (at, word) in [(20, "the sealed header"), (200, "bytes 136.."), (length - 10, "bytes ")] {
            let copy = stored.changed(path, |bytes| bytes[at] ^= 1);
            let damaged = stored.inspect(what, &copy, true).expect(1, &["is damaged", "another cloud's copy"]).json();
            let said = damaged["damage"].to_string();
            assert!(said.contains(word), "{what} changed at {at}: {said}");
        }
        let cut = stored.changed(path, |bytes| bytes.truncate(length - 100));
        stored.inspect(what, &cut, false).expect(1, &["is damaged"]);
        stored.inspect(what, &cut, true).expect(1, &["is damaged"]);
        let lead = stored.changed(path, |bytes| bytes[6] = 1);
        stored.inspect(what, &lead, false).expect(1, &["is damaged"]);
        let empty = stored.changed(path, Vec::clear);
        stored.inspect(what, &empty, true).expect(1, &["begins with"]);
    }
    // A frame is named with the blocks that it held.
    let (what, segment) = &stored.objects[0];
    let copy = stored.changed(segment, |bytes| bytes[136 + 70_000] ^= 1);
    let said = stored.inspect(what, &copy, true).expect(1, &[]).json()["damage"].to_string();
    assert!(said.contains("frame 1, blocks 16..32 of the volume"), "{said}");
    // An object under another's name is authentic, and still not what it is taken for.
    let other = stored.bench.text("copy/other");
    fs::copy(segment, &other).unwrap();
    let renamed = stored.inspect(what, &other, true).expect(0, &[]).json();
    assert!(renamed["facts"].to_string().contains("another one; in a cloud it is velum/"), "{renamed}");
}

#[test]
fn without_clouds_the_headers_are_opened_and_the_rest_is_said_to_be_unchecked() {
    let stored = Stored::new();
    let kept = stored.bench.text("kept");
    let (what, path) = &stored.objects[1];
    fs::copy(path, &kept).unwrap();
    fs::rename(stored.bench.path("data/clouds"), stored.bench.path("away")).unwrap();
    let found = stored.inspect(what, &kept, true).expect(0, &[]).json();
    assert!(proofs(&found).contains(&"seal") && found["unchecked"].to_string().contains("volumes' keys"), "{found}");
    assert!(!stored.bench.path("data/clouds").exists(), "looking makes no cloud");
}

#[test]
fn journal_files_are_verified_record_by_record() {
    let stored = Stored::new();
    let file = stored.bench.path("data/node-1/journal/0000.journal");
    let place = file.display().to_string();
    let bare = stored.inspect("journal", &place, false).expect(0, &[]).json();
    assert!(bare["unchecked"].to_string().contains("seals"), "{bare}");
    let full = stored.inspect("journal", &place, true).expect(0, &[]).json();
    assert_eq!(full["unchecked"].as_array().unwrap().len(), 0, "{full}");
    let fact = |name: &str| {
        let fact = full["facts"].as_array().unwrap().iter().find(|fact| fact["name"] == name);
        fact.unwrap()["value"].as_str().unwrap().to_owned()
    };
    let end: usize = fact("end of records").parse().unwrap();
    let bytes = fs::read(&file).unwrap();
    let headers: Vec<usize> = (1024..end).step_by(8).filter(|at| bytes[*at..].starts_with(b"VLjn")).collect();
    let (middle, last) = (headers[headers.len() / 2], *headers.last().unwrap());
    for at in [middle + 30, middle + 96, last + 30, last + 96, 30, 510] {
        let copy = stored.changed(&file, |bytes| bytes[at] ^= 1);
        let damaged = stored.inspect("journal", &copy, false).expect(1, &[]);
        assert!(damaged.stderr.contains("damaged") || damaged.stderr.contains("journal"), "{at}: {}", damaged.stderr);
    }
    // A body with a checksum of its own, but without the key: only the seal tells.
    for (kind, stream) in [(1, "raft"), (2, "volume")] {
        let record = headers.iter().find(|at| bytes[**at + 4] == kind).copied().unwrap();
        let forged = stored.changed(&file, |bytes| forge(bytes, record));
        stored.inspect("journal", &forged, false).expect(0, &[]);
        let found = stored.inspect("journal", &forged, true).expect(1, &["is damaged"]).json();
        let said = found["damage"].to_string();
        assert!(said.contains(stream) && said.contains("does not open"), "{said}");
    }
}

/// Changes a record's body and mends every checksum up to it. The records behind it do not link to it then, unless the header
/// keeps its checksum: so the changed byte and four more are chosen such that the body's does.
fn forge(bytes: &mut [u8], at: usize) {
    let length = u32::from_le_bytes(bytes[at + 80..at + 84].try_into().unwrap()) as usize;
    let body = at + 96..at + 96 + length;
    let wanted = velum_protocol::checksum::crc32c(&bytes[body.clone()]);
    let patch = body.end - 4..body.end;
    bytes[body.start + 40] ^= 1;
    // The checksum is linear: each bit of the last four bytes changes a fixed set of its bits.
    let now = velum_protocol::checksum::crc32c(&bytes[body.clone()]);
    let mut basis: Vec<(u32, u32)> = Vec::new();
    for bit in 0..32_u32 {
        bytes[patch.start + bit as usize / 8] ^= 1 << (bit % 8);
        let mut change = (velum_protocol::checksum::crc32c(&bytes[body.clone()]) ^ now, 1_u32 << bit);
        bytes[patch.start + bit as usize / 8] ^= 1 << (bit % 8);
        for (vector, bits) in &basis {
            if change.0 ^ vector < change.0 {
                change = (change.0 ^ vector, change.1 ^ bits);
            }
        }
        basis.push(change);
        basis.sort_by_key(|(vector, _)| std::cmp::Reverse(*vector));
    }
    let mut left = (now ^ wanted, 0);
    for (vector, bits) in &basis {
        if left.0 ^ vector < left.0 {
            left = (left.0 ^ vector, left.1 ^ bits);
        }
    }
    assert_eq!(left.0, 0, "the last four bytes can give any checksum");
    for (byte, change) in bytes[patch].iter_mut().zip(left.1.to_le_bytes()) {
        *byte ^= change;
    }
    assert_eq!(velum_protocol::checksum::crc32c(&bytes[body]), wanted);
}
