//! Who is told which way a request went, and requests that only ask.

use super::harness::Bench;
use super::texts::{OK, http, shown};
use crate::config::{Access, Limits};
use rstest::rstest;
use serde_json::{Value, json};
use std::format;
use std::string::String;

const ASKS: &str = "GET /x HTTP/1.1|Host: h|x-vllm-proxy-explain: 1||";

fn bench(backends: u32, access: Access) -> Bench {
    Bench::with(backends, Limits { access, ..Limits::default() }, 0)
}

fn explaining(backends: u32) -> Bench {
    bench(backends, Access { explains: true, ..Access::default() })
}

/// All that the client got.
fn told(bench: &mut Bench) -> String {
    bench.skip();
    shown(core::mem::take(&mut bench.client))
}

fn way(backend: u32, reason: &str, attempts: u32) -> String {
    format!(
        "x-vllm-proxy-backend: 10.0.0.{backend}:80|x-vllm-proxy-reason: {reason}|\
         x-vllm-proxy-predicted-cached-tokens: 0|x-vllm-proxy-attempts: {attempts}|"
    )
}

#[rstest]
#[case::not_allowed(Access::default(), ASKS)]
#[case::not_asked(Access::ADMIN, "GET /x HTTP/1.1|Host: h||")]
#[case::another_word(Access::ADMIN, "GET /x HTTP/1.1|Host: h|x-vllm-proxy-explain: 0||")]
fn nothing_is_added_or_taken(#[case] access: Access, #[case] request: &str) {
    let mut bench = bench(1, access);
    bench.client(http(request));
    bench.connected();
    let answer = http("HTTP/1.1 200 OK|x-vllm-proxy-backend: own|content-length: 2||hi");
    bench.backend(&answer);
    assert_eq!(told(&mut bench), shown(answer));
    assert_eq!(shown(&bench.upstream), request);
    bench.idle();
}

/// What a backend may say by our names, in every place that has headers.
const CLAIMS: &str = "HTTP/1.1 103 Early Hints|x-vllm-proxy-backend: own|a: 1||\
     HTTP/1.1 200 OK|transfer-encoding: chunked|X-VLLM-Proxy-Reason: own|b: 2||\
     2|hi|0|x-vllm-proxy-attempts: own|c: 3||";

#[rstest]
#[case::in_one_piece(usize::MAX)]
#[case::byte_by_byte(1)]
fn nobody_else_says_which_way_a_request_went(#[case] pieces: usize) {
    for (request, expected) in [
        ("GET /x HTTP/1.1|Host: h||", CLAIMS.into()),
        (
            ASKS,
            format!(
                "HTTP/1.1 103 Early Hints|a: 1||\
                 HTTP/1.1 200 OK|transfer-encoding: chunked|b: 2|{}|2|hi|0|c: 3||",
                way(0, "turn", 1)
            ),
        ),
    ] {
        let mut bench = explaining(2);
        bench.client(http(request));
        bench.connected();
        for piece in http(CLAIMS).as_bytes().chunks(pieces) {
            bench.backend(piece);
        }
        assert_eq!(told(&mut bench), expected);
        bench.idle();
    }
}

#[test]
fn who_answers_for_several_does_not_say_it_either() {
    let mut bench = explaining(2);
    bench.client(http("POST /sleep HTTP/1.1|Host: h|x-vllm-proxy-explain: 1||"));
    for backend in [0, 1] {
        let answer = "HTTP/1.1 200 OK|x-vllm-proxy-backend: own|content-length: 2||ok";
        bench.replies(backend, Some(&http(answer)), usize::MAX);
    }
    assert_eq!(told(&mut bench), "HTTP/1.1 200 OK|content-length: 2||ok");
    bench.idle();
}

#[test]
fn each_request_asks_for_itself() {
    let mut bench = explaining(2);
    for (request, way) in [
        (ASKS, way(0, "turn", 1)),
        ("GET /x HTTP/1.1|Host: h||", String::new()),
        (ASKS, way(0, "turn", 1)),
    ] {
        bench.client(http(request));
        bench.connected();
        bench.backend(OK);
        let expected = format!("HTTP/1.1 200 OK|content-length: 2|{way}|hi");
        assert_eq!(told(&mut bench), expected);
        bench.idle();
    }
}

#[test]
fn those_that_failed_are_counted() {
    let mut bench = explaining(3);
    bench.client(http(ASKS));
    bench.connect_fails();
    bench.connected();
    bench.backend(http("HTTP/1.1 503 X|content-length: 0||"));
    bench.connected();
    bench.backend(OK);
    let expected = format!("HTTP/1.1 200 OK|content-length: 2|{}|hi", way(2, "only", 3));
    assert_eq!(told(&mut bench), expected);
    bench.idle();
}

#[test]
fn an_idle_connection_that_died_is_no_other_backend() {
    let mut bench = explaining(2);
    bench.idle = true;
    bench.client(http(ASKS));
    bench.backend_ends(crate::exchange::End::Closed);
    bench.connected();
    bench.backend(OK);
    let expected = format!("HTTP/1.1 200 OK|content-length: 2|{}|hi", way(0, "stale", 1));
    assert_eq!(told(&mut bench), expected);
    bench.idle();
}

#[test]
fn the_last_answer_tells_who_gave_it_and_of_those_behind_it() {
    let mut bench = explaining(2);
    bench.client(http(ASKS));
    bench.connected();
    bench.backend(http("HTTP/1.1 503 X|content-length: 8||a: 1||"));
    bench.connect_fails();
    let expected = format!("HTTP/1.1 503 X|content-length: 8|{}|a: 1||", way(0, "turn", 2));
    assert_eq!(told(&mut bench), expected);
    bench.idle();
}

#[rstest]
#[case::nobody_answers(ASKS, 2, "x-vllm-proxy-reason: model-down|x-vllm-proxy-attempts: 2|")]
#[case::nobody_is_there(ASKS, 0, "x-vllm-proxy-reason: starting|x-vllm-proxy-attempts: 0|")]
#[case::not_asked("GET /x HTTP/1.1|Host: h||", 2, "")]
fn a_refusal_tells_why(#[case] request: &str, #[case] backends: u32, #[case] way: &str) {
    let mut bench = explaining(backends);
    bench.client(http(request));
    (0..backends).for_each(|_| bench.connect_fails());
    bench.secs(3);
    let said = told(&mut bench);
    let (head, _) = said.split_once("||").expect("it has a head");
    assert!(format!("{head}|").ends_with(&format!("|vary: Origin|{way}")), "{said}");
}

#[test]
fn a_websocket_tells_as_it_begins() {
    let upgrade = "Upgrade: websocket|Connection: Upgrade|";
    let mut bench = explaining(1);
    bench.client(http(&format!("GET /ws HTTP/1.1|Host: h|{upgrade}x-vllm-proxy-explain: 1||")));
    bench.connected();
    bench.backend(http(&format!("HTTP/1.1 101 Switching Protocols|{upgrade}|")));
    let expected = format!("HTTP/1.1 101 Switching Protocols|{upgrade}{}|", way(0, "only", 1));
    assert_eq!(told(&mut bench), expected);
    bench.abandoned();
}

fn dry_run(query: &str, body: &str) -> String {
    let len = body.len();
    http(&format!("POST /proxy/explain{query} HTTP/1.1|Host: h|Content-Length: {len}||")) + body
}

/// The status and the JSON of an answer of our own.
#[track_caller]
fn said(bench: &mut Bench) -> (u16, Value) {
    bench.skip();
    let answer = core::mem::take(&mut bench.client);
    let answer = core::str::from_utf8(&answer).expect("it is text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("it has a head");
    let status = head.get(9..12).and_then(|digits| digits.parse().ok());
    (status.expect("it has one"), serde_json::from_str(body).expect("it is JSON"))
}

const USUAL: &str = "/v1/chat/completions";

#[rstest]
#[case::usual("", r#"{"model":"m"}"#, "/request", json!({"method": "POST", "path": USUAL}))]
#[case::named("?path=%2Fv1%2Fscore", "{}", "/request/path", json!("/v1/score"))]
#[case::chosen("", r#"{"model":"m"}"#, "/backend", json!("10.0.0.0:80"))]
#[case::broken("", r#"{"model":"m","messages":["#, "/outcome", json!("forward"))]
#[case::no_json("", "?", "/model", json!({"asked": null, "name": "m", "is_default": true}))]
#[case::owner("?method=GET&path=/v1/responses/resp_1", "", "/reason", json!("search"))]
#[case::all("?path=/sleep", "", "/asked", json!(["10.0.0.0:80", "10.0.0.1:80"]))]
#[case::narrow(
    "?path=/sleep%3Fvllm_proxy_backend%3D10.0.0.1:80", "", "/asked", json!(["10.0.0.1:80"])
)]
#[case::not_allowed("?path=/health", "", "/status", json!(405))]
#[case::answered("?path=/health&method=GET", "", "/status", json!(200))]
#[case::for_operators("?path=/proxy/status&method=GET", "", "/outcome", json!("forward"))]
#[case::itself("?path=/proxy/explain", "", "/outcome", json!("forward"))]
fn a_dry_run_is_answered_and_nobody_is_asked(
    #[case] query: &str,
    #[case] body: &str,
    #[case] pointer: &str,
    #[case] expected: Value,
) {
    let mut bench = bench(2, Access::ADMIN);
    bench.client(dry_run(query, body));
    let wanted = bench.transcript();
    let asks = wanted.iter().filter(|line| !line.contains("reserve") && !line.contains("send"));
    assert_eq!(asks.collect::<std::vec::Vec<_>>(), ["ask"], "{wanted:?}");
    let (status, said) = said(&mut bench);
    assert_eq!((status, said.pointer(pointer)), (200, Some(&expected)), "{said}");
    bench.idle();
    // The next request is one as any other.
    bench.client(http("GET /x HTTP/1.1|Host: h||"));
    bench.expect(&["ask", "connect 0"]);
    bench.connected();
    bench.backend(OK);
    bench.skip();
    bench.idle();
}

#[rstest]
#[case::no_path("?path=v1/chat", "the parameter `path` does not begin with a slash")]
#[case::two_words("?method=GET+/x&path=/y", "the parameter `method` is no method")]
#[case::control("?method=%0a&path=/y", "the parameter `method` is no method")]
fn a_dry_run_of_no_request_is_refused(#[case] query: &str, #[case] why: &str) {
    let mut bench = bench(1, Access::ADMIN);
    bench.client(dry_run(query, ""));
    let (status, said) = said(&mut bench);
    assert_eq!((status, &said["error"]["message"]), (400, &json!(why)));
    bench.client_leaves();
    bench.skip();
    bench.over();
}

#[test]
fn a_dry_run_is_a_post() {
    let mut bench = bench(1, Access::ADMIN);
    bench.client(http("GET /proxy/explain HTTP/1.1|Host: h||"));
    let said = told(&mut bench);
    assert!(said.starts_with("HTTP/1.1 405 ") && said.contains("|allow: POST|"), "{said}");
    bench.idle();
}

#[rstest]
#[case::main(Access::default())]
#[case::explains(Access { explains: true, ..Access::default() })]
fn a_dry_run_is_for_operators(#[case] access: Access) {
    let mut bench = bench(1, access);
    bench.client(dry_run("", ""));
    bench.connected();
    bench.backend(OK);
    assert_eq!(told(&mut bench), shown(OK), "a backend may know the path");
    bench.idle();
}

/// An order or not: what only operators may ask, no page of elsewhere may have a browser ask.
#[rstest]
#[case::of_elsewhere("explain", "Origin: http://evil.example|", 403)]
#[case::of_nowhere("explain", "Origin: null|", 403)]
#[case::by_the_browsers_word("explain", "Sec-Fetch-Site: cross-site|", 403)]
#[case::of_here("explain", "Origin: http://10.0.0.9:8001|Sec-Fetch-Site: same-origin|", 200)]
#[case::of_no_page("explain", "", 200)]
#[case::an_order("drain?backend=10.0.0.0:80", "Origin: http://evil.example|", 403)]
fn pages_of_elsewhere_may_not_ask(#[case] what: &str, #[case] lines: &str, #[case] status: u16) {
    let mut bench = bench(1, Access::ADMIN);
    let head =
        format!("POST /proxy/{what} HTTP/1.1|Host: 10.0.0.9:8001|{lines}Content-Length: 0||");
    bench.client(http(&head));
    assert!(told(&mut bench).starts_with(&format!("HTTP/1.1 {status} ")), "{what} {lines}");
    bench.client_leaves();
    bench.skip();
}
