//! Bare `object_store`, beside which a node is measured: the same builder against the same stores, and nothing else.
//!
//! ```text
//! bench_object_store put DEPTH SIZE,SIZE,... URL...       objects of these sizes to every URL at once
//! bench_object_store ranges DEPTH SECONDS BYTES URL       random ranges of the large objects under the URL
//! bench_object_store whole DEPTH SECONDS URL              those objects one after another
//! ```
//!
//! `DEPTH` requests are under way to each URL. Prints requests, bytes, seconds and the median time of a request as JSON;
//! where credentials and endpoint are taken from, see `object_store`.

#![expect(clippy::disallowed_methods, reason = "a command that measures real time")]

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectStore, ObjectStoreExt, aws::AmazonS3Builder, path::Path};

/// Smaller objects are not data.
const LARGE_BYTES_MIN: u64 = 1 << 20;

type Failure = Box<dyn std::error::Error>;

/// What was done: the bytes of each request and the time it took.
type Done = Vec<(u64, Duration)>;

struct Bucket {
    store: Arc<dyn ObjectStore>,
    under: Path,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    match runtime.block_on(run(&arguments)) {
        Ok(report) => {
            say(&report);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("failed: {error}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "a command reports to its caller")]
fn say(text: &str) {
    println!("{text}");
}

async fn run(arguments: &[String]) -> Result<String, Failure> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (done, took) = match words.as_slice() {
        ["put", depth, sizes, urls @ ..] => {
            let sizes: Vec<usize> = sizes.split(',').map(str::parse).collect::<Result<_, _>>()?;
            put(depth.parse()?, &sizes, urls).await?
        }
        ["ranges", depth, seconds, bytes, url] => {
            read(depth.parse()?, seconds.parse()?, Some(bytes.parse()?), url).await?
        }
        ["whole", depth, seconds, url] => read(depth.parse()?, seconds.parse()?, None, url).await?,
        _ => return Err("see the top of its source for how it is asked".into()),
    };
    let mut times: Vec<u128> = done.iter().map(|(_, took)| took.as_micros()).collect();
    times.sort_unstable();
    let (requests, bytes) = (done.len(), done.iter().map(|(bytes, _)| bytes).sum::<u64>());
    let median = times.get(times.len() / 2).ok_or("nothing was done")?;
    Ok(format!(
        "{{\"requests\":{requests},\"bytes\":{bytes},\"seconds\":{},\"median_us\":{median}}}",
        took.as_secs_f64()
    ))
}

fn open(url: &str) -> Result<Bucket, Failure> {
    let (bucket, under) =
        url.strip_prefix("s3://").and_then(|rest| rest.split_once('/')).ok_or("no s3://BUCKET/PATH")?;
    let store = AmazonS3Builder::from_env().with_bucket_name(bucket).with_allow_http(true).build()?;
    Ok(Bucket { store: Arc::new(store), under: Path::parse(under)? })
}

async fn put(depth: usize, sizes: &[usize], urls: &[&str]) -> Result<(Done, Duration), Failure> {
    // Contents do not matter to a store, so one piece of them does for all.
    let body = Bytes::from(vec![0xa5; sizes.iter().copied().max().unwrap_or(0)]);
    let began = Instant::now();
    let uploads = urls.iter().map(|url| {
        let body = body.clone();
        async move {
            let bucket = open(url)?;
            let puts = sizes.iter().enumerate().map(|(number, size)| {
                let (store, body) = (Arc::clone(&bucket.store), body.slice(..*size));
                let path = bucket.under.clone().join(format!("{number}"));
                async move {
                    let asked = Instant::now();
                    store.put(&path, body.clone().into()).await?;
                    Ok::<_, Failure>((body.len() as u64, asked.elapsed()))
                }
            });
            stream::iter(puts).buffer_unordered(depth).try_collect::<Done>().await
        }
    });
    let done = futures_util::future::try_join_all(uploads).await?;
    Ok((done.into_iter().flatten().collect(), began.elapsed()))
}

/// Reads for some seconds: random ranges of `bytes`, or whole objects in turn.
async fn read(depth: usize, seconds: f64, bytes: Option<u64>, url: &str) -> Result<(Done, Duration), Failure> {
    let bucket = open(url)?;
    let mut objects: Vec<(Path, u64)> = bucket
        .store
        .list(Some(&bucket.under))
        .map_ok(|found| (found.location, found.size))
        .try_filter(|(_, size)| std::future::ready(*size >= LARGE_BYTES_MIN))
        .try_collect()
        .await?;
    objects.sort();
    if objects.is_empty() {
        return Err("no large objects are there".into());
    }
    let (began, limit) = (Instant::now(), Duration::from_secs_f64(seconds));
    let count = objects.len() as u64;
    let reads = stream::iter(0..u64::MAX)
        .take_while(|_| std::future::ready(began.elapsed() < limit))
        .map(|number| {
            let chosen = bytes.map_or(number % count, |_| scattered(number, count));
            let chosen = usize::try_from(chosen).expect("it is less than a list's length");
            let (path, size) = objects.get(chosen).cloned().unwrap_or_default();
            let range = bytes.map_or(0..size, |bytes| {
                let start = scattered(number + count, size / bytes) * bytes;
                start..(start + bytes).min(size)
            });
            let store = Arc::clone(&bucket.store);
            async move {
                let asked = Instant::now();
                let got = store.get_range(&path, range).await?;
                Ok::<_, Failure>((got.len() as u64, asked.elapsed()))
            }
        })
        .buffer_unordered(depth);
    let done = reads.try_collect::<Done>().await?;
    Ok((done, began.elapsed()))
}

/// A number below `bound` that looks drawn.
fn scattered(number: u64, bound: u64) -> u64 {
    let mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) % bound.max(1)
}
