//! What is found in a body, however it is cut, by tables and against serde_json.

mod naive;
mod prompt;

use super::*;
use alloc::vec::Vec;
use core::fmt;
use proptest::collection::vec;
use proptest::prelude::*;
use rstest::rstest;
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::{format, string::ToString, vec};

/// Scans whole, in two pieces at every split, and byte by byte.
fn check(body: &[u8]) -> Scan {
    let whole = scan(body);
    let mut bytewise = Scanner::new();
    for cut in 0..=body.len() {
        bytewise.feed(&body[..cut]);
        let mut twice = Scanner::new();
        twice.feed(&body[..cut]);
        assert_eq!(twice.finish(body), whole, "cut at {cut}");
    }
    assert_eq!(bytewise.finish(body), whole, "byte by byte");
    whole
}

#[rstest]
#[case::plain(r#"{"model":"a","messages":[]}"#, Some("a"))]
#[case::last_key(r#"{"messages":[{"model":"b"}],"max_tokens":1,"model":"a"}"#, Some("a"))]
#[case::spaces(" \r\n\t{ \"model\" :\n\t\"a\" , \"n\" : 1 } \n", Some("a"))]
#[case::slash(r#"{"model":"org/name"}"#, Some("org/name"))]
#[case::absent(r#"{"messages":[]}"#, None)]
#[case::empty_object("{}", None)]
#[case::null(r#"{"model":null}"#, None)]
#[case::empty_name(r#"{"model":""}"#, None)]
#[case::number(r#"{"model":5}"#, None)]
#[case::object(r#"{"model":{"model":"a"}}"#, None)]
#[case::array(r#"{"model":["a"]}"#, None)]
#[case::nested_only(r#"{"metadata":{"model":"a"}}"#, None)]
#[case::name_as_value(r#"{"x":"model","y":"a"}"#, None)]
#[case::longer_key(r#"{"models":"a","mode":"b","Model":"c"}"#, None)]
#[case::last_wins(r#"{"model":"a","model":"b"}"#, Some("b"))]
#[case::last_wins_null(r#"{"model":"a","model":null}"#, None)]
#[case::last_wins_object(r#"{"model":"a","model":{}}"#, None)]
#[case::key_escaped(r#"{"\u006dod\u0065l":"a"}"#, Some("a"))]
#[case::key_all_escaped(r#"{"\u006d\u006f\u0064\u0065\u006c":"a"}"#, Some("a"))]
#[case::key_badly_escaped(r#"{"mod\x65l":"a"}"#, None)]
#[case::name_escaped(r#"{"model":"a\/b\"c\\\n\u00e9"}"#, Some("a/b\"c\\\n\u{e9}"))]
#[case::name_surrogates(r#"{"model":"\ud83D\uDE00!"}"#, Some("\u{1f600}!"))]
#[case::name_utf8(r#"{"model":"模型😀"}"#, Some("模型😀"))]
#[case::name_nul_escaped(r#"{"model":"a\u0000b"}"#, Some("a\0b"))]
#[case::name_ends_in_backslash(r#"{"model":"a\\","x":"\\\\\"","n":1}"#, Some("a\\"))]
#[case::lone_high(r#"{"model":"\ud83d"}"#, None)]
#[case::lone_high_then_text(r#"{"model":"\ud83dabcdefgh"}"#, None)]
#[case::lone_high_then_escape(r#"{"model":"\ud83d\u0041"}"#, None)]
#[case::lone_low(r#"{"model":"\ude00\ud83d"}"#, None)]
#[case::signed_escape(r#"{"model":"\u+041"}"#, None)]
#[case::short_escape(r#"{"model":"\u41"}"#, None)]
#[case::escape_cuts_character(r#"{"model":"\u004é"}"#, None)]
#[case::unknown_escape(r#"{"model":"\x41"}"#, None)]
#[case::raw_newline("{\"model\":\"a\nb\"}", None)]
#[case::raw_nul("{\"model\":\"a\0b\"}", None)]
#[case::nul_between("{\0\"model\":\"a\"}", None)]
#[case::other_space("{\u{a0}\"model\":\"a\"}", None)]
#[case::byte_order_mark("\u{feff}{\"model\":\"a\"}", Some("a"))]
#[case::two_marks("\u{feff}\u{feff}{\"model\":\"a\"}", None)]
#[case::mark_later(" \u{feff}{\"model\":\"a\"}", None)]
#[case::top_level_array(r#"[{"model":"a"}]"#, None)]
#[case::top_level_string(r#""model""#, None)]
#[case::form("model=a&stream=true", None)]
#[case::nothing("", None)]
#[case::space_only("  ", None)]
#[case::behind_the_object(r#"{"n":1}{"model":"a"}"#, None)]
#[case::trailing_garbage(r#"{"model":"a"} x"#, Some("a"))]
#[case::broken_behind(r#"{"model":"a","n":}"#, Some("a"))]
#[case::broken_before(r#"{"n":,"model":"a"}"#, None)]
#[case::no_colon(r#"{"n" 1,"model":"a"}"#, None)]
#[case::no_comma(r#"{"n":1 "model":"a"}"#, None)]
#[case::bare_key(r#"{model:"a"}"#, None)]
#[case::cut_in_name(r#"{"model":"a"#, None)]
#[case::cut_behind_name(r#"{"model":"a""#, Some("a"))]
#[case::python_numbers(r#"{"x":NaN,"y":-Infinity,"z":-1.5E+3,"model":"a"}"#, Some("a"))]
#[case::brackets_in_strings(r#"{"m":["]}\"]}\\",{"\"]":"{["}],"model":"a"}"#, Some("a"))]
fn model_named(#[case] body: &str, #[case] model: Option<&str>) {
    assert_eq!(check(body.as_bytes()).model.as_deref(), model);
}

#[rstest]
#[case::plain(r#"{"stream":true}"#, true)]
#[case::spaced("{\"stream\" : true\n}", true)]
#[case::followed(r#"{"stream":true,"n":1}"#, true)]
#[case::no(r#"{"stream":false}"#, false)]
#[case::last_wins(r#"{"stream":true,"stream":null}"#, false)]
#[case::word_as_text(r#"{"stream":"true"}"#, false)]
#[case::longer(r#"{"stream":trueish}"#, false)]
#[case::nested(r#"{"stream_options":{"stream":true}}"#, false)]
#[case::cut(r#"{"stream":true"#, false)]
fn stream_wanted(#[case] body: &str, #[case] stream: bool) {
    assert_eq!(check(body.as_bytes()).stream, stream);
}

#[rstest]
#[case::text(r#"{"prompt":"four"}"#, 4)]
#[case::text_with_escapes(r#"{"prompt":"\n\"\\"}"#, 6)]
#[case::list(r#"{"messages": [ {} ] }"#, 6)]
#[case::ids(r#"{"prompt":[1,22,333],"n":4444}"#, 10)]
#[case::several(r#"{"system":"ab","messages":[1],"tools":[{}]}"#, 9)]
#[case::twice(r#"{"input":"ab","input":"cde"}"#, 5)]
#[case::none(r#"{"prompt":null,"documents":7}"#, 0)]
#[case::other(r#"{"images":["data:"],"user":"someone"}"#, 0)]
#[case::rerank(r#"{"query":"ab","documents":["c","d"]}"#, 11)]
#[case::escaped_key(r#"{"pr\u006fmpt":"abc"}"#, 3)]
#[case::cut(r#"{"prompt":"abc"#, 0)]
fn prompt_measured(#[case] body: &str, #[case] bytes: u64) {
    assert_eq!(check(body.as_bytes()).prompt_bytes, bytes);
}

#[rstest]
#[case::neither(r#"{"store":true}"#, false)]
#[case::kv(r#"{"kv_transfer_params":{"do_remote_decode":true}}"#, true)]
#[case::kv_null(r#"{"kv_transfer_params":null}"#, false)]
#[case::kv_null_as_text(r#"{"kv_transfer_params":"null"}"#, true)]
#[case::kv_last_wins(r#"{"kv_transfer_params":{},"kv_transfer_params":null}"#, false)]
#[case::background(r#"{"background":true}"#, true)]
#[case::background_as_number(r#"{"background":1}"#, true)]
#[case::background_as_text(r#"{"background":"yes"}"#, true)]
#[case::foreground(r#"{"background":false}"#, false)]
#[case::background_null(r#"{"background":null}"#, false)]
#[case::both(r#"{"kv_transfer_params":{},"background":false}"#, true)]
#[case::nested(r#"{"metadata":{"background":true}}"#, false)]
fn pinned_down(#[case] body: &str, #[case] pinned: bool) {
    assert_eq!(check(body.as_bytes()).pinned, pinned);
}

#[rstest]
#[case::at_the_limit(MODEL_BYTES_MAX, true)]
#[case::beyond(MODEL_BYTES_MAX + 1, false)]
fn long_names(#[case] length: usize, #[case] named: bool) {
    let body = format!(r#"{{"model":"{}"}}"#, "m".repeat(length));
    assert_eq!(scan(body.as_bytes()).model.is_some(), named);
}

#[rstest]
#[case::both(r#"{"previous_response_id":"resp_1","lora_name":"l"}"#, Some("resp_1"), Some("l"))]
#[case::escaped(
    r#"{"previous_response_id":"r\u00e9","lora_name":"a\/b"}"#,
    Some("ré"),
    Some("a/b")
)]
#[case::no_text(r#"{"previous_response_id":null,"lora_name":["l"]}"#, None, None)]
#[case::empty(r#"{"previous_response_id":"","lora_name":""}"#, None, None)]
#[case::last_wins(r#"{"lora_name":"a","lora_name":"b"}"#, None, Some("b"))]
#[case::last_wins_null(r#"{"previous_response_id":"a","previous_response_id":null}"#, None, None)]
#[case::nested(r#"{"input":[{"previous_response_id":"a"}],"x":{"lora_name":"l"}}"#, None, None)]
fn other_names(#[case] body: &str, #[case] response: Option<&str>, #[case] adapter: Option<&str>) {
    let found = check(body.as_bytes());
    assert_eq!(found.previous_response_id.as_deref(), response);
    assert_eq!(found.lora_name.as_deref(), adapter);
    assert_eq!(found.model, None);
}

#[rstest]
#[case::at_the_limit(NAME_BYTES_MAX, true)]
#[case::beyond(NAME_BYTES_MAX + 1, false)]
fn other_long_names(#[case] length: usize, #[case] named: bool) {
    let name = "n".repeat(length);
    let body = format!(r#"{{"previous_response_id":"{name}","lora_name":"{name}"}}"#);
    let found = scan(body.as_bytes());
    assert_eq!(found.previous_response_id.is_some(), named);
    assert_eq!(found.lora_name.is_some(), named);
}

#[test]
fn invalid_utf8_is_no_name_and_hurts_nothing_else() {
    assert_eq!(check(b"{\"model\":\"\xff\"}").model, None);
    assert_eq!(check(b"{\"x\":\"\xff\xed\xa0\",\"model\":\"a\"}").model.as_deref(), Some("a"));
    assert_eq!(check(b"\xff\xfe{\0\"\0"), Scan::default());
}

/// A scanner that starts anew at each call, or counts the same backslashes twice, would not
/// end within the hour.
#[rstest]
#[case::text("a", 1)]
#[case::backslashes("\\\\", 1)]
#[case::quotes("\\\"", 1)]
#[case::brackets("[", 0)]
#[case::number("1", 0)]
#[case::spaces(" ", 0)]
fn linear_however_it_is_cut(#[case] filling: &str, #[case] quotes: usize) {
    let quote = "\"".repeat(quotes);
    let body = format!(r#"{{"model":"a","x":{quote}{}"#, filling.repeat(500_000));
    let mut scanner = Scanner::new();
    for end in 0..body.len() {
        scanner.feed(&body.as_bytes()[..end]);
    }
    assert_eq!(scanner.finish(body.as_bytes()).model.as_deref(), Some("a"));
}

/// The members of an object in their order, repeated ones too.
struct Pairs;

impl<'de> Visitor<'de> for Pairs {
    type Value = Vec<(String, &'de RawValue)>;
    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = vec![];
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(pairs)
    }
}

/// The top level by serde_json; `None` where that is no object or no JSON.
fn naive(body: &[u8]) -> Option<Scan> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let pairs = reader.deserialize_map(Pairs).ok()?;
    reader.end().ok()?;
    let last = |key| pairs.iter().rfind(|pair| pair.0 == key).map(|pair| pair.1.get());
    let length = |raw: &str| match raw.as_bytes()[0] {
        b'"' => raw.len() - 2,
        b'[' | b'{' => raw.len(),
        _ => 0,
    };
    let prompts = pairs.iter().filter(|pair| PROMPT_KEYS.contains(&pair.0.as_bytes()));
    let name = |key| {
        let name: Option<String> = last(key).and_then(|raw| serde_json::from_str(raw).ok());
        name.filter(|name| !name.is_empty())
    };
    Some(Scan {
        model: name("model"),
        previous_response_id: name("previous_response_id"),
        lora_name: name("lora_name"),
        stream: last("stream") == Some("true"),
        prompt_bytes: prompts.map(|pair| length(pair.1.get()) as u64).sum(),
        pinned: last("kv_transfer_params").is_some_and(|raw| raw != "null")
            || last("background").is_some_and(|raw| raw != "null" && raw != "false"),
        fingerprint: {
            let (chunks, bytes) = naive::fingerprint(&pairs)?;
            let found = scan(body).fingerprint;
            assert_eq!((found.chunks(), found.bytes()), (&*chunks, bytes));
            found
        },
    })
}

fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-z{}\\[\\],: é😀]{0,20}",
        r#"\\["\\/bfnrt]"#,
        r"\\u00[0-7][0-9a-fA-F]",
        Just(r"\ud83d\ude00".to_string()),
    ];
    vec(piece, 0..4).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![text(), "true|false|null", "-?[1-9][0-9]{0,9}(\\.5)?(e[+-]?7)?"];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let member = (text(), inner.clone()).prop_map(|(key, value)| format!("{key} :{value}"));
        prop_oneof![
            vec(inner, 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
            vec(member, 0..4).prop_map(|members| format!("{{{}}}", members.join(","))),
        ]
    })
}

fn object() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        6 => r#""(model|stream|background|kv_transfer_params|prompt|messages|tools)""#,
        2 => r#""(previous_response_id|lora_name)""#,
        1 => r#""(m|\\u006d)(o|\\u006F)del""#,
        1 => text(),
    ];
    let member = (key, "[ \t\r\n]{0,2}", "[ \t\r\n]{0,2}", value(), "[ \t\r\n]{0,2}");
    let member = member.prop_map(|(key, a, b, value, c)| format!("{a}{key}{b}:{value}{c}"));
    vec(member, 0..6).prop_map(|members| format!("{{{}}}", members.join(",")))
}

proptest! {
    #[test]
    fn finds_what_serde_json_finds(body in object()) {
        prop_assert_eq!(Some(check(body.as_bytes())), naive(body.as_bytes()));
    }

    #[test]
    fn broken_bodies_do_no_harm(
        body in object(),
        edits in vec((any::<prop::sample::Index>(), any::<u8>(), 0..3), 1..4),
    ) {
        let mut body = body.into_bytes();
        for (at, byte, edit) in edits {
            let at = at.index(body.len() + 1).min(body.len().saturating_sub(1));
            match edit {
                0 => body.truncate(at),
                1 => body.insert(at, byte),
                _ => drop(body.splice(at..(at + 1).min(body.len()), [byte])),
            }
        }
        let found = check(&body);
        if let Some(expected) = naive(&body) {
            prop_assert_eq!(found, expected);
        }
    }
}
