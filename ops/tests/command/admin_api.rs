//! The admin door of a real node against callers of every kind: each gets its status, and the node goes on as if nothing
//! had been.

use rustix::process::Signal;

use crate::bench::{Bench, Node, settings};

const JSON: &str = "Content-Type: application/json\r\n";

fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{length}{headers}\r\n{body}")
        .into_bytes()
}

fn post(path: &str, body: &str) -> Vec<u8> {
    request("POST", path, JSON, body)
}

/// What is sent, and the status it gets.
fn table() -> Vec<(Vec<u8>, u16)> {
    let create = |name: &str, size: &str| post("/v1/volumes", &format!(r#"{{"name":{name},"size_bytes":{size}}}"#));
    let range =
        |range: &str| post("/v1/volumes/demo/acl", &format!(r#"{{"principal":"*","access":"read","range":{range}}}"#));
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let mut table = vec![
        (post("/v1/volumes", &"x".repeat((1 << 20) + 1)), 413),
        (post("/v1/volumes", &deep), 400),
        (post("/v1/volumes", "{"), 400),
        (post("/v1/volumes", ""), 400),
        (post("/v1/volumes", "null"), 400),
        (post("/v1/volumes", r#"{"name":"x","name":"y","size_bytes":4096}"#), 400),
        (post("/v1/volumes", r#"{"name":"x","size_bytes":4096,"owner":"me"}"#), 400),
        (request("POST", "/v1/volumes", "", r#"{"name":"x","size_bytes":4096}"#), 400),
        (request("GET", "/v1/volumes?x=y", "", ""), 400),
        (request("GET", "/v1/volumes", JSON, "{}"), 400),
        (request("PUT", "/v1/volumes", JSON, "{}"), 405),
        (request("DELETE", "/v1/volumes", "", ""), 405),
        (request("GET", "/v1/volumes/demo/flush", "", ""), 405),
        (request("GET", "/v2/volumes", "", ""), 404),
        (request("GET", "/v1/volumes/demo/nosuch", "", ""), 404),
        (request("GET", "/v1/volumes/nosuch", "", ""), 404),
        (request("DELETE", "/v1/volumes/nosuch", "", ""), 404),
        (post("/v1/volumes/nosuch/flush", ""), 404),
        (request("GET", "/v1/volumes/..%2f..%2fetc", "", ""), 400),
        (create("\"demo\"", "4096"), 409),
        (post("/v1/volumes/demo/resize", r#"{"size_bytes":4096}"#), 409),
        (request("GET", "/v1/node", "Host: elsewhere.example\r\n", ""), 400),
        (request("GET", "/v1/node", "Origin: http://elsewhere.example\r\n", ""), 403),
        (b"GET /v1/node HTTP/1.1\r\nHost: elsewhere.example\r\nConnection: close\r\n\r\n".to_vec(), 403),
        (b"GET /v1/node HTTP/1.1\r\nConnection: close\r\n\r\n".to_vec(), 403),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01".to_vec(), 400),
        (vec![b'x'; 100_000], 431),
        (request("GET", "/v1/node", &"X: y\r\n".repeat(100), ""), 431),
        (request("GET", &format!("/{}", "x".repeat(50_000)), "", ""), 431),
    ];
    for name in ["\"\"", "\"A\"", "\"a/b\"", "\"..\\u0000\"", "7", "null", "[]"] {
        table.push((create(name, "4096"), 400));
    }
    for size in ["0", "-1", "4095", "4097", "70368744181760", "18446744073709551615", "1e3", "\"4096\"", "4096.0"] {
        table.push((create("\"x\"", size), 400));
    }
    for bounds in [
        r#"{"start":0,"end":0}"#,
        r#"{"start":67108864,"end":0}"#,
        r#"{"start":0,"end":4096}"#,
        r#"{"start":1,"end":67108864}"#,
        r#"{"start":0,"end":18446744073709551615}"#,
        r#"{"start":0,"end":1099511627776}"#,
        r#"{"start":1073741824,"end":1140850688}"#,
        r#"{"start":0}"#,
        "[0,1]",
    ] {
        table.push((range(bounds), 400));
    }
    table
}

fn demo(node: &Node) -> String {
    let (status, shown) = node.http(&request("GET", "/v1/volumes/demo", "", ""));
    assert_eq!(status, 200, "{shown}");
    shown.rsplit("\r\n").next().expect("a body").to_owned()
}

#[test]
fn bad_requests_get_their_status_and_change_nothing() {
    let bench = Bench::new();
    bench.prepare("data", &settings(""));
    let node = bench.up("data", &[]);
    let before = demo(&node);
    for (bytes, status) in table() {
        let (given, answer) = node.http(&bytes);
        let shown = String::from_utf8_lossy(&bytes).chars().take(120).collect::<String>();
        assert_eq!(given, status, "{shown} -> {answer}");
        if (400..413).contains(&status) && answer.contains("problem+json") {
            assert!(answer.contains("\"remedy\":\"") && answer.contains("\"detail\":\""), "{answer}");
        }
        for secret in ["root.key", "node-1", "clouds/a"] {
            assert!(!answer.contains(secret), "{shown} -> {answer}");
        }
    }
    assert_eq!(demo(&node), before);
    let (status, acl) = node.http(&request("GET", "/v1/volumes/demo/acl", "", ""));
    assert!(status == 200 && !acl.contains("\"*\""), "{acl}");
    node.stop(Signal::TERM).expect(0, &[]);
}

#[test]
fn a_request_sent_again_under_its_key_is_done_once() {
    let bench = Bench::new();
    bench.prepare("data", &settings(""));
    let node = bench.up("data", &[]);
    let headers = format!("{JSON}Idempotency-Key: once\r\n");
    let asked = request("POST", "/v1/volumes", &headers, r#"{"name":"x","size_bytes":4096}"#);
    let (first, again) = (node.http(&asked), node.http(&asked));
    assert_eq!((first.0, again.0), (201, 201));
    assert_eq!(first.1.rsplit("\r\n").next(), again.1.rsplit("\r\n").next());
    node.stop(Signal::TERM).expect(0, &[]);
}
