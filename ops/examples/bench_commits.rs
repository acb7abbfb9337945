//! Clients that have a cluster agree on something, one after another each, for a while: a node's metadata, or etcd's.
//!
//! ```text
//! bench_commits velum HOST:PORT CLIENTS SECONDS      at an admin door
//! bench_commits etcd HOST:PORT CLIENTS SECONDS       at a client port
//! ```
//!
//! Every client has a connection of its own, which it keeps. On the one side a request is the dismissal of a node that never was:
//! a command that is proposed, agreed, synced by a quorum and applied as any other, and answered once it is applied, of which
//! nothing is left over and nothing waits for a cloud. On the other it is a put of 16 bytes over gRPC, as etcd's own clients send
//! it. Each request names another number. Prints commits, seconds, the median and the 99th percentile of the time of one, and the
//! seconds of CPU that this process took, as JSON.

#![expect(clippy::disallowed_methods, reason = "a command that measures real time")]

use std::{
    process::ExitCode,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::try_join_all;
use http_body_util::{BodyExt, Collected, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, task};

/// A node's number that no cluster has come to.
const NODE_FIRST: u64 = 1 << 40;

/// How many numbers each client has for itself.
const NUMBERS_OF_A_CLIENT: u64 = 1 << 32;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    match task::LocalSet::new().block_on(&runtime, run(&arguments)) {
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
    let [side, address, clients, seconds] = words.as_slice() else {
        return Err("see the top of its source for how it is asked".into());
    };
    let address: Rc<str> = Rc::from(*address);
    let (clients, limit): (u64, _) = (clients.parse()?, Duration::from_secs_f64(seconds.parse()?));
    let connections = try_join_all((0..clients).map(|_| Connection::open(side, &address))).await?;
    let began = Instant::now();
    let work = connections.into_iter().zip(0..).map(|(connection, client)| connection.work(client, began, limit));
    let mut times: Vec<Duration> = try_join_all(work).await?.concat();
    let took = began.elapsed();
    times.sort_unstable();
    let (commits, seconds, cpu) = (times.len(), took.as_secs_f64(), cpu_seconds());
    let at = |percent: usize| times.get(times.len() * percent / 100).ok_or("nothing was agreed");
    let (median, slow) = (at(50)?.as_micros(), at(99)?.as_micros());
    Ok(format!(
        "{{\"commits\":{commits},\"seconds\":{seconds},\"median_us\":{median},\"p99_us\":{slow},\"cpu_seconds\":{cpu}}}"
    ))
}

/// What all threads of this process took of the processors.
fn cpu_seconds() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(spent).unwrap_or_default().as_secs_f64()
}

/// A client's way to a cluster.
struct Connection {
    address: Rc<str>,
    sender: Sender,
}

enum Sender {
    Velum(http1::SendRequest<Full<Bytes>>),
    Etcd(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    async fn open(side: &str, address: &Rc<str>) -> Result<Self, Failure> {
        let stream = TcpStream::connect(&**address).await?;
        stream.set_nodelay(true)?;
        // What drives a connection ends with it; what went wrong there, the request that is under way says.
        let sender = match side {
            "velum" => {
                let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
                task::spawn_local(driver);
                Sender::Velum(sender)
            }
            "etcd" => {
                let (sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
                task::spawn_local(driver);
                Sender::Etcd(sender)
            }
            _ => return Err(format!("there is no side {side}").into()),
        };
        Ok(Self { address: Rc::clone(address), sender })
    }

    /// Commits one after the other; how long each took.
    async fn work(mut self, client: u64, began: Instant, limit: Duration) -> Result<Vec<Duration>, Failure> {
        let mut times = Vec::new();
        for number in client * NUMBERS_OF_A_CLIENT.. {
            if began.elapsed() >= limit {
                break;
            }
            let asked = Instant::now();
            match &mut self.sender {
                Sender::Velum(sender) => dismiss(sender, &self.address, number).await?,
                Sender::Etcd(sender) => put(sender, &self.address, number).await?,
            }
            times.push(asked.elapsed());
        }
        Ok(times)
    }
}

async fn whole(response: Response<Incoming>) -> Result<(StatusCode, Collected<Bytes>), Failure> {
    let status = response.status();
    Ok((status, response.into_body().collect().await?))
}

async fn dismiss(sender: &mut http1::SendRequest<Full<Bytes>>, address: &str, number: u64) -> Result<(), Failure> {
    sender.ready().await?;
    let request = Request::builder()
        .method(Method::DELETE)
        .uri(format!("/v1/cluster/nodes/{}", NODE_FIRST + number))
        .header("host", address)
        .body(Full::default())?;
    let (status, body) = whole(sender.send_request(request).await?).await?;
    // Agreed, and told that there is no such node.
    if status == StatusCode::NOT_FOUND {
        return Ok(());
    }
    Err(format!("the node answered {status}: {}", String::from_utf8_lossy(&body.to_bytes())).into())
}

async fn put(sender: &mut http2::SendRequest<Full<Bytes>>, address: &str, number: u64) -> Result<(), Failure> {
    sender.ready().await?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{address}/etcdserverpb.KV/Put"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::from(put_message(number)))?;
    let (status, body) = whole(sender.send_request(request).await?).await?;
    let said = body.trailers().and_then(|trailers| trailers.get("grpc-status"));
    if status == StatusCode::OK && said.is_some_and(|said| said == "0") {
        return Ok(());
    }
    Err(format!("etcd answered {status}: {:?}", body.trailers()).into())
}

/// `PutRequest { key, value }` with 8 bytes each, behind the length that gRPC wants.
fn put_message(number: u64) -> Vec<u8> {
    let field = |number: u8| [number << 3 | 2, 8];
    // As many keys as fit a small store: it is not to grow while it is measured.
    let (key, value) = ((number % 1024).to_be_bytes(), number.to_be_bytes());
    let message = [&field(1)[..], &key, &field(2), &value].concat();
    let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
    [&[0][..], &length, &message].concat()
}
