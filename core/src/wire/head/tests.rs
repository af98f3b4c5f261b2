//! Heads, well formed and not.

use super::*;
use rstest::rstest;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

/// The header lines of a parsed head.
fn lines(headers: &[Header<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for header in headers {
        crate::wire::forward::line(&mut out, header.name, header.value);
    }
    out
}

fn summary(bytes: &[u8]) -> Result<String, RequestError> {
    let mut room = header_room();
    let head = parse_request(bytes, &Limits::default(), &mut room)?;
    Ok(format!(
        "{} {} {} {:?}{}{}{} {}",
        head.method,
        head.target,
        head.minor,
        head.framing,
        if head.keep_alive { " keep" } else { " close" },
        if head.expects_continue { " expect" } else { "" },
        if head.names_hops { " hops" } else { "" },
        String::from_utf8_lossy(&lines(head.headers)).replace("\r\n", "|"),
    ))
}

#[rstest]
#[case::plain("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / 1 Empty keep Host: a|")]
#[case::order(
    "GET / HTTP/1.1\r\nb: 1\r\nHost:a\r\nB: 2\r\n\r\n",
    "GET / 1 Empty keep b: 1|Host: a|B: 2|"
)]
#[case::blanks("GET / HTTP/1.1\r\nHost: \t a \t\r\n\r\n", "GET / 1 Empty keep Host: a|")]
#[case::empty_value("GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET / 1 Empty keep Host: |")]
#[case::length(
    "POST / HTTP/1.1\r\nHost: a\r\ncontent-LENGTH: 12\r\n\r\n",
    "POST / 1 Length(12) keep Host: a|content-LENGTH: 12|"
)]
#[case::chunked(
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n",
    "POST / 1 Chunked keep Host: a|Transfer-Encoding: Chunked|"
)]
#[case::close(
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: x , CLOSE\r\n\r\n",
    "GET / 1 Empty close hops Host: a|Connection: x , CLOSE|"
)]
#[case::old("GET / HTTP/1.0\r\n\r\n", "GET / 0 Empty close ")]
#[case::old_keep(
    "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
    "GET / 0 Empty keep Connection: Keep-Alive|"
)]
#[case::expect(
    "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n\r\n",
    "PUT / 1 Empty keep expect Host: a|Expect: 100-Continue|"
)]
#[case::absolute(
    "GET http://b:1/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET http://b:1/x 1 Empty keep Host: a|"
)]
#[case::star("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * 1 Empty keep Host: a|")]
#[case::odd_method(
    "!#$%&'*+-.^_`|~aZ9 / HTTP/1.1\r\nHost: a\r\n\r\n",
    "!#$%&'*+-.^_`|~aZ9 / 1 Empty keep Host: a|"
)]
#[case::empty_lines("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / 1 Empty keep Host: a|")]
#[case::host_v6("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET / 1 Empty keep Host: [::1]:80|")]
#[case::utf8_target("GET /é HTTP/1.1\r\nHost: a\r\n\r\n", "GET /é 1 Empty keep Host: a|")]
fn requests_are_read(#[case] bytes: &str, #[case] expected: &str) {
    assert_eq!(summary(bytes.as_bytes()), Ok(expected.to_string()));
}

#[test]
fn obs_text_in_values_is_kept() {
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nx: \xe9\xff\r\n\r\n";
    let mut room = header_room();
    let head = parse_request(bytes, &Limits::default(), &mut room).expect("valid");
    assert_eq!(head.headers[1].value, b"\xe9\xff");
}

#[rstest]
#[case::no_host("GET / HTTP/1.1\r\n\r\n", "the Host header is missing")]
#[case::two_hosts(
    "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
    "there is more than one Host header"
)]
#[case::host_with_path("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "the Host is not a host and a port")]
#[case::host_list("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", "the Host is not a host and a port")]
#[case::host_user("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", "the Host is not a host and a port")]
#[case::both(
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "there is a Content-Length beside a Transfer-Encoding"
)]
#[case::both_otherwise(
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
    "there is a Content-Length beside a Transfer-Encoding"
)]
#[case::two_lengths(
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    "there is more than one Content-Length"
)]
#[case::length_list(
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
    "the Content-Length is not a number"
)]
#[case::length_sign(
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
    "the Content-Length is not a number"
)]
#[case::length_minus(
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "the Content-Length is not a number"
)]
#[case::length_hex(
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\n",
    "the Content-Length is not a number"
)]
#[case::length_empty(
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
    "the Content-Length is not a number"
)]
#[case::length_overflow(
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n",
    "the Content-Length is too large"
)]
#[case::coding(
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
    "the Transfer-Encoding is not exactly one \"chunked\""
)]
#[case::codings(
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "the Transfer-Encoding is not exactly one \"chunked\""
)]
#[case::coding_twice(
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "the Transfer-Encoding is not exactly one \"chunked\""
)]
#[case::coding_identity(
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
    "the Transfer-Encoding is not exactly one \"chunked\""
)]
#[case::coding_old(
    "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HTTP/1.0 knows no Transfer-Encoding"
)]
#[case::fold(
    "GET / HTTP/1.1\r\nHost: a\r\nx: 1\r\n 2\r\n\r\n",
    "a header line is malformed before its colon"
)]
#[case::blank_before_colon(
    "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "a header line is malformed before its colon"
)]
#[case::blank_first(
    "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "a header line is malformed before its colon"
)]
#[case::no_name("GET / HTTP/1.1\r\n: a\r\n\r\n", "a header line is malformed before its colon")]
#[case::no_colon("GET / HTTP/1.1\r\nHost\r\n\r\n", "a header line is malformed before its colon")]
#[case::nul("GET / HTTP/1.1\r\nHost: a\0\r\n\r\n", "a header value holds a control character")]
#[case::bare_cr(
    "GET / HTTP/1.1\r\nHost: a\rb: c\r\n\r\n",
    "a header value holds a control character"
)]
#[case::version_2(
    "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "the version is neither HTTP/1.0 nor HTTP/1.1"
)]
#[case::version_case(
    "GET / http/1.1\r\nHost: a\r\n\r\n",
    "the version is neither HTTP/1.0 nor HTTP/1.1"
)]
#[case::preface("PRI * HTTP/2.0\r\n\r\n", "the version is neither HTTP/1.0 nor HTTP/1.1")]
#[case::two_blanks("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "the request line is malformed")]
#[case::no_version("GET /\r\nHost: a\r\n\r\n", "the request line is malformed")]
#[case::blank_in_target(
    "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "the version is neither HTTP/1.0 nor HTTP/1.1"
)]
#[case::star("GET * HTTP/1.1\r\nHost: a\r\n\r\n", "the target * belongs to OPTIONS")]
#[case::relative(
    "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
    "the target is neither a path nor an http URL"
)]
#[case::scheme(
    "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "the target is neither a path nor an http URL"
)]
#[case::no_authority(
    "GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n",
    "the target is neither a path nor an http URL"
)]
#[case::user(
    "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "the authority of the target is not a host and a port"
)]
#[case::two_expects(
    "GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nExpect: 100-continue\r\n\r\n",
    "there is more than one Expect header"
)]
fn ambiguous_requests_are_refused(#[case] bytes: &str, #[case] why: &'static str) {
    assert_eq!(summary(bytes.as_bytes()), Err(RequestError::Malformed(why)));
}

#[test]
fn limits_have_their_own_errors() {
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(32 << 10));
    assert_eq!(summary(long.as_bytes()), Err(RequestError::TargetTooLong));
    let fits = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat((32 << 10) - 1));
    assert!(summary(fits.as_bytes()).is_ok());
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: 1\r\n".repeat(256));
    assert_eq!(summary(many.as_bytes()), Err(RequestError::HeadTooLarge));
    let enough = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: 1\r\n".repeat(255));
    assert!(summary(enough.as_bytes()).is_ok());
    assert_eq!(summary(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"), Err(RequestError::Connect));
}

/// Each option is compared with each header: 64 KiB of them would take 15 ms of everybody's time.
#[test]
fn connection_options_have_a_limit() {
    let head = |count: usize| {
        let options = "x,".repeat(count / 2);
        format!("HTTP/1.1 200 OK\r\nConnection: {options}\r\nConnection: {options}\r\n\r\n")
    };
    let request = |count| head(count).replace("HTTP/1.1 200 OK", "GET / HTTP/1.1\r\nHost: a");
    let why = "the Connection header has too many options";
    assert!(summary(request(98).as_bytes()).is_ok());
    assert_eq!(summary(request(100).as_bytes()), Err(RequestError::Malformed(why)));
    assert_eq!(parse_response(head(98).as_bytes(), false, |head| head.status), Ok(200));
    assert_eq!(parse_response(head(100).as_bytes(), false, |head| head.status), Err(why));
}

#[rstest]
#[case::whole(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody", Ok(Some(27)))]
#[case::partial(b"GET / HTTP/1.1\r\nHost: a\r\n\r", Ok(None))]
#[case::lf(b"GET / HTTP/1.1\nHost: a\n\n", Err("a line of the head ends in a bare LF"))]
#[case::lf_first(b"\nGET", Err("a line of the head ends in a bare LF"))]
#[case::mixed(b"GET / HTTP/1.1\r\nHost: a\r\n\n", Err("a line of the head ends in a bare LF"))]
fn the_end_is_found(#[case] bytes: &[u8], #[case] expected: Result<Option<usize>, &'static str>) {
    assert_eq!(HeadEnd::default().find(bytes), expected);
    let mut end = HeadEnd::default();
    let mut found = Ok(None);
    for len in 1..=bytes.len() {
        found = end.find(&bytes[..len]);
        if found != Ok(None) {
            break;
        }
    }
    assert_eq!(found, expected, "byte by byte");
}

fn answer(bytes: &[u8], to_head: bool) -> Result<String, ResponseError> {
    parse_response(bytes, to_head, |head| {
        format!(
            "{} {} {} {:?}{} {}",
            head.status,
            head.reason.escape_ascii(),
            head.minor,
            head.framing,
            if head.keep_alive { " keep" } else { " close" },
            lines(head.headers).escape_ascii().to_string().replace("\\r\\n", "|"),
        )
    })
}

#[rstest]
#[case::plain(
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
    "200 OK 1 Length(2) keep Content-Length: 2|"
)]
#[case::odd_status(
    b"HTTP/1.1 999 \xe9t\xe9\r\nContent-Length: 0\r\n\r\n",
    "999 \\xe9t\\xe9 1 Empty keep Content-Length: 0|"
)]
#[case::low_status(
    b"HTTP/1.1 000 X\r\ncontent-length: 0\r\n\r\n",
    "0 X 1 Empty keep content-length: 0|"
)]
#[case::no_reason(
    b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
    "200  1 Empty keep Content-Length: 0|"
)]
#[case::empty_reason(
    b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n",
    "200  1 Empty keep Content-Length: 0|"
)]
#[case::until_close(b"HTTP/1.1 200 OK\r\n\r\n", "200 OK 1 UntilClose close ")]
#[case::chunked(
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    "200 OK 1 Chunked keep transfer-encoding: chunked|"
)]
#[case::close(
    b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\n",
    "200 OK 1 Length(1) close connection: close|content-length: 1|"
)]
#[case::old(
    b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n",
    "200 OK 0 Length(1) close content-length: 1|"
)]
#[case::no_content(b"HTTP/1.1 204 No Content\r\n\r\n", "204 No Content 1 Empty keep ")]
#[case::not_modified(
    b"HTTP/1.1 304 X\r\ncontent-length: 9\r\n\r\n",
    "304 X 1 Empty keep content-length: 9|"
)]
#[case::hints(
    b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n",
    "103 Early Hints 1 Empty keep link: x|"
)]
fn answers_are_read(#[case] bytes: &[u8], #[case] expected: &str) {
    assert_eq!(answer(bytes, false), Ok(expected.to_string()));
}

#[test]
fn an_answer_to_head_has_no_body() {
    let read = answer(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", true);
    assert_eq!(read, Ok("200 OK 1 Empty keep content-length: 9|".to_string()));
}

#[test]
fn an_answer_may_have_many_headers_and_a_long_one() {
    let many = format!("HTTP/1.1 204 X\r\n{}\r\n", "x: 1\r\n".repeat(5_000));
    assert!(answer(many.as_bytes(), false).is_ok());
    let too_many = format!("HTTP/1.1 204 X\r\n{}\r\n", "x: 1\r\n".repeat(9_000));
    assert_eq!(answer(too_many.as_bytes(), false), Err("the head has too many headers"));
    let long = format!("HTTP/1.1 204 X\r\nmetadata: {}\r\n\r\n", "a".repeat(1 << 20));
    assert!(answer(long.as_bytes(), false).is_ok());
}

#[rstest]
#[case::both(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n")]
#[case::both_without_body(
    b"HTTP/1.1 204 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n"
)]
#[case::lengths(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n")]
#[case::coding(b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n")]
#[case::old_chunked(b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")]
#[case::fold(b"HTTP/1.1 200 OK\r\nx: 1\r\n 2\r\n\r\n")]
#[case::blank(b"HTTP/1.1 200 OK\r\nx : 1\r\n\r\n")]
#[case::status(b"HTTP/1.1 20 OK\r\n\r\n")]
#[case::long_status(b"HTTP/1.1 2000 OK\r\n\r\n")]
#[case::version(b"HTTP/2 200 OK\r\n\r\n")]
#[case::garbage(b"hello\r\n\r\n")]
#[case::empty_line(b"\r\nHTTP/1.1 200 OK\r\n\r\n")]
#[case::informational_length(b"HTTP/1.1 103 X\r\ncontent-length: 5\r\n\r\n")]
#[case::informational_no_length(b"HTTP/1.1 100 X\r\ncontent-length: 0\r\n\r\n")]
#[case::informational_chunked(b"HTTP/1.1 199 X\r\ntransfer-encoding: chunked\r\n\r\n")]
#[case::switching_length(
    b"HTTP/1.1 101 X\r\nupgrade: websocket\r\nconnection: upgrade\r\ncontent-length: 5\r\n\r\n"
)]
#[case::switching_chunked(
    b"HTTP/1.1 101 X\r\nupgrade: websocket\r\ntransfer-encoding: chunked\r\n\r\n"
)]
fn ambiguous_answers_are_refused(#[case] bytes: &[u8]) {
    assert!(answer(bytes, false).is_err(), "{:?}", answer(bytes, false));
}
