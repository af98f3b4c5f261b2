//! Heads: what we send of one says what we understood, and nothing else.

use vllm_proxy_core::config::Limits;
use vllm_proxy_core::fleet::{Address, BackendSpec, Labels};
use vllm_proxy_core::wire::body::Framing;
use vllm_proxy_core::wire::forward::{self, ClientFraming};
use vllm_proxy_core::wire::head::{HeadEnd, header_room, parse_request, parse_response};
use vllm_proxy_core::wire::way::Says;

/// Nothing panics, the end of a head is found wherever it is cut, and a head that is sent on is
/// read again as it was meant: same framing, nothing hidden, and no change by a second hop.
pub fn head(data: &[u8]) {
    let [kind, bytes @ ..] = data else { return };
    let whole = HeadEnd::default().find(bytes);
    let mut end = HeadEnd::default();
    let found = (0..=bytes.len()).find_map(|len| match end.find(&bytes[..len]) {
        Ok(None) => None,
        found => Some(found),
    });
    assert_eq!(found.unwrap_or(Ok(None)), whole);
    let Ok(Some(len)) = whole else { return };
    let bytes = &bytes[..len];
    if kind & 1 == 0 { request(bytes) } else { response(bytes, kind & 2 != 0) }
}

fn forwarded(bytes: &[u8]) -> Option<(Vec<u8>, Framing)> {
    let mut room = header_room();
    let head = parse_request(bytes, &Limits::default(), &mut room).ok()?;
    let spec = BackendSpec {
        upstream: 0,
        address: Address::Unix(String::new()),
        authority: "backend".to_string(),
        prefix: String::new(),
        labels: Labels::default(),
    };
    let mut headers = Vec::new();
    let has_host = forward::request_headers(&mut headers, &head);
    let (slash, rest) = forward::origin_form(&head);
    let target = [slash.as_bytes(), rest.as_bytes()].concat();
    let mut out = Vec::new();
    forward::request_start(&mut out, head.method.as_bytes(), &target, has_host, &spec);
    out.extend_from_slice(&headers);
    Some((out, head.framing))
}

fn request(bytes: &[u8]) {
    let Some((sent, framing)) = forwarded(bytes) else { return };
    let again = forwarded(&sent);
    assert_eq!(again, Some((sent, framing)), "{}", bytes.escape_ascii());
}

fn answered(bytes: &[u8], to_head: bool) -> Option<(Vec<u8>, Framing, u16)> {
    let passed = parse_response(bytes, to_head, |head| {
        let mut out = Vec::new();
        forward::response(&mut out, &head, ClientFraming::AsIs, false, false, Says::Backend);
        (out, head.framing, head.status)
    });
    passed.ok()
}

fn response(bytes: &[u8], to_head: bool) {
    let Some(passed) = answered(bytes, to_head) else { return };
    let again = answered(&passed.0, to_head);
    assert_eq!(again, Some(passed), "{}", bytes.escape_ascii());
}
