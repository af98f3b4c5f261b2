//! Requests that are ambiguous, malformed or too large are refused, the connection ends, and no
//! backend sees a byte of them.

use crate::backend::Backend;
use crate::proxy::{Proxy, Runtime, on_every_runtime};
use crate::wire::{End, Message, Wire, chat, get, ok, post, shown};

/// What is sent, and the status that must come.
type Case = (&'static str, Vec<u8>, u16);

/// Sends each case on a connection of its own and collects what is not as it must be.
fn check(runtime: Runtime, options: &[&str], cases: &[Case]) {
    let backend = Backend::named(&["m"], "hi");
    let proxy = Proxy::with(runtime, options, &[&backend]);
    let mut wrong = Vec::new();
    for (name, bytes, status) in cases {
        let mut client = proxy.client();
        // It may stop reading as soon as it knows.
        let _ = client.try_send(bytes);
        if let Err(why) = refused(&mut client, *status) {
            wrong.push(format!("{name}: {why}\n    sent: {}", shown(bytes)));
        }
        if backend.requests() > 0 {
            wrong.push(format!("{name}: the backend saw {}", shown(&backend.heads()[0])));
            break;
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    backend.assert_untouched();
    // And it still works.
    assert_eq!(proxy.ask(&chat("m")), 200);
}

/// One answer of this status, in vLLM's shape, and the end.
fn refused(client: &mut Wire, status: u16) -> Result<Message, String> {
    let answer = client.answer().map_err(|end| format!("no answer: {end:?}"))?;
    if answer.status() != status {
        return Err(format!("expected {status}: {answer:?}"));
    }
    if answer.header("connection").as_deref() != Some("close") {
        return Err(format!("does not say that it closes: {answer:?}"));
    }
    let json: Result<serde_json::Value, _> = serde_json::from_slice(&answer.body);
    if json.is_err() {
        return Err(format!("no JSON: {answer:?}"));
    }
    match client.rest() {
        (rest, End::Closed) if rest.is_empty() => Ok(answer),
        (rest, end) => Err(format!("then came {} and {end:?}", shown(&rest))),
    }
}

/// A request with these lines behind a Host, then a second one, which must never be seen.
fn with(lines: &str, body: &str) -> Vec<u8> {
    let path = "/v1/chat/completions";
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    format!("POST {path} HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n{body}{smuggled}").into_bytes()
}

fn ambiguous_heads_are_refused(runtime: Runtime) {
    let chunks = "2\r\n{}\r\n0\r\n\r\n";
    let cases: Vec<Case> = [
        ("length and chunks", with("Content-Length: 2\r\nTransfer-Encoding: chunked", chunks)),
        ("chunks and length", with("Transfer-Encoding: chunked\r\nContent-Length: 12", chunks)),
        ("chunks and no length", with("Transfer-Encoding: chunked\r\nContent-Length: 0", chunks)),
        ("two lengths", with("Content-Length: 2\r\nContent-Length: 4", "{}")),
        ("two equal lengths", with("Content-Length: 2\r\nContent-Length: 2", "{}")),
        ("two lengths, other case", with("Content-Length: 2\r\ncontent-length: 2", "{}")),
        ("list of lengths", with("Content-Length: 2, 4", "{}")),
        ("list of equal lengths", with("Content-Length: 2,2", "{}")),
        ("length with a sign", with("Content-Length: +2", "{}")),
        ("negative length", with("Content-Length: -2", "{}")),
        ("hexadecimal length", with("Content-Length: 0x2", "{}")),
        ("length with a fraction", with("Content-Length: 2.0", "{}")),
        ("length with a blank", with("Content-Length: 2 2", "{}")),
        ("length with an underscore", with("Content-Length: 1_0", "{}")),
        ("empty length", with("Content-Length:", "{}")),
        ("length that is a word", with("Content-Length: two", "{}")),
        ("length in other digits", with("Content-Length: \u{ff12}", "{}")),
        ("length beyond 64 bits", with("Content-Length: 18446744073709551618", "{}")),
        ("unknown coding", with("Transfer-Encoding: gzip", "{}")),
        ("coding before chunked", with("Transfer-Encoding: gzip, chunked", chunks)),
        ("coding behind chunked", with("Transfer-Encoding: chunked, gzip", chunks)),
        ("identity", with("Transfer-Encoding: identity", "{}")),
        ("chunked and identity", with("Transfer-Encoding: chunked, identity", chunks)),
        ("chunked twice", with("Transfer-Encoding: chunked, chunked", chunks)),
        (
            "chunked in two lines",
            with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", chunks),
        ),
        (
            "chunked and another line",
            with("Transfer-Encoding: chunked\r\nTransfer-Encoding: x", ""),
        ),
        ("chunked with a parameter", with("Transfer-Encoding: chunked;q=1", chunks)),
        ("chunked in quotes", with("Transfer-Encoding: \"chunked\"", chunks)),
        ("chunked behind a tab of its own", with("Transfer-Encoding: \u{b}chunked", chunks)),
        ("nearly chunked", with("Transfer-Encoding: xchunked", chunks)),
        ("empty coding", with("Transfer-Encoding:", "{}")),
        ("blank before a colon", with("Content-Length : 2", "{}")),
        ("tab before a colon", with("Content-Length\t: 2", "{}")),
        ("blank before a coding's colon", with("Transfer-Encoding : chunked", chunks)),
        ("folded line", with("X: a\r\n b\r\nContent-Length: 2", "{}")),
        ("folded by a tab", with("X: a\r\n\tb\r\nContent-Length: 2", "{}")),
        ("folded coding", with("Transfer-Encoding:\r\n chunked", chunks)),
        ("bare LF", with("X: a\nContent-Length: 2", "{}")),
        ("bare CR", with("X: a\rContent-Length: 2", "{}")),
        ("CR CR LF", with("X: a\r\r\nContent-Length: 2", "{}")),
        ("NUL in a value", with("X: a\0b\r\nContent-Length: 2", "{}")),
        ("control character in a value", with("X: a\u{1}b\r\nContent-Length: 2", "{}")),
        ("no colon", with("X\r\nContent-Length: 2", "{}")),
        ("no name", with(": x\r\nContent-Length: 2", "{}")),
        ("blank in a name", with("X y: x\r\nContent-Length: 2", "{}")),
        ("two hosts", with("Host: b\r\nContent-Length: 2", "{}")),
        ("two equal hosts", with("hOST: a\r\nContent-Length: 2", "{}")),
        ("two expectations", with("Expect: 100-continue\r\nExpect: 100-continue", "{}")),
        ("no host", b"GET /docs HTTP/1.1\r\n\r\n".to_vec()),
        ("host with a path", b"GET /docs HTTP/1.1\r\nHost: a/b\r\n\r\n".to_vec()),
        ("host with a user", b"GET /docs HTTP/1.1\r\nHost: u@a\r\n\r\n".to_vec()),
        ("list of hosts", b"GET /docs HTTP/1.1\r\nHost: a, b\r\n\r\n".to_vec()),
        ("first line folded", b"GET /docs HTTP/1.1\r\n Host: a\r\n\r\n".to_vec()),
        ("blank in a target", b"GET /do cs HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("two blanks", b"GET  /docs HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("blank at the end", b"GET /docs HTTP/1.1 \r\nHost: a\r\n\r\n".to_vec()),
        ("tab for a blank", b"GET\t/docs HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("no version", b"GET /docs\r\n\r\n".to_vec()),
        ("version of its own", b"GET /docs HTTP/1.2\r\nHost: a\r\n\r\n".to_vec()),
        ("version 2", b"GET /docs HTTP/2.0\r\nHost: a\r\n\r\n".to_vec()),
        ("version in small letters", b"GET /docs http/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("relative target", b"GET docs HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("target of nobody", b"GET * HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("target with a user", b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("another scheme", b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("control character in a target", b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("bare LF behind the first line", b"GET /docs HTTP/1.1\nHost: a\r\n\r\n".to_vec()),
        ("bare LF at the end", b"GET /docs HTTP/1.1\r\nHost: a\r\n\n".to_vec()),
        ("nothing but bare LF", b"GET /docs HTTP/1.1\nHost: a\n\n".to_vec()),
        ("CONNECT", b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".to_vec()),
        ("odd method", b"G(T /docs HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("chunks in HTTP/1.0", {
            let head = "POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
            [head, chunks].concat().into_bytes()
        }),
    ]
    .into_iter()
    .map(|(name, bytes)| (name, bytes, 400))
    .collect();
    check(runtime, &[], &cases);
}

fn malformed_chunks_are_refused(runtime: Runtime) {
    let cases: Vec<Case> = [
        ("no size", "\r\n{}\r\n0\r\n\r\n"),
        ("size with a sign", "+2\r\n{}\r\n0\r\n\r\n"),
        ("negative size", "-2\r\n{}\r\n0\r\n\r\n"),
        ("size with a prefix", "0x2\r\n{}\r\n0\r\n\r\n"),
        ("size that is none", "zz\r\n{}\r\n0\r\n\r\n"),
        ("blank before a size", " 2\r\n{}\r\n0\r\n\r\n"),
        ("blank behind a size", "2 \r\n{}\r\n0\r\n\r\n"),
        ("blank before an extension", "2 ;a=b\r\n{}\r\n0\r\n\r\n"),
        ("size beyond 64 bits", "10000000000000002\r\n{}\r\n0\r\n\r\n"),
        ("bare LF behind a size", "2\n{}\r\n0\r\n\r\n"),
        ("bare CR behind a size", "2\r{}\r\n0\r\n\r\n"),
        ("bare LF in an extension", "2;a\n{}\r\n0\r\n\r\n"),
        ("bare CR in an extension", "2;a\rb\r\n{}\r\n0\r\n\r\n"),
        ("control character in an extension", "2;a\u{1}\r\n{}\r\n0\r\n\r\n"),
        ("longer than its size", "2\r\n{} \r\n0\r\n\r\n"),
        ("bare LF behind data", "2\r\n{}\n0\r\n\r\n"),
        ("bare CR behind data", "2\r\n{}\r0\r\n\r\n"),
        ("no line end behind data", "2\r\n{}0\r\n\r\n"),
        ("bare LF at the end", "2\r\n{}\r\n0\r\n\n"),
        ("bare CR at the end", "2\r\n{}\r\n0\r\n\rx"),
        ("bare LF in trailers", "2\r\n{}\r\n0\r\nX: 1\n\r\n"),
        ("blank in a trailer's name", "2\r\n{}\r\n0\r\nX : 1\r\n\r\n"),
        ("no colon in a trailer", "2\r\n{}\r\n0\r\nX\r\n\r\n"),
        ("folded trailer", "2\r\n{}\r\n0\r\nX: 1\r\n 2\r\n\r\n"),
    ]
    .into_iter()
    .map(|(name, body)| (name, with("Transfer-Encoding: chunked", body), 400))
    .chain(
        [
            ("trailers without end", {
                let trailers = format!("0\r\n{}", "X: 1\r\n".repeat(20_000));
                (with("Transfer-Encoding: chunked", &trailers), 400)
            }),
            ("extensions without end", {
                let extension = format!("2;{}", "x".repeat(100_000));
                (with("Transfer-Encoding: chunked", &extension), 400)
            }),
        ]
        .into_iter()
        .map(|(name, (bytes, status))| (name, bytes, status)),
    )
    .collect();
    check(runtime, &[], &cases);
}

fn garbage_is_refused_at_once(runtime: Runtime) {
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdefghijklmnopqrstuvwxyz".to_vec();
    let letters = b"A".repeat(200_000);
    let cases: Vec<Case> = vec![
        ("TLS", hello, 400),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0".to_vec(), 400),
        ("zeros", vec![0; 100_000], 400),
        ("one zero", vec![0], 400),
        ("bytes beyond ASCII", vec![0xff; 100], 400),
        ("SOCKS", b"\x05\x01\x00".to_vec(), 400),
        ("a blank first", b" GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), 400),
        ("an LF first", b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), 400),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n\r\n".to_vec(), 400),
        ("SMTP", b"EHLO a\r\n\r\n".to_vec(), 400),
        ("JSON", b"{\"model\":\"m\"}\r\n\r\n".to_vec(), 400),
        ("no line", letters, 414),
    ];
    check(runtime, &[], &cases);
}

fn what_is_too_large_is_refused(runtime: Runtime) {
    let get = |target: usize, lines: String| {
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n{lines}\r\n", "t".repeat(target)).into_bytes()
    };
    let body = |bytes: usize| "x".repeat(bytes);
    let continued = |length: usize| {
        format!(
            "POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
        .into_bytes()
    };
    let chunked = |chunks: usize, expect: &str| {
        let head = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n";
        let chunk = format!("1000\r\n{}\r\n", body(4096));
        format!("{head}{expect}\r\n{}0\r\n\r\n", chunk.repeat(chunks)).into_bytes()
    };
    let cases: Vec<Case> = vec![
        ("target", get(32 << 10, String::new()), 414),
        ("target without end", [b"GET /", &*b"t".repeat(100_000)].concat(), 414),
        ("one header", get(0, format!("X: {}\r\n", "v".repeat(64 << 10))), 431),
        ("all headers", get(0, format!("X: {}\r\n", "v".repeat(1_000)).repeat(66)), 431),
        ("number of headers", get(0, "X: 1\r\n".repeat(256)), 431),
        ("headers without end", [&*get(0, "X: 1\r\n".repeat(20_000))].concat(), 431),
        ("body", post("/x", &body((1 << 20) + 1)), 413),
        ("body that is announced", post("/x", "").replace_length("4000000000"), 413),
        ("body that is waited for", continued((1 << 20) + 1), 413),
        ("chunked body", chunked(257, ""), 413),
    ];
    check(runtime, &["--max-body", "1MiB"], &cases);
}

trait ReplaceLength {
    fn replace_length(self, length: &str) -> Self;
}

impl ReplaceLength for Vec<u8> {
    fn replace_length(self, length: &str) -> Self {
        let text = String::from_utf8(self).expect("text");
        text.replace("Content-Length: 0", &format!("Content-Length: {length}")).into_bytes()
    }
}

fn a_chunked_body_that_is_waited_for_may_become_too_large(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let proxy = Proxy::with(runtime, &["--max-body", "1MiB"], &[&backend]);
    let mut client = proxy.client();
    client.send(
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
    );
    assert!(client.head().unwrap().starts_with(b"HTTP/1.1 100 "));
    let _ = client.try_send(format!("{:x}\r\n{}", 2 << 20, "x".repeat(2 << 20)));
    refused(&mut client, 413).unwrap();
    backend.assert_untouched();
}

fn whoever_sends_on_hears_that_it_is_too_much(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let proxy = Proxy::with(runtime, &["--max-body", "1MiB"], &[&backend]);
    for framing in ["Content-Length: 20000000", "Transfer-Encoding: chunked"] {
        let client = proxy.client();
        let mut reader = Wire::new(client.stream().try_clone().unwrap());
        client.send(format!("POST /x HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n"));
        let sender = std::thread::spawn(move || {
            if framing.starts_with("T") {
                let _ = client.try_send("1312d00\r\n");
            }
            // An ordinary client: it reads when it has sent all, or can send no more.
            let _ = client.try_send(vec![b'x'; 20_000_000]);
            client
        });
        let client = sender.join().unwrap();
        let answer = reader.answer().unwrap_or_else(|end| panic!("{framing}: {end:?}"));
        assert_eq!(answer.status(), 413, "{framing}: {answer:?}");
        drop(client);
    }
    backend.assert_untouched();
}

fn what_just_fits_is_taken(runtime: Runtime) {
    let backend = Backend::answering(&["m"], |request| {
        ok(format!("{} {}", request.head.len(), request.body.len()))
    });
    let proxy = Proxy::with(runtime, &["--max-body", "1MiB"], &[&backend]);
    let mut client = proxy.client();
    let mut check = |request: Vec<u8>, body: usize| {
        client.send(&request);
        let answer = client.answer().unwrap();
        let head = request.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
        assert_eq!((answer.status(), answer.text()), (200, format!("{head} {body}")));
    };
    check(get(&format!("/{}", "t".repeat((32 << 10) - 1))), 0);
    check(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(255)).into_bytes(), 0);
    let rest = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
    let value = "v".repeat((64 << 10) - rest);
    check(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {value}\r\n\r\n").into_bytes(), 0);
    check(post("/x", &"x".repeat(1 << 20)), 1 << 20);
    let chunk = format!("100000\r\n{}\r\n0\r\n\r\n", "x".repeat(1 << 20));
    let head = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    check([head, &chunk].concat().into_bytes(), 1 << 20);
    // Empty lines between requests are skipped.
    client.send("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer().unwrap().status(), 200);
}

fn what_follows_a_good_request_is_judged_for_itself(runtime: Runtime) {
    let backend = Backend::named(&["m"], "hi");
    let proxy = Proxy::start(runtime, &[&backend]);
    let mut client = proxy.client();
    client.send([chat("m"), with("Content-Length: 2\r\nContent-Length: 2", "{}")].concat());
    assert_eq!(client.answer().unwrap().raw, ok("hi"));
    refused(&mut client, 400).unwrap();
    assert_eq!(backend.requests(), 1);
}

on_every_runtime![
    ambiguous_heads_are_refused,
    malformed_chunks_are_refused,
    garbage_is_refused_at_once,
    what_is_too_large_is_refused,
    a_chunked_body_that_is_waited_for_may_become_too_large,
    whoever_sends_on_hears_that_it_is_too_much,
    what_just_fits_is_taken,
    what_follows_a_good_request_is_judged_for_itself,
];
