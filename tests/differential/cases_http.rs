//! How HTTP lets clients ask: heads, targets, framings and connections, usual and odd.

use crate::answer::{Step, Transcript};
use crate::cases::{Case, HOST, OWN_CONNECTION, Request, chunked, kept_open};
use crate::cases_refused;

const CHAT: &str = "/v1/chat/completions";

/// What async-h1, which the mock is made of, does not do.
const BEYOND_MOCK: [(&str, &str); 23] = [
    ("long_target", HEAD_8_KIB),
    ("long_header", HEAD_8_KIB),
    ("many_headers", HEAD_8_KIB),
    ("obs_text", "ends the connection on obs-text"),
    ("options_asterisk", "ends the connection on an asterisk"),
    ("upgrade_h2c", "ends the connection on an upgrade"),
    ("chunked_extensions_trailers", "no chunk extensions"),
    ("expect_continue_chunked", "no expectation in front of chunks"),
    ("close", CLOSE),
    ("close_health", CLOSE),
    ("close_unknown_model", CLOSE),
    ("close_chat", CLOSE),
    ("close_stream", CLOSE),
    ("close_upper_case", CLOSE),
    ("old_get", OLD),
    ("old_health", OLD),
    ("old_models", OLD),
    ("old_keep_alive", OLD),
    ("old_chat", OLD),
    ("old_chat_keep_alive", OLD),
    ("old_stream", OLD),
    ("old_redirect", OLD),
    ("refused_connect", "takes CONNECT for a route"),
];
const HEAD_8_KIB: &str = "heads end at 8 KiB";
const CLOSE: &str = "closes without saying so";
const OLD: &str = "no HTTP/1.0";

/// All of them, for a server of this model.
pub(crate) fn cases(model: &str) -> Vec<Case> {
    let mut cases = targets(model);
    cases.extend(headers(model));
    cases.extend(bodies(model));
    cases.extend(connections(model));
    cases.extend(cases_refused::cases(&chat(model)));
    for case in cases.iter_mut().filter(|case| case.answers.len() > 1) {
        case.beyond_mock = Some("requests after the first are lost");
    }
    for (name, why) in BEYOND_MOCK {
        let case = cases.iter_mut().find(|case| case.name == name);
        case.expect("the names are of cases").beyond_mock = Some(why);
    }
    cases
}

fn chat(model: &str) -> String {
    format!(
        r#"{{"model":"{model}","messages":[{{"role":"user","content":"Count"}}],"temperature":0,"max_tokens":4}}"#
    )
}

fn chat_stream(model: &str) -> String {
    chat(model).replace("{\"model\"", "{\"stream\":true,\"model\"")
}

fn targets(model: &str) -> Vec<Case> {
    let post = |name, target: &str| Case::post(name, target, &chat(model));
    vec![
        post("query_string", "/v1/chat/completions?a=b&c=%20d&model=nope"),
        post("query_empty", "/v1/chat/completions?"),
        post("percent_encoded_path", "/v1/chat/%63ompletions"),
        post("percent_encoded_slash", "/v1%2Fchat/completions"),
        post("percent_malformed", "/v1/chat/completions%zz"),
        post("double_slash", "//v1/chat/completions"),
        post("double_slash_inside", "/v1//chat/completions"),
        post("dot_segments", "/v1/./chat/../chat/completions"),
        post("other_case_path", "/V1/Chat/Completions"),
        post("fragment", "/v1/chat/completions#x"),
        post("odd_characters", "/a'b\"c|d{e}^`\\f;g,h=i@j:k"),
        post("trailing_slash_post", "/v1/chat/completions/"),
        Case::get("trailing_slash", "/v1/models/"),
        Case::get("trailing_slash_query", "/v1/models/?a=b%20c"),
        Case::get("trailing_slash_health", "/health/"),
        Case::get("trailing_slash_ping", "/ping/"),
        Case::get("trailing_slash_version", "/version/"),
        Case::get("trailing_slash_load", "/load/"),
        Case::raw(
            "trailing_slash_forwarded_proto",
            Request::new("GET", "/v1/models/").header("X-Forwarded-Proto", "https").bytes(),
        ),
        Case::get("percent_encoded_health", "/he%61lth"),
        Case::get("percent_encoded_models", "/v1/%6dodels").fleet("lists all models"),
        Case::get("percent_encoded_nul", "/health%00"),
        Case::get("utf8_path", "/frob/nicäte").rewritten(OWN_CONNECTION, kept_open),
        Case::get("long_target", &format!("/version?{}", "q".repeat(20_000))),
        Case::get("absolute_form", &format!("http://{HOST}/version")),
        Case::get("absolute_form_no_path", &format!("http://{HOST}"))
            .by_design("RFC 9112, section 3.2.1: an empty path is sent as `/`", |seen| {
                answers_with(seen, 404, r#"{"detail":"Not Found"}"#)
            }),
        post("absolute_form_post", &format!("http://{HOST}/v1/chat/completions")),
        Case::get("absolute_form_redirect", &format!("http://{HOST}/v1/models/")),
        Case::raw("options_asterisk", Request::new("OPTIONS", "*").bytes()),
        Case::raw("options_path", Request::new("OPTIONS", CHAT).bytes()),
        Case::raw("options_health", Request::new("OPTIONS", "/health").bytes()),
        Case::raw("options_models", Request::new("OPTIONS", "/v1/models").bytes()),
    ]
}

fn headers(model: &str) -> Vec<Case> {
    let with = |name, headers: &[(&str, &[u8])]| {
        let mut request = Request::new("POST", CHAT);
        for (header, value) in headers {
            request = request.header(header, value);
        }
        Case::raw(name, request.json(&chat(model)).bytes())
    };
    let preflight = |name, target: &str| {
        Case::raw(
            name,
            Request::new("OPTIONS", target)
                .header("Origin", "http://app.test")
                .header("Access-Control-Request-Method", "POST")
                .header("Access-Control-Request-Headers", "content-type")
                .bytes(),
        )
    };
    let mut many = Request::new("POST", CHAT);
    for n in 0..200 {
        many = many.header(&format!("X-Many-{n}"), n.to_string());
    }
    let get = |name, target: &str, header, value: &str| {
        Case::raw(name, Request::new("GET", target).header(header, value).bytes())
    };
    vec![
        with(
            "odd_header_case",
            &[("x-ODD-hEaDeR", b"1"), ("USER-AGENT", b"x"), ("aCCept", b"*/*")],
        ),
        with(
            "duplicate_headers",
            &[
                ("X-Twice", b"1"),
                ("x-twice", b"2"),
                ("X-Request-Id", b"first"),
                ("X-Request-Id", b"second"),
            ],
        ),
        with("obs_text", &[("X-Obs", b"caf\xe9 \xff\x80"), ("X-Request-Id", b"\xe9\xff")]),
        with("empty_header", &[("X-Empty", b""), ("X-Request-Id", b"")]),
        with("odd_white_space", &[("X-Space", b"  \t padded \t ")]),
        with("odd_names", &[("!#$%&'*+-.^_`|~09", b"ok")]),
        with("cookies", &[("Cookie", b"a=1; b=2"), ("Cookie", b"c=3")]),
        with("accept_encoding", &[("Accept-Encoding", b"gzip, deflate, br, zstd")]),
        with(
            "accept_nothing_known",
            &[
                ("Accept", b"application/xml"),
                ("TE", b"trailers, gzip"),
                ("Keep-Alive", b"timeout=5"),
            ],
        ),
        with("origin", &[("Origin", b"http://app.test")]),
        with(
            "forwarded",
            &[
                ("X-Forwarded-For", b"192.0.2.1"),
                ("Forwarded", b"for=192.0.2.1"),
                ("Via", b"1.1 x"),
            ],
        ),
        with("content_encoding", &[("Content-Encoding", b"gzip")]),
        with("endpoint_load_metrics", &[("endpoint-load-metrics-format", b"frobnicate")]),
        with("long_header", &[("X-Long", "l".repeat(20_000).as_bytes())]),
        with(
            "connection_names",
            &[
                ("Connection", b"keep-alive, X-Hop"),
                ("X-Hop", b"1"),
                ("Proxy-Connection", b"keep-alive"),
            ],
        ),
        with(
            "upgrade_h2c",
            &[
                ("Connection", b"Upgrade, HTTP2-Settings"),
                ("Upgrade", b"h2c"),
                ("HTTP2-Settings", b"AAMAAABkAAQAAP__"),
            ],
        )
        .by_design(
            "an upgrade to h2c is left out, and the body then read; uvicorn drops the body",
            |seen| answers_with(seen, 200, "\"finish_reason\":\"length\""),
        ),
        Case::raw("many_headers", many.json(&chat(model)).bytes()),
        preflight("preflight_chat", CHAT),
        preflight("preflight_models", "/v1/models"),
        preflight("preflight_health", "/health"),
        preflight("preflight_unknown", "/frobnicate"),
        get("origin_models", "/v1/models", "Origin", "http://app.test").fleet("lists all models"),
        get("origin_health", "/health", "Origin", "http://app.test"),
        get("origin_version", "/version", "Origin", "null"),
        get("origin_load", "/load", "Origin", "http://app.test"),
        get("if_none_match", "/openapi.json", "If-None-Match", "*"),
        get("range", "/openapi.json", "Range", "bytes=0-9"),
    ]
}

fn bodies(model: &str) -> Vec<Case> {
    let body = chat(model);
    let head = |more: &str| {
        format!(
            "POST {CHAT} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n{more}\r\n"
        )
        .into_bytes()
    };
    let te = head("Transfer-Encoding: chunked\r\n");
    let in_chunks = |name, sizes: &[usize]| {
        Case::raw(name, [te.clone(), chunked(body.as_bytes(), sizes)].concat())
    };
    // Of a route that every server has: a 404 is sent without asking for the body.
    let expected = format!(r#"{{"model":"{model}","prompt":"Hello there"}}"#);
    let expecting = |more: &str| {
        format!("POST /tokenize HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n{more}\r\n\r\n")
            .into_bytes()
    };
    let expect = expecting(&format!("Expect: 100-continue\r\nContent-Length: {}", expected.len()));
    let expect_chunked = expecting("Expect: 100-Continue\r\nTransfer-Encoding: chunked");
    let whole = Request::new("POST", CHAT).json(&body).bytes();
    let bytes: Vec<&[u8]> = whole.chunks(1).take(60).collect();
    let tail = &whole[60..];
    let streamed = Request::new("POST", CHAT).json(&chat_stream(model)).bytes();
    let big = format!(r#"{{"prompt":"{}","model":"{model}"}}"#, "x".repeat(1_000_000));
    let big_head = format!(
        "POST /tokenize HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let pieces = chunked(body.as_bytes(), &[9]);
    let extended = format!(
        "{:x};a=b;c=\"d;e\"\r\n{body}\r\n0;last\r\nX-Trailer: 1\r\nX-Other: 2\r\n\r\n",
        body.len()
    );
    vec![
        in_chunks("chunked_whole", &[100_000]),
        in_chunks("chunked_bytes", &[1]),
        in_chunks("chunked_mixed", &[3, 17, 1, 60]),
        Case::parts(
            "chunked_slowly",
            &[&te, &pieces[..5], &pieces[5..20], &pieces[20..21], &pieces[21..]],
        ),
        Case::raw("chunked_extensions_trailers", [te.clone(), extended.into_bytes()].concat()),
        Case::raw(
            "chunked_upper_case",
            [head("Transfer-Encoding: CHUNKED\r\n"), chunked(body.as_bytes(), &[0x1f])].concat(),
        ),
        Case::raw(
            "chunked_leading_zeros",
            [te.clone(), format!("000{:X}\r\n{body}\r\n000\r\n\r\n", body.len()).into_bytes()]
                .concat(),
        ),
        Case::raw("chunked_empty", [te.clone(), b"0\r\n\r\n".to_vec()].concat()),
        Case::raw(
            "chunked_megabyte",
            [big_head.into_bytes(), chunked(big.as_bytes(), &[4096, 1, 70_000])].concat(),
        ),
        Case::steps(
            "expect_continue",
            vec![Step::Send(expect), Step::AwaitInterim, Step::Send(expected.clone().into())],
        ),
        Case::steps(
            "expect_continue_chunked",
            vec![
                Step::Send(expect_chunked),
                Step::AwaitInterim,
                Step::Send(chunked(expected.as_bytes(), &[20])),
            ],
        ),
        Case::raw(
            "expect_unknown",
            [
                head(&format!("Expect: pie\r\nContent-Length: {}\r\n", body.len())),
                body.clone().into(),
            ]
            .concat(),
        ),
        Case::parts("byte_by_byte", &[bytes.as_slice(), &[tail]].concat()),
        Case::parts("body_behind_head", &[&whole[..whole.len() - body.len()], body.as_bytes()]),
        Case::parts(
            "stream_split_in_body",
            &[&streamed[..streamed.len() - 30], &streamed[streamed.len() - 30..]],
        ),
        Case::raw(
            "get_with_body",
            Request::new("GET", "/version").json("{\"model\":\"nope\"}").bytes(),
        ),
        Case::raw(
            "get_chunked",
            format!(
                "GET /version HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            ),
        ),
        Case::raw("delete_with_body", Request::new("DELETE", "/frobnicate").json("{}").bytes()),
    ]
}

fn connections(model: &str) -> Vec<Case> {
    let version = Request::new("GET", "/version");
    let post = Request::new("POST", CHAT).json(&chat(model));
    let stream = Request::new("POST", CHAT).json(&chat_stream(model));
    let close = |request: Request| request.header("Connection", "close").bytes();
    vec![
        Case::raw("close", close(Request::new("GET", "/version"))),
        Case::raw("close_health", close(Request::new("GET", "/health"))),
        Case::raw("close_unknown_model", close(Request::new("POST", CHAT).json(&chat("nope"))))
            .fleet("lists all models"),
        Case::raw("close_chat", close(Request::new("POST", CHAT).json(&chat(model)))),
        Case::raw("close_stream", close(Request::new("POST", CHAT).json(&chat_stream(model)))),
        Case::raw(
            "close_upper_case",
            Request::new("GET", "/version").header("Connection", "CLOSE").bytes(),
        ),
        Case::raw("old_get", Request::new("GET", "/version").old().bytes()),
        Case::raw("old_health", Request::new("GET", "/health").old().bytes()),
        Case::raw("old_models", Request::new("GET", "/v1/models").old().bytes())
            .fleet("lists all models"),
        Case::raw(
            "old_keep_alive",
            Request::new("GET", "/version").old().header("Connection", "keep-alive").bytes(),
        )
        .rewritten(KEPT, kept),
        Case::raw("old_chat", Request::new("POST", CHAT).old().json(&chat(model)).bytes()),
        Case::raw(
            "old_chat_keep_alive",
            Request::new("POST", CHAT)
                .old()
                .header("Connection", "keep-alive")
                .json(&chat(model))
                .bytes(),
        )
        .rewritten(KEPT, kept),
        Case::raw("old_stream", Request::new("POST", CHAT).old().json(&chat_stream(model)).bytes())
            .rewritten("RFC 9112, section 6.1: HTTP/1.0 knows no chunks", |lines| {
                lines.retain(|line| line != "transfer-encoding: chunked");
                lines.iter_mut().filter(|line| *line == "[framing: Chunked]").for_each(|line| {
                    *line = "[framing: UntilClose]".to_owned();
                });
            }),
        Case::raw(
            "old_redirect",
            Request::new("GET", "/v1/models/").old().header("Host", HOST).bytes(),
        ),
        Case::raw(
            "pipelined_pair",
            [version.bytes(), Request::new("GET", "/frobnicate").bytes()].concat(),
        )
        .answers(2),
        Case::raw("pipelined_posts", [post.bytes(), stream.bytes(), post.bytes()].concat())
            .answers(3),
        Case::raw(
            "pipelined_own_and_forwarded",
            [Request::new("GET", "/health").bytes(), post.bytes(), version.bytes()].concat(),
        )
        .answers(3),
        Case::raw(
            "pipelined_error_first",
            [Request::new("POST", CHAT).json("{").bytes(), version.bytes()].concat(),
        )
        .answers(2),
        Case::raw("leading_line_ends", [b"\r\n".to_vec(), version.bytes()].concat()),
        Case::raw(
            "line_end_after_body",
            [post.bytes(), b"\r\n".to_vec(), version.bytes()].concat(),
        )
        .answers(2),
    ]
}

const KEPT: &str = "an HTTP/1.0 client that asks to keep its connection may; uvicorn never lets it";

fn kept(lines: &mut Vec<String>) {
    for line in lines {
        *line = match line.as_str() {
            "connection: close" => "connection: keep-alive".to_owned(),
            "[connection: closed]" => "[connection: open]".to_owned(),
            _ => continue,
        };
    }
}

/// One complete answer with this status and this text in its body.
fn answers_with(seen: &Transcript, status: u16, text: &str) -> Result<(), String> {
    let [answer] = seen.answers.as_slice() else {
        return Err(format!("expected one answer, got {}", seen.answers.len()));
    };
    if answer.status() != status || !String::from_utf8_lossy(&answer.body).contains(text) {
        return Err(format!("expected status {status} and `{text}`"));
    }
    Ok(())
}
