//! Who may speak to the admin door, and how much.

use std::{net::IpAddr, time::Duration};

use axum::{
    body::{Body, HttpBody},
    http::{HeaderMap, HeaderName, header},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use velum_protocol::admin::{Problem, ProblemKind};

use crate::limits::ADMIN_BODY_BYTES_MAX;

/// Refuses requests that a web page made a browser send: a page can point a name of its own at this machine, but it cannot
/// choose the `Host` and `Origin` its requests carry.
pub(super) fn own_machine(headers: &HeaderMap, loopback_only: bool) -> Result<(), Problem> {
    let host = single(headers, &header::HOST)?.unwrap_or_default();
    if !host_is_own(host, loopback_only) {
        let remedy = "address the node as 127.0.0.1, localhost or by its IP address";
        return Err(Problem::new(ProblemKind::Forbidden, "the Host header does not name this node", remedy));
    }
    match single(headers, &header::ORIGIN)? {
        Some(origin) if origin.strip_prefix("http://") != Some(host) => {
            let remedy = "web pages may not use the admin API; use the velum command";
            Err(Problem::new(ProblemKind::Forbidden, "the request comes from a web page", remedy))
        }
        Some(_) | None => Ok(()),
    }
}

/// A header's value; a header that stands twice or is not text is refused, for two readers may take different ones.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let malformed =
        || Problem::new(ProblemKind::Invalid, format!("the {name} header is malformed"), "send it once, as text");
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(|value| value.to_str().map_err(|_| malformed())).transpose()?;
    if values.next().is_some() { Err(malformed()) } else { Ok(first) }
}

/// True for `localhost` and IP addresses, with or without a port: names can be made to mean this machine by anyone who
/// owns them, addresses cannot.
fn host_is_own(host: &str, loopback_only: bool) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() && !name.ends_with(':') => name,
        Some(_) | None => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || !loopback_only)
}

/// The whole body, if it is short enough and comes in time.
pub(super) async fn body(body: Body, deadline: Duration) -> Result<Bytes, Problem> {
    let too_large = || {
        let detail = format!("the body is longer than {ADMIN_BODY_BYTES_MAX} bytes");
        Problem::new(ProblemKind::TooLarge, detail, "send less")
    };
    if body.size_hint().lower() > ADMIN_BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let whole = async {
        let mut pieces = body.into_data_stream();
        let mut whole = BytesMut::new();
        while let Some(piece) = pieces.next().await {
            let broken = |_| Problem::new(ProblemKind::Invalid, "the body ended early", "send all of it");
            let piece = piece.map_err(broken)?;
            if whole.len() + piece.len() > ADMIN_BODY_BYTES_MAX {
                return Err(too_large());
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    };
    #[expect(clippy::disallowed_methods, reason = "HTTP runs outside the environment, on its own real runtime")]
    let in_time = tokio::time::timeout(deadline, whole).await;
    in_time.unwrap_or_else(|_| {
        Err(Problem::new(ProblemKind::Timeout, "the body did not arrive in time", "send it in one go"))
    })
}

/// Reads a JSON body: the type says which fields there are; unknown and repeated ones are refused, and with them any depth
/// that the type does not have.
pub(super) fn json<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, Problem> {
    let kind = single(headers, &header::CONTENT_TYPE)?.unwrap_or_default();
    if kind.split(';').next().map(str::trim) != Some("application/json") {
        let remedy = "send it with Content-Type: application/json";
        return Err(Problem::new(ProblemKind::Invalid, "the body is not declared as JSON", remedy));
    }
    serde_json::from_slice(body).map_err(|error| {
        let place = format!("line {} column {}", error.line(), error.column());
        let detail = match error.classify() {
            serde_json::error::Category::Data => {
                format!("the body does not fit at {place}: {}", shown(&error.to_string()))
            }
            _ => format!("the body is not JSON at {place}"),
        };
        Problem::new(ProblemKind::Invalid, detail, "docs/admin.md shows what each request takes")
    })
}

/// A message of the JSON reader, bounded and without control characters: it quotes what was sent.
fn shown(message: &str) -> String {
    message.chars().take(200).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Requests that take no body get none.
pub(super) fn no_body(body: &[u8]) -> Result<(), Problem> {
    if body.is_empty() {
        return Ok(());
    }
    Err(Problem::new(ProblemKind::Invalid, "this request takes no body", "send it without one"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_a_host_of_the_loopback_door() {
        for host in ["127.0.0.1", "127.0.0.1:9890", "localhost", "localhost:1", "[::1]:9890", "[::1]", "127.9.9.9"] {
            assert!(host_is_own(host, true), "{host}");
        }
        for host in
            ["", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:9890", "10.0.0.1:9890", "[::2]"]
        {
            assert!(!host_is_own(host, true), "{host}");
        }
        assert!(host_is_own("10.0.0.1:9890", false) && !host_is_own("evil.example:9890", false));
    }
}
