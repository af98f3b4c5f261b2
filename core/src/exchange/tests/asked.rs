//! What the engine is told of a request's prompt.

use crate::config::Limits;
use crate::exchange::{Exchange, Input, Output, Side};
use crate::route::{Fingerprint, Share};
use crate::time::Instant;
use crate::wire::scan::scan;
use alloc::sync::Arc;
use rstest::rstest;
use std::format;
use std::string::String;

/// The fingerprint that is asked about, of a request that comes in pieces of this many bytes.
fn asked(request: &str, piece: usize) -> Fingerprint {
    let now = Instant::START;
    let limits = Limits { fingerprints: true, ..Limits::default() };
    let mut exchange = Exchange::new(Arc::new(limits), now);
    for bytes in request.as_bytes().chunks(piece) {
        exchange.handle(Input::Received(Side::Client, bytes), now);
        while let Some(output) = exchange.poll_output() {
            if let Output::Ask(meta) = output {
                let prompt = meta.prompt.clone();
                let _ = exchange.abandon();
                return prompt;
            }
            assert!(matches!(output, Output::Reserve(..)), "{output:?}");
            let told = Input::Reserved(Some(Share { bytes: 1 << 20, overdraft: false }));
            exchange.handle(told, now);
        }
    }
    panic!("nothing was asked")
}

fn post(path: &str, header: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: h\r\n{header}Content-Length: {length}\r\n\r\n{body}")
}

fn body() -> String {
    let content = "long ".repeat(1000);
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{content}"}}]}}"#)
}

#[rstest]
#[case::whole(usize::MAX)]
#[case::packets(1460)]
#[case::bytewise(1)]
fn prompt_of_the_body(#[case] piece: usize) {
    let expected = scan(body().as_bytes()).fingerprint;
    assert_eq!(expected.chunks().len(), 9);
    assert_eq!(asked(&post("/v1/chat/completions", "", &body()), piece), expected);
}

/// vLLM's `/invocations` takes the model from a header, and only there.
#[rstest]
#[case::no_header("/invocations", "", true)]
#[case::header("/invocations", "X-Amzn-SageMaker-Adapter-Identifier: a\r\n", false)]
#[case::elsewhere("/v1/completions", "X-Amzn-SageMaker-Adapter-Identifier: a\r\n", true)]
fn adapter_of_a_header(#[case] path: &str, #[case] header: &str, #[case] same: bool) {
    let plain = scan(body().as_bytes()).fingerprint;
    let found = asked(&post(path, header, &body()), usize::MAX);
    assert_eq!(found == plain, same);
    assert_eq!(found.bytes(), plain.bytes());
}
