//! Heads of HTTP/1.1 messages: found, parsed by httparse, and checked for all that RFC 9112 calls
//! ambiguous.
//!
//! Knows nothing of routes, backends or what is done with a message. Heads are sent from what was
//! parsed ([`forward`](super::forward)), never copied.

#[cfg(test)]
mod tests;

use super::body::Framing;
use crate::config::Limits;
use alloc::vec;
use core::mem::MaybeUninit;
use httparse::{Header, Status};

/// What a client did wrong before its request was complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// 400: malformed or ambiguous, and why.
    Malformed(&'static str),
    /// 400: CONNECT, which is a request to a proxy of another kind.
    Connect,
    /// 403: a page of elsewhere has a browser ask what only operators may.
    Foreign,
    /// 408: it paused for too long.
    Timeout,
    /// 413: the body is larger than allowed.
    BodyTooLarge,
    /// 414: the target is longer than allowed.
    TargetTooLong,
    /// 431: the head is larger than allowed.
    HeadTooLarge,
}

/// Why a backend's answer cannot be passed on; it counts as 502.
pub type ResponseError = &'static str;

/// Finds the empty line that ends a head, however the bytes arrive, looking at each byte once.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadEnd {
    seen: usize,
    line: usize,
}

impl HeadEnd {
    /// The length of the head at the front of `bytes`, with its empty line, once it is all there.
    /// `bytes` only grows between calls.
    ///
    /// # Errors
    ///
    /// A line that ends in a bare LF (RFC 9112 section 2.2 allows to accept it; we do not, since
    /// others may see it differently).
    pub fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, &'static str> {
        while let Some(found) = memchr::memchr(b'\n', bytes.get(self.seen..).unwrap_or_default()) {
            let lf = self.seen + found;
            if lf == 0 || bytes[lf - 1] != b'\r' {
                return Err("a line of the head ends in a bare LF");
            }
            let empty = lf - 1 == self.line;
            self.seen = lf + 1;
            self.line = lf + 1;
            if empty {
                return Ok(Some(lf + 1));
            }
        }
        self.seen = bytes.len();
        Ok(None)
    }

    /// Whether the first line is there.
    pub const fn has_line(&self) -> bool {
        self.line > 0
    }
}

/// A request head as it was sent, and what its framing headers mean.
#[derive(Debug)]
pub struct RequestHead<'a> {
    /// Case-sensitive, any token.
    pub method: &'a str,
    /// As sent: origin-form, absolute-form or `*`.
    pub target: &'a str,
    /// 0 or 1, of HTTP/1.x.
    pub minor: u8,
    /// In order, with duplicates and the case of names.
    pub headers: &'a [Header<'a>],
    /// How the body ends.
    pub framing: Framing,
    /// Whether the client wants to use the connection again.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Whether it has a `Host` header.
    pub has_host: bool,
    /// Whether the client would switch to a websocket, and to nothing else. Other protocols are
    /// never offered to a backend: HTTP/2 in clear text (h2c) would carry requests past us.
    pub offers_websocket: bool,
    /// Whether `Connection` names headers that must not be forwarded.
    pub names_hops: bool,
}

/// An answer's head as a backend sent it, and what its framing headers mean.
#[derive(Debug)]
pub struct ResponseHead<'a> {
    /// Any three digits.
    pub status: u16,
    /// As sent, obs-text too.
    pub reason: &'a [u8],
    /// 0 or 1, of HTTP/1.x.
    pub minor: u8,
    /// In order, with duplicates and the case of names.
    pub headers: &'a [Header<'a>],
    /// How the body ends.
    pub framing: Framing,
    /// Whether the backend keeps the connection open behind this answer.
    pub keep_alive: bool,
    /// Whether the backend switches to a websocket with it.
    pub switches: bool,
    /// Whether `Connection` names headers that must not be forwarded.
    pub names_hops: bool,
}

/// Room for the headers of a request: [`Limits::headers_max`] may not exceed it.
pub type HeaderRoom<'a> = [MaybeUninit<Header<'a>>; 256];

/// Room for a head's headers, on the caller's stack.
pub const fn header_room<'a>() -> HeaderRoom<'a> {
    [const { MaybeUninit::uninit() }; 256]
}

/// How many options the `Connection` headers of a head may have: each is compared with each header.
/// Nobody sends more than a few.
const OPTIONS_MAX: usize = 100;

/// How many header lines an answer may have. Far beyond any server; a bound all the same.
const RESPONSE_HEADERS_MAX: usize = 8_192;

/// Parses a complete request head, `bytes`, which ends with its empty line.
///
/// # Errors
///
/// Says what is wrong with it; the connection must be closed, since nobody knows where the next
/// request begins.
pub fn parse_request<'a>(
    bytes: &'a [u8],
    limits: &Limits,
    room: &'a mut HeaderRoom<'a>,
) -> Result<RequestHead<'a>, RequestError> {
    use RequestError::Malformed;
    let headers_max = limits.headers_max.min(room.len());
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut room[..headers_max]) {
        Ok(Status::Complete(len)) if len == bytes.len() => {}
        Ok(_) => return Err(Malformed("the head does not end where it should")),
        Err(error) => {
            return Err(malformed(error).map_or(RequestError::HeadTooLarge, Malformed));
        }
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
    else {
        return Err(Malformed("the request line is incomplete"));
    };
    if target.len() > limits.target_bytes_max {
        return Err(RequestError::TargetTooLong);
    }
    let headers: &'a [Header<'a>] = request.headers;
    let facts = Facts::of(headers).map_err(Malformed)?;
    if facts.hosts > 1 {
        return Err(Malformed("there is more than one Host header"));
    }
    if facts.hosts == 0 && minor == 1 {
        return Err(Malformed("the Host header is missing"));
    }
    if method == "CONNECT" {
        return Err(RequestError::Connect);
    }
    check_target(method, target).map_err(Malformed)?;
    let framing = match (facts.chunked, facts.length) {
        (true, Some(_)) => {
            return Err(Malformed("there is a Content-Length beside a Transfer-Encoding"));
        }
        (true, None) if minor == 0 => {
            return Err(Malformed("HTTP/1.0 knows no Transfer-Encoding"));
        }
        (true, None) => Framing::Chunked,
        (false, Some(0)) | (false, None) => Framing::Empty,
        (false, Some(bytes)) => Framing::Length(bytes),
    };
    // Of other expectations RFC 9110 section 10.1.1 allows 417; vLLM lets them be, and so do we.
    let expects_continue =
        minor == 1 && facts.expect.is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
    let keep_alive = if minor == 1 { !facts.close } else { facts.keep_alive && !facts.close };
    Ok(RequestHead {
        method,
        target,
        minor,
        headers,
        framing,
        keep_alive,
        expects_continue,
        has_host: facts.hosts == 1,
        offers_websocket: method == "GET"
            && minor == 1
            && framing == Framing::Empty
            && facts.names_upgrade
            && facts.is_websocket(),
        names_hops: facts.names_hops,
    })
}

/// Parses a complete response head, `bytes`, which ends with its empty line, and lends what it
/// holds to `then`. `to_head` says that the request was a HEAD, whose answer has no body whatever
/// its headers say.
///
/// # Errors
///
/// Says what is wrong with it.
pub fn parse_response<T>(
    bytes: &[u8],
    to_head: bool,
    then: impl FnOnce(ResponseHead<'_>) -> T,
) -> Result<T, ResponseError> {
    let mut room = [const { MaybeUninit::uninit() }; 64];
    let mut response = httparse::Response::new(&mut []);
    match httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        bytes,
        &mut room,
    ) {
        Err(httparse::Error::TooManyHeaders) => {
            let mut room = vec![httparse::EMPTY_HEADER; RESPONSE_HEADERS_MAX];
            let mut response = httparse::Response::new(&mut room);
            let parsed = response.parse(bytes);
            checked_response(bytes, to_head, &parsed, &response).map(then)
        }
        parsed => checked_response(bytes, to_head, &parsed, &response).map(then),
    }
}

fn checked_response<'a>(
    bytes: &'a [u8],
    to_head: bool,
    parsed: &httparse::Result<usize>,
    response: &'a httparse::Response<'_, 'a>,
) -> Result<ResponseHead<'a>, ResponseError> {
    match parsed {
        Ok(Status::Complete(len)) if *len == bytes.len() => {}
        Ok(_) => return Err("the head does not end where it should"),
        Err(error) => return Err(malformed(*error).unwrap_or("the head has too many headers")),
    }
    let (Some(status), Some(minor)) = (response.code, response.version) else {
        return Err("the status line is incomplete");
    };
    // httparse skips empty lines in front, and gives an empty reason for one that holds obs-text.
    if !bytes.starts_with(b"HTTP/") {
        return Err("there is an empty line before the status line");
    }
    let line_end = memchr::memchr(b'\r', bytes).unwrap_or(bytes.len());
    let reason = bytes.get("HTTP/1.1 200 ".len()..line_end).unwrap_or_default();
    let headers: &'a [Header<'a>] = response.headers;
    let facts = Facts::of(headers)?;
    let framing = match (facts.chunked, facts.length) {
        (true, Some(_)) => return Err("there is a Content-Length beside a Transfer-Encoding"),
        (true, None) if minor == 0 => return Err("HTTP/1.0 knows no Transfer-Encoding"),
        // RFC 9110 section 8.6, RFC 9112 section 6.1: whoever believes it reads the next answer, or
        // what was switched to, as a body.
        (true, None) | (false, Some(_)) if matches!(status, 100..=199) => {
            return Err("an informational answer frames a body");
        }
        _ if to_head || matches!(status, 100..=199 | 204 | 304) => Framing::Empty,
        (true, None) => Framing::Chunked,
        (false, Some(0)) => Framing::Empty,
        (false, Some(bytes)) => Framing::Length(bytes),
        (false, None) => Framing::UntilClose,
    };
    let keep_alive = minor == 1 && !facts.close && framing != Framing::UntilClose;
    Ok(ResponseHead {
        status,
        reason,
        minor,
        headers,
        framing,
        keep_alive,
        switches: status == 101 && minor == 1 && facts.is_websocket(),
        names_hops: facts.names_hops,
    })
}

/// What is wrong with a head's syntax; `None` if it just has too many headers.
const fn malformed(error: httparse::Error) -> Option<&'static str> {
    Some(match error {
        httparse::Error::TooManyHeaders => return None,
        httparse::Error::HeaderName => "a header line is malformed before its colon",
        httparse::Error::HeaderValue => "a header value holds a control character",
        httparse::Error::NewLine => "a line of the head does not end in CR LF",
        httparse::Error::Status => "the status line is malformed",
        httparse::Error::Token => "the request line is malformed",
        httparse::Error::Version => "the version is neither HTTP/1.0 nor HTTP/1.1",
    })
}

/// What the headers that matter for framing say.
#[derive(Default)]
struct Facts<'a> {
    hosts: u8,
    length: Option<u64>,
    chunked: bool,
    expect: Option<&'a [u8]>,
    close: bool,
    keep_alive: bool,
    names_hops: bool,
    /// Whether `Connection` names `Upgrade`.
    names_upgrade: bool,
    upgrades: u8,
    upgrade: &'a [u8],
    options: usize,
}

impl<'a> Facts<'a> {
    fn of(headers: &[Header<'a>]) -> Result<Self, &'static str> {
        let mut facts = Self::default();
        for header in headers {
            // The length of a name settles most headers without a comparison.
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            match header.name.len() {
                4 if is("host") => {
                    facts.hosts = facts.hosts.saturating_add(1);
                    check_host(header.value)?;
                }
                6 if is("expect") => {
                    let twice = "there is more than one Expect header";
                    once(&mut facts.expect, header.value, twice)?;
                }
                7 if is("upgrade") => {
                    facts.upgrades = facts.upgrades.saturating_add(1);
                    facts.upgrade = header.value;
                }
                10 if is("connection") => facts.connection(header.value)?,
                14 if is("content-length") => {
                    let twice = "there is more than one Content-Length";
                    once(&mut facts.length, parse_length(header.value)?, twice)?;
                }
                17 if is("transfer-encoding") => {
                    if facts.chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                        return Err("the Transfer-Encoding is not exactly one \"chunked\"");
                    }
                    facts.chunked = true;
                }
                _ => {}
            }
        }
        Ok(facts)
    }

    fn connection(&mut self, value: &[u8]) -> Result<(), &'static str> {
        for option in options(value) {
            self.options += 1;
            if self.options > OPTIONS_MAX {
                return Err("the Connection header has too many options");
            }
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if !option.is_empty() {
                self.names_hops = true;
                self.names_upgrade |= option.eq_ignore_ascii_case(b"upgrade");
            }
        }
        Ok(())
    }

    /// Whether a websocket is the one protocol to switch to.
    const fn is_websocket(&self) -> bool {
        self.upgrades == 1 && self.upgrade.eq_ignore_ascii_case(b"websocket")
    }
}

/// Keeps what may be said once.
fn once<T>(known: &mut Option<T>, value: T, twice: &'static str) -> Result<(), &'static str> {
    if known.replace(value).is_some() { Err(twice) } else { Ok(()) }
}

/// The comma-separated members of a header value, without the blanks around them.
pub fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

fn parse_length(value: &[u8]) -> Result<u64, &'static str> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err("the Content-Length is not a number");
    }
    value
        .iter()
        .try_fold(0_u64, |sum, digit| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
        .ok_or("the Content-Length is too large")
}

/// RFC 9110 section 7.2: `uri-host [":" port]`. The bytes of a URI's authority, less user
/// information; an empty one is allowed.
fn check_host(value: &[u8]) -> Result<(), &'static str> {
    let fits = |byte: &u8| match byte {
        b'!' | b'$' | b'%' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b'-' | b'.' | b':'
        | b';' | b'=' | b'[' | b']' | b'_' | b'~' => true,
        byte => byte.is_ascii_alphanumeric(),
    };
    if value.iter().all(fits) { Ok(()) } else { Err("the Host is not a host and a port") }
}

fn check_target(method: &str, target: &str) -> Result<(), &'static str> {
    match target.as_bytes() {
        [b'/', ..] => Ok(()),
        b"*" if method == "OPTIONS" => Ok(()),
        b"*" => Err("the target * belongs to OPTIONS"),
        _ => match absolute(target) {
            Some((authority, _)) if !authority.is_empty() => check_host(authority.as_bytes())
                .map_err(|_| "the authority of the target is not a host and a port"),
            _ => Err("the target is neither a path nor an http URL"),
        },
    }
}

/// Splits an absolute-form target (RFC 9112 section 3.2.2) into its authority and the rest, which
/// is empty or begins with `/` or `?`. `None` for any other form.
pub fn absolute(target: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if path.starts_with('#') { None } else { Some((authority, path)) }
}
