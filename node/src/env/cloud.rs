//! Object stores, without policy: each call is one attempt. Retries, health and verification live in `crate::cloud`.

use std::{collections::BTreeMap, ops::Range, rc::Rc};

use bytes::Bytes;

use super::Local;

/// Why one attempt at a cloud failed, sorted by what the caller should do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CloudStoreError {
    /// The object is not there.
    #[error("no such object")]
    NotFound,
    /// A create found an object under the name.
    #[error("an object of this name exists already")]
    AlreadyExists,
    /// The request may or may not have taken effect; try again.
    #[error("the cloud did not answer or answered with a passing fault: {0}")]
    Unavailable(String),
    /// The cloud asks for fewer requests.
    #[error("the cloud asks to slow down: {0}")]
    Throttled(String),
    /// Credentials are missing, expired or not sufficient.
    #[error("the cloud refuses the credentials: {0}")]
    Denied(String),
    /// Will not get better by trying again.
    #[error("the cloud refuses the request: {0}")]
    Refused(String),
    /// The place is not the cluster's, or not any more; it was asked for nothing else.
    #[error("the place is not this cluster's: {0}")]
    NotOurs(String),
}

/// One bucket (and prefix) at one provider. Names are `/`-separated paths relative to the prefix.
pub trait CloudStore {
    /// Stores an object, replacing one of the same name. On success it is durable at the provider (`file://`: fsynced).
    fn put(&self, name: &str, body: Bytes) -> Local<Result<(), CloudStoreError>>;
    /// Stores an object only if none of the name exists.
    fn create(&self, name: &str, body: Bytes) -> Local<Result<(), CloudStoreError>>;
    /// The whole object; an object longer than `bytes_max` is `Refused` without being read.
    fn get(&self, name: &str, bytes_max: u64) -> Local<Result<Bytes, CloudStoreError>>;
    /// A byte range of an object; a range beyond its end is `Refused`.
    fn get_range(&self, name: &str, range: Range<u64>) -> Local<Result<Bytes, CloudStoreError>>;
    /// The object's length in bytes.
    fn head(&self, name: &str) -> Local<Result<u64, CloudStoreError>>;
    /// Removes an object; no error when it is not there.
    fn delete(&self, name: &str) -> Local<Result<(), CloudStoreError>>;
    /// Up to `count_max` names after `after` in order, under `prefix` (a path or empty). For people and tests:
    /// correctness never rests on it.
    fn list(&self, prefix: &str, after: &str, count_max: usize) -> Local<Result<Vec<String>, CloudStoreError>>;
}

/// Opens clouds by URL.
pub trait Clouds {
    /// Opens `file:///dir`, `memory:///`, `s3://`, `az://` or `gs://`. `options` are the provider's
    /// (`endpoint`, `region`, `access_key_id`, ...); the usual environment variables fill in what is not given.
    ///
    /// # Errors
    /// `Refused` for a URL or option that is not understood.
    fn open(&self, url: &str, options: &BTreeMap<String, String>) -> Result<Rc<dyn CloudStore>, CloudStoreError>;
}
