//! Where a migration is awaited, or goes: `tcp:HOST:PORT` or `unix:PATH`, parsed once.

use std::fmt::{Display, Formatter, Result as FmtResult};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bytes of a unix socket's path: `sun_path` of `unix(7)` without its final zero.
const UNIX_PATH_MAX: usize = 107;

/// Bytes of a host's name (RFC 1035, without the length bytes).
const HOST_MAX: usize = 253;

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Endpoint {
    /// `tcp:HOST:PORT`.
    Tcp {
        /// A name or an address, without brackets; looked up when it is used.
        host: String,
        /// Not 0.
        port: u16,
    },
    /// `unix:PATH`.
    Unix {
        /// The socket; UTF-8, because it travels in messages.
        path: String,
    },
}

impl FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        match text.split_once(':') {
            Some(("tcp", rest)) => tcp(rest),
            Some(("unix", path)) => unix(path),
            _ => Err(BadEndpoint::Scheme { text: text.to_owned() }),
        }
    }
}

fn tcp(rest: &str) -> Result<Endpoint, BadEndpoint> {
    let (written, port) =
        rest.rsplit_once(':').ok_or_else(|| BadEndpoint::NoPort { host: rest.to_owned() })?;
    let bare = written.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let wrong = || BadEndpoint::Host { host: written.to_owned() };
    let host = match bare {
        Some(host) if host.contains(':') => host,
        Some(_) => return Err(wrong()),
        None if written.contains(':') => {
            return Err(BadEndpoint::Brackets { host: written.to_owned() });
        }
        None => written,
    };
    let odd = |c: char| c.is_whitespace() || c.is_control() || "[]/,".contains(c);
    if host.is_empty() || host.len() > HOST_MAX || host.contains(odd) {
        return Err(wrong());
    }
    // `u16::from_str` takes a plus sign.
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse() {
        Ok(port @ 1..) if digits => Ok(Endpoint::Tcp { host: host.to_owned(), port }),
        _ => Err(BadEndpoint::Port { port: port.to_owned() }),
    }
}

fn unix(path: &str) -> Result<Endpoint, BadEndpoint> {
    if path.is_empty() || path.contains('\0') {
        return Err(BadEndpoint::Path);
    }
    if path.len() > UNIX_PATH_MAX {
        return Err(BadEndpoint::LongPath { len: path.len() });
    }
    Ok(Endpoint::Unix { path: path.to_owned() })
}

impl Display for Endpoint {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix { path } => write!(f, "unix:{path}"),
        }
    }
}

impl TryFrom<String> for Endpoint {
    type Error = BadEndpoint;

    fn try_from(text: String) -> Result<Self, BadEndpoint> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

/// Not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadEndpoint {
    /// Neither `tcp:` nor `unix:`.
    #[error("{text:?} names no kind of connection; write tcp:HOST:PORT or unix:PATH")]
    Scheme {
        /// What was given.
        text: String,
    },
    /// `tcp:HOST`.
    #[error("tcp:{host} has no port; write tcp:HOST:PORT")]
    NoPort {
        /// What stands after `tcp:`.
        host: String,
    },
    /// `tcp:::1:4444`.
    #[error("{host} looks like an IPv6 address; put it in brackets: tcp:[{host}]:PORT")]
    Brackets {
        /// What stands before the port.
        host: String,
    },
    /// Not a name or an address.
    #[error("{host:?} is not a host; write tcp:HOST:PORT with a name or an address")]
    Host {
        /// What stands before the port.
        host: String,
    },
    /// Not a port.
    #[error("{port:?} is not a TCP port; use 1 to 65535")]
    Port {
        /// What stands after the host.
        port: String,
    },
    /// Nothing, or a zero byte.
    #[error("unix: needs the path of a socket; write unix:PATH")]
    Path,
    /// Longer than the kernel takes.
    #[error("the path of a unix socket has {len} bytes; at most {UNIX_PATH_MAX} are possible")]
    LongPath {
        /// Its bytes.
        len: usize,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp { host: host.to_owned(), port }
    }

    /// Both kinds are understood, with names, addresses and odd paths.
    #[test]
    fn endpoints_are_understood() {
        for (text, endpoint) in [
            ("tcp:b.example:4444", tcp("b.example", 4444)),
            ("tcp:127.0.0.1:1", tcp("127.0.0.1", 1)),
            ("tcp:[::1]:65535", tcp("::1", 65535)),
            ("unix:/run/b:1.sock", Endpoint::Unix { path: "/run/b:1.sock".to_owned() }),
            ("unix:b", Endpoint::Unix { path: "b".to_owned() }),
        ] {
            assert_eq!(text.parse(), Ok(endpoint.clone()), "{text}");
            assert_eq!(endpoint.to_string(), text);
        }
    }

    /// What is wrong is named, with what would be right.
    #[test]
    fn wrong_endpoints_are_named() {
        let long = format!("unix:{}", "p".repeat(108));
        for (text, said) in [
            ("", "\"\" names no kind of connection; write tcp:HOST:PORT or unix:PATH"),
            ("b:4444", "\"b:4444\" names no kind of connection; write tcp:HOST:PORT or unix:PATH"),
            (
                "TCP:b:1",
                "\"TCP:b:1\" names no kind of connection; write tcp:HOST:PORT or unix:PATH",
            ),
            ("tcp:b", "tcp:b has no port; write tcp:HOST:PORT"),
            ("tcp::4444", "\"\" is not a host; write tcp:HOST:PORT with a name or an address"),
            ("tcp:[b]:1", "\"[b]\" is not a host; write tcp:HOST:PORT with a name or an address"),
            ("tcp:a b:1", "\"a b\" is not a host; write tcp:HOST:PORT with a name or an address"),
            ("tcp:::1:4444", "::1 looks like an IPv6 address; put it in brackets: tcp:[::1]:PORT"),
            ("tcp:b:0", "\"0\" is not a TCP port; use 1 to 65535"),
            ("tcp:b:65536", "\"65536\" is not a TCP port; use 1 to 65535"),
            ("tcp:b:+1", "\"+1\" is not a TCP port; use 1 to 65535"),
            ("tcp:b:", "\"\" is not a TCP port; use 1 to 65535"),
            ("unix:", "unix: needs the path of a socket; write unix:PATH"),
            ("unix:a\0b", "unix: needs the path of a socket; write unix:PATH"),
            (&long, "the path of a unix socket has 108 bytes; at most 107 are possible"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap_err().to_string(), said, "{text}");
        }
    }

    proptest! {
        /// Whatever is accepted means the same when it is read again.
        #[test]
        fn accepted_endpoints_round_trip(text in "(tcp|unix):[a-z\\[\\]:. 0-9]{0,12}(:[0-9]{1,5})?") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                prop_assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
            }
        }
    }
}
