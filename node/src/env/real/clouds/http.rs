//! The HTTP client: the crate's own, except that it follows no redirect. A redirect would carry a session token, which is a
//! header of its own, to whatever host the answer names.

use std::time::Duration;

use object_store::{
    ClientConfigKey, ClientOptions, Error, Result,
    client::{HttpClient, HttpConnector},
};
use reqwest::{Client, NoProxy, Proxy, redirect::Policy};

/// A whole request with its body takes no longer.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections are closed before common load balancers (60 s) do it under a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// Makes clients that stay with the host they were asked to speak to.
#[derive(Debug)]
pub(super) struct NoRedirects;

impl HttpConnector for NoRedirects {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let yes = |key| options.get_config_value(&key).is_some_and(|value| value == "true");
        let mut builder = Client::builder()
            .redirect(Policy::none())
            .referer(false)
            .http1_only()
            .timeout(REQUEST_TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .user_agent(concat!("velum/", env!("CARGO_PKG_VERSION")))
            .https_only(!yes(ClientConfigKey::AllowHttp))
            .danger_accept_invalid_certs(yes(ClientConfigKey::AllowInvalidCertificates));
        if let Some(url) = options.get_config_value(&ClientConfigKey::ProxyUrl) {
            let excludes = options.get_config_value(&ClientConfigKey::ProxyExcludes);
            let proxy = Proxy::all(url).map_err(failed)?;
            builder = builder.proxy(proxy.no_proxy(excludes.and_then(|list| NoProxy::from_string(&list))));
        }
        Ok(HttpClient::new(builder.build().map_err(failed)?))
    }
}

fn failed(error: reqwest::Error) -> Error {
    Error::Generic { store: "HTTP client", source: Box::new(error) }
}
