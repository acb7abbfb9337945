//! What a hostile or broken S3 server can do to the real environment: nothing but fail the request.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that meets the unexpected has failed, and says where"
)]

use std::{
    collections::BTreeMap,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};
use velum_node::env::{
    CloudStore, CloudStoreError,
    real::{RealSettings, real_env},
};

const CANARY: &str = "c4n4ry-0123456789";

/// A server that gives every connection the same answer. Aborted when dropped.
struct Server {
    address: String,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Server {
    async fn answering(answer: impl Into<Vec<u8>>, repeat_body: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let connections = Arc::new(AtomicUsize::new(0));
        let (counted, answer) = (Arc::clone(&connections), answer.into());
        let task = tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let answer = answer.clone();
                tokio::task::spawn_local(async move {
                    let (mut request, mut piece) = (Vec::new(), [0; 4096]);
                    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                        match stream.read(&mut piece).await {
                            Ok(read) if read > 0 => request.extend_from_slice(&piece[..read]),
                            _ => return,
                        }
                    }
                    let mut written = stream.write_all(&answer).await;
                    while repeat_body && written.is_ok() {
                        written = stream.write_all(&[b'x'; 4096]).await;
                    }
                });
            }
        });
        Self { address, connections, task }
    }

    fn store(&self) -> Rc<dyn CloudStore> {
        let options = [
            ("endpoint", format!("http://{}", self.address)),
            ("access_key_id", "drill".to_owned()),
            ("secret_access_key", CANARY.to_owned()),
            ("session_token", CANARY.to_owned()),
            ("region", "us-east-1".to_owned()),
        ];
        let options: BTreeMap<_, _> = options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let env = real_env(RealSettings::default()).expect("threads can be started");
        env.clouds.open("s3://bucket/prefix", &options).unwrap()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}")
}

const OBJECT: &str = "ETag: \"e\"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n";

async fn here<T>(test: impl Future<Output = T>) -> T {
    tokio::task::LocalSet::new().run_until(test).await
}

#[tokio::test]
async fn a_redirect_is_not_followed_so_no_credentials_reach_its_target() {
    here(async {
        let thief = Server::answering(answer("200 OK", OBJECT, "stolen"), false).await;
        for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
            let location = format!("Location: http://{}/bucket/prefix/name\r\n", thief.address);
            let server = Server::answering(answer(status, &location, ""), false).await;
            let got = server.store().get("name", 100).await;
            assert!(matches!(got, Err(CloudStoreError::Refused(_))), "{status}: {got:?}");
            let put = server.store().put("name", "body".into()).await;
            assert!(matches!(put, Err(CloudStoreError::Refused(_))), "{status}: {put:?}");
            assert!(server.connections() >= 2);
        }
        assert_eq!(thief.connections(), 0);
    })
    .await;
}

#[tokio::test]
async fn answers_are_sorted_and_nothing_of_them_is_repeated() {
    here(async {
        let body = format!("<Error><Code>SomeCode</Code><Message>{CANARY}</Message></Error>");
        for (status, sorted) in [
            ("403 Forbidden", "Denied(\"status 403, SomeCode\")"),
            ("401 Unauthorized", "Denied(\"status 401, SomeCode\")"),
            ("400 Bad Request", "Refused(\"status 400, SomeCode\")"),
            ("404 Not Found", "NotFound"),
            ("429 Too Many Requests", "Throttled(\"status 429, SomeCode\")"),
            ("503 Slow Down", "Throttled(\"status 503, SomeCode\")"),
            ("500 Internal Server Error", "Unavailable(\"status 500, SomeCode\")"),
        ] {
            let server = Server::answering(answer(status, "", &body), false).await;
            let got = server.store().get("name", 100).await.expect_err("this is no object");
            assert_eq!(format!("{got:?}"), sorted);
            let retried = if status.starts_with('5') || status.starts_with("429") { 3 } else { 1 };
            assert_eq!(server.connections(), retried, "{status}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_body_that_breaks_off_is_no_object() {
    here(async {
        let short = format!("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n{OBJECT}\r\nshort");
        let server = Server::answering(short, false).await;
        let got = server.store().get("name", 1000).await;
        assert!(matches!(got, Err(CloudStoreError::Unavailable(_))), "{got:?}");
    })
    .await;
}

#[tokio::test]
async fn an_object_that_says_it_is_huge_is_not_read() {
    here(async {
        let huge = format!("HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n{OBJECT}\r\n");
        let server = Server::answering(huge, true).await;
        let got = server.store().get("name", 1000).await;
        assert!(matches!(got, Err(CloudStoreError::Refused(_))), "{got:?}");
    })
    .await;
}

#[tokio::test]
async fn a_range_answered_with_more_than_was_asked_for_is_not_taken() {
    here(async {
        // The whole object instead of the range, then a range of another place.
        let whole = answer("200 OK", OBJECT, &"x".repeat(1000));
        let headers = format!("{OBJECT}Content-Range: bytes 20-29/1000\r\n");
        let elsewhere = answer("206 Partial Content", &headers, &"x".repeat(10));
        for wrong in [whole, elsewhere] {
            let server = Server::answering(wrong, false).await;
            let got = server.store().get_range("name", 10..20).await;
            assert!(got.is_err(), "{got:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn no_server_at_all_is_a_cloud_that_is_away() {
    here(async {
        let server = Server::answering("", false).await;
        let store = server.store();
        drop(server);
        let got = store.head("name").await;
        assert!(matches!(got, Err(CloudStoreError::Unavailable(_))), "{got:?}");
    })
    .await;
}
