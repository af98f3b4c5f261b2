//! What the proxy refuses by itself: RFC 9112 calls it ambiguous, or it is beyond the proxy's
//! limits. The bare server's parser forgives some of it, and words its refusals otherwise.

use crate::answer::Transcript;
use crate::cases::{Case, HOST, Request};

const CHAT: &str = "/v1/chat/completions";

/// All of them; `body` is a chat.
pub(crate) fn cases(body: &str) -> Vec<Case> {
    const WHY: &str = "ambiguous framing or a malformed head is refused here, never forwarded";
    let raw = |name, head: &str, body: &str| {
        Case::raw(name, format!("{head}\r\n{body}")).by_design(WHY, refused_400)
    };
    let start =
        format!("POST {CHAT} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n");
    let len = body.len();
    let te = "Transfer-Encoding: chunked\r\n";
    vec![
        raw(
            "refused_length_and_chunked",
            &format!("{start}Content-Length: 5\r\n{te}"),
            "0\r\n\r\n",
        ),
        raw(
            "refused_two_lengths",
            &format!("{start}Content-Length: {len}\r\nContent-Length: 5\r\n"),
            body,
        ),
        raw(
            "refused_equal_lengths",
            &format!("{start}Content-Length: {len}\r\nContent-Length: {len}\r\n"),
            body,
        ),
        raw("refused_length_list", &format!("{start}Content-Length: {len}, {len}\r\n"), body),
        raw("refused_length_sign", &format!("{start}Content-Length: +{len}\r\n"), body),
        raw("refused_negative_length", &format!("{start}Content-Length: -1\r\n"), body),
        raw(
            "refused_unknown_coding",
            &format!("{start}Transfer-Encoding: gzip, chunked\r\n"),
            "0\r\n\r\n",
        ),
        raw("refused_identity_coding", &format!("{start}Transfer-Encoding: identity\r\n"), ""),
        raw(
            "refused_obs_fold",
            &format!("{start}X-Fold: a\r\n b\r\nContent-Length: {len}\r\n"),
            body,
        ),
        raw(
            "refused_space_before_colon",
            &format!("{start}X-Space : a\r\nContent-Length: {len}\r\n"),
            body,
        ),
        raw("refused_bare_lf", &format!("{start}X-Lf: a\nContent-Length: {len}\r\n"), body),
        raw("refused_bare_cr", &format!("{start}X-Cr: a\rb\r\nContent-Length: {len}\r\n"), body),
        raw("refused_nul", &format!("{start}X-Nul: a\0b\r\nContent-Length: {len}\r\n"), body),
        raw("refused_no_host", "GET /version HTTP/1.1\r\n", ""),
        raw(
            "refused_two_hosts",
            &format!("GET /version HTTP/1.1\r\nHost: {HOST}\r\nHost: {HOST}\r\n"),
            "",
        ),
        raw("refused_chunk_size", &format!("{start}{te}"), "zz\r\nabc\r\n0\r\n\r\n"),
        raw("refused_chunk_size_prefix", &format!("{start}{te}"), "0x3\r\nabc\r\n0\r\n\r\n"),
        raw("refused_chunk_end", &format!("{start}{te}"), "3\r\nabcX\r\n0\r\n\r\n"),
        raw("refused_chunk_bare_lf", &format!("{start}{te}"), "3\nabc\n0\n\n"),
        raw("refused_version", &format!("GET /version HTTP/3.7\r\nHost: {HOST}\r\n"), ""),
        raw("refused_no_version", "GET /version\r\n", ""),
        raw("refused_connect", &format!("CONNECT {HOST} HTTP/1.1\r\nHost: {HOST}\r\n"), "")
            .by_design("CONNECT is no request to a vLLM", |seen| {
                refused_with(seen, &[400, 405, 501])
            }),
        Case::raw("refused_h2_preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .by_design(WHY, refused_400),
        Case::raw("refused_garbage", "\x16\x03\x01\x02\0\x01\0\x01\u{7f}\r\n\r\n")
            .by_design(WHY, refused_400),
        Case::get("refused_target_too_long", &format!("/version?{}", "q".repeat(40_000)))
            .by_design("a target has at most 32 KiB", |seen| refused_with(seen, &[414])),
        Case::raw(
            "refused_head_too_long",
            Request::new("GET", "/version").header("X-Long", "l".repeat(70_000)).bytes(),
        )
        .by_design("a head has at most 64 KiB", |seen| refused_with(seen, &[431])),
        Case::raw(
            "refused_too_many_headers",
            (0..300)
                .fold(Request::new("GET", "/version"), |r, n| r.header(&format!("X-{n}"), "v"))
                .bytes(),
        )
        .by_design("a head has at most 256 headers", |seen| refused_with(seen, &[431])),
    ]
}

fn refused_400(seen: &Transcript) -> Result<(), String> {
    refused_with(seen, &[400])
}

/// One answer with one of these statuses and an error body in vLLM's shape, then the end.
fn refused_with(seen: &Transcript, statuses: &[u16]) -> Result<(), String> {
    if let Some(trouble) = &seen.trouble {
        return Err(trouble.clone());
    }
    let [answer] = seen.answers.as_slice() else {
        return Err(format!("expected one answer, got {}", seen.answers.len()));
    };
    if !statuses.contains(&answer.status()) {
        return Err(format!("expected status {statuses:?}, got {}", answer.status()));
    }
    let body: serde_json::Value =
        serde_json::from_slice(&answer.body).map_err(|e| format!("the body is not JSON: {e}"))?;
    if body["error"]["code"] != answer.status() || !body["error"]["message"].is_string() {
        return Err(format!("not an error in vLLM's shape: {body}"));
    }
    if seen.afterwards != "closed" {
        return Err(format!("expected the connection closed, it is {}", seen.afterwards));
    }
    Ok(())
}
