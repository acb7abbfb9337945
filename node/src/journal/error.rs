//! What can go wrong with the journal.

use std::{io, path::PathBuf, rc::Rc};

use velum_protocol::format::journal::{Position, StreamId};

/// Why the journal did not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JournalError {
    /// An earlier write or sync failed; nothing is trusted until the node starts again.
    #[error("the journal is poisoned by an earlier failure ({cause}); restart the node, which verifies it anew")]
    Poisoned {
        /// The first failure.
        cause: Rc<str>,
    },
    /// All files hold live records: let flushes trim them first, then append again.
    #[error("the journal is full of records that are still needed")]
    Full,
    /// The body leaves its bound.
    #[error("a journal record of {bytes} bytes is longer than a journal file takes")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Positions of a stream must rise.
    #[error("position {at} of {stream} does not follow {last}")]
    OutOfOrder {
        /// The stream.
        stream: StreamId,
        /// The position given.
        at: Position,
        /// The last one appended.
        last: Position,
    },
    /// A file system operation failed while the journal was being opened.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's word.
        source: Rc<io::Error>,
    },
    /// The directory is the journal of somebody else.
    #[error("{} belongs to node {found_node} of cluster {found_cluster}, not to this node; nothing was changed", path.display())]
    Foreign {
        /// The file that says so.
        path: PathBuf,
        /// The cluster it names.
        found_cluster: velum_protocol::id::ClusterId,
        /// The node it names.
        found_node: velum_protocol::id::NodeId,
    },
    /// A newer Velum wrote here.
    #[error("{}: {source}; nothing was changed, start the newer version", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The versions.
        source: velum_protocol::format::journal::JournalFormatError,
    },
    /// Records of a life with longer files.
    #[error(
        "the journal holds a record of {record_bytes} bytes, and files of {file_bytes} bytes take none as long; set journal.file_bytes to {wanted_bytes} at least; nothing was changed"
    )]
    FilesTooShort {
        /// Length of the record.
        record_bytes: u64,
        /// Length of the files set.
        file_bytes: u64,
        /// The least that does.
        wanted_bytes: u64,
    },
    /// A setting leaves its bounds.
    #[error("journal setting out of bounds: {0}")]
    Settings(&'static str),
}

impl JournalError {
    /// For `map_err` on a file system operation.
    pub(super) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source: Rc::new(source) }
    }
}
