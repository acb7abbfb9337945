//! From a URL and options to a store.

use std::{
    collections::BTreeMap,
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use object_store::{
    BackoffConfig, ClientConfigKey, ObjectStore, ObjectStoreScheme, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    local::LocalFileSystem,
    memory::InMemory,
    path::Path,
};
use url::{Host, Url};

use super::{errors, http};
use crate::env::CloudStoreError;

/// An opened store and where in it our objects lie.
pub(super) struct Opened {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
    /// The directory of a `file://` store, which must stay there for the store to be.
    pub(super) root: Option<PathBuf>,
    /// Whether the store lists names in order.
    pub(super) lists_in_order: bool,
}

/// Stores of `memory://` URLs by path. Shared by all nodes of the process, as a bucket is shared by all who name it.
static MEMORY: Mutex<BTreeMap<String, Arc<InMemory>>> = Mutex::new(BTreeMap::new());

type Options = BTreeMap<String, String>;

pub(super) fn open(url: &str, options: &Options) -> Result<Opened, CloudStoreError> {
    let url = Url::parse(url).map_err(|error| CloudStoreError::Refused(format!("this is no URL: {error}")))?;
    if !url.username().is_empty() && url.password().is_some() {
        return Err(CloudStoreError::Refused("credentials do not belong into a URL: give them as options".into()));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(CloudStoreError::Refused("a cloud's URL has neither query nor fragment".into()));
    }
    let unknown = || {
        let scheme = url.scheme();
        CloudStoreError::Refused(format!(
            "`{scheme}` URLs of this form are not known; use file:///, memory:///, s3://, az:// or gs://"
        ))
    };
    let (scheme, prefix) = ObjectStoreScheme::parse(&url).map_err(|_| unknown())?;
    let remote =
        |store: Arc<dyn ObjectStore>| Opened { store, prefix: prefix.clone(), root: None, lists_in_order: true };
    match scheme {
        ObjectStoreScheme::Local => open_file(&url, options),
        ObjectStoreScheme::Memory => open_memory(&prefix, options),
        ObjectStoreScheme::AmazonS3 => open_s3(&url, options).map(remote),
        ObjectStoreScheme::MicrosoftAzure => open_azure(&url, options).map(remote),
        ObjectStoreScheme::GoogleCloudStorage => open_google(&url, options).map(remote),
        _ => Err(unknown()),
    }
}

/// A directory. `create_dir = false` refuses one that is not there yet instead of making it.
fn open_file(url: &Url, options: &Options) -> Result<Opened, CloudStoreError> {
    let root = url.to_file_path().map_err(|()| CloudStoreError::Refused("the URL names no local directory".into()))?;
    let mut create = true;
    for (key, value) in options {
        match (key.as_str(), value.as_str()) {
            ("create_dir", "true" | "false") => create = value == "true",
            _ => return Err(unknown_option("file", key)),
        }
    }
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        CloudStoreError::Refused(format!("the directory cannot be {what}: {error}"))
    };
    if create {
        DirBuilder::new().recursive(true).mode(0o700).create(&root).map_err(|error| failed("made", &error.kind()))?;
    }
    // Without syncs an object would not outlive a power cut, and a copy would be counted that is none.
    let store = LocalFileSystem::new_with_prefix(&root).map_err(|error| failed("opened", &errors::sort(&error)))?;
    Ok(Opened {
        store: Arc::new(store.with_fsync(true)),
        prefix: Path::default(),
        root: Some(root),
        lists_in_order: false,
    })
}

fn open_memory(path: &Path, options: &Options) -> Result<Opened, CloudStoreError> {
    if let Some(key) = options.keys().next() {
        return Err(unknown_option("memory", key));
    }
    let mut stores = MEMORY.lock().expect("the table's lock is held for a look-up only");
    let store = Arc::clone(stores.entry(path.to_string()).or_default());
    Ok(Opened { store, prefix: Path::default(), root: None, lists_in_order: false })
}

fn open_s3(url: &Url, options: &Options) -> Result<Arc<dyn ObjectStore>, CloudStoreError> {
    let mut builder = AmazonS3Builder::from_env().with_url(url.as_str());
    for (key, value) in options {
        let key: AmazonS3ConfigKey = parse_key("s3", key)?;
        builder = builder.with_config(key, value);
    }
    let endpoint = [AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::S3Endpoint]
        .iter()
        .find_map(|key| builder.get_config_value(key));
    if endpoint.is_some_and(|endpoint| is_loopback(&endpoint)) {
        builder = builder.with_allow_http(true);
    }
    let store = builder
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(retry())
        .with_http_connector(http::NoRedirects)
        .build();
    built(store)
}

fn open_azure(url: &Url, options: &Options) -> Result<Arc<dyn ObjectStore>, CloudStoreError> {
    let mut builder = MicrosoftAzureBuilder::from_env().with_url(url.as_str());
    for (key, value) in options {
        let key: AzureConfigKey = parse_key("az", key)?;
        builder = builder.with_config(key, value);
    }
    if builder.get_config_value(&AzureConfigKey::Endpoint).is_some_and(|endpoint| is_loopback(&endpoint)) {
        builder = builder.with_allow_http(true);
    }
    built(builder.with_retry(retry()).with_http_connector(http::NoRedirects).build())
}

fn open_google(url: &Url, options: &Options) -> Result<Arc<dyn ObjectStore>, CloudStoreError> {
    let mut builder = GoogleCloudStorageBuilder::from_env().with_url(url.as_str());
    for (key, value) in options {
        let key: GoogleConfigKey = parse_key("gs", key)?;
        builder = builder.with_config(key, value);
    }
    if builder.get_config_value(&GoogleConfigKey::BaseUrl).is_some_and(|endpoint| is_loopback(&endpoint)) {
        builder = builder.with_config(GoogleConfigKey::Client(ClientConfigKey::AllowHttp), "true");
    }
    built(builder.with_retry(retry()).with_http_connector(http::NoRedirects).build())
}

fn built<S: ObjectStore>(store: object_store::Result<S>) -> Result<Arc<dyn ObjectStore>, CloudStoreError> {
    match store {
        Ok(store) => Ok(Arc::new(store)),
        Err(error) => Err(CloudStoreError::Refused(format!(
            "the store cannot be set up from its URL, options and environment ({})",
            errors::sort(&error)
        ))),
    }
}

/// The crate's own retries: only enough to bridge a broken connection. The longer loop is the caller's, with fresh
/// credentials and a fresh signature each time.
fn retry() -> RetryConfig {
    RetryConfig {
        max_retries: 2,
        retry_timeout: Duration::from_secs(10),
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
    }
}

fn parse_key<K: std::str::FromStr>(store: &str, key: &str) -> Result<K, CloudStoreError> {
    key.to_ascii_lowercase().parse().map_err(|_| unknown_option(store, key))
}

fn unknown_option(store: &str, key: &str) -> CloudStoreError {
    CloudStoreError::Refused(format!("`{key}` is no option of `{store}` clouds"))
}

/// Plain HTTP to this machine leaks to nobody else.
fn is_loopback(endpoint: &str) -> bool {
    Url::parse(endpoint).is_ok_and(|url| match url.host() {
        Some(Host::Domain(domain)) => domain == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str, options: &[(&str, &str)]) -> String {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        match open(url, &options) {
            Err(CloudStoreError::Refused(text)) => text,
            Err(other) => panic!("refused in another way: {other}"),
            Ok(_) => panic!("{url} was opened"),
        }
    }

    #[test]
    fn urls_that_name_no_cloud_are_refused() {
        for url in
            ["", "dir", "/dir", "ftp://host/dir", "http://host/dir", "file://host/dir", "s3://", "s3://bucket?x=y"]
        {
            refusal(url, &[]);
        }
    }

    #[test]
    fn an_unknown_option_is_refused_by_name() {
        assert!(refusal("memory:///a", &[("endpiont", "x")]).contains("endpiont"));
        assert!(refusal("s3://bucket", &[("endpiont", "x")]).contains("endpiont"));
        assert!(refusal("az://container", &[("endpiont", "x")]).contains("endpiont"));
        assert!(refusal("gs://bucket", &[("endpiont", "x")]).contains("endpiont"));
    }

    #[test]
    fn a_secret_in_an_option_or_url_is_not_repeated() {
        let canary = "c4n4ry-c4n4ry";
        assert!(!refusal("s3://bucket", &[("secret_access_key", canary), ("allow_http", canary)]).contains(canary));
        assert!(!refusal(&format!("s3://user:{canary}@bucket/p"), &[]).contains(canary));
        assert!(!refusal("gs://bucket", &[("service_account_key", canary)]).contains(canary));
    }

    #[test]
    fn a_directory_is_not_made_when_that_is_not_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}/missing", dir.path().display());
        refusal(&url, &[("create_dir", "false")]);
        assert!(!dir.path().join("missing").exists());
        assert!(open(&url, &Options::new()).is_ok());
        assert!(dir.path().join("missing").exists());
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for (endpoint, expected) in [
            ("http://127.0.0.1:5601", true),
            ("http://localhost:1", true),
            ("http://[::1]:1", true),
            ("http://localhost.example.org", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(endpoint), expected, "{endpoint}");
        }
    }
}
