//! Certificates of nodes, made from the cluster's own secret.
//!
//! The authority's key is derived from the secret that all nodes of a cluster share, so that its certificate is the same on
//! each of them and is never stored or sent. A node makes a key when its process starts and signs a certificate for it that
//! names node and cluster. What is written here is the one form of X.509 that this needs; reading and judging certificates
//! is left to rustls and webpki.

use std::fmt;

use aws_lc_rs::{
    rand::{SecureRandom, SystemRandom},
    signature::{Ed25519KeyPair, KeyPair},
};
use velum_protocol::id::{ClusterId, NodeId};
use zeroize::Zeroizing;

use crate::env::Credentials;

/// OID 1.3.101.112, Ed25519.
const ED25519: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];
/// OID 2.5.4.3, common name.
const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
/// OID 2.5.29.19, basic constraints.
const BASIC_CONSTRAINTS: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x13];
/// OID 2.5.29.17, subject alternative name.
const ALTERNATIVE_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x11];
/// From 1970 to the end of dates: membership decides who may speak, no clock does.
const VALIDITY: (&[u8], &[u8]) = (b"700101000000Z", b"99991231235959Z");
/// What stands before the seed of an Ed25519 key in PKCS #8.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// What a node shows, and by what it judges what others show.
pub(super) struct Certificates {
    /// The authority's own certificate.
    pub(super) authority: Vec<u8>,
    /// The node's, signed by the authority.
    pub(super) node: Vec<u8>,
    /// The node's key, PKCS #8.
    pub(super) key: Zeroizing<Vec<u8>>,
}

/// The name that a node's certificate is made out to.
pub(super) struct NodeName(pub(super) ClusterId, pub(super) NodeId);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(cluster, node) = self;
        write!(f, "node-{node}.{cluster}.velum")
    }
}

impl NodeName {
    /// Reads a name.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (node, cluster) = text.strip_prefix("node-")?.strip_suffix(".velum")?.split_once('.')?;
        let name = Self(ClusterId::from_hex(cluster)?, NodeId(node.parse().ok()?));
        // One form only.
        (name.to_string() == text).then_some(name)
    }
}

/// Makes the certificates of a node, with a new key.
pub(super) fn make(credentials: &Credentials) -> Certificates {
    const KEY: &str = "32 bytes are a key";
    let Credentials { cluster, node, authority } = credentials;
    let authority = Ed25519KeyPair::from_seed_unchecked(&**authority).expect(KEY);
    let mut seed = Zeroizing::new([0; 32]);
    SystemRandom::new().fill(&mut *seed).expect("nothing goes on without random bytes");
    let own = Ed25519KeyPair::from_seed_unchecked(&*seed).expect(KEY);
    let issuer = format!("velum cluster {cluster}");
    let is_authority =
        sequence(&[BASIC_CONSTRAINTS, &tlv(0x01, &[0xff]), &tlv(0x04, &sequence(&[&tlv(0x01, &[0xff])]))]);
    let name = NodeName(*cluster, *node).to_string();
    let alternative_name = sequence(&[ALTERNATIVE_NAME, &tlv(0x04, &sequence(&[&tlv(0x82, name.as_bytes())]))]);
    let mut key = Zeroizing::new(PKCS8_PREFIX.to_vec());
    key.extend_from_slice(&*seed);
    Certificates {
        authority: certificate(&authority, &issuer, &issuer, &authority, &is_authority),
        node: certificate(&authority, &issuer, &format!("velum node {node}"), &own, &alternative_name),
        key,
    }
}

/// A certificate for the public half of `subject_key`.
fn certificate(
    authority: &Ed25519KeyPair,
    issuer: &str,
    subject: &str,
    subject_key: &Ed25519KeyPair,
    extension: &[u8],
) -> Vec<u8> {
    let public = subject_key.public_key().as_ref();
    let algorithm = sequence(&[ED25519]);
    let (serial, _) = public.split_at(8);
    // A positive number in its shortest form.
    let serial = tlv(0x02, &[&[0x01], serial].concat());
    let (from, until) = VALIDITY;
    let body = sequence(&[
        &tlv(0xa0, &tlv(0x02, &[2])),
        &serial,
        &algorithm,
        &named(issuer),
        &sequence(&[&tlv(0x17, from), &tlv(0x18, until)]),
        &named(subject),
        &sequence(&[&algorithm, &bits(public)]),
        &tlv(0xa3, &sequence(&[extension])),
    ]);
    let signature = authority.sign(&body);
    sequence(&[&body, &algorithm, &bits(signature.as_ref())])
}

fn named(name: &str) -> Vec<u8> {
    sequence(&[&tlv(0x31, &sequence(&[COMMON_NAME, &tlv(0x0c, name.as_bytes())]))])
}

fn bits(bytes: &[u8]) -> Vec<u8> {
    tlv(0x03, &[&[0], bytes].concat())
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

/// Tag, length and contents.
fn tlv(tag: u8, contents: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(contents.len()) {
        Ok(length) if length < 0x80 => out.push(length),
        Ok(length) => out.extend([0x81, length]),
        Err(_) => {
            let length = u16::try_from(contents.len()).expect("certificates of nodes are short");
            out.push(0x82);
            out.extend(length.to_be_bytes());
        }
    }
    out.extend_from_slice(contents);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(authority: u8) -> Credentials {
        Credentials { cluster: ClusterId([0xa1; 16]), node: NodeId(7), authority: Zeroizing::new([authority; 32]) }
    }

    #[test]
    fn every_node_makes_the_same_authority_and_every_process_another_key() {
        let (one, other) = (make(&credentials(1)), make(&credentials(1)));
        assert_eq!(one.authority, other.authority);
        assert_ne!(one.key, other.key);
        assert_ne!(one.authority, make(&credentials(2)).authority);
    }

    #[test]
    fn names_read_back_in_one_form_only() {
        let name = NodeName(ClusterId([0xa1; 16]), NodeId(7)).to_string();
        assert!(matches!(NodeName::parse(&name), Some(NodeName(ClusterId([0xa1, ..]), NodeId(7)))));
        for bad in ["", "node-7.velum", &name.replace("node-7", "node-07"), &name.replace("a1a1", "A1A1")] {
            assert!(NodeName::parse(bad).is_none(), "{bad}");
        }
    }
}
