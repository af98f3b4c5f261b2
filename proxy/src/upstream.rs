//! Upstream: one server, or a name that stands for several, as the operator says it.
//!
//! Does not look names up; the prober does.

use crate::secret::redacted;
use crate::usage::Invalid;
use crate::values::{Host, host_and_port};
use std::fmt;

const EXPECTED: &str = "http://host[:port][/prefix] or unix:///path";
/// What `sockaddr_un` takes, less its final NUL.
pub(crate) const UNIX_PATH_BYTES_MAX: usize = 107;
/// More are a mistake; the engine counts them in 16 bits.
pub(crate) const UPSTREAMS_MAX: usize = 4096;

/// One upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Upstream {
    pub(crate) place: Place,
    /// `host[:port]`, as it stands in a `Host` header.
    pub(crate) authority: String,
    /// Empty, or `/p` without a final slash.
    pub(crate) prefix: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Tcp { host: Host, port: u16 },
    Unix(String),
}

impl Upstream {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let Some((scheme, rest)) = text.split_once("://") else { return Err("") };
        match scheme.to_ascii_lowercase().as_str() {
            "http" => Self::http(rest),
            "unix" => Self::unix(rest),
            "https" => Err("; this proxy speaks no TLS: let the backend serve plain HTTP on a \
                            private network, or put a TLS tunnel such as stunnel in between"),
            _ => Err(""),
        }
    }

    fn http(rest: &str) -> Result<Self, &'static str> {
        let (address, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        if rest.contains('@') {
            return Err(" without user or password; a key goes into VLLM_PXY_BACKEND_KEY");
        }
        if rest.contains(['?', '#']) {
            return Err(" without query or fragment");
        }
        let (host, port) = host_and_port(address).ok_or(" (the host or port is not one)")?;
        let authority = match port {
            Some(port) if port != 80 => format!("{host}:{port}"),
            _ => host.to_string(),
        };
        let prefix = path.trim_end_matches('/');
        if !is_prefix(prefix) {
            return Err(" (the prefix is not a path in its plain form)");
        }
        let place = Place::Tcp { host, port: port.unwrap_or(80) };
        Ok(Self { place, authority, prefix: prefix.to_owned() })
    }

    fn unix(path: &str) -> Result<Self, &'static str> {
        if !path.starts_with('/')
            || path.len() > UNIX_PATH_BYTES_MAX
            || path.chars().any(char::is_control)
        {
            return Err(" (the path is absolute and of at most 107 bytes)");
        }
        let place = Place::Unix(path.to_owned());
        Ok(Self { place, authority: "localhost".to_owned(), prefix: String::new() })
    }
}

/// Whether a path can stand before every target as it is: characters that RFC 3986 allows there,
/// no empty segment and none of dots, which servers would resolve, each in its way.
fn is_prefix(path: &str) -> bool {
    const OTHERS: &[u8] = b"-._~!$&'()*+,;=:%";
    let segment = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || OTHERS.contains(&byte))
    };
    path.is_empty() || path[1..].split('/').all(segment)
}

/// Every upstream of one source. A value that has an `@` somewhere may be a URL with a password
/// that was cut at a comma or a space, so then no item is shown whole.
pub(crate) fn parse_all(items: &[&str]) -> Result<Vec<Upstream>, (String, Invalid)> {
    let parse =
        |item: &&str| parse_among(item, items).map_err(|invalid| ((*item).to_owned(), invalid));
    let upstreams = items.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    if upstreams.len() > UPSTREAMS_MAX {
        let shown = format!("{} upstreams", upstreams.len());
        return Err((shown, Invalid::expected(format!("at most {UPSTREAMS_MAX}"))));
    }
    Ok(upstreams)
}

/// One upstream, of a source that is in these pieces.
pub(crate) fn parse_among(item: &str, pieces: &[&str]) -> Result<Upstream, Invalid> {
    Upstream::parse(item).map_err(|what| invalid_among(item, pieces, &format!("{EXPECTED}{what}")))
}

/// What to say of a wrong one of these pieces.
pub(crate) fn invalid_among(item: &str, pieces: &[&str], expected: &str) -> Invalid {
    if pieces.iter().any(|piece| may_hold_secret(piece)) {
        return Invalid::shown_as(redacted(item), expected.to_owned());
    }
    Invalid::expected(expected.to_owned())
}

/// Whether what was written may be user and password of a URL: `http://user:pass` lacks its host,
/// and the password stands where a port should.
fn may_hold_secret(item: &str) -> bool {
    let rest = item.split_once("://").map_or(item, |(_, rest)| rest);
    let address = rest.split('/').next().unwrap_or_default();
    let port = address.rsplit_once(':').map_or("", |(_, port)| port);
    // A single letter keeps no secret; a number of up to five digits is a port.
    let is_port = port.len() < 2
        || port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit() || byte == b']');
    item.contains(['@', '%', '?', '#']) || !is_port
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp { .. } => write!(f, "http://{}{}", self.authority, self.prefix),
            Place::Unix(path) => write!(f, "unix://{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::name("http://vllm", "http://vllm", 80)]
    #[case::port("http://vllm:8000", "http://vllm:8000", 8000)]
    #[case::default_port("http://vllm:80/", "http://vllm", 80)]
    #[case::prefix("http://vllm:8000/a/b/", "http://vllm:8000/a/b", 8000)]
    #[case::ipv6("http://[::1]:8000", "http://[::1]:8000", 8000)]
    #[case::upper_case("HTTP://VLLM:8000/A", "http://vllm:8000/A", 8000)]
    fn valid(#[case] text: &str, #[case] shown: &str, #[case] expected: u16) {
        let upstream = Upstream::parse(text).unwrap();
        assert_eq!(upstream.to_string(), shown);
        let Place::Tcp { port, .. } = upstream.place else { panic!("not TCP") };
        assert_eq!(port, expected);
    }

    #[test]
    fn a_unix_socket_is_localhost() {
        let upstream = Upstream::parse("unix:///run/vllm.sock").unwrap();
        assert_eq!(upstream.place, Place::Unix("/run/vllm.sock".to_owned()));
        assert_eq!((upstream.authority.as_str(), upstream.prefix.as_str()), ("localhost", ""));
    }

    #[rstest]
    #[case::empty("")]
    #[case::no_scheme("vllm:8000")]
    #[case::no_host("http://")]
    #[case::no_host_but_port("http://:8000")]
    #[case::bad_port("http://vllm:80a")]
    #[case::port_zero("http://vllm:0")]
    #[case::wrong_scheme("ftp://vllm")]
    #[case::ipv6_without_brackets("http://::1:8000")]
    #[case::dots("http://vllm/a/../b")]
    #[case::empty_segment("http://vllm/a//b")]
    #[case::space("http://vllm/a b")]
    #[case::query("http://vllm/?a=b")]
    #[case::fragment("http://vllm/#a")]
    #[case::unix_relative("unix://run/vllm.sock")]
    #[case::unix_directory("unix://")]
    fn invalid(#[case] text: &str) {
        let (_, invalid) = parse_all(&[text]).unwrap_err();
        assert!(invalid.expected.starts_with(EXPECTED), "{invalid:?}");
    }

    #[test]
    fn tls_is_refused_with_advice() {
        let (_, invalid) = parse_all(&["https://vllm"]).unwrap_err();
        assert!(invalid.expected.contains("no TLS"), "{invalid:?}");
    }

    #[rstest]
    #[case::whole(&["http://me:hunter2@vllm"])]
    #[case::cut_in_two(&["http://me:hunter2", "3@vllm"])]
    #[case::escaped_at(&["http://me:hunter2%40vllm"])]
    #[case::tls(&["https://me:hunter2@vllm"])]
    #[case::without_host(&["http://me:hunter2"])]
    #[case::without_host_but_a_path(&["http://a", "http://me:hunter2/x"])]
    #[case::without_scheme(&["me:hunter2"])]
    fn passwords_are_not_shown(#[case] items: &[&str]) {
        let (_, invalid) = parse_all(items).unwrap_err();
        assert!(!format!("{invalid:?}").contains("hunter2"), "{invalid:?}");
        assert!(invalid.shown.is_some());
    }
}
