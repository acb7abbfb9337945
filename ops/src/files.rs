//! Local files that commands read and write themselves: settings and keys. A node's own files go through its environment.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::error::Failure;

/// Longest file read here; a config is bounded tighter by its reader.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// A file's contents.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let cannot = |error: io::Error| cannot("read", path, &error);
    let file = fs::OpenOptions::new().read(true).open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    if !metadata.is_file() {
        return Err(Failure::new(format!("{} is no regular file", path.display()), "give the path of a file"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let what = format!("{} is longer than {FILE_BYTES_MAX} bytes", path.display());
        return Err(Failure::new(what, "give the path of the right file"));
    }
    Ok(bytes)
}

/// The first `length` bytes of a file of any length, or all there are.
pub(crate) fn read_start(path: &Path, length: usize) -> Result<Vec<u8>, Failure> {
    let cannot = |error: io::Error| cannot("read", path, &error);
    let file = fs::OpenOptions::new().read(true).open(path).map_err(cannot)?;
    let mut bytes = Vec::new();
    file.take(u64::try_from(length).unwrap_or(u64::MAX)).read_to_end(&mut bytes).map_err(cannot)?;
    Ok(bytes)
}

/// The folders of a path that are not there yet, deepest first.
pub(crate) fn missing_folders(path: &Path) -> Vec<PathBuf> {
    path.ancestors()
        .take_while(|folder| !folder.as_os_str().is_empty() && !exists(folder))
        .map(Path::to_owned)
        .collect()
}

/// Removes folders that were made and came to hold nothing.
pub(crate) fn remove_empty(folders: &[PathBuf]) {
    for folder in folders {
        // One that holds something stays, and so do those above it.
        drop(fs::remove_dir(folder));
    }
}

/// A secret file's permission bits and contents.
pub(crate) fn read_secret(path: &Path) -> Result<(u32, Zeroizing<Vec<u8>>), Failure> {
    let metadata = fs::metadata(path).map_err(|error| cannot("read", path, &error))?;
    Ok((metadata.permissions().mode(), Zeroizing::new(read(path)?)))
}

/// Makes a file that must not exist yet, mode 0600, and makes it durable.
pub(crate) fn create_secret(path: &Path, contents: &[u8]) -> Result<(), Failure> {
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.and_then(|mut file| file.write_all(contents).and_then(|()| file.sync_all()))
        .and_then(|()| sync_folder(path))
        .map_err(|error| cannot("create", path, &error))
}

/// Replaces a file's contents at once: a crash leaves the old ones or the new ones.
pub(crate) fn replace(path: &Path, contents: &[u8]) -> Result<(), Failure> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        sync_folder(path)
    };
    write().map_err(|error| cannot("write", path, &error))
}

/// Removes a file.
pub(crate) fn remove(path: &Path) -> Result<(), Failure> {
    fs::remove_file(path).and_then(|()| sync_folder(path)).map_err(|error| cannot("remove", path, &error))
}

/// Makes a folder and its parents, for the owner only.
pub(crate) fn create_folder(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| cannot("create", path, &error))
}

/// Whether a file or folder that is not there could be made, with its parents; says why not.
pub(crate) fn can_be_made(path: &Path) -> Result<(), String> {
    let Some(existing) = path.ancestors().skip(1).find(|path| exists(path)) else { return Ok(()) };
    if !existing.is_dir() {
        return Err(format!("{} is no directory", existing.display()));
    }
    let enter_and_write = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(existing, enter_and_write).map_err(|error| format!("{}: {error}", existing.display()))
}

/// The names in a folder, sorted; none when there is no such folder.
pub(crate) fn names(path: &Path) -> Result<Vec<String>, Failure> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(cannot("read", path, &error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| cannot("read", path, &error))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The path without `.`, `..` and symbolic links as far as it exists, and counted from the root.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    match fs::canonicalize(path) {
        Ok(path) => Ok(path),
        Err(_) => std::path::absolute(path).map_err(|error| cannot("resolve", path, &error)),
    }
}

/// True when a path exists.
pub(crate) fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// The owner of a path.
pub(crate) fn owner(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().map(|metadata| metadata.uid())
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::OpenOptions::new().read(true).open(folder)?.sync_all()
}

fn cannot(verb: &str, path: &Path, error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => "check the path",
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            "the path links to itself: name the file itself"
        }
        io::ErrorKind::PermissionDenied => "check who may use it, or run as its owner",
        io::ErrorKind::AlreadyExists => "choose another path, or keep what is there",
        io::ErrorKind::StorageFull => "free some space",
        _ => "look at the file system",
    };
    Failure::new(format!("cannot {verb} {}: {error}", path.display()), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_for_its_owner_and_is_never_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        create_secret(&path, b"first").unwrap();
        assert_eq!(read_secret(&path).unwrap().0 & 0o777, 0o600);
        let refused = create_secret(&path, b"second").unwrap_err().to_string();
        assert!(refused.contains("root.key") && refused.contains("keep what is there"), "{refused}");
        assert_eq!(read(&path).unwrap(), b"first");
    }

    #[test]
    fn a_replaced_file_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap(), b"two");
        assert_eq!(names(folder.path()).unwrap(), ["node.toml"]);
    }
}
