//! What the fuzz targets do with their input, apart from libFuzzer, so that `cargo test` in this
//! folder replays the corpora. A new target is a function here and three lines in `fuzz_targets`.
//!
//! With cargo-fuzz: `cd tests && cargo +nightly fuzz run scan`. Without it, on stable Rust, in this
//! folder (findings are added to the corpus; keep what is small and says something new):
//!
//! ```text
//! export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 \
//!   -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
//!   -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
//! cargo run --release --target x86_64-unknown-linux-gnu --bin scan -- corpus/scan -max_len=4096
//! ```

mod body;
mod exchange;
mod form;
mod head;
mod update;
mod websocket;

pub use body::body;
pub use exchange::exchange;
pub use form::form;
pub use head::head;
pub use update::update;
pub use websocket::websocket;

use serde_json::Value;
use vllm_proxy_core::wire::scan::{self, Scanner};

/// Nothing panics, a body cut in three means what the whole one means, and of valid JSON it is what
/// serde_json finds. Its fingerprint is the same however it is spaced and escaped. The first two
/// bytes say where to cut.
pub fn scan(data: &[u8]) {
    let [first, second, body @ ..] = data else { return };
    let whole = scan::scan(body);
    let cut = |at: u8, length: usize| usize::from(at) * (length + 1) / 256;
    let late = cut(*second, body.len());
    let early = cut(*first, late);
    let mut pieces = Scanner::new();
    pieces.feed(&body[..early]);
    pieces.feed(&body[..late]);
    assert_eq!(pieces.finish(body), whole, "cut at {early} and {late}");

    assert!(whole.fingerprint.chunks().len() as u64 <= whole.fingerprint.bytes() / 512);
    let Ok(value @ Value::Object(_)) = serde_json::from_slice(body) else { return };
    let dense = value.to_string();
    let spaced = serde_json::to_string_pretty(&value).expect("it was JSON");
    let fingerprint = scan::scan(dense.as_bytes()).fingerprint;
    assert_eq!(scan::scan(spaced.as_bytes()).fingerprint, fingerprint, "spaced");
    assert_eq!(scan::scan(escaped(&dense).as_bytes()).fingerprint, fingerprint, "escaped");
    let Value::Object(object) = value else { return };
    let model = object.get("model").and_then(Value::as_str).filter(|name| !name.is_empty());
    let bounded = model.is_none_or(|name| name.len() < 8 * 1024);
    assert!(!bounded || whole.model.as_deref() == model, "{:?}, not {model:?}", whole.model);
    assert_eq!(whole.stream, object.get("stream") == Some(&Value::Bool(true)));
    let background = object.get("background").is_some_and(|it| !it.is_null() && it != false);
    let kv = object.get("kv_transfer_params").is_some_and(|it| !it.is_null());
    assert_eq!(whole.pinned, background || kv);
}

/// The same JSON in ASCII.
fn escaped(json: &str) -> String {
    let mut ascii = String::new();
    for character in json.chars() {
        if character.is_ascii() {
            ascii.push(character);
        } else {
            let units = &mut [0; 2];
            ascii.extend(character.encode_utf16(units).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn corpora_replay() {
        replay("scan", super::scan);
        replay("body", super::body);
        replay("exchange", super::exchange);
        replay("form", super::form);
        replay("head", super::head);
        replay("update", super::update);
        replay("websocket", super::websocket);
    }

    fn replay(target: &str, run: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        let mut seeds = 0;
        for entry in fs::read_dir(folder).expect("every target has a corpus") {
            run(&fs::read(entry.expect("the corpus can be listed").path()).expect("a plain file"));
            seeds += 1;
        }
        assert!(seeds > 0, "the corpus of {target} is empty");
    }
}
