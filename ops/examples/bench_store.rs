//! A small S3 store in memory, for benchmarks: it answers after a set latency, over a link of a set bandwidth for each
//! bucket, and counts what it was asked. It checks no signature and listens on the loopback only.
//!
//! ```text
//! bench_store PORT
//! GET  /_bench/BUCKET                                     counters of a bucket since the last reset, as JSON
//! POST /_bench/reset                                      counters to zero
//! POST /_bench/clear?bucket=BUCKET                        the bucket is empty
//! POST /_bench/set?latency_ms=30&mb_per_s=100             how it answers from now on; 0 MB/s is no bound
//! ```

#![expect(
    clippy::disallowed_methods,
    reason = "a store of its own process: a thread for each connection, and real time"
)]

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Largest body of a request.
const BODY_BYTES_MAX: usize = 256 << 20;
/// Names in one page of a listing.
const PAGE_NAMES_MAX: usize = 1000;
/// Kinds of request that are counted.
const KINDS: [&str; 5] = ["put", "get", "head", "delete", "list"];

type Body = Arc<Vec<u8>>;

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

/// An answer: what of its body is sent, and what is said of its length when nothing is sent.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Body,
    sent: std::ops::Range<usize>,
    said: usize,
}

#[derive(Default)]
struct Bucket {
    objects: BTreeMap<String, (Body, u64)>,
    counts: BTreeMap<&'static str, (u64, u64)>,
    put_bytes: Vec<usize>,
    last_put: Option<Instant>,
    link_free: Option<Instant>,
}

#[derive(Default)]
struct Store {
    buckets: Mutex<BTreeMap<String, Bucket>>,
    latency_ms: AtomicU64,
    mb_per_s: AtomicU64,
    versions: AtomicU64,
}

fn main() -> ExitCode {
    let port = std::env::args().nth(1).and_then(|port| port.parse::<u16>().ok());
    let Some(listener) = port.and_then(|port| TcpListener::bind(("127.0.0.1", port)).ok()) else {
        return ExitCode::from(2);
    };
    let store = Arc::new(Store::default());
    for stream in listener.incoming().flatten() {
        let store = Arc::clone(&store);
        // A connection that breaks off ends its thread and nothing else.
        std::thread::spawn(move || drop(serve(&store, &stream)));
    }
    ExitCode::SUCCESS
}

fn serve(store: &Store, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(64 << 10, stream.try_clone()?);
    while let Some(request) = read_request(&mut reader)? {
        let answer = store.answer(&request);
        let mut head = format!("HTTP/1.1 {} -\r\nContent-Length: {}\r\n", answer.status, answer.said);
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut stream = stream;
        stream.write_all(head.as_bytes())?;
        stream.write_all(answer.body.get(answer.sent).unwrap_or_default())?;
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let query = query.map(|(key, value)| (plain(key), plain(value))).collect();
    let (path, mut headers) = (plain(path), BTreeMap::new());
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
            None => break,
        };
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    if length > BODY_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Request { method, path, query, headers, body }))
}

/// Text without percent signs.
fn plain(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Answer {
    fn new(status: u16, body: Vec<u8>) -> Self {
        Self { status, headers: Vec::new(), sent: 0..body.len(), said: body.len(), body: Arc::new(body) }
    }

    fn error(status: u16, code: &str) -> Self {
        Self::new(status, format!("<Error><Code>{code}</Code></Error>").into_bytes())
    }
}

impl Store {
    fn answer(&self, request: &Request) -> Answer {
        let path = request.path.trim_start_matches('/');
        let (bucket, name) = path.split_once('/').unwrap_or((path, ""));
        if bucket == "_bench" {
            return self.control(request, name);
        }
        let (kind, answer) = self.act(request, bucket, name);
        let bytes = if kind == "put" { request.body.len() } else { answer.sent.len() };
        let wait = self.account(bucket, kind, bytes, answer.status);
        std::thread::sleep(wait);
        if kind == "put" {
            self.with(bucket, |bucket| bucket.last_put = Some(Instant::now()));
        }
        answer
    }

    fn with<T>(&self, bucket: &str, act: impl FnOnce(&mut Bucket) -> T) -> T {
        let mut buckets = self.buckets.lock().expect("no thread panics while it holds the buckets");
        act(buckets.entry(bucket.to_owned()).or_default())
    }

    /// Counts a request; says how long its answer is on its way.
    fn account(&self, bucket: &str, kind: &'static str, bytes: usize, status: u16) -> Duration {
        let (latency, mb_per_s) = (Duration::from_millis(self.latency_ms.load(Relaxed)), self.mb_per_s.load(Relaxed));
        self.with(bucket, |bucket| {
            let (requests, total) = bucket.counts.entry(kind).or_default();
            (*requests, *total) = (*requests + 1, *total + bytes as u64);
            if kind == "put" && status == 200 {
                bucket.put_bytes.push(bytes);
            }
            let now = Instant::now();
            if mb_per_s == 0 {
                return latency;
            }
            let sending = Duration::from_nanos(bytes as u64 * 1000 / mb_per_s);
            let free = bucket.link_free.unwrap_or(now).max(now) + sending;
            bucket.link_free = Some(free);
            latency + free.duration_since(now)
        })
    }

    fn act(&self, request: &Request, bucket: &str, name: &str) -> (&'static str, Answer) {
        match (request.method.as_str(), name) {
            ("GET", "") => ("list", self.list(request, bucket)),
            ("POST", "") => ("delete", self.delete_many(request, bucket)),
            ("PUT", _) => ("put", self.put(request, bucket, name)),
            ("GET", _) => ("get", self.get(request, bucket, name)),
            ("HEAD", _) => {
                let mut answer = self.get(request, bucket, name);
                answer.sent = 0..0;
                ("head", answer)
            }
            ("DELETE", _) => {
                self.with(bucket, |bucket| bucket.objects.remove(name));
                ("delete", Answer::new(204, Vec::new()))
            }
            _ => ("head", Answer::error(405, "MethodNotAllowed")),
        }
    }

    fn put(&self, request: &Request, bucket: &str, name: &str) -> Answer {
        let version = self.versions.fetch_add(1, Relaxed);
        let (body, only_new) = (Arc::new(request.body.clone()), request.headers.contains_key("if-none-match"));
        let stored = self.with(bucket, |bucket| {
            let free = !(only_new && bucket.objects.contains_key(name));
            if free {
                bucket.objects.insert(name.to_owned(), (body, version));
            }
            free
        });
        if !stored {
            return Answer::error(412, "PreconditionFailed");
        }
        let mut answer = Answer::new(200, Vec::new());
        answer.headers.push(("ETag", format!("\"{version}\"")));
        answer
    }

    fn get(&self, request: &Request, bucket: &str, name: &str) -> Answer {
        let Some((body, version)) = self.with(bucket, |bucket| bucket.objects.get(name).cloned()) else {
            return Answer::error(404, "NoSuchKey");
        };
        let size = body.len();
        let mut answer = Answer { status: 200, headers: Vec::new(), sent: 0..size, said: size, body };
        if let Some(range) = request.headers.get("range") {
            let bounds = range.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
            let bound = |text: &str| text.parse::<usize>().ok();
            let Some((Some(start), end)) = bounds.map(|(start, end)| (bound(start), bound(end))) else {
                return Answer::error(416, "InvalidRange");
            };
            let end = end.map_or(size, |end| size.min(end.saturating_add(1)));
            if start >= end {
                return Answer::error(416, "InvalidRange");
            }
            answer.headers.push(("Content-Range", format!("bytes {start}-{}/{size}", end - 1)));
            (answer.status, answer.sent, answer.said) = (206, start..end, end - start);
        }
        answer.headers.push(("ETag", format!("\"{version}\"")));
        answer.headers.push(("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT".to_owned()));
        answer
    }

    fn list(&self, request: &Request, bucket: &str) -> Answer {
        let asked = |key: &str| request.query.get(key).cloned().unwrap_or_default();
        let (prefix, after) = (asked("prefix"), asked("start-after").max(asked("continuation-token")));
        let page: Vec<(String, usize)> = self.with(bucket, |bucket| {
            let below = bucket.objects.iter().filter(|(name, _)| name.starts_with(&prefix) && **name > after);
            below.take(PAGE_NAMES_MAX + 1).map(|(name, (body, _))| (name.clone(), body.len())).collect()
        });
        let more = page.len() > PAGE_NAMES_MAX;
        let mut text = format!("<ListBucketResult><IsTruncated>{more}</IsTruncated>");
        for (name, size) in page.iter().take(PAGE_NAMES_MAX) {
            text.push_str(&format!(
                "<Contents><Key>{name}</Key><Size>{size}</Size><ETag>e</ETag>\
                 <LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            ));
        }
        if let Some((last, _)) = page.get(PAGE_NAMES_MAX - 1).filter(|_| more) {
            text.push_str(&format!("<NextContinuationToken>{last}</NextContinuationToken>"));
        }
        Answer::new(200, (text + "</ListBucketResult>").into_bytes())
    }

    fn delete_many(&self, request: &Request, bucket: &str) -> Answer {
        let text = String::from_utf8_lossy(&request.body).into_owned();
        let names = text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
        let mut answer = "<DeleteResult>".to_owned();
        for name in names {
            self.with(bucket, |bucket| bucket.objects.remove(name));
            answer.push_str(&format!("<Deleted><Key>{name}</Key></Deleted>"));
        }
        Answer::new(200, (answer + "</DeleteResult>").into_bytes())
    }

    fn control(&self, request: &Request, name: &str) -> Answer {
        let number = |key: &str| request.query.get(key).and_then(|value| value.parse().ok());
        match (request.method.as_str(), name) {
            ("GET", bucket) => return Answer::new(200, self.with(bucket, |bucket| counters(bucket)).into_bytes()),
            ("POST", "set") => {
                self.latency_ms.store(number("latency_ms").unwrap_or(0), Relaxed);
                self.mb_per_s.store(number("mb_per_s").unwrap_or(0), Relaxed);
            }
            ("POST", "clear") => {
                let bucket = request.query.get("bucket").cloned().unwrap_or_default();
                self.with(&bucket, |bucket| *bucket = Bucket::default());
            }
            ("POST", "reset") => {
                for bucket in self.buckets.lock().expect("no thread panics while it holds the buckets").values_mut() {
                    bucket.counts.clear();
                    bucket.put_bytes.clear();
                }
            }
            _ => return Answer::error(404, "NoSuchControl"),
        }
        Answer::new(200, Vec::new())
    }
}

fn counters(bucket: &Bucket) -> String {
    let mut text = "{".to_owned();
    for kind in KINDS {
        let (requests, bytes) = bucket.counts.get(kind).copied().unwrap_or_default();
        text.push_str(&format!("\"{kind}\":{{\"requests\":{requests},\"bytes\":{bytes}}},"));
    }
    let since = bucket.last_put.map_or(0, |last| Instant::now().duration_since(last).as_micros());
    let sizes: Vec<String> = bucket.put_bytes.iter().map(usize::to_string).collect();
    text + &format!("\"since_put_us\":{since},\"put_bytes\":[{}]}}", sizes.join(","))
}
