//! Which headers cross the proxy, and how they change.
//!
//! Owns RFC 9110 section 7.6.1 (hop-by-hop) and the emission of heads. Everything else passes in
//! its order, with its case and its duplicates.

use super::body::Framing;
use super::head::{RequestHead, ResponseHead, absolute, options};
use crate::fleet::BackendSpec;
use crate::time::Instant;
use crate::wire::answers::{Answer, reason};
use crate::wire::way::{Nowhere, Says};
use alloc::vec::Vec;
use httparse::Header;

/// What a client is sent a body as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientFraming {
    /// As the backend framed it: length, chunks, or nothing.
    AsIs,
    /// In chunks, since the backend ends it by closing.
    Rechunked,
    /// Plain, until we close: an HTTP/1.0 client knows no chunks.
    UntilClose,
}

/// Appends `name: value` and a line end.
pub fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The value of the first header of this name, in lower case.
pub fn header<'a>(headers: &[Header<'a>], name: &str) -> Option<&'a [u8]> {
    headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

/// Appends the header lines of a question of our own in a client's name: its headers, as
/// [`request_headers`] made them, but our own wish about the form of the answer, and no body.
pub fn question_headers(out: &mut Vec<u8>, headers: &[u8], accept: &str) {
    const REPLACED: [&[u8]; 5] =
        [b"accept", b"accept-encoding", b"content-length", b"content-type", b"transfer-encoding"];
    for field in headers.split_inclusive(|&byte| byte == b'\n') {
        let name = field.split(|&byte| byte == b':').next().unwrap_or_default();
        let replaced = REPLACED.iter().any(|replaced| name.eq_ignore_ascii_case(replaced));
        if !replaced && field != b"\r\n" {
            out.extend_from_slice(field);
        }
    }
    line(out, "accept", accept.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Whether a header belongs to one connection only.
fn is_hop(name: &str) -> bool {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    match name.len() {
        2 => is("te"),
        7 => is("upgrade"),
        10 => is("connection") || is("keep-alive"),
        16 => is("proxy-connection"),
        _ => false,
    }
}

/// What the `Connection` headers name, which [`head`](super::head) keeps short.
fn named<'a>(headers: &[Header<'a>]) -> Vec<&'a [u8]> {
    headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("connection"))
        .flat_map(|header| options(header.value))
        .collect()
}

fn is_named(name: &str, named: &[&[u8]]) -> bool {
    named.iter().any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
}

/// What crosses of a header that belongs to one connection, where both switch to a websocket.
fn switching<'a>(header: &Header<'a>) -> Option<&'a [u8]> {
    let is_upgrade = |option: &[u8]| option.eq_ignore_ascii_case(b"upgrade");
    if header.name.eq_ignore_ascii_case("upgrade") {
        Some(header.value)
    } else if header.name.eq_ignore_ascii_case("connection")
        && options(header.value).any(is_upgrade)
    {
        Some(if options(header.value).all(is_upgrade) { header.value } else { b"Upgrade" })
    } else {
        None
    }
}

/// Headers that frame or route a message, which `Connection` cannot take away.
fn is_kept(name: &str) -> bool {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    is("host") || is("content-length") || is("transfer-encoding")
}

/// Appends the header lines of a request for a backend, with the empty line, but without the
/// request line. Says whether there is a Host among them; for where the client named none see
/// [`request_start`].
pub fn request_headers(out: &mut Vec<u8>, head: &RequestHead<'_>) -> bool {
    let host = absolute(head.target).map(|(authority, _)| authority);
    if let Some(authority) = host
        && !head.has_host
    {
        line(out, "Host", authority.as_bytes());
    }
    let named = if head.names_hops { named(head.headers) } else { Vec::new() };
    for header in head.headers {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if head.offers_websocket
            && let Some(value) = switching(header)
        {
            line(out, header.name, value);
            continue;
        }
        if is_hop(header.name)
            // Answered by us; the backend gets the body with the head.
            || (is("expect") && header.value.eq_ignore_ascii_case(b"100-continue"))
            || (is_named(header.name, &named) && !is_kept(header.name))
        {
            continue;
        }
        match host {
            Some(authority) if is("host") => line(out, header.name, authority.as_bytes()),
            _ => line(out, header.name, header.value),
        }
    }
    out.extend_from_slice(b"\r\n");
    head.has_host || host.is_some()
}

/// The target for a backend: origin-form, without its prefix.
pub fn origin_form<'a>(head: &RequestHead<'a>) -> (&'static str, &'a str) {
    match absolute(head.target) {
        None => ("", head.target),
        Some((_, "")) if head.method == "OPTIONS" => ("*", ""),
        Some((_, rest)) if rest.starts_with('/') => ("", rest),
        Some((_, rest)) => ("/", rest),
    }
}

/// Appends the request line for a backend and, where the client named no host, the backend's.
pub fn request_start(
    out: &mut Vec<u8>,
    method: &[u8],
    target: &[u8],
    has_host: bool,
    spec: &BackendSpec,
) {
    out.extend_from_slice(method);
    out.push(b' ');
    if target != b"*" {
        out.extend_from_slice(spec.prefix.as_bytes());
    }
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if !has_host {
        line(out, "Host", spec.authority.as_bytes());
    }
}

/// Appends the head of an answer for a client. `close` says that the connection ends with it.
/// `keep` says that an HTTP/1.0 client asked to keep it. `says` is who tells it of the way.
pub fn response(
    out: &mut Vec<u8>,
    head: &ResponseHead<'_>,
    framing: ClientFraming,
    close: bool,
    keep: bool,
    says: Says<'_>,
) {
    status_line(out, head.status, head.reason);
    let mut connection = Connection { close, keep };
    let named = if head.names_hops { named(head.headers) } else { Vec::new() };
    for header in head.headers {
        if head.switches
            && let Some(value) = switching(header)
        {
            line(out, header.name, value);
            continue;
        }
        if is_hop(header.name) || (is_named(header.name, &named) && !is_kept(header.name)) {
            continue;
        }
        if says.drops(header.name) {
            continue;
        }
        if header.name.len() == 17 && header.name.eq_ignore_ascii_case("transfer-encoding") {
            // uvicorn sends `connection: close` before this one.
            connection.emit(out);
            if framing == ClientFraming::UntilClose {
                continue;
            }
        }
        line(out, header.name, header.value);
    }
    connection.emit(out);
    if framing == ClientFraming::Rechunked {
        line(out, "transfer-encoding", b"chunked");
    }
    if let Says::Proxy(way) = says {
        way.emit(out);
    }
    out.extend_from_slice(b"\r\n");
}

struct Connection {
    close: bool,
    keep: bool,
}

impl Connection {
    fn emit(&mut self, out: &mut Vec<u8>) {
        if self.close {
            line(out, "connection", b"close");
        } else if self.keep {
            line(out, "connection", b"keep-alive");
        }
        *self = Self { close: false, keep: false };
    }
}

/// How a client gets a body that a backend frames so.
pub const fn client_framing(backend: Framing, client_minor: u8) -> ClientFraming {
    match (backend, client_minor) {
        (Framing::Chunked | Framing::UntilClose, 0) => ClientFraming::UntilClose,
        (Framing::UntilClose, _) => ClientFraming::Rechunked,
        (Framing::Empty | Framing::Length(_) | Framing::Chunked, _) => ClientFraming::AsIs,
    }
}

/// Appends an answer of our own, as uvicorn would send it.
pub fn own_answer(out: &mut Vec<u8>, answer: &Answer, setting: &Setting) {
    status_line(out, answer.status, reason(answer.status).as_bytes());
    line(out, "date", &http_date(setting.unix_micros / 1_000_000));
    line(out, "server", b"uvicorn");
    if let Some(allow) = answer.allow {
        line(out, "allow", allow.as_bytes());
    }
    if let Some(seconds) = answer.retry_after {
        number_line(out, "retry-after", seconds.into());
    }
    let len = setting.apart.unwrap_or(answer.body.len());
    number_line(out, "content-length", len as u64);
    if let Some(kind) = answer.content_type {
        line(out, "content-type", kind.as_bytes());
    }
    for (name, value) in answer.headers {
        line(out, name, value.as_bytes());
    }
    if !setting.unread {
        // vLLM's CORS middleware marks whatever its routes say.
        line(out, "vary", b"Origin");
    }
    Connection { close: setting.close, keep: setting.keep }.emit(out);
    if let Some(nowhere) = setting.nowhere {
        nowhere.emit(out);
    }
    out.extend_from_slice(b"\r\n");
    if !setting.to_head {
        out.extend_from_slice(&answer.body);
    }
}

/// Appends the head of an answer of our own that is a stream of events, behind which the connection
/// ends.
pub fn own_events(out: &mut Vec<u8>, chunked: bool, unix_secs: u64) {
    status_line(out, 200, reason(200).as_bytes());
    line(out, "date", &http_date(unix_secs));
    line(out, "server", b"uvicorn");
    line(out, "content-type", b"text/event-stream; charset=utf-8");
    line(out, "cache-control", b"no-store");
    // nginx would gather them.
    line(out, "x-accel-buffering", b"no");
    if chunked {
        line(out, "transfer-encoding", b"chunked");
    }
    Connection { close: true, keep: false }.emit(out);
    out.extend_from_slice(b"\r\n");
}

/// Appends our own consent to a websocket, as uvicorn gives it. `accept` is the
/// `Sec-WebSocket-Accept`.
pub fn own_switch(out: &mut Vec<u8>, accept: &[u8], unix_secs: u64) {
    status_line(out, 101, reason(101).as_bytes());
    line(out, "Upgrade", b"websocket");
    line(out, "Connection", b"Upgrade");
    line(out, "Sec-WebSocket-Accept", accept);
    line(out, "date", &http_date(unix_secs));
    line(out, "server", b"uvicorn");
    out.extend_from_slice(b"\r\n");
}

/// What an answer of our own is an answer to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setting {
    /// A HEAD, whose answer has no body.
    pub to_head: bool,
    /// How long the body is, where it follows apart.
    pub apart: Option<usize>,
    /// A request that was not read to its end: uvicorn refuses these before vLLM hears of them.
    pub unread: bool,
    /// Whether the connection ends with it.
    pub close: bool,
    /// Whether an HTTP/1.0 client asked to keep the connection.
    pub keep: bool,
    /// The Unix time, in microseconds.
    pub unix_micros: u64,
    /// Told if the client asked, and nobody took the request.
    pub nowhere: Option<Nowhere>,
}

/// Appends the trailer fields that may cross, with the empty line that ends them. `raw` is what
/// [`BodyReader::trailers`](super::body::BodyReader::trailers) kept, `says` who tells their
/// reader of the way.
///
/// # Errors
///
/// A line that is not a header field.
pub fn trailers(
    out: &mut Vec<u8>,
    raw: &[u8],
    headers_max: usize,
    says: Says<'_>,
) -> Result<(), &'static str> {
    const MALFORMED: &str = "a trailer field is malformed";
    if !raw.is_empty() {
        let mut section = raw.to_vec();
        section.extend_from_slice(b"\r\n");
        let mut room = alloc::vec![httparse::EMPTY_HEADER; headers_max];
        let Ok(httparse::Status::Complete((_, fields))) =
            httparse::parse_headers(&section, &mut room)
        else {
            return Err(MALFORMED);
        };
        for field in fields {
            // RFC 9110 section 6.5.1: fields that frame or route a message have no place here.
            if !is_hop(field.name) && !is_kept(field.name) && !says.drops(field.name) {
                line(out, field.name, field.value);
            }
        }
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

fn status_line(out: &mut Vec<u8>, status: u16, reason: &[u8]) {
    out.extend_from_slice(b"HTTP/1.1 ");
    for place in [100, 10, 1] {
        out.push(b'0' + u8::try_from(status / place % 10).unwrap_or(0));
    }
    out.push(b' ');
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
}

/// Appends `name: number` and a line end.
pub(super) fn number_line(out: &mut Vec<u8>, name: &str, number: u64) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    decimal(out, number);
    out.extend_from_slice(b"\r\n");
}

/// Appends a number in decimal digits.
pub fn decimal(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a chunk's size line.
pub fn chunk_size(out: &mut Vec<u8>, bytes: u64) {
    let digits = (64 - bytes.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let digit = (bytes >> (place * 4) & 15) as u8;
        out.push(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
    }
    out.extend_from_slice(b"\r\n");
}

/// `Date` as RFC 9110 section 5.6.7 wants it, of a Unix time in seconds.
fn http_date(seconds: u64) -> [u8; 29] {
    const DAYS: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
    const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
    let days = seconds / 86_400;
    // Civil date from days, in eras of 400 years that begin on 1 March (Howard Hinnant's method).
    let shifted = days + 719_468;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    let year = year_of_era + shifted / 146_097 * 400 + u64::from(month < 2);
    let mut date = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    date[..3].copy_from_slice(DAYS[(days % 7) as usize]);
    let month = month as usize * 3;
    date[8..11].copy_from_slice(&MONTHS[month..month + 3]);
    let mut two = |at: usize, number: u64| {
        date[at] = b'0' + (number / 10 % 10) as u8;
        date[at + 1] = b'0' + (number % 10) as u8;
    };
    two(5, day);
    two(12, year / 100);
    two(14, year % 100);
    two(17, seconds / 3_600 % 24);
    two(20, seconds / 60 % 60);
    two(23, seconds % 60);
    date
}

/// The Unix time at `now`, in microseconds.
pub const fn unix_micros(epoch_micros: u64, now: Instant) -> u64 {
    epoch_micros.saturating_add(now.micros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;
    use crate::fleet::{Address, Labels};
    use crate::wire::head::{header_room, parse_request, parse_response};
    use rstest::rstest;
    use std::string::{String, ToString};

    fn forwarded(bytes: &str, prefix: &str) -> String {
        let mut room = header_room();
        let head = parse_request(bytes.as_bytes(), &Limits::default(), &mut room).expect("valid");
        let spec = BackendSpec {
            upstream: 0,
            address: Address::Unix("/s".to_string()),
            authority: "backend:1".to_string(),
            prefix: prefix.to_string(),
            labels: Labels::default(),
        };
        let (slash, rest) = origin_form(&head);
        let target = std::format!("{slash}{rest}");
        let mut out = Vec::new();
        let mut headers = Vec::new();
        let has_host = request_headers(&mut headers, &head);
        request_start(&mut out, head.method.as_bytes(), target.as_bytes(), has_host, &spec);
        out.extend_from_slice(&headers);
        String::from_utf8(out).expect("text").replace("\r\n", "|")
    }

    #[rstest]
    #[case::plain(
        "GET /a?b HTTP/1.1\r\nHost: h\r\nX: 1\r\nx: 2\r\n\r\n",
        "GET /a?b HTTP/1.1|Host: h|X: 1|x: 2||"
    )]
    #[case::hops(
        "GET / HTTP/1.1\r\nHost: h\r\nConnection: close, X\r\nKeep-Alive: 1\r\nTE: gzip\r\nUpgrade: h2c\r\nProxy-Connection: y\r\nx: 1\r\nY: 2\r\n\r\n",
        "GET / HTTP/1.1|Host: h|Y: 2||"
    )]
    #[case::hops_cannot_name_framing(
        "POST / HTTP/1.1\r\nConnection: host, content-length\r\nHost: h\r\nContent-Length: 1\r\n\r\n",
        "POST / HTTP/1.1|Host: h|Content-Length: 1||"
    )]
    #[case::expect(
        "PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n",
        "PUT / HTTP/1.1|Host: h||"
    )]
    #[case::authorization(
        "GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer k\r\n\r\n",
        "GET / HTTP/1.1|Host: h|Authorization: Bearer k||"
    )]
    #[case::old("GET / HTTP/1.0\r\nA: b\r\n\r\n", "GET / HTTP/1.1|Host: backend:1|A: b||")]
    #[case::absolute(
        "GET http://o:2/x?y HTTP/1.1\r\nA: b\r\nhost: h\r\n\r\n",
        "GET /x?y HTTP/1.1|A: b|host: o:2||"
    )]
    #[case::absolute_old(
        "GET http://o:2/x HTTP/1.0\r\nA: b\r\n\r\n",
        "GET /x HTTP/1.1|Host: o:2|A: b||"
    )]
    #[case::absolute_without_path(
        "GET HTTP://o?q HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /?q HTTP/1.1|Host: o||"
    )]
    #[case::absolute_options(
        "OPTIONS http://o HTTP/1.1\r\nHost: h\r\n\r\n",
        "OPTIONS * HTTP/1.1|Host: o||"
    )]
    #[case::star("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", "OPTIONS * HTTP/1.1|Host: h||")]
    #[case::odd_target(
        "GET //a/../b'\\%zz HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET //a/../b'\\%zz HTTP/1.1|Host: h||"
    )]
    fn requests_cross(#[case] bytes: &str, #[case] expected: &str) {
        assert_eq!(forwarded(bytes, ""), expected);
    }

    #[test]
    fn a_prefix_goes_before_the_target() {
        let sent = forwarded("GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n", "/p");
        assert_eq!(sent, "GET /p/v1/models HTTP/1.1|Host: h||");
        let star = forwarded("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", "/p");
        assert_eq!(star, "OPTIONS * HTTP/1.1|Host: h||");
    }

    #[rstest]
    #[case::as_is(b"HTTP/1.1 299 Odd one\r\nServer: x\r\nconnection: close, a\r\nA: 1\r\nb: \xe9\r\nB: 2\r\ncontent-length: 2\r\n\r\n", ClientFraming::AsIs, false, "HTTP/1.1 299 Odd one|Server: x|b: \\xe9|B: 2|content-length: 2||")]
    #[case::chunked_and_close(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        ClientFraming::AsIs,
        true,
        "HTTP/1.1 200 OK|connection: close|transfer-encoding: chunked||"
    )]
    #[case::length_and_close(
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n",
        ClientFraming::AsIs,
        true,
        "HTTP/1.1 200 OK|content-length: 2|connection: close||"
    )]
    #[case::until_close(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        ClientFraming::UntilClose,
        true,
        "HTTP/1.1 200 OK|connection: close||"
    )]
    #[case::rechunked(
        b"HTTP/1.0 200 \r\nx: 1\r\n\r\n",
        ClientFraming::Rechunked,
        false,
        "HTTP/1.1 200 |x: 1|transfer-encoding: chunked||"
    )]
    #[case::status_zero(
        b"HTTP/1.1 007 Bond\r\ncontent-length: 0\r\n\r\n",
        ClientFraming::AsIs,
        false,
        "HTTP/1.1 007 Bond|content-length: 0||"
    )]
    fn answers_cross(
        #[case] bytes: &[u8],
        #[case] framing: ClientFraming,
        #[case] close: bool,
        #[case] expected: &str,
    ) {
        let mut out = Vec::new();
        parse_response(bytes, false, |head| {
            response(&mut out, &head, framing, close, false, Says::Backend);
        })
        .expect("valid");
        assert_eq!(out.escape_ascii().to_string().replace("\\r\\n", "|"), expected);
    }

    #[test]
    fn a_question_keeps_who_asks_and_not_how() {
        let mut out = Vec::new();
        let headers =
            b"Host: h\r\nAccept-Encoding: gzip\r\nACCEPT: a/b\r\nauthorization: Bearer k\r\n\
            content-length: 3\r\nAccepts: x\r\n\r\n";
        question_headers(&mut out, headers, "text/plain");
        let expected =
            "Host: h\r\nauthorization: Bearer k\r\nAccepts: x\r\naccept: text/plain\r\n\r\n";
        assert_eq!(out, expected.as_bytes());
    }

    #[rstest]
    #[case(0, "Thu, 01 Jan 1970 00:00:00 GMT")]
    #[case(784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT")]
    #[case(951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT")]
    #[case(951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT")]
    #[case(4_102_444_799, "Thu, 31 Dec 2099 23:59:59 GMT")]
    fn dates(#[case] seconds: u64, #[case] expected: &str) {
        assert_eq!(core::str::from_utf8(&http_date(seconds)), Ok(expected));
    }

    #[rstest]
    #[case(0, "0\r\n")]
    #[case(15, "f\r\n")]
    #[case(16, "10\r\n")]
    #[case(0xabc_def0, "abcdef0\r\n")]
    #[case(u64::MAX, "ffffffffffffffff\r\n")]
    fn chunk_sizes(#[case] bytes: u64, #[case] expected: &str) {
        let mut out = Vec::new();
        chunk_size(&mut out, bytes);
        assert_eq!(core::str::from_utf8(&out), Ok(expected));
    }

    #[test]
    fn trailers_lose_what_frames_and_refuse_what_is_malformed() {
        let mut out = Vec::new();
        let mut pass = |raw: &[u8]| trailers(&mut out, raw, 256, Says::Backend);
        assert!(pass(b"no colon\r\n").is_err());
        assert!(pass(b"a: 1\r\n b\r\n").is_err());
        pass(b"a:1\r\nContent-Length: 3\r\nB: \xe9\r\n").expect("valid");
        assert_eq!(out, b"a: 1\r\nB: \xe9\r\n\r\n");
    }
}
