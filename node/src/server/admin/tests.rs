//! The door against callers of every kind, over real sockets.

use std::{
    cell::RefCell,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    rc::Rc,
    sync::Arc,
    thread,
    time::Duration,
};

use futures_util::FutureExt;
use velum_protocol::admin::{Deleted, Problem, ProblemKind, Request, Response, Version};

use super::{AdminLimits, AdminListener, AdminServer, Backend, answer};
use crate::{env::Local, metrics::Metrics};

/// Answers by rote and remembers what it was asked.
#[derive(Default)]
struct Rote {
    asked: RefCell<Vec<Request>>,
}

impl Backend for Rote {
    fn handle(&self, principal: &str, request: Request) -> Local<Result<Response, Problem>> {
        assert_eq!(principal, "anonymous");
        self.asked.borrow_mut().push(request.clone());
        let created = self.asked.borrow().iter().filter(|asked| matches!(asked, Request::CreateVolume(_))).count();
        async move {
            match request {
                Request::FlushVolume { .. } => std::future::pending().await,
                Request::ShowVolume { name } => Err(Problem::no_volume(&name)),
                Request::CreateVolume(_) if created > 1 => {
                    Err(Problem::new(ProblemKind::Conflict, "the name is taken", "choose another"))
                }
                Request::DeleteVolume { name } => Ok(Response::Deleted(Deleted { name })),
                _ => Ok(Response::Version(Version { version: "1".to_owned(), api: 1 })),
            }
        }
        .boxed_local()
    }
}

fn bound() -> AdminListener {
    AdminListener::bind("127.0.0.1:0").unwrap()
}

/// Runs `caller` against an open door; gives what reached the node.
fn against(caller: impl FnOnce(SocketAddr) + Send) -> Vec<Request> {
    let limits = AdminLimits { head_deadline: Duration::from_millis(300), body_deadline: Duration::from_millis(300) };
    let (server, inbox) = AdminServer::start(bound(), Arc::new(Metrics::new()), limits).unwrap();
    let rote = Rc::new(Rote::default());
    let backend = Rc::clone(&rote);
    thread::scope(|scope| {
        scope.spawn(move || {
            caller(server.address());
            drop(server);
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, answer(inbox, backend));
    });
    rote.asked.take()
}

/// Sends `bytes` and gives the status and the whole answer; status 0 when the connection just ended.
fn send(address: SocketAddr, bytes: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // The door may answer and close before it has read everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer)
}

fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let fixed = "Host: 127.0.0.1:9890\r\nConnection: close\r\n";
    format!("{method} {path} HTTP/1.1\r\n{fixed}{length}{headers}\r\n{body}").into_bytes()
}

const JSON: &str = "Content-Type: application/json\r\n";

fn post(path: &str, body: &str) -> Vec<u8> {
    request("POST", path, JSON, body)
}

#[test]
fn well_formed_requests_reach_the_node_as_what_they_ask() {
    let asked = against(|door| {
        for (bytes, status) in [
            (request("GET", "/v1/version", "", ""), 200),
            (request("GET", "/v1/volumes", "Origin: http://127.0.0.1:9890\r\n", ""), 200),
            (post("/v1/volumes", r#"{"name":"demo","size_bytes":1073741824}"#), 201),
            (post("/v1/volumes/demo/resize", r#"{"size_bytes":4096,"force":true}"#), 200),
            (
                post(
                    "/v1/volumes/demo/acl",
                    r#"{"principal":"uid:1000","access":"read","range":{"start":0,"end":67108864}}"#,
                ),
                200,
            ),
            (request("DELETE", "/v1/volumes/demo", "", ""), 200),
            (request("GET", "/metrics", "", ""), 200),
        ] {
            let (given, answer) = send(door, &bytes);
            assert_eq!(given, status, "{} -> {answer}", String::from_utf8_lossy(&bytes));
        }
    });
    assert_eq!(asked.len(), 6);
    assert!(matches!(&asked[2], Request::CreateVolume(create) if create.size_bytes == 1 << 30));
    assert!(matches!(&asked[3], Request::ResizeVolume { name, resize } if name == "demo" && resize.force));
    assert!(matches!(&asked[4], Request::SetAcl { line, .. } if line.range.is_some_and(|range| range.end == 64 << 20)));
}

#[test]
fn bad_requests_get_their_status_and_never_reach_the_node() {
    let name = |name: &str| format!(r#"{{"name":"{name}","size_bytes":4096}}"#);
    let size = |size: &str| post("/v1/volumes", &format!(r#"{{"name":"a","size_bytes":{size}}}"#));
    let range =
        |range: &str| post("/v1/volumes/a/acl", &format!(r#"{{"principal":"*","access":"read","range":{range}}}"#));
    let create = name("a");
    let foreign = |head: &str| format!("GET /v1/node HTTP/1.1\r\n{head}Connection: close\r\n\r\n").into_bytes();
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    let cases: Vec<(&str, u16, Vec<u8>)> = vec![
        ("body too long", 413, post("/v1/volumes", &"x".repeat((1 << 20) + 1))),
        (
            "length that lies",
            413,
            request("POST", "/v1/volumes", &format!("{JSON}Content-Length: 99999999999\r\n"), ""),
        ),
        ("length that is none", 400, request("POST", "/v1/volumes", &format!("{JSON}Content-Length: -1\r\n"), "")),
        ("body not JSON", 400, post("/v1/volumes", "name=a")),
        ("body not declared JSON", 400, request("POST", "/v1/volumes", "Content-Type: text/plain\r\n", &create)),
        ("empty body", 400, post("/v1/volumes", "")),
        ("two values", 400, post("/v1/volumes", &format!("{create}{create}"))),
        ("JSON too deep", 400, post("/v1/volumes", &deep)),
        ("JSON too deep in a field", 400, post("/v1/volumes", &format!(r#"{{"name":{deep},"size_bytes":4096}}"#))),
        ("unknown field", 400, post("/v1/volumes", r#"{"name":"a","size_bytes":4096,"colour":"red"}"#)),
        ("repeated field", 400, post("/v1/volumes", r#"{"name":"a","name":"b","size_bytes":4096}"#)),
        ("missing field", 400, post("/v1/volumes", r#"{"name":"a"}"#)),
        ("name with a slash", 400, post("/v1/volumes", &name("a/b"))),
        ("name with capitals", 400, post("/v1/volumes", &name("A"))),
        ("empty name", 400, post("/v1/volumes", &name(""))),
        ("name of 64", 400, post("/v1/volumes", &name(&"a".repeat(64)))),
        ("name with an escape", 400, request("GET", "/v1/volumes/..%2f..%2fetc", "", "")),
        ("size 0", 400, size("0")),
        ("size of half a block", 400, size("2048")),
        ("size over 64 TiB", 400, size("70368744181760")),
        ("size over 64 bits", 400, size("18446744073709551616")),
        ("size below zero", 400, size("-4096")),
        ("size with a fraction", 400, size("4096.5")),
        ("range inverted", 400, range(r#"{"start":67108864,"end":0}"#)),
        ("range empty", 400, range(r#"{"start":0,"end":0}"#)),
        ("range of half a region", 400, range(r#"{"start":0,"end":4096}"#)),
        ("range beyond any volume", 400, range(r#"{"start":0,"end":18446744073642442752}"#)),
        ("unknown principal", 400, post("/v1/volumes/a/acl", r#"{"principal":"root","access":"read"}"#)),
        ("unknown access", 400, post("/v1/volumes/a/acl", r#"{"principal":"*","access":"admin"}"#)),
        ("body where none belongs", 400, request("GET", "/v1/node", "", "{}")),
        ("query", 400, request("GET", "/v1/volumes?all=1", "", "")),
        ("unknown path", 404, request("GET", "/v1/volume", "", "")),
        ("unknown path above", 404, request("GET", "/admin", "", "")),
        ("wrong method", 405, request("DELETE", "/v1/node", "", "")),
        ("wrong method on a volume", 405, request("POST", "/v1/volumes/a", "", "")),
        ("method nobody takes", 405, request("PATCH", "/v1/volumes/a", "", "")),
        ("wrong method on metrics", 405, request("POST", "/metrics", "", "")),
        ("foreign host", 403, foreign("Host: evil.example\r\n")),
        (
            "foreign host on metrics",
            403,
            b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".to_vec(),
        ),
        ("no host", 403, b"GET /v1/node HTTP/1.0\r\n\r\n".to_vec()),
        ("two hosts", 400, foreign("Host: 127.0.0.1\r\nHost: evil.example\r\n")),
        ("foreign origin", 403, foreign("Host: 127.0.0.1:9890\r\nOrigin: http://evil.example\r\n")),
        ("null origin", 403, foreign("Host: 127.0.0.1:9890\r\nOrigin: null\r\n")),
        ("other port's origin", 403, foreign("Host: 127.0.0.1:9890\r\nOrigin: http://127.0.0.1:1\r\n")),
        (
            "key that is none",
            400,
            request("POST", "/v1/volumes", &format!("{JSON}Idempotency-Key: {}\r\n", "k".repeat(65)), &create),
        ),
        ("not HTTP", 400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec()),
    ];
    let asked = against(move |door| {
        for (label, status, bytes) in cases {
            let (given, answer) = send(door, &bytes);
            assert_eq!(given, status, "{label}: {answer}");
            if label != "not HTTP" && label != "length that is none" {
                assert!(
                    answer.contains("application/problem+json") && answer.contains("\"remedy\""),
                    "{label}: {answer}"
                );
            }
        }
        assert_eq!(send(door, &request("GET", "/v1/version", "", "")).0, 200);
    });
    assert_eq!(asked, [Request::Version]);
}

#[test]
fn slow_callers_are_ended() {
    against(|door| {
        let head = "POST /v1/volumes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 10\r\n";
        let (status, answer) = send(door, format!("{head}{JSON}\r\n{{").as_bytes());
        assert_eq!(status, 408, "{answer}");
        let (_, answer) = send(door, b"GET /v1/version HTTP/1.1\r\nHost: local");
        assert!(!answer.contains("200"), "{answer}");
        let (_, answer) = send(door, format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 << 10)).as_bytes());
        assert!(!answer.contains("200"), "{answer}");
    });
}

#[test]
fn a_flush_that_waits_for_clouds_does_not_hold_up_others() {
    let asked = against(|door| {
        let mut waiting: Vec<TcpStream> = Vec::new();
        for _ in 0..crate::limits::ADMIN_FLUSHES_MAX {
            let mut stream = TcpStream::connect(door).unwrap();
            stream.write_all(&request("POST", "/v1/volumes/demo/flush", "", "")).unwrap();
            waiting.push(stream);
        }
        let (status, answer) = loop {
            let mut stream = TcpStream::connect(door).unwrap();
            stream.write_all(&request("POST", "/v1/volumes/demo/flush", "", "")).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let mut byte = [0; 256];
            match stream.read(&mut byte) {
                Ok(count) => break (503, String::from_utf8_lossy(&byte[..count]).into_owned()),
                Err(_) => waiting.push(stream),
            }
        };
        assert!(answer.contains(&status.to_string()), "{answer}");
        assert_eq!(send(door, &request("GET", "/v1/version", "", "")).0, 200);
    });
    let flushes = asked.iter().filter(|asked| matches!(asked, Request::FlushVolume { .. })).count();
    assert_eq!(flushes, crate::limits::ADMIN_FLUSHES_MAX);
}

#[test]
fn unknown_volumes_and_forbidden_ones_look_alike() {
    against(|door| {
        let (status, answer) = send(door, &request("GET", "/v1/volumes/nothing", "", ""));
        assert_eq!(status, 404);
        assert!(answer.contains("there is no volume `nothing`"), "{answer}");
    });
}

#[test]
fn a_repeated_request_gets_the_first_outcome_and_acts_once() {
    let create = |key: &str, name: &str| {
        let body = format!(r#"{{"name":"{name}","size_bytes":4096}}"#);
        request("POST", "/v1/volumes", &format!("{JSON}Idempotency-Key: {key}\r\n"), &body)
    };
    let asked = against(move |door| {
        assert_eq!(send(door, &create("k1", "a")).0, 201);
        assert_eq!(send(door, &create("k1", "a")).0, 201);
        assert_eq!(send(door, &create("k1", "b")).0, 409);
        assert_eq!(send(door, &create("k2", "a")).0, 409);
    });
    assert_eq!(asked.len(), 2);
}

#[test]
fn a_node_that_stops_says_so_to_those_who_wait() {
    let (server, inbox) = AdminServer::start(bound(), Arc::new(Metrics::new()), AdminLimits::default()).unwrap();
    drop(inbox);
    let (status, answer) = send(server.address(), &request("GET", "/v1/node", "", ""));
    assert_eq!(status, 503);
    assert!(answer.contains("the node is stopping"), "{answer}");
}
