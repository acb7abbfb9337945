//! What is asked and told about who is attached to a volume.

use serde::{Deserialize, Serialize};

use super::ByteRange;

/// A new attachment of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// Others may be attached, too, if they share it as well; what each writes takes a permit.
    #[serde(default)]
    pub shared: bool,
    /// Connections at a time, 1 to 16; one more, and the oldest ends.
    #[serde(default = "one")]
    pub connections: u32,
    /// On whose behalf: 0 to 63 printable characters, for people to read.
    #[serde(default)]
    pub host: String,
    /// Every other attachment of the volume ends.
    #[serde(default)]
    pub steal: bool,
}

const fn one() -> u32 {
    1
}

/// The end of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detach {
    /// Its handle.
    pub handle: String,
}

/// One attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentStatus {
    /// The volume.
    pub volume: String,
    /// What it is known by.
    pub handle: String,
    /// The NBD export's name.
    pub export: String,
    /// Others may be attached, too.
    pub shared: bool,
    /// On whose behalf.
    pub host: String,
    /// Connections that it may have.
    pub connections_max: u32,
    /// Numbers of those that it has, oldest first.
    pub connections: Vec<u64>,
    /// Where it may write, if it needs to be permitted.
    pub permits: Vec<ByteRange>,
}

/// A permit to write a range of a shared volume, given or taken away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetPermit {
    /// The bytes, on bounds of 64 MiB regions.
    pub range: ByteRange,
    /// The handle of the attachment that may write there; nobody when not given.
    #[serde(default)]
    pub holder: Option<String>,
    /// Another attachment's permit there ends.
    #[serde(default)]
    pub steal: bool,
}
