//! One store: each method is one request, its answer bounded and checked for length.

use std::{collections::BTreeSet, ops::Range, path::PathBuf, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream::BoxStream};
use object_store::{
    Error, GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, PutPayload, path::Path,
};

use super::{Threads, errors, open::Opened};
use crate::env::{CloudStore, CloudStoreError, Local, Urgency};

/// A listing longer than this does not end, or is of a bucket that is not ours.
const LISTED_MAX: usize = 1_000_000;

pub(super) struct Store {
    inner: Arc<Inner>,
    threads: Arc<Threads>,
}

struct Inner {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    root: Option<PathBuf>,
    lists_in_order: bool,
}

type Answer<T> = Result<T, CloudStoreError>;

impl Store {
    pub(super) fn new(opened: Opened, threads: Arc<Threads>) -> Self {
        let Opened { store, prefix, root, lists_in_order } = opened;
        Self { inner: Arc::new(Inner { store, prefix, root, lists_in_order }), threads }
    }

    /// Runs a request of one object.
    fn request<T, F>(
        &self,
        urgency: Urgency,
        name: &str,
        request: impl FnOnce(Arc<Inner>, Path) -> F + Send + 'static,
    ) -> Local<Answer<T>>
    where
        T: Send + 'static,
        F: Future<Output = Answer<T>> + Send,
    {
        let inner = Arc::clone(&self.inner);
        let path = inner.path(name);
        let work = self.threads.run(urgency, async move {
            inner.check_root()?;
            request(inner, path?).await
        });
        Box::pin(async move { work.await.unwrap_or_else(|| Err(CloudStoreError::Unavailable("stopping".into()))) })
    }
}

impl CloudStore for Store {
    fn put(&self, name: &str, body: Bytes) -> Local<Answer<()>> {
        self.request(Urgency::Background, name, |inner, path| async move {
            inner.put(&path, body, PutMode::Overwrite).await
        })
    }

    fn create(&self, name: &str, body: Bytes) -> Local<Answer<()>> {
        self.request(
            Urgency::Background,
            name,
            |inner, path| async move { inner.put(&path, body, PutMode::Create).await },
        )
    }

    fn get(&self, name: &str, bytes_max: u64) -> Local<Answer<Bytes>> {
        self.request(Urgency::Guest, name, move |inner, path| async move {
            let result =
                inner.store.get_opts(&path, GetOptions::default()).await.map_err(|error| errors::sort(&error))?;
            let size = result.meta.size;
            if size > bytes_max {
                return Err(CloudStoreError::Refused(format!("the object has {size} bytes, more than {bytes_max}")));
            }
            if result.range != (0..size) {
                return Err(CloudStoreError::Unavailable("the answer is not the whole object".into()));
            }
            collect(result, size).await
        })
    }

    fn get_range(&self, name: &str, range: Range<u64>) -> Local<Answer<Bytes>> {
        self.request(Urgency::Guest, name, move |inner, path| async move { inner.get_range(&path, range).await })
    }

    fn head(&self, name: &str) -> Local<Answer<u64>> {
        self.request(Urgency::Background, name, |inner, path| async move {
            Ok(inner.store.head(&path).await.map_err(|error| errors::sort(&error))?.size)
        })
    }

    fn delete(&self, name: &str) -> Local<Answer<()>> {
        self.request(Urgency::Background, name, |inner, path| async move {
            match inner.store.delete(&path).await.map_err(|error| errors::sort(&error)) {
                Err(CloudStoreError::NotFound) => Ok(()),
                other => other,
            }
        })
    }

    fn list(&self, prefix: &str, after: &str, count_max: usize) -> Local<Answer<Vec<String>>> {
        let after = after.to_owned();
        self.request(Urgency::Background, prefix, move |inner, path| async move {
            inner.list(&path, &after, count_max).await
        })
    }
}

impl Inner {
    /// The object's path in the store; an empty name is the prefix itself.
    fn path(&self, name: &str) -> Answer<Path> {
        let parsed = Path::parse(name).map_err(|_| CloudStoreError::Refused("the name is no valid path".into()))?;
        Ok(self.prefix.parts().chain(parsed.parts()).collect())
    }

    /// A directory that is gone is a cloud that is away, not an empty one to be filled anew.
    fn check_root(&self) -> Answer<()> {
        match &self.root {
            Some(root) if !root.is_dir() => Err(CloudStoreError::Unavailable("the directory is not there".into())),
            _ => Ok(()),
        }
    }

    async fn put(&self, path: &Path, body: Bytes, mode: PutMode) -> Answer<()> {
        let options = PutOptions { mode, ..PutOptions::default() };
        let put = self.store.put_opts(path, PutPayload::from(body), options).await;
        put.map(drop).map_err(|error| errors::sort(&error))
    }

    async fn get_range(&self, path: &Path, range: Range<u64>) -> Answer<Bytes> {
        if range.is_empty() {
            return Err(CloudStoreError::Refused("an empty range was asked for".into()));
        }
        let beyond = || CloudStoreError::Refused("the range ends beyond the object".into());
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let result = match self.store.get_opts(path, options).await {
            Ok(result) => result,
            Err(error) if errors::is_bad_range(&error) => return Err(beyond()),
            Err(error) => return Err(errors::sort(&error)),
        };
        if result.range.start != range.start || result.range.end > range.end {
            return Err(CloudStoreError::Unavailable("the answer is not the range asked for".into()));
        }
        if result.range.end < range.end {
            return Err(beyond());
        }
        collect(result, range.end - range.start).await
    }

    async fn list(&self, path: &Path, after: &str, count_max: usize) -> Answer<Vec<String>> {
        let prefix = (!path.as_ref().is_empty()).then_some(path);
        let mut listing = match (self.lists_in_order, after) {
            (true, "") | (false, _) => self.store.list(prefix),
            (true, after) => self.store.list_with_offset(prefix, &self.path(after)?),
        };
        let mut names = BTreeSet::new();
        for _ in 0..LISTED_MAX {
            let Some(name) = self.next_name(&mut listing).await? else { return Ok(names.into_iter().collect()) };
            if name.as_str() > after {
                names.insert(name);
            }
            if self.lists_in_order && names.len() >= count_max {
                return Ok(names.into_iter().take(count_max).collect());
            }
            while names.len() > count_max {
                names.pop_last();
            }
        }
        Err(CloudStoreError::Refused(format!("the listing does not end after {LISTED_MAX} names")))
    }

    /// The next object's name, relative to our prefix.
    async fn next_name(&self, listing: &mut BoxStream<'static, Result<ObjectMeta, Error>>) -> Answer<Option<String>> {
        loop {
            match listing.next().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(errors::sort(&error)),
                Some(Ok(meta)) => {
                    if let Some(parts) = meta.location.prefix_match(&self.prefix) {
                        return Ok(Some(parts.collect::<Path>().to_string()));
                    }
                }
            }
        }
    }
}

/// The body, if it is exactly `length` bytes; a longer one is cut off unread.
async fn collect(result: GetResult, length: u64) -> Answer<Bytes> {
    if matches!(result.payload, GetResultPayload::File(..)) {
        let bytes = result.bytes().await.map_err(|error| errors::sort(&error))?;
        return exact(bytes, length);
    }
    let capacity = usize::try_from(length).map_err(|_| CloudStoreError::Refused("the answer is too long".into()))?;
    let mut stream = result.into_stream();
    let mut first = Bytes::new();
    let mut body = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| errors::sort(&error))?;
        if first.len() + body.len() + chunk.len() > capacity {
            return Err(CloudStoreError::Unavailable("the answer is longer than it said".into()));
        }
        if first.is_empty() && body.is_empty() {
            // A body that comes in one piece is passed on without a copy.
            first = chunk;
            continue;
        }
        if body.is_empty() {
            body.reserve(capacity);
            body.extend_from_slice(&first);
            first = Bytes::new();
        }
        body.extend_from_slice(&chunk);
    }
    exact(if body.is_empty() { first } else { body.freeze() }, length)
}

fn exact(bytes: Bytes, length: u64) -> Answer<Bytes> {
    if u64::try_from(bytes.len()) == Ok(length) {
        Ok(bytes)
    } else {
        Err(CloudStoreError::Unavailable("the answer is shorter than it said".into()))
    }
}
