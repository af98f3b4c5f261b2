//! Tests of [`entry`](super).

use super::*;
use rstest::rstest;
use std::time::Duration;

#[rstest]
#[case::epoch(0, "1970-01-01T00:00:00.000000Z")]
#[case::leap_day(951_827_696_000_001, "2000-02-29T12:34:56.000001Z")]
#[case::day_after(951_868_800_000_000, "2000-03-01T00:00:00.000000Z")]
#[case::end_of_year(1_798_761_599_999_999, "2026-12-31T23:59:59.999999Z")]
#[case::no_leap_day(4_107_542_400_000_000, "2100-03-01T00:00:00.000000Z")]
fn times(#[case] micros: u64, #[case] expected: &str) {
    assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + Duration::from_micros(micros)), expected);
}

/// One entry at this level, of these values.
fn entry(format: Format, level: Level, details: Details, values: &[(&str, &str)]) -> String {
    let mut out = String::new();
    let record = Record::builder()
        .level(level)
        .target("vllm_proxy::tests")
        .module_path(Some("vllm_proxy::tests"))
        .file(Some("tests.rs"))
        .line(Some(7))
        .args(format_args!("it [is]"))
        .key_values(&values)
        .build();
    let style = Style { format, coloured: false, details };
    write(&mut out, style, SystemTime::UNIX_EPOCH, &record);
    out
}

/// Every character that some parser minds, and some that none should.
fn hostile() -> String {
    let mut text: String = ('\0'..='\u{a0}').collect();
    text.push_str("\u{2028}\u{2029}\u{202e}\u{d7ff}\u{e000}\u{feff}\u{fffd}\u{fffe}\u{ffff}");
    text.push_str("\u{1f600}\u{1fffe}\u{10ffff}---\n- x: y # z\n...\n'{}[]&*!|>%@`");
    text
}

#[test]
fn txt_is_one_line() {
    let line = entry(Format::Txt, Level::Info, Details::None, &[("a", "x\ny\"]"), ("b", "")]);
    assert_eq!(
        line,
        "[1970-01-01T00:00:00.000000Z] [Info] [it \\u005bis\\u005d] [a=\"x\\ny\\\"]\"] [b=\"\"]\n"
    );
    let line = entry(Format::Txt, Level::Info, Details::All, &[("a", &hostile())]);
    assert_eq!(line.matches(char::is_control).count(), 1, "{line:?}");
    assert!(line.ends_with("[line=\"7\"]\n"), "{line:?}");
}

#[test]
fn json_is_one_object_on_one_line() {
    let line = entry(Format::Json, Level::Warn, Details::All, &[("a", &hostile()), ("\n", "")]);
    assert_eq!(line.matches(char::is_control).count(), 1, "{line:?}");
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["level"], "Warning");
    assert_eq!(value["message"], "it [is]");
    assert_eq!(value["values"]["a"], hostile());
    assert_eq!(value["values"]["\n"], "");
    assert_eq!(value["line"], 7);
}

#[test]
fn yaml_is_one_document() {
    let text = entry(Format::Yaml, Level::Info, Details::Some, &[("no", &hostile())]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..3], ["---", "time: \"1970-01-01T00:00:00.000000Z\"", "level: \"Info\""]);
    assert_eq!(lines[3..5], ["message: \"it [is]\"", "values:"]);
    // A double-quoted string of YAML without anything that only YAML has is one of JSON.
    let (name, value) = lines[5].split_once(": ").unwrap();
    assert_eq!(name, "  \"no\"");
    assert_eq!(serde_json::from_str::<String>(value).unwrap(), hostile());
    assert_eq!(lines[6..], ["target: \"vllm_proxy::tests\""]);
    assert!(entry(Format::Yaml, Level::Info, Details::None, &[]).ends_with("\nvalues: {}\n"));
}

#[rstest]
#[case::none(Level::Info, Details::None, &[])]
#[case::some(Level::Info, Details::Some, &["target"])]
#[case::all(Level::Debug, Details::All, &["target", "thread", "module", "file", "line"])]
#[case::error(Level::Error, Details::None, &["target", "thread", "module", "file", "line"])]
fn details_by_level(#[case] level: Level, #[case] details: Details, #[case] expected: &[&str]) {
    let line = entry(Format::Json, level, details, &[]);
    let value: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&line).unwrap();
    for name in ["target", "thread", "module", "file", "line"] {
        assert_eq!(value.contains_key(name), expected.contains(&name), "{name} in {line}");
    }
}

#[test]
fn a_name_stands_once() {
    let line =
        entry(Format::Json, Level::Info, Details::None, &[("a", "1"), ("b", ""), ("a", "2")]);
    assert!(line.contains(r#""values":{"a":"2","b":""}"#), "{line}");
}

#[test]
fn values_keep_their_types() {
    let values = [
        ("number", Value::from(7)),
        ("negative", Value::from(-7_i64)),
        ("float", Value::from(1.0)),
        ("huge", Value::from(1e300)),
        ("infinite", Value::from(f64::INFINITY)),
        ("wide", Value::from(u128::MAX)),
        ("truth", Value::from(true)),
        ("nothing", Value::null()),
        ("debug", Value::from_debug(&Some("x"))),
    ];
    let mut out = String::new();
    let record = Record::builder().level(Level::Info).key_values(&values).build();
    let style = Style { format: Format::Json, coloured: false, details: Details::None };
    write(&mut out, style, SystemTime::UNIX_EPOCH, &record);
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    let expected = serde_json::json!({
        "number": 7, "negative": -7, "float": 1.0, "huge": "1e300", "infinite": "inf",
        "wide": u128::MAX.to_string(), "truth": true, "nothing": null, "debug": "Some(\"x\")",
    });
    assert_eq!(value["values"], expected);
}
