//! Forms: however one is cut the same is found in it.

use vllm_proxy_core::wire::form::{FormScanner, boundary};

/// Nothing panics, a form cut in three says what the whole one says, and so does one that comes
/// byte by byte. The first two bytes say where to cut, the first line behind them is the type.
pub fn form(data: &[u8]) {
    let [first, second, rest @ ..] = data else { return };
    let Some(end) = rest.iter().position(|&byte| byte == b'\n') else { return };
    let (content_type, body) = (&rest[..end], &rest[end + 1..]);
    let Some(boundary) = boundary(content_type) else { return };
    let whole = FormScanner::new(boundary.clone()).finish(body);
    assert!(whole.prompt_bytes <= body.len() as u64);
    let cut = |at: u8, length: usize| usize::from(at) * (length + 1) / 256;
    let late = cut(*second, body.len());
    let early = cut(*first, late);
    let mut pieces = FormScanner::new(boundary.clone());
    pieces.feed(&body[..early]);
    pieces.feed(&body[..late]);
    assert_eq!(pieces.finish(body), whole, "cut at {early} and {late}");
    let mut bytewise = FormScanner::new(boundary);
    (0..body.len()).for_each(|end| bytewise.feed(&body[..end]));
    assert_eq!(bytewise.finish(body), whole, "byte by byte");
}
