//! Where a door listens, as people write it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::env::network::Address;

/// `host:port` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listen(Address);

impl Listen {
    /// A TCP address, `host:port`.
    #[must_use]
    pub fn tcp(address: &str) -> Self {
        Self(Address::Tcp(address.to_owned()))
    }

    /// A unix socket.
    #[must_use]
    pub fn unix(path: PathBuf) -> Self {
        Self(Address::Unix(path))
    }

    /// Reads `host:port` or `unix:/path`; `None` when it is neither.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return (!path.is_empty() && !path.contains('\0')).then(|| Self::unix(PathBuf::from(path)));
        }
        let (host, port) = text.rsplit_once(':')?;
        let host_is_sane = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "[]:.-".contains(c));
        (host_is_sane && port.parse::<u16>().is_ok()).then(|| Self::tcp(text))
    }

    /// The address for the environment's network.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.0
    }

    /// True when only this machine can reach it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match &self.0 {
            Address::Unix(_) => true,
            Address::Tcp(address) => host_is_loopback(address),
        }
    }

    /// True for an address that stands for every interface of the machine, and so tells nobody where to go.
    #[must_use]
    pub fn is_everywhere(&self) -> bool {
        let Address::Tcp(address) = &self.0 else { return false };
        let host = address.rsplit_once(':').map_or(&**address, |(host, _)| host);
        host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }

    pub(super) fn resolve(&mut self, base: &Path) {
        if let Address::Unix(path) = &mut self.0 {
            *path = base.join(&*path);
        }
    }
}

/// True when the host of `host:port` can only mean this machine.
fn host_is_loopback(address: &str) -> bool {
    if let Ok(address) = address.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Address::Tcp(address) => f.write_str(address),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| de::Error::custom(format!("`{text}` is not an address; write host:port or unix:/path")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_and_know_whether_they_are_local() {
        for (text, local) in [
            ("127.0.0.1:10809", true),
            ("[::1]:10809", true),
            ("localhost:1", true),
            ("unix:/run/velum.sock", true),
            ("0.0.0.0:10809", false),
            ("[::]:10809", false),
            ("192.168.0.1:10809", false),
            ("nas.example:10809", false),
            ("localhost.example:1", false),
        ] {
            let listen = Listen::parse(text).unwrap_or_else(|| panic!("{text} is an address"));
            assert_eq!((listen.to_string().as_str(), listen.is_local()), (text, local));
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "10809", "host", "host:", ":1", "host:70000", "host:-1", "unix:", "a b:1", "http://x:1/"] {
            assert_eq!(Listen::parse(text), None, "{text}");
        }
    }
}
