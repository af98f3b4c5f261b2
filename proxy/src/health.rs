//! `vllm-proxy health`: asks a proxy how it is.
//!
//! One request over a blocking socket: a health check runs every few seconds, and a runtime for it
//! would cost more than the answer.

use crate::cli::complain;
use crate::secret::redacted;
use crate::usage::Invalid;
use crate::values::{Host, host_and_port, number};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// For everything: looking up the name, connecting, the answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Where a proxy listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: Host,
    pub(crate) port: u16,
}

impl Address {
    /// `host:port`, `:port`, `host` or `http://host:port`; what is left out is as `here`.
    pub(crate) fn parse(text: &str, here: &Self) -> Result<Self, Invalid> {
        let expected = || {
            let expected = "host:port, :port, host or http://host:port";
            if text.contains(['@', '%', '?', '#']) {
                Invalid::shown_as(redacted(text), expected)
            } else {
                Invalid::expected(expected)
            }
        };
        let rest = match text.get(..7) {
            Some(scheme) if scheme.eq_ignore_ascii_case("http://") => &text[7..],
            _ => text,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if let Ok(address) = rest.parse::<IpAddr>() {
            return Ok(Self { host: Host::Ip(address), port: here.port });
        }
        if let Some(port) = rest.strip_prefix(':') {
            let port = number(port).and_then(|port| u16::try_from(port).ok());
            let port = port.filter(|port| *port != 0).ok_or_else(expected)?;
            return Ok(Self { host: here.host.clone(), port });
        }
        let (host, port) = host_and_port(rest).ok_or_else(expected)?;
        Ok(Self { host, port: port.unwrap_or(here.port) })
    }

    /// An address to listen on every interface is none to connect to: this machine is meant.
    pub(crate) fn reachable(mut self) -> Self {
        self.host = match self.host {
            Host::Ip(IpAddr::V4(address)) if address.is_unspecified() => {
                Host::Ip(Ipv4Addr::LOCALHOST.into())
            }
            Host::Ip(IpAddr::V6(address)) if address.is_unspecified() => {
                Host::Ip(Ipv6Addr::LOCALHOST.into())
            }
            host @ (Host::Ip(_) | Host::Name(_)) => host,
        };
        self
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Exit status 0 if the proxy is healthy.
pub(crate) fn check(address: &Address) -> ExitCode {
    let (tell, told) = mpsc::channel();
    let asked = address.clone();
    // On a thread of its own, since nothing else limits how long a look-up takes.
    let started = thread::Builder::new().name("health".to_owned()).spawn(move || {
        let _ = tell.send(ask(&asked));
    });
    let answer = match started {
        Ok(_) => told
            .recv_timeout(LIMIT)
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut))),
        Err(error) => Err(error),
    };
    match answer {
        Ok(200) => ExitCode::SUCCESS,
        Ok(status) => complain(&format_args!("{address} is not healthy: status {status}"), 1),
        Err(error) => complain(&format_args!("{address} gives no answer: {error}"), 1),
    }
}

/// The status of `GET /health`.
fn ask(address: &Address) -> io::Result<u16> {
    let host = match &address.host {
        Host::Ip(ip) => ip.to_string(),
        Host::Name(name) => name.clone(),
    };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    let connected = (host.as_str(), address.port).to_socket_addrs()?.find_map(|address| {
        TcpStream::connect_timeout(&address, LIMIT).map_err(|error| last = error).ok()
    });
    let Some(mut stream) = connected else { return Err(last) };
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let head = format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    status(stream)
}

/// The status of an answer; what follows it is not waited for.
fn status(stream: impl Read) -> io::Result<u16> {
    const LINE: usize = "HTTP/1.1 200".len();
    let mut line = Vec::new();
    stream.take(LINE as u64).read_to_end(&mut line)?;
    let line = String::from_utf8(line).unwrap_or_default();
    line.strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split_once(' '))
        .filter(|(_, status)| status.len() == 3)
        .and_then(|(_, status)| number(status))
        .and_then(|status| u16::try_from(status).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "this is not HTTP/1.1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn here(host: &str) -> Address {
        Address { host: crate::values::listen_host(host).unwrap(), port: 8000 }
    }

    #[rstest]
    #[case::whole("proxy:80", Some("proxy:80"))]
    #[case::port(":80", Some("127.0.0.1:80"))]
    #[case::host("proxy", Some("proxy:8000"))]
    #[case::url("http://proxy:80", Some("proxy:80"))]
    #[case::url_with_slash("HTTP://proxy/", Some("proxy:8000"))]
    #[case::ipv6("[::1]:80", Some("[::1]:80"))]
    #[case::ipv6_alone("::1", Some("[::1]:8000"))]
    #[case::any("0.0.0.0:80", Some("127.0.0.1:80"))]
    #[case::any_ipv6("[::]:80", Some("[::1]:80"))]
    #[case::number("8000", None)]
    #[case::port_zero(":0", None)]
    #[case::path("http://proxy/health", None)]
    #[case::tls("https://proxy", None)]
    #[case::empty("", None)]
    fn addresses(#[case] text: &str, #[case] expected: Option<&str>) {
        let address = Address::parse(text, &here("0.0.0.0")).ok();
        assert_eq!(address.map(|address| address.reachable().to_string()).as_deref(), expected);
    }

    #[test]
    fn this_machine_is_meant() {
        assert_eq!(here("0.0.0.0").reachable().to_string(), "127.0.0.1:8000");
        assert_eq!(here("::").reachable().to_string(), "[::1]:8000");
    }

    #[rstest]
    #[case(b"HTTP/1.1 200 OK\r\n\r\n", Some(200))]
    #[case(b"HTTP/1.1 503 Service Unavailable\r\n\r\n", Some(503))]
    #[case(b"HTTP/1.1 2", None)]
    #[case(b"SSH-2.0-OpenSSH", None)]
    #[case(b"", None)]
    fn answers(#[case] bytes: &[u8], #[case] expected: Option<u16>) {
        assert_eq!(status(bytes).ok(), expected);
    }
}
