//! Files behave like POSIX files, and every error has the kind its caller looks for.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    rc::Rc,
};

use futures_util::future::join_all;
use velum_node::env::{Env, File, OpenMode};

/// Runs the suite in `dir`, which is empty or not there yet.
///
/// # Panics
/// When the disk breaks its contract.
pub async fn run(env: &Env, dir: &Path) {
    making_a_directory_twice_is_no_error(env, dir).await;
    a_new_file_must_not_exist_and_an_old_one_must(env, dir).await;
    bytes_read_back_as_written(env, dir).await;
    reads_past_the_end_are_refused(env, dir).await;
    holes_and_grown_parts_read_as_zeros(env, dir).await;
    cut_bytes_do_not_come_back(env, dir).await;
    syncs_succeed_also_many_at_once(env, dir).await;
    names_are_listed_in_order(env, dir).await;
    a_rename_replaces_and_moves_the_contents(env, dir).await;
    a_removed_name_is_gone_and_its_open_file_is_not(env, dir).await;
    a_read_only_file_takes_no_writes(env, dir).await;
    a_lock_has_one_holder(env, dir).await;
    missing_directories_say_so(env, dir).await;
    the_boot_stays_as_long_as_the_page_cache(env).await;
}

async fn create(env: &Env, path: &Path) -> Rc<dyn File> {
    env.disk.open(path, OpenMode::CreateNew).await.expect("a new file can be made")
}

fn kind<T>(result: io::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

async fn read(file: &Rc<dyn File>, offset: u64, len: usize) -> Vec<u8> {
    file.read_at(offset, len).await.expect("these bytes can be read").to_vec()
}

async fn making_a_directory_twice_is_no_error(env: &Env, dir: &Path) {
    for _ in 0..2 {
        env.disk.create_dir_all(&dir.join("deep/er")).await.expect("a directory and its parents can be made");
    }
    env.disk.sync_dir(dir).await.expect("a directory can be synced");
    assert_eq!(env.disk.list(dir).await.expect("it can be listed"), ["deep"]);
}

async fn a_new_file_must_not_exist_and_an_old_one_must(env: &Env, dir: &Path) {
    let path = dir.join("file");
    for mode in [OpenMode::Read, OpenMode::ReadWrite] {
        assert_eq!(kind(env.disk.open(&path, mode).await), Some(ErrorKind::NotFound));
    }
    create(env, &path).await.write_at(0, b"old").expect("it can be written");
    assert_eq!(kind(env.disk.open(&path, OpenMode::CreateNew).await), Some(ErrorKind::AlreadyExists));
    let again = env.disk.open(&path, OpenMode::ReadWrite).await.expect("it is there now");
    assert_eq!(read(&again, 0, 3).await, b"old", "another handle sees the same bytes, synced or not");
}

async fn bytes_read_back_as_written(env: &Env, dir: &Path) {
    let file = create(env, &dir.join("bytes")).await;
    file.write_at(0, &[1; 10_000]).expect("it can be written");
    file.write_at(4090, &[2; 20]).expect("it can be overwritten");
    file.write_at(9_999, &[3; 2]).expect("it can be written past its end");
    assert_eq!(file.size().expect("it has a size"), 10_001);
    let bytes = read(&file, 4089, 22).await;
    assert_eq!(bytes, [&[1][..], &[2; 20], &[1]].concat());
    assert_eq!(read(&file, 9_998, 3).await, [1, 3, 3]);
    assert!(read(&file, 0, 0).await.is_empty(), "no bytes are read as some");
    let large = vec![7; 3 << 20];
    file.write_at(1 << 20, &large).expect("3 MiB can be written at once");
    assert!(read(&file, 1 << 20, 3 << 20).await == large, "3 MiB read back otherwise");
    file.write_behind(4089, vec![4; 2].into()).await.expect("it can be written from elsewhere");
    assert_eq!(read(&file, 4088, 4).await, [1, 4, 4, 2], "what was written behind is there when that is done");
}

async fn reads_past_the_end_are_refused(env: &Env, dir: &Path) {
    let file = create(env, &dir.join("end")).await;
    file.write_at(0, &[1; 100]).expect("it can be written");
    for (offset, len) in [(0, 101), (99, 2), (100, 1), (1 << 40, 1), (u64::MAX, 1), (0, 1 << 40)] {
        let refused = kind(file.read_at(offset, len).await);
        assert_eq!(refused, Some(ErrorKind::UnexpectedEof), "{len} bytes at {offset}");
    }
}

async fn holes_and_grown_parts_read_as_zeros(env: &Env, dir: &Path) {
    let file = create(env, &dir.join("holes")).await;
    file.write_at(20_000, b"x").expect("it can be written past its end");
    assert_eq!(read(&file, 0, 20_001).await, [&[0; 20_000][..], b"x"].concat());
    file.set_size(30_000).expect("it can grow");
    assert_eq!(file.size().expect("it has a size"), 30_000);
    assert_eq!(read(&file, 20_001, 9_999).await, [0; 9_999]);
}

async fn cut_bytes_do_not_come_back(env: &Env, dir: &Path) {
    let file = create(env, &dir.join("cut")).await;
    file.write_at(0, &[1; 9_000]).expect("it can be written");
    file.set_size(5_000).expect("it can be cut");
    assert_eq!(kind(file.read_at(4_000, 2_000).await), Some(ErrorKind::UnexpectedEof));
    file.set_size(9_000).expect("it can grow again");
    assert_eq!(read(&file, 4_999, 3).await, [1, 0, 0]);
}

async fn syncs_succeed_also_many_at_once(env: &Env, dir: &Path) {
    let file = create(env, &dir.join("synced")).await;
    file.write_at(0, &[1; 4096]).expect("it can be written");
    let syncs = join_all((0..10).map(|_| file.sync())).await;
    assert!(syncs.iter().all(Result::is_ok), "{syncs:?}");
    assert_eq!(read(&file, 0, 4096).await, [1; 4096]);
}

async fn names_are_listed_in_order(env: &Env, dir: &Path) {
    let dir = dir.join("names");
    env.disk.create_dir_all(&dir).await.expect("a directory can be made");
    for name in ["b", "a-10", "a-9", "c.tmp"] {
        create(env, &dir.join(name)).await;
    }
    assert_eq!(env.disk.list(&dir).await.expect("it can be listed"), ["a-10", "a-9", "b", "c.tmp"]);
}

async fn a_rename_replaces_and_moves_the_contents(env: &Env, dir: &Path) {
    let (from, to) = (dir.join("rename-from"), dir.join("rename-to"));
    let file = create(env, &from).await;
    file.write_at(0, b"new").expect("it can be written");
    create(env, &to).await.write_at(0, b"older").expect("it can be written");
    env.disk.rename(&from, &to).await.expect("it can be renamed");
    env.disk.sync_dir(dir).await.expect("the name can be made durable");
    assert_eq!(kind(env.disk.open(&from, OpenMode::Read).await), Some(ErrorKind::NotFound));
    let renamed = env.disk.open(&to, OpenMode::Read).await.expect("it has the new name");
    assert_eq!((renamed.size().expect("it has a size"), read(&renamed, 0, 3).await), (3, b"new".to_vec()));
    file.write_at(0, b"NEW").expect("the open file is still the same file");
    assert_eq!(read(&renamed, 0, 3).await, b"NEW");
    assert_eq!(kind(env.disk.rename(&from, &to).await), Some(ErrorKind::NotFound));
}

async fn a_removed_name_is_gone_and_its_open_file_is_not(env: &Env, dir: &Path) {
    let path = dir.join("removed");
    let file = create(env, &path).await;
    file.write_at(0, b"kept").expect("it can be written");
    env.disk.remove(&path).await.expect("it can be removed");
    assert_eq!(kind(env.disk.open(&path, OpenMode::Read).await), Some(ErrorKind::NotFound));
    assert_eq!(read(&file, 0, 4).await, b"kept");
    assert_eq!(kind(env.disk.remove(&path).await), Some(ErrorKind::NotFound));
    create(env, &path).await;
}

async fn a_read_only_file_takes_no_writes(env: &Env, dir: &Path) {
    let path = dir.join("read-only");
    create(env, &path).await.write_at(0, b"same").expect("it can be written");
    let file = env.disk.open(&path, OpenMode::Read).await.expect("it can be opened");
    assert!(file.write_at(0, b"gone").is_err(), "a file opened for reading was written");
    assert!(file.write_behind(0, b"gone"[..].into()).await.is_err(), "and so it was from elsewhere");
    assert_eq!(read(&file, 0, 4).await, b"same");
}

async fn a_lock_has_one_holder(env: &Env, dir: &Path) {
    let path: PathBuf = dir.join("lock");
    let held = env.disk.lock(path.clone()).await.expect("nobody holds it");
    assert_eq!(kind(env.disk.lock(path.clone()).await), Some(ErrorKind::WouldBlock));
    drop(held);
    env.disk.lock(path).await.expect("it was given back");
}

async fn missing_directories_say_so(env: &Env, dir: &Path) {
    let missing = dir.join("missing");
    assert_eq!(kind(env.disk.list(&missing).await), Some(ErrorKind::NotFound));
    assert_eq!(kind(env.disk.sync_dir(&missing).await), Some(ErrorKind::NotFound));
    assert_eq!(kind(env.disk.open(&missing.join("f"), OpenMode::CreateNew).await), Some(ErrorKind::NotFound));
}

async fn the_boot_stays_as_long_as_the_page_cache(env: &Env) {
    let boot = env.disk.boot().await.expect("the machine can tell its boot");
    assert_eq!(env.disk.boot().await.expect("it can tell it again"), boot);
}
