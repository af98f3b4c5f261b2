//! What is found in a form, however it is cut.
//!
//! Each case says what vLLM 0.32's transcription route found in that very body (Starlette 1.10,
//! python-multipart 0.0.34, FastAPI 0.136), or that it refused the form (`Refused`): then it only
//! matters that nothing breaks, and the model is the one before the fault, if any.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use rstest::rstest;
use std::format;

/// Scans whole, in two pieces at every split, and byte by byte.
fn check(content_type: &str, body: &[u8]) -> Scan {
    let Some(boundary) = boundary(content_type.as_bytes()) else { return Scan::default() };
    let whole = FormScanner::new(boundary.clone()).finish(body);
    let mut bytewise = FormScanner::new(boundary.clone());
    for cut in 0..=body.len() {
        bytewise.feed(&body[..cut]);
        let mut twice = FormScanner::new(boundary.clone());
        twice.feed(&body[..cut]);
        assert_eq!(twice.finish(body), whole, "cut at {cut}");
    }
    assert_eq!(bytewise.finish(body), whole, "byte by byte");
    whole
}

const FORM: &str = "multipart/form-data; boundary=B";

const FILE: &str = "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\
    Content-Type: audio/wav\r\n\r\nRIFF\r\n";

const MODEL: &str = "form-data; name=\"model\"";

fn part(disposition: &str, content: &str) -> String {
    format!("--B\r\nContent-Disposition: {disposition}\r\n\r\n{content}\r\n")
}

/// A file, a model called `a`, and what is behind it.
fn named(behind: &str) -> String {
    format!("{FILE}{}{behind}", part(MODEL, "a"))
}

fn model(body: &str) -> Option<String> {
    check(FORM, body.as_bytes()).model
}

#[rstest]
#[case::end("--B--\r\n", Some("a"))]
#[case::end_without_crlf("--B--", Some("a"))]
#[case::half_an_end("--B-", None)]
#[case::cut_in_the_boundary("--B", None)]
#[case::cut_in_the_line_end("--B\r", None)]
#[case::cut_behind_the_boundary("--B\r\n", Some("a"))]
#[case::no_boundary("", None)]
#[case::padding("--B \t\r\nContent-Disposition: form-data; name=x\r\n\r\n\r\n--B--", Some("a"))]
#[case::padding_unfinished("--B  ", None)]
#[case::refused_padding_and_text("--B x\r\n", None)]
#[case::refused_padding_and_end("--B --\r\n", None)]
#[case::refused_padding_and_cr("--B \rx", None)]
#[case::epilogue(
    "--B--\r\n--B\r\nContent-Disposition: form-data; name=model\r\n\r\nb\r\n--B--",
    Some("a")
)]
#[case::refused_no_name_behind(
    "--B\r\nContent-Disposition: form-data\r\n\r\nb\r\n--B--",
    Some("a")
)]
fn ends(#[case] behind: &str, #[case] expected: Option<&str>) {
    assert_eq!(model(&named(behind)).as_deref(), expected);
}

#[rstest]
#[case::nothing("", Some("a"))]
#[case::crlf("\r\n", Some("a"))]
#[case::lf("\n", Some("a"))]
#[case::crlf_and_text("\r\npre amble\r\n", Some("a"))]
#[case::refused_text("preamble\r\n", None)]
#[case::refused_hyphen("\r\npre-amble\r\n", None)]
#[case::refused_space(" ", None)]
#[case::refused_nameless_part("--B\r\n\r\n\r\n", None)]
#[case::refused_padding("--B \r\n\r\n", None)]
#[case::refused_line("--B-x", None)]
#[case::at_the_end_already("--B--\r\n", None)]
fn beginnings(#[case] before: &str, #[case] expected: Option<&str>) {
    assert_eq!(model(&format!("{before}{}", named("--B--\r\n"))).as_deref(), expected);
}

#[test]
fn a_model_before_the_file() {
    assert_eq!(model(&format!("{}{FILE}--B--", part(MODEL, "a"))).as_deref(), Some("a"));
}

#[rstest]
#[case::plain("form-data; name=\"model\"", Some("a"))]
#[case::token("form-data; name=model", Some("a"))]
#[case::no_spaces("form-data;name=\"model\"", Some("a"))]
#[case::spaces("form-data ; name = \"model\" ", Some("a"))]
#[case::tabs("\tform-data;\tname\t=\t\"model\"\t", Some("a"))]
#[case::key_case("form-data; NAME=\"model\"", Some("a"))]
#[case::name_case("form-data; name=\"Model\"", None)]
#[case::other_type("attachment; name=\"model\"", Some("a"))]
#[case::no_type("; name=\"model\"", Some("a"))]
#[case::empty_behind("form-data; name=model;", Some("a"))]
#[case::refused_no_semicolon("name=\"model\"", None)]
#[case::refused_lf("form-data;\n name=\"model\"", None)]
#[case::refused_folded("form-data;\r\n name=\"model\"", None)]
#[case::brackets("form-data; name=\"model[]\"", None)]
#[case::backslash("form-data; name=\"mo\\del\"", None)]
#[case::escaped_quote("form-data; name=\"\\\"model\"", None)]
#[case::half_quoted("form-data; name=\"model", None)]
#[case::quoted_and_more("form-data; name=\"model\"x", None)]
#[case::quotes_inside("form-data; name=mo\"de\"l", None)]
#[case::twice("form-data; name=\"x\"; name=\"model\"", Some("a"))]
#[case::refused_extended("form-data; name*=model", None)]
#[case::extended_besides("form-data; name=model; name*=utf-8''x", Some("a"))]
#[case::semicolons_quoted("form-data; x=\"; name=y; \"; name=\"model\"", Some("a"))]
#[case::refused_escaped_quote_goes_on("form-data; x=\"\\\"; name=model; y=\"", None)]
#[case::refused_backslashes_count_as_one("form-data; x=\"\\\\\"; name=\"model\"", None)]
#[case::filename("form-data; name=\"model\"; filename=\"x\"", None)]
#[case::filename_empty("form-data; name=\"model\"; filename=\"\"", None)]
#[case::filename_bare("form-data; name=\"model\"; filename", None)]
#[case::filename_bare_in_capitals("form-data; name=\"model\"; FILENAME", Some("a"))]
#[case::filename_extended("form-data; name=\"model\"; filename*=utf-8''x", Some("a"))]
#[case::other_key("form-data; name=\"model\"; filenames=x", Some("a"))]
fn dispositions(#[case] disposition: &str, #[case] expected: Option<&str>) {
    let body = format!("{FILE}{}--B--", part(disposition, "a"));
    assert_eq!(model(&body).as_deref(), expected);
}

#[rstest]
#[case::case("CONTENT-disposition: form-data; name=model", Some("a"))]
#[case::no_space("Content-Disposition:form-data; name=model", Some("a"))]
#[case::others(
    "Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=model\r\n\
     Content-Transfer-Encoding: base64",
    Some("a")
)]
#[case::twice(
    "Content-Disposition: form-data; name=x\r\nContent-Disposition: form-data; name=model",
    Some("a")
)]
#[case::twice_and_not(
    "Content-Disposition: form-data; name=model\r\nContent-Disposition: form-data; name=x",
    None
)]
#[case::refused_none("X: y", None)]
#[case::refused_space_before_colon("Content-Disposition : form-data; name=model", None)]
#[case::refused_no_name("Content-Disposition: form-data; name=model\r\n: x", None)]
#[case::refused_no_colon("Content-Disposition: form-data; name=model\r\nx", None)]
#[case::refused_cr("Content-Disposition: form-data; name=model\rX: y", None)]
#[case::refused_lf("Content-Disposition: form-data; name=model\nX: y\n", None)]
fn header_lines(#[case] headers: &str, #[case] expected: Option<&str>) {
    let body = format!("{FILE}--B\r\n{headers}\r\n\r\na\r\n--B--");
    assert_eq!(model(&body).as_deref(), expected);
}

#[rstest]
#[case::eight("X: y\r\n".repeat(7), true)]
#[case::refused_nine("X: y\r\n".repeat(8), false)]
#[case::long(format!("X: {}\r\n", "y".repeat(4221)), true)]
#[case::refused_longer(format!("X: {}\r\n", "y".repeat(4222)), false)]
fn header_limits(#[case] more: String, #[case] found: bool) {
    let body = format!("--B\r\n{more}Content-Disposition: form-data; name=model\r\n\r\na\r\n--B--");
    assert_eq!(check(FORM, body.as_bytes()).model.is_some(), found);
}

#[rstest]
#[case::spaces(" a ", Some(" a "))]
#[case::empty("", None)]
#[case::quotes("\"a\"", Some("\"a\""))]
#[case::percent("a%20b", Some("a%20b"))]
#[case::utf8("模", Some("模"))]
#[case::line_end("a\r\n", Some("a\r\n"))]
#[case::lf_only("a\nb\n--B\n", Some("a\nb\n--B\n"))]
#[case::boundary_in_a_line("a--B--", Some("a--B--"))]
#[case::longer_boundary("a\r\n--BB\r\nc", Some("a\r\n--BB\r\nc"))]
#[case::nearly_a_boundary("a\r\n--B-x\r\n--B\rx\r\n-", Some("a\r\n--B-x\r\n--B\rx\r\n-"))]
#[case::begun_twice("a\r\n--B\r\r\n--B-", Some("a\r\n--B\r\r\n--B-"))]
fn contents(#[case] content: &str, #[case] expected: Option<&str>) {
    let body = format!("{FILE}{}--B--", part(MODEL, content));
    assert_eq!(model(&body).as_deref(), expected);
}

/// The boundary needs a line end of its own in front.
#[test]
fn a_boundary_at_once_is_content() {
    let body = format!("{FILE}--B\r\nContent-Disposition: {MODEL}\r\n\r\n--B--\r\n");
    assert_eq!(model(&body), None);
}

#[rstest]
#[case::text([(MODEL, "a"), (MODEL, "b")], Some("b"))]
#[case::empty([(MODEL, "a"), (MODEL, "")], None)]
#[case::file([(MODEL, "a"), ("form-data; name=model; filename=x", "b")], None)]
#[case::text_behind_file([("form-data; name=model; filename=x", "b"), (MODEL, "a")], Some("a"))]
fn the_last_of_a_name_counts(#[case] parts: [(&str, &str); 2], #[case] expected: Option<&str>) {
    let [first, second] = parts.map(|(disposition, content)| part(disposition, content));
    assert_eq!(model(&format!("{FILE}{first}{second}--B--")).as_deref(), expected);
}

#[test]
fn bare_line_feeds_end_no_line() {
    assert_eq!(model(&named("--B--\r\n").replace("\r\n", "\n")), None);
    assert_eq!(model(&named("--B--\r\n").replacen("--B\r\n", "--B\n", 1)), None);
}

#[rstest]
#[case("true", true)]
#[case("True", true)]
#[case("TRUE", true)]
#[case("1", true)]
#[case("on", true)]
#[case("ON", true)]
#[case("yes", true)]
#[case("t", true)]
#[case("T", true)]
#[case("y", true)]
#[case("Y", true)]
#[case("false", false)]
#[case("0", false)]
#[case("off", false)]
#[case("no", false)]
#[case("f", false)]
#[case("n", false)]
#[case::refused_number("01", false)]
#[case::refused_null("null", false)]
#[case::refused_empty("", false)]
#[case::refused_space(" true", false)]
#[case::refused_space_behind("true ", false)]
fn streams(#[case] value: &str, #[case] stream: bool) {
    let field = |value| part("form-data; name=stream", value);
    let body = named(&format!("{}--B--", field(value)));
    let expected = Scan { model: Some("a".into()), stream, ..Scan::default() };
    assert_eq!(check(FORM, body.as_bytes()), expected);
    let body = named(&format!("{}{}--B--", field("true"), field(value)));
    assert_eq!(check(FORM, body.as_bytes()).stream, stream);
}

#[test]
fn a_file_is_neither_prompt_nor_order() {
    let file = |name| part(&format!("form-data; name={name}; filename=f"), "true");
    let body = named(&format!("{}{}--B--", file("stream"), file("prompt")));
    let found = check(FORM, body.as_bytes());
    assert_eq!((found.stream, found.prompt_bytes), (false, 0));
}

#[test]
fn a_prompt_is_measured() {
    let body = named(&format!("{}--B--", part("form-data; name=prompt", "Hëllo")));
    assert_eq!(check(FORM, body.as_bytes()).prompt_bytes, 6);
}

#[rstest]
#[case::at_the_limit(MODEL_BYTES_MAX, true)]
#[case::beyond(MODEL_BYTES_MAX + 1, false)]
fn long_names(#[case] length: usize, #[case] found: bool) {
    let body = part(MODEL, &"m".repeat(length)) + "--B--";
    let boundary = boundary(FORM.as_bytes()).expect("it names one");
    assert_eq!(FormScanner::new(boundary).finish(body.as_bytes()).model.is_some(), found);
}

#[rstest]
#[case::quoted("multipart/form-data; boundary=\"B\"", true)]
#[case::case("Multipart/Form-Data; Boundary=B", true)]
#[case::second("multipart/form-data; charset=utf-8; boundary=B", true)]
#[case::first("multipart/form-data;boundary=B;x=y", true)]
#[case::spaces("multipart/form-data; boundary = \"B\" ", true)]
#[case::spaces_around_the_type(" multipart/form-data ; boundary=B", true)]
#[case::twice("multipart/form-data; boundary=C; boundary=B", true)]
#[case::quoted_elsewhere("multipart/form-data; x=\"; boundary=C\"; boundary=B", true)]
#[case::refused_extended("multipart/form-data; boundary*=B", false)]
#[case::refused_none("multipart/form-data", false)]
#[case::refused_bare("multipart/form-data; boundary", false)]
#[case::other_type("multipart/mixed; boundary=B", false)]
#[case::urlencoded("application/x-www-form-urlencoded; boundary=B", false)]
#[case::comma("multipart/form-data, boundary=B", false)]
#[case::no_semicolon("multipart/form-data boundary=B", false)]
#[case::refused_wrong("multipart/form-data; boundary=C", false)]
#[case::refused_half_quoted("multipart/form-data; boundary=\"B", false)]
#[case::refused_other_quotes("multipart/form-data; boundary='B'", false)]
#[case::refused_backslash("multipart/form-data; boundary=\"\\B\"", false)]
#[case::refused_list("multipart/form-data; boundary=B, x", false)]
#[case::no_head_can_hold_it("multipart/form-data; boundary=\rB; boundary=\r", false)]
fn content_types(#[case] content_type: &str, #[case] found: bool) {
    let body = named("--B--\r\n");
    assert_eq!(check(content_type, body.as_bytes()).model.is_some(), found);
}

#[rstest]
#[case::empty("", "", true)]
#[case::hyphens("---", "---", true)]
#[case::escapes("\"a\\\"b\\\\c\"", "a\"b\\c", true)]
#[case::long(&"B".repeat(256), &"B".repeat(256), true)]
#[case::refused_longer(&"B".repeat(257), &"B".repeat(257), false)]
fn boundaries(#[case] written: &str, #[case] meant: &str, #[case] found: bool) {
    let body = named("--B--\r\n").replace("--B", &format!("--{meant}"));
    let content_type = format!("multipart/form-data; boundary={written}");
    assert_eq!(check(&content_type, body.as_bytes()).model.is_some(), found);
}

/// In a charset other than UTF-8 vLLM reads these bytes as something else; ASCII stays itself.
#[rstest]
#[case::none("", "é".as_bytes(), Some("é"))]
#[case::not_utf8("", b"\xe9", Some("é"))]
#[case::utf8("; charset=utf8", "é".as_bytes(), Some("é"))]
#[case::utf8_capitals("; charset=UTF_8", "é".as_bytes(), Some("é"))]
#[case::utf8_quoted("; charset=\"utf-8\"", "é".as_bytes(), Some("é"))]
#[case::latin("; charset=latin1", "é".as_bytes(), None)]
#[case::latin_ascii("; charset=iso-8859-1", b"a", Some("a"))]
#[case::unknown("; charset=nonsense", b"\xe9", None)]
#[case::unknown_ascii("; charset=nonsense", b"a", Some("a"))]
fn charsets(#[case] charset: &str, #[case] name: &[u8], #[case] expected: Option<&str>) {
    let head = format!("--B\r\nContent-Disposition: {MODEL}\r\n\r\n");
    let body = [head.as_bytes(), name, b"\r\n--B--"];
    let found = check(&format!("{FORM}{charset}"), &body.concat());
    assert_eq!(found.model.as_deref(), expected);
}

/// A scanner that starts anew at each call, or searches what it has searched, would not end
/// within the hour.
#[rstest]
#[case::text("a")]
#[case::line_ends("\r\n")]
#[case::hyphens("\r\n--")]
#[case::boundaries("\r\n--BB")]
#[case::almost("\r\n--B\r")]
fn linear_however_it_is_cut(#[case] filling: &str) {
    let body = named(&part("form-data; name=x", &filling.repeat(500_000 / filling.len())));
    let mut scanner = FormScanner::new(boundary(FORM.as_bytes()).expect("it names one"));
    for end in 0..body.len() {
        scanner.feed(&body.as_bytes()[..end]);
    }
    assert_eq!(scanner.finish(body.as_bytes()).model.as_deref(), Some("a"));
}

proptest! {
    #[test]
    fn parts_are_found(
        parts in vec(
            (
                "(model|stream|prompt|file|x)",
                any::<bool>(),
                "[aB\r\n-]{0,12}|[tT]rue|1|off",
            ),
            0..5,
        ),
    ) {
        let mut body = String::new();
        let mut expected = Scan::default();
        for (name, file, content) in &parts {
            prop_assume!(!format!("\r\n{content}\r\n").contains("\r\n--B"));
            let filename = if *file { "; filename=f" } else { "" };
            body += &part(&format!("form-data; name=\"{name}\"{filename}"), content);
            match &**name {
                "model" => {
                    let named = !file && !content.is_empty();
                    expected.model = named.then(|| content.clone());
                }
                "stream" => expected.stream = !file && ["true", "True", "1"].contains(&&**content),
                "prompt" if !file => expected.prompt_bytes += content.len() as u64,
                _ => {}
            }
        }
        prop_assert_eq!(check(FORM, (body + "--B--").as_bytes()), expected);
    }

    #[test]
    fn broken_forms_do_no_harm(
        edits in vec((any::<prop::sample::Index>(), any::<u8>(), 0..3), 1..6),
    ) {
        let mut body = named("--B--\r\n").into_bytes();
        for (at, byte, edit) in edits {
            let at = at.index(body.len() + 1).min(body.len().saturating_sub(1));
            match edit {
                0 => body.truncate(at),
                1 => body.insert(at, byte),
                _ => drop(body.splice(at..(at + 1).min(body.len()), [byte])),
            }
        }
        check(FORM, &body);
    }
}
