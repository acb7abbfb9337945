//! Talks to a running node through its admin API.

use std::time::Duration;

use clap::Args;
use reqwest::{Method, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use url::Url;
use velum_protocol::admin::Problem;

use crate::error::Failure;

/// A question is answered from memory; a node that takes longer is stuck. Work that is asked for may take its time.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Where the node is.
#[derive(Args, Debug)]
pub(crate) struct Target {
    /// The node's admin API
    #[arg(long, global = true, env = "VELUM_ADMIN", default_value = "http://127.0.0.1:9890", value_name = "URL")]
    pub(crate) admin: Url,
}

/// A way to one node.
pub(crate) struct Client {
    base: Url,
    http: reqwest::Client,
}

impl Client {
    /// Prepares to ask `target`; nothing is sent yet.
    pub(crate) fn new(target: &Target) -> Result<Self, Failure> {
        if target.admin.cannot_be_a_base() || target.admin.scheme() != "http" {
            let what = format!("`{}` is not the address of an admin API", target.admin);
            return Err(Failure::usage(what, "write --admin http://127.0.0.1:9890"));
        }
        let http = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_secs(5)).build();
        let http = http.map_err(|error| Failure::told(&error))?;
        Ok(Self { base: target.admin.clone(), http })
    }

    /// Asks for something.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Failure> {
        self.ask::<(), T>(Method::GET, path, None).await
    }

    /// Has something done.
    pub(crate) async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: Option<&B>,
    ) -> Result<T, Failure> {
        self.ask(Method::POST, path, body).await
    }

    /// Has something removed.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Failure> {
        self.ask::<(), T>(Method::DELETE, path, None).await
    }

    async fn ask<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&B>,
    ) -> Result<T, Failure> {
        let mut url = self.base.clone();
        url.path_segments_mut().expect("an http URL has a path").pop_if_empty().push("v1").extend(path);
        let is_question = method == Method::GET;
        let mut request = self.http.request(method, url);
        if is_question {
            request = request.timeout(ANSWER_MAX);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| self.unanswered(&error))?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|error| self.unanswered(&error))?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| self.foreign(status, &error.to_string()));
        }
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => Err(problem.into()),
            Err(_) => Err(self.foreign(status, "the answer is no problem report")),
        }
    }

    fn unanswered(&self, error: &reqwest::Error) -> Failure {
        if error.is_connect() {
            let remedy = "start one with `velum up`, or name another with --admin or VELUM_ADMIN";
            return Failure::new(format!("no node answers at {}", self.base), remedy);
        }
        if error.is_timeout() {
            let what = format!("the node at {} did not answer within {} s", self.base, ANSWER_MAX.as_secs());
            return Failure::new(what, "look at the node's log and at the load of its machine");
        }
        let remedy = "if that is the admin address and not one for NBD, look at the node's log, and ask for the present \
                      state before you try again";
        Failure::new(format!("{} ended the connection before it gave an answer", self.base), remedy)
    }

    fn foreign(&self, status: StatusCode, why: &str) -> Failure {
        let what = format!("{} answered {status}, but not as a Velum node of this version does ({why})", self.base);
        let remedy = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                "something that asks for a login stands there: address the node itself, with --admin or VELUM_ADMIN"
            }
            StatusCode::NOT_FOUND => {
                "another program serves there: `velum up` and `velum node` print the node's address"
            }
            _ => "check the address, and that node and command have the same version",
        };
        Failure::new(what, remedy)
    }
}

/// Runs a command's requests to their end.
pub(crate) fn run<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::told(&error))?.block_on(work)
}
