//! Paths and methods, and what they ask of the node.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, Request as HttpRequest, Response as HttpResponse, StatusCode, header},
    middleware::{self, Next},
    routing::get,
};
use serde::Serialize;
use velum_protocol::{
    admin::{
        AclLine, ByteRange, CreateVolume, Problem, ProblemKind, Request, ResizeVolume, Response, SetPermit, is_name,
        is_principal, is_volume_size,
    },
    id::{BLOCK_BYTES, REGION_BLOCKS, VOLUME_BYTES_MAX},
};

use super::{channel::Outbox, guard, http::AdminLimits, replay::Replay};
use crate::metrics::Metrics;

/// ACL lines hold for whole regions.
const REGION_BYTES: u64 = REGION_BLOCKS * BLOCK_BYTES;

/// What all routes share.
#[derive(Clone)]
pub(super) struct Shared(Arc<Inner>);

struct Inner {
    outbox: Outbox,
    replay: Replay,
    metrics: Arc<Metrics>,
    limits: AdminLimits,
    loopback_only: bool,
}

type Answer = Result<HttpResponse<Body>, Problem>;

/// All routes.
pub(super) fn router(outbox: Outbox, metrics: Arc<Metrics>, limits: AdminLimits, loopback_only: bool) -> Router {
    let shared = Shared(Arc::new(Inner { outbox, replay: Replay::default(), metrics, limits, loopback_only }));
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/v1/{*path}", get(api).post(api).delete(api))
        .fallback(|| async { problem(&no_such_path()) })
        .method_not_allowed_fallback(|| async { problem(&method_not_allowed()) })
        .layer(middleware::from_fn_with_state(shared.clone(), admit))
        .with_state(shared)
}

/// Counts every request and turns away those that do not come from this machine's operator.
async fn admit(State(shared): State<Shared>, request: HttpRequest<Body>, next: Next) -> HttpResponse<Body> {
    shared.0.metrics.admin.requests.inc();
    let response = match guard::own_machine(request.headers(), shared.0.loopback_only) {
        Ok(()) => next.run(request).await,
        Err(refused) => problem(&refused),
    };
    if response.status().is_client_error() {
        shared.0.metrics.admin.refused.inc();
    }
    response
}

async fn metrics_text(State(shared): State<Shared>) -> HttpResponse<Body> {
    let body = shared.0.metrics.render();
    respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body.into())
}

async fn api(State(shared): State<Shared>, request: HttpRequest<Body>) -> HttpResponse<Body> {
    answer(&shared.0, request).await.unwrap_or_else(|refused| problem(&refused))
}

async fn answer(shared: &Inner, request: HttpRequest<Body>) -> Answer {
    let (parts, body) = request.into_parts();
    if parts.uri.query().is_some() {
        return Err(Problem::new(ProblemKind::Invalid, "the admin API takes no query", "put fields into the body"));
    }
    let path = parts.uri.path().strip_prefix("/v1/").unwrap_or_default().to_owned();
    let body = guard::body(body, shared.limits.body_deadline).await?;
    let request = read(parts.method.as_str(), &path, &parts.headers, &body)?;
    let created = matches!(request, Request::CreateVolume(_));
    let key = match parts.headers.get("idempotency-key") {
        Some(key) if parts.method == "POST" || parts.method == "DELETE" => Some(key.to_str().unwrap_or_default()),
        Some(_) | None => None,
    };
    let outcome = shared.replay.ask(&shared.outbox, key, request)?.await;
    match outcome.as_ref() {
        Ok(response) => Ok(done(if created { StatusCode::CREATED } else { StatusCode::OK }, response)),
        Err(refused) => Err(refused.clone()),
    }
}

/// What a method, a path and a body ask for.
fn read(method: &str, path: &str, headers: &HeaderMap, body: &[u8]) -> Result<Request, Problem> {
    let parts: Vec<&str> = path.split('/').collect();
    let bare = |request: Request| guard::no_body(body).map(|()| request);
    match (method, parts.as_slice()) {
        ("GET", ["version"]) => bare(Request::Version),
        ("GET", ["node"]) => bare(Request::NodeStatus),
        ("GET", ["raft"]) => bare(Request::RaftStatus),
        ("GET", ["cluster"]) => bare(Request::ClusterStatus),
        ("POST", ["cluster", "tokens"]) => bare(Request::OfferPlace),
        ("DELETE", ["cluster", "nodes", node]) => bare(Request::RemoveNode { node: numbered(node)? }),
        ("POST", ["cluster", "nodes", node, "lead"]) => bare(Request::TransferLead { node: numbered(node)? }),
        ("GET", ["clouds"]) => bare(Request::ListClouds),
        ("POST", ["clouds", "check"]) => bare(Request::CheckClouds),
        ("POST", ["clouds", name, "resync"]) => bare(Request::ResyncCloud { name: named(name)? }),
        ("GET", ["volumes"]) => bare(Request::ListVolumes),
        ("POST", ["volumes"]) => create(headers, body),
        ("GET", ["volumes", name]) => bare(Request::ShowVolume { name: named(name)? }),
        ("DELETE", ["volumes", name]) => bare(Request::DeleteVolume { name: named(name)? }),
        ("POST", ["volumes", name, "flush"]) => bare(Request::FlushVolume { name: named(name)? }),
        ("POST", ["volumes", name, "resize"]) => resize(name, headers, body),
        ("POST", ["volumes", name, "move"]) => {
            Ok(Request::MoveVolume { name: named(name)?, to: guard::json(headers, body)? })
        }
        ("GET", ["volumes", name, "attachments"]) => bare(Request::ListAttachments { name: named(name)? }),
        ("POST", ["volumes", name, "attach"]) => {
            Ok(Request::Attach { name: named(name)?, attach: guard::json(headers, body)? })
        }
        ("POST", ["volumes", name, "detach"]) => {
            Ok(Request::Detach { name: named(name)?, detach: guard::json(headers, body)? })
        }
        ("POST", ["volumes", name, "permits"]) => permit(name, headers, body),
        ("GET", ["volumes", name, "acl"]) => bare(Request::ShowAcl { name: named(name)? }),
        ("POST", ["volumes", name, "acl"]) => acl(name, headers, body),
        (
            _,
            ["version" | "node" | "raft" | "cluster" | "clouds" | "volumes"]
            | ["cluster", "tokens"]
            | ["cluster", "nodes", _]
            | ["cluster", "nodes", _, "lead"]
            | ["clouds", "check"]
            | ["clouds", _, "resync"]
            | ["volumes", _]
            | ["volumes", _, "flush" | "resize" | "move" | "acl" | "attachments" | "attach" | "detach" | "permits"],
        ) => Err(method_not_allowed()),
        _ => Err(no_such_path()),
    }
}

fn create(headers: &HeaderMap, body: &[u8]) -> Result<Request, Problem> {
    let create: CreateVolume = guard::json(headers, body)?;
    named(&create.name)?;
    sized(create.size_bytes)?;
    Ok(Request::CreateVolume(create))
}

fn resize(name: &str, headers: &HeaderMap, body: &[u8]) -> Result<Request, Problem> {
    let (name, resize): (_, ResizeVolume) = (named(name)?, guard::json(headers, body)?);
    sized(resize.size_bytes)?;
    Ok(Request::ResizeVolume { name, resize })
}

fn acl(name: &str, headers: &HeaderMap, body: &[u8]) -> Result<Request, Problem> {
    let (name, line): (_, AclLine) = (named(name)?, guard::json(headers, body)?);
    if !is_principal(&line.principal) {
        let remedy = "use anonymous, uid:NUMBER or *";
        return Err(Problem::new(ProblemKind::Invalid, "there is no such kind of principal", remedy));
    }
    line.range.map_or(Ok(()), ranged)?;
    Ok(Request::SetAcl { name, line })
}

fn permit(name: &str, headers: &HeaderMap, body: &[u8]) -> Result<Request, Problem> {
    let (name, permit): (_, SetPermit) = (named(name)?, guard::json(headers, body)?);
    ranged(permit.range)?;
    Ok(Request::SetPermit { name, permit })
}

/// Refuses a range that is empty, not on bounds of regions, or beyond any volume.
fn ranged(ByteRange { start, end }: ByteRange) -> Result<(), Problem> {
    let invalid = |detail: String, remedy| Err(Problem::new(ProblemKind::Invalid, detail, remedy));
    if start >= end {
        return invalid(format!("the range {start}..{end} does not end behind its start"), "give START before END");
    }
    if let Some(odd) = [start, end].into_iter().find(|bound| !bound.is_multiple_of(REGION_BYTES)) {
        let remedy = "ACL lines and permits hold for whole regions: use multiples of 64MiB";
        return invalid(format!("{odd} is not a bound of a region"), remedy);
    }
    if end > VOLUME_BYTES_MAX {
        return invalid(format!("{end} lies beyond the end of any volume"), "end the range at 64TiB or before");
    }
    Ok(())
}

fn named(name: &str) -> Result<String, Problem> {
    if is_name(name) {
        return Ok(name.to_owned());
    }
    let remedy = "use 1 to 63 of a-z, 0-9, dot, dash and underscore";
    Err(Problem::new(ProblemKind::Invalid, "the name is malformed", remedy))
}

fn numbered(node: &str) -> Result<u64, Problem> {
    node.parse().ok().filter(|node| *node > 0).ok_or_else(|| {
        Problem::new(ProblemKind::Invalid, "a node has a number from 1", "`velum cluster status` shows the nodes")
    })
}

fn sized(bytes: u64) -> Result<(), Problem> {
    if is_volume_size(bytes) {
        return Ok(());
    }
    let detail = format!("a volume cannot have {bytes} bytes");
    Err(Problem::new(ProblemKind::Invalid, detail, "give a multiple of 4096, at least 4096 and at most 64 TiB"))
}

fn no_such_path() -> Problem {
    Problem::new(ProblemKind::NotFound, "the admin API has no such path", "docs/admin.md lists them")
}

fn method_not_allowed() -> Problem {
    Problem::new(ProblemKind::MethodNotAllowed, "the path does not take this method", "docs/admin.md lists them")
}

fn done(status: StatusCode, response: &Response) -> HttpResponse<Body> {
    let body = serde_json::to_vec(response).expect("every response has a JSON form");
    respond(status, "application/json", body.into())
}

/// A problem as RFC 9457 has it, with `kind` and `remedy` beside.
fn problem(problem: &Problem) -> HttpResponse<Body> {
    #[derive(Serialize)]
    struct Shown<'a> {
        r#type: &'static str,
        title: &'a str,
        status: u16,
        #[serde(flatten)]
        problem: &'a Problem,
    }
    let status = StatusCode::from_u16(problem.kind.status()).expect("kinds have valid statuses");
    let title = status.canonical_reason().unwrap_or_default();
    let shown = Shown { r#type: "about:blank", title, status: status.as_u16(), problem };
    let body = serde_json::to_vec(&shown).expect("every problem has a JSON form");
    respond(status, "application/problem+json", body.into())
}

fn respond(status: StatusCode, kind: &'static str, body: Body) -> HttpResponse<Body> {
    let mut response = HttpResponse::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
