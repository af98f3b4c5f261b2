//! Forms with sound in them. The expected errors were taken from vLLM 0.32.

use crate::server::{Answer, Mock, post_with};
use rstest::rstest;

const TRANSCRIBE: &str = "/v1/audio/transcriptions";
const TRANSLATE: &str = "/v1/audio/translations";

/// A form with these fields, and a file of 40,000 bytes before or behind them.
fn form(fields: &[(&str, &str)], file: Option<bool>) -> String {
    let mut parts: Vec<_> = fields
        .iter()
        .map(|(name, value)| {
            format!("content-disposition: form-data; name=\"{name}\"\r\n\r\n{value}")
        })
        .collect();
    if let Some(first) = file {
        let sound = "s".repeat(40_000);
        let part = format!(
            "content-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\
             content-type: audio/wav\r\n\r\n{sound}"
        );
        parts.insert(if first { 0 } else { parts.len() }, part);
    }
    let parts: String = parts.iter().map(|part| format!("--xyz\r\n{part}\r\n")).collect();
    parts + "--xyz--\r\n"
}

fn send(mock: &Mock, path: &str, body: &str) -> Answer {
    let headers = "content-type: multipart/form-data; boundary=xyz\r\nx-request-id: rid\r\n";
    mock.send(&post_with(path, headers, body)).answer()
}

fn speech() -> Mock {
    Mock::start(&["--transcription", "--tokens", "2", "--lora", "accent"])
}

#[rstest]
fn the_answer_tells_what_was_heard(#[values(false, true)] file_first: bool) {
    let mock = speech();
    let body = form(&[("model", "tiny"), ("language", "en")], Some(file_first));
    let answer = send(&mock, TRANSCRIBE, &body).json();
    let text = answer["text"].as_str().expect("a text");
    assert!(text.starts_with("a.wav: 40000 bytes; "), "{text}");
    assert_eq!(answer["usage"].to_string(), r#"{"seconds":2,"type":"duration"}"#);
    let answer = send(&mock, TRANSLATE, &form(&[], Some(file_first))).json();
    assert!(answer["text"].is_string() && answer.get("usage").is_none(), "{answer}");
}

#[test]
fn a_stream_echoes_the_name_asked_for() {
    let mock = Mock::start(&["--transcription", "--tokens", "2", "--model", "alias"]);
    let fields = [("stream", "true"), ("model", "alias"), ("stream_include_usage", "true")];
    let answer = send(&mock, TRANSCRIBE, &form(&fields, Some(true)));
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!((answer.complete, answer.chunks.len()), (true, 4));
    let first = &answer.chunks[0];
    assert!(
        first.starts_with(
            r#"data: {"id":"transcribe-rid","object":"transcription.chunk","created":"#
        ) && first.contains(r#","model":"alias","choices":[{"delta":{"content":"a.wav: 40000 "#),
        "{first}"
    );
    let second = &answer.chunks[1];
    assert!(second.contains(r#""},"finish_reason":"stop","stop_reason":null}]}"#), "{second}");
    assert!(answer.chunks[2].contains(r#""choices":[],"usage":{"prompt_tokens":"#));
    assert_eq!(answer.chunks[3], "data: [DONE]\n\n");
}

#[rstest]
#[case::unknown_model(&[("model", "nope")], true, 404, r#"{"error":{"message":"The model `nope` does not exist. Valid aliases: tiny.","type":"NotFoundError","param":"model","code":404}}"#)]
#[case::no_file(&[("model", "tiny")], false, 400, r#"{"error":{"message":"1 validation error:\n  {'type': 'missing', 'loc': 'body.file', 'msg': 'Field required', 'input': '<dict of 14 items>'}","type":"Bad Request","param":"body.file","code":400}}"#)]
#[case::text_for_a_file(&[("file", "abc")], false, 422, r#"{"error":{"message":"Expected 'file' to be a file-like object, not 'str'.","type":"Unprocessable Entity","param":null,"code":422}}"#)]
#[case::subtitles(&[("response_format", "srt")], true, 400, r#"{"error":{"message":"Currently only support response_format: `text`, `json`, `verbose_json` or `diarized_json`","type":"BadRequestError","param":null,"code":400}}"#)]
#[case::no_format(&[("response_format", "zzz")], true, 400, r#"{"error":{"message":"2 validation errors:\n  {'type': 'literal_error', 'loc': 'body.response_format', 'msg': \"Input should be 'json', 'text', 'srt', 'verbose_json' or 'vtt'\", 'input': 'zzz', 'ctx': {'expected': \"'json', 'text', 'srt', 'verbose_json' or 'vtt'\"}}\n  {'type': 'literal_error', 'loc': 'body.response_format', 'msg': \"Input should be 'diarized_json'\", 'input': 'zzz', 'ctx': {'expected': \"'diarized_json'\"}}","type":"Bad Request","param":"body.response_format","code":400}}"#)]
#[case::perhaps_a_stream(&[("stream", "maybe")], true, 400, r#"{"error":{"message":"1 validation error:\n  {'type': 'bool_parsing', 'loc': 'body.stream', 'msg': 'Input should be a valid boolean, unable to interpret input', 'input': 'maybe'}","type":"Bad Request","param":"body.stream","code":400}}"#)]
#[case::options_of_no_stream(&[("stream_include_usage", "true")], true, 400, r#"{"error":{"message":"Stream options can only be defined when `stream=True`. (parameter=stream_include_usage)","type":"BadRequestError","param":"stream_include_usage","code":400}}"#)]
#[case::ordered(&[("mock", r#"{"fail":503}"#)], true, 503, r#"{"error":{"message":"The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.","type":"Service Unavailable","param":null,"code":503}}"#)]
fn wrong_forms_get_vllms_errors(
    #[case] fields: &[(&str, &str)],
    #[case] file: bool,
    #[case] status: u16,
    #[case] error: &str,
) {
    let answer = send(&speech(), TRANSCRIBE, &form(fields, file.then_some(true)));
    assert_eq!((answer.status, answer.text().as_str()), (status, error));
}

#[rstest]
#[case::no_boundary(
    "multipart/form-data",
    "x",
    400,
    r#"{"detail":"Missing boundary in multipart."}"#
)]
#[case::no_form(
    "multipart/form-data; boundary=a",
    "x",
    400,
    r#"{"detail":"Invalid multipart data."}"#
)]
#[case::url_encoded("application/x-www-form-urlencoded", "model=tiny&file=a", 422, r#"{"error":{"message":"Expected 'file' to be a file-like object, not 'str'.","type":"Unprocessable Entity","param":null,"code":422}}"#)]
#[case::json("application/json", r#"{"model":"tiny"}"#, 400, r#"{"error":{"message":"1 validation error:\n  {'type': 'missing', 'loc': 'body.file', 'msg': 'Field required', 'input': '<dict of 13 items>'}","type":"Bad Request","param":"body.file","code":400}}"#)]
fn what_is_no_form_is_told(
    #[case] content_type: &str,
    #[case] body: &str,
    #[case] status: u16,
    #[case] error: &str,
) {
    let headers = format!("content-type: {content_type}\r\n");
    let answer = speech().send(&post_with(TRANSCRIBE, &headers, body)).answer();
    assert_eq!((answer.status, answer.text().as_str()), (status, error));
}

#[test]
fn an_adapter_hears_too() {
    let answer = send(&speech(), TRANSCRIBE, &form(&[("model", "accent")], Some(false)));
    assert_eq!(answer.status, 200);
}

#[rstest]
fn without_the_option_there_is_no_such_route(#[values(TRANSCRIBE, TRANSLATE)] path: &str) {
    let answer = send(&Mock::start(&[]), path, &form(&[], Some(true)));
    assert_eq!((answer.status, answer.text().as_str()), (404, r#"{"detail":"Not Found"}"#));
}
