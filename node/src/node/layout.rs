//! Where a node keeps what, under its directory.

use std::path::{Path, PathBuf};

/// The files and folders of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Under the node's directory.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The node's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Locked while a process uses the directory.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// Copies of the objects that name the cluster and hold its wrapped keys, so that a start needs no cloud.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.dir.join("keys")
    }

    /// The identity object.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.keys().join("identity")
    }

    /// The key-slot object.
    #[must_use]
    pub fn slots(&self) -> PathBuf {
        self.keys().join("slots")
    }

    /// The journal's ring.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }

    /// Raft's snapshot. Its presence says that the cluster has been made.
    #[must_use]
    pub fn raft(&self) -> PathBuf {
        self.dir.join("raft")
    }

    /// What the node keeps until it has joined a cluster.
    #[must_use]
    pub fn join(&self) -> PathBuf {
        self.dir.join("join")
    }

    /// The boot of the machine in which the node last started.
    #[must_use]
    pub fn boot(&self) -> PathBuf {
        self.dir.join("boot")
    }

    /// What was promised about the journals of other nodes' volumes, and the node's own.
    #[must_use]
    pub fn promises(&self) -> PathBuf {
        self.dir.join("promises")
    }

    /// Clean extents; may be deleted at any time.
    #[must_use]
    pub fn cache(&self) -> PathBuf {
        self.dir.join("cache")
    }
}
