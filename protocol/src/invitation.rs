//! The token with which a new node joins a cluster, and what it keeps of it until it has. Drawn in `docs/format.md`.

use std::fmt;

use crate::{
    checksum::crc32c,
    format::reader::{ReadError, Reader},
    id::{ClusterId, Hash, NodeId},
    peer::ADDRESS_BYTES_MAX,
    version::{JOIN_FILE, LEAD_BYTES, LeadError},
};

/// How a token's text begins.
const PREFIX: &str = "velum1";

/// Nodes that a token names at most, to be asked for the place.
const CONTACTS_MAX: usize = 16;

/// The longest text of a token.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;

/// What a token is worth; shown to nobody but the one who joins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenSecret(pub [u8; 32]);

impl TokenSecret {
    /// By what the cluster knows the token.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash(blake3::derive_key("velum 2026 join token", &self.0))
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret")
    }
}

/// A token: the right to become one node of a cluster, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// The cluster.
    pub cluster: ClusterId,
    /// The number that the new node has.
    pub node: NodeId,
    /// The secret.
    pub secret: TokenSecret,
    /// Members that can be asked, and where they are.
    pub contacts: Vec<(NodeId, String)>,
}

impl Invitation {
    /// Reads a token's text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let mut parts = text.splitn(5, '.');
        let (prefix, cluster, node) = (parts.next()?, parts.next()?, parts.next()?);
        let (secret, contacts) = (parts.next()?, parts.next()?);
        let number = |text: &str| text.parse().ok().filter(|node| *node > 0).map(NodeId);
        let contact = |text: &str| {
            let (node, address) = text.split_once('@')?;
            let fits = (1..=ADDRESS_BYTES_MAX).contains(&address.len()) && !address.contains(',');
            let fits = fits && address.bytes().all(|byte| byte.is_ascii_graphic());
            fits.then_some((number(node)?, address.to_owned()))
        };
        let contacts = contacts.split(',').map(contact).collect::<Option<Vec<_>>>()?;
        let sane = prefix == PREFIX && contacts.len() <= CONTACTS_MAX;
        sane.then_some(Self {
            cluster: ClusterId::from_hex(cluster)?,
            node: number(node)?,
            secret: TokenSecret(Hash::from_hex(secret)?.0),
            contacts,
        })
    }
}

/// The token's text, which holds its secret.
impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let contacts: Vec<_> = self.contacts.iter().map(|(node, address)| format!("{node}@{address}")).collect();
        write!(f, "{PREFIX}.{}.{}.{}.{}", self.cluster, self.node, Hash(self.secret.0), contacts.join(","))
    }
}

/// Why a join file is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinFileError {
    /// Another kind of file, or a newer version.
    #[error(transparent)]
    Lead(#[from] LeadError),
    /// Too short, or no token.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The checksum does not match.
    #[error("the join file is damaged")]
    Damaged,
}

/// What a node keeps until it is a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinFile {
    /// Random, chosen once: the token is good for this node alone once it was used.
    pub key: [u8; 32],
    /// The token.
    pub invitation: Invitation,
}

impl JoinFile {
    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = JOIN_FILE.lead().to_vec();
        out.extend_from_slice(&self.key);
        out.extend_from_slice(self.invitation.to_string().as_bytes());
        out.extend_from_slice(&crc32c(&out).to_le_bytes());
        out
    }

    /// Reads the file.
    ///
    /// # Errors
    /// When `bytes` are no join file of a version this program reads.
    pub fn decode(bytes: &[u8]) -> Result<Self, JoinFileError> {
        JOIN_FILE.check(bytes)?;
        let (covered, crc) = bytes.split_last_chunk::<4>().ok_or(ReadError::Truncated)?;
        if u32::from_le_bytes(*crc) != crc32c(covered) {
            return Err(JoinFileError::Damaged);
        }
        let mut reader = Reader::new(covered);
        reader.take(LEAD_BYTES)?;
        let key = reader.array()?;
        let text = reader.take(reader.left())?;
        let invitation = std::str::from_utf8(text).ok().and_then(Invitation::parse);
        Ok(Self { key, invitation: invitation.ok_or(ReadError::Field("token"))? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "velum1.a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1.4.\
                        c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3.1@host-1.example:9891,3@[::1]:9891";

    fn invitation() -> Invitation {
        Invitation {
            cluster: ClusterId([0xa1; 16]),
            node: NodeId(4),
            secret: TokenSecret([0xc3; 32]),
            contacts: vec![(NodeId(1), "host-1.example:9891".into()), (NodeId(3), "[::1]:9891".into())],
        }
    }

    #[test]
    fn a_token_is_written_and_read_as_it_was_released() {
        assert_eq!(invitation().to_string(), TEXT);
        assert_eq!(Invitation::parse(TEXT), Some(invitation()));
        let shown = format!("{:?}", invitation());
        assert!(!shown.contains("195") && !shown.contains("c3"), "a secret is not shown in passing: {shown}");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let long = format!("{TEXT},{}", vec!["1@h:1"; 20].join(","));
        for bad in [
            "",
            "velum1",
            &TEXT.replace("velum1", "velum2"),
            &TEXT.replace(".4.", ".0."),
            &TEXT.replace("a1a1.", "a1."),
            &TEXT.replace("c3.", "c."),
            &TEXT.replace("3@", "@"),
            &TEXT.replace("host-1", "host 1"),
            &TEXT[..TEXT.find(".1@").expect("contacts follow the secret")],
            &long,
        ] {
            assert_eq!(Invitation::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_join_file_keeps_its_bytes_and_any_change_shows() {
        let file = JoinFile { key: [0xb2; 32], invitation: invitation() };
        let bytes = file.encode();
        assert_eq!(&bytes[..8], b"VLjn\x01\0\0\0");
        assert_eq!(bytes[8..40], [0xb2; 32]);
        assert_eq!(&bytes[40..bytes.len() - 4], TEXT.as_bytes());
        assert_eq!(JoinFile::decode(&bytes), Ok(file));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(JoinFile::decode(&changed).is_err(), "byte {at}");
            assert!(JoinFile::decode(&bytes[..at]).is_err(), "length {at}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_texts_never_panic(text in ".*", tail in "[0-9a-f.@,:]{0,200}") {
            drop(Invitation::parse(&text));
            drop(Invitation::parse(&format!("velum1.{tail}")));
        }
    }
}
