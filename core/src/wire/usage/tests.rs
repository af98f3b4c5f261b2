//! The shapes of all APIs, each fed whole, byte by byte and at every split; and what looks like
//! a usage and is none.

use super::*;
use rstest::rstest;
use std::format;
use std::string::String;
use std::vec::Vec;

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream; charset=utf-8";

const fn usage(prompt: u64, cached: Option<u64>, completion: u64) -> Option<Usage> {
    Some(Usage { prompt, cached, completion })
}

fn reader(at: UsageAt, headers: &[(&'static str, &str)]) -> Option<UsageReader> {
    let header = |&(name, value): &(&'static str, &str)| (name, value.as_bytes().to_vec());
    let headers: Vec<_> = headers.iter().map(header).collect();
    let header = |(name, value)| Header { name, value };
    let headers: Vec<_> = headers.iter().map(|(name, value)| header((*name, value))).collect();
    UsageReader::new(at, &headers)
}

fn feed(at: UsageAt, kind: &str, pieces: &[&[u8]]) -> Option<Usage> {
    let mut reader = reader(at, &[("Content-Type", kind)]).expect("a kind that is read");
    let (last, before) = pieces.split_last().expect("a piece");
    for piece in before {
        reader.read(piece);
    }
    assert!(reader.kept.capacity() <= KEPT_BYTES_MAX);
    reader.end(last)
}

#[track_caller]
fn check(at: UsageAt, kind: &str, body: &str, expected: Option<Usage>) {
    let bytes = body.as_bytes();
    assert_eq!(feed(at, kind, &[bytes]), expected, "{body}");
    assert_eq!(feed(at, kind, &[bytes, b""]), expected, "with an end of its own: {body}");
    for size in [1, 2, 7, 500, KEPT_BYTES_MAX] {
        let pieces: Vec<&[u8]> = bytes.chunks(size).chain([&b""[..]]).collect();
        assert_eq!(feed(at, kind, &pieces), expected, "by {size}: {body}");
    }
    for split in 1..bytes.len() {
        let pieces = [&bytes[..split], &bytes[split..]];
        assert_eq!(feed(at, kind, &pieces), expected, "at {split}: {body}");
    }
}

#[rstest]
#[case::chat(
    r#"{"id":"chatcmpl-1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"}}],"service_tier":null,"system_fingerprint":null,"usage":{"prompt_tokens":19,"total_tokens":26,"completion_tokens":7,"prompt_tokens_details":null,"completion_tokens_details":null},"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}"#,
    usage(19, None, 7)
)]
#[case::chat_with_details(
    r#"{"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":1900,"total_tokens":1907,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":1600,"created_cache_tokens":200,"multimodal_tokens":{"image":100}},"completion_tokens_details":{"reasoning_tokens":3}},"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":{"do_remote_prefill":true,"remote_block_ids":[1,2,3]},"ec_transfer_params":null,"metrics":{"time_to_first_token_ms":12.25,"generation_time_ms":100.5,"queue_time_ms":0.1,"mean_itl_ms":1.5,"tokens_per_second":60.5,"speculative_decoding":null}}"#,
    usage(1900, Some(1600), 7)
)]
#[case::nothing_cached(
    r#"{"usage":{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":0}}}"#,
    usage(5, Some(0), 0)
)]
#[case::details_that_do_not_say(
    r#"{"usage":{"prompt_tokens":5,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":null}}}"#,
    usage(5, None, 1)
)]
#[case::completion(
    r#"{"id":"cmpl-1","object":"text_completion","choices":[{"index":0,"text":" a","logprobs":{"text_offset":[0],"top_logprobs":[{" a":-0.5}]},"finish_reason":"length","prompt_token_ids":[1,2]}],"service_tier":null,"usage":{"prompt_tokens":2,"total_tokens":3,"completion_tokens":1},"kv_transfer_params":null}"#,
    usage(2, None, 1)
)]
#[case::response(
    r#"{"id":"resp_1","created_at":1,"metadata":null,"object":"response","output":[{"id":"msg_1","content":[{"annotations":[],"text":"x","type":"output_text"}]}],"tools":[],"top_p":1.0,"truncation":"disabled","usage":{"input_tokens":100,"input_tokens_details":{"cached_tokens":96,"cache_write_tokens":0,"input_tokens_per_turn":[100],"cached_tokens_per_turn":[96]},"output_tokens":20,"output_tokens_details":{"reasoning_tokens":0,"tool_output_tokens":0,"output_tokens_per_turn":[20],"tool_output_tokens_per_turn":[0]},"total_tokens":120},"user":"u","metrics":null,"presence_penalty":null,"frequency_penalty":null,"kv_transfer_params":null,"ec_transfer_params":null,"input_messages":null,"output_messages":null}"#,
    usage(100, Some(96), 20)
)]
#[case::response_in_the_background(
    r#"{"id":"resp_1","status":"queued","usage":null,"user":null}"#,
    None
)]
#[case::message(
    r#"{"id":"chatcmpl-1","type":"message","role":"assistant","content":[{"type":"text","text":"x"}],"model":"m","stop_reason":"end_turn","usage":{"input_tokens":12,"output_tokens":3}}"#,
    usage(12, None, 3)
)]
#[case::message_with_cache(
    r#"{"type":"message","usage":{"input_tokens":4,"output_tokens":3,"cache_creation_input_tokens":8,"cache_read_input_tokens":96}}"#,
    usage(108, Some(96), 3)
)]
#[case::embeddings(
    r#"{"id":"embd-1","object":"list","data":[{"index":0,"embedding":[0.1,-0.2]}],"usage":{"prompt_tokens":6,"total_tokens":6,"completion_tokens":0,"prompt_tokens_details":null}}"#,
    usage(6, None, 0)
)]
#[case::decision(
    r#"{"object":"structured_decision","answers":{"q":{"value":"a"}},"usage":{"input_tokens":40,"output_tokens":2},"diagnostics":{"q":{"label_mass":0.5,"argmax_is_label":true}}}"#,
    usage(40, None, 2)
)]
#[case::blanks(
    "{ \"a\" : \"}\" ,\r\n \"usage\" :\t{ \"prompt_tokens\" : 6 , \"completion_tokens\":2\n } }\n",
    usage(6, None, 2)
)]
#[case::twice(r#"{"usage":{"prompt_tokens":1},"usage":{"prompt_tokens":2}}"#, usage(2, None, 0))]
#[case::beside_a_schema(
    r#"{"tools":[{"parameters":{"properties":{"usage":{"prompt_tokens":1}}}}],"usage":{"input_tokens":5}}"#,
    usage(5, None, 0)
)]
#[case::not_said_beside_a_schema(
    r#"{"tools":[{"parameters":{"properties":{"usage":{"prompt_tokens":1}}}}],"usage":null}"#,
    None
)]
#[case::details_in_another_order(
    r#"{"usage":{"prompt_tokens_details":{"multimodal_tokens":{"cached_tokens":3},"cached_tokens":2},"cached_tokens":4,"prompt_tokens":5}}"#,
    usage(5, Some(2), 0)
)]
fn plain_answers(#[case] body: &str, #[case] expected: Option<Usage>) {
    check(UsageAt::End, JSON, body, expected);
}

const CHUNK: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"choices\":\
                     [{\"index\":0,\"delta\":{\"content\":\" \\\"usage\\\":{\"}}]}\n\n";

#[rstest]
#[case::included(
    "data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":19,\"total_tokens\":26,\"completion_tokens\":7,\"prompt_tokens_details\":{\"cached_tokens\":16}}}\n\ndata: [DONE]\n\n",
    usage(19, Some(16), 7)
)]
#[case::not_included(
    "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
    None
)]
#[case::continuous(
    "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":{\"prompt_tokens\":19,\"completion_tokens\":1}}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"b\"}}],\"usage\":{\"prompt_tokens\":19,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n",
    usage(19, None, 2)
)]
#[case::null_in_the_last_chunk(
    "data: {\"usage\":{\"prompt_tokens\":19,\"completion_tokens\":1},\"choices\":[]}\n\ndata: {\"choices\":[],\"usage\":null}\n\ndata: [DONE]\n\n",
    None
)]
#[case::response(
    "event: response.created\ndata: {\"response\":{\"id\":\"resp_1\",\"usage\":null},\"sequence_number\":0,\"type\":\"response.created\"}\n\nevent: response.completed\ndata: {\"response\":{\"id\":\"resp_1\",\"output\":[{\"content\":[{\"text\":\"x\"}]}],\"usage\":{\"input_tokens\":100,\"input_tokens_details\":{\"cached_tokens\":96},\"output_tokens\":20,\"total_tokens\":120},\"user\":null},\"sequence_number\":9,\"type\":\"response.completed\"}\n\n",
    usage(100, Some(96), 20)
)]
#[case::messages(
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"content\":[],\"usage\":{\"input_tokens\":12,\"output_tokens\":0}}}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"input_tokens\":4,\"output_tokens\":3,\"cache_read_input_tokens\":8}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    usage(12, Some(8), 3)
)]
#[case::messages_until_the_start(
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"content\":[],\"usage\":{\"input_tokens\":12,\"output_tokens\":0}}}\n\n",
    usage(12, None, 0)
)]
#[case::line_ends(
    "data:{\"usage\":{\"prompt_tokens\":1}}\r\n\r\ndata:[DONE]\r\n\r\n: keep-alive\r\n\r\n",
    usage(1, None, 0)
)]
fn streams(#[case] end: &str, #[case] expected: Option<Usage>) {
    check(UsageAt::End, EVENTS, end, expected);
    check(UsageAt::Start, EVENTS, end, expected);
    for chunks in [1, 20] {
        let body = format!("{}{end}", CHUNK.repeat(chunks));
        check(UsageAt::End, EVENTS, &body, expected);
    }
}

#[rstest]
#[case::rerank(
    r#"{"id":"score-1","model":"m","usage":{"prompt_tokens":30,"total_tokens":30},"results":[{"index":0,"document":{"text":"}\"usage\":{"},"relevance_score":0.5}]}"#,
    usage(30, None, 0)
)]
#[case::generate(
    r#"{"request_id":"r","model":"m","created":1,"usage":{"prompt_tokens":6,"total_tokens":8,"completion_tokens":2},"prompt_logprobs":null,"prompt_token_ids":null,"choices":[{"index":0,"token_ids":[7,8]}]}"#,
    usage(6, None, 2)
)]
#[case::behind_a_text(r#"{"id":"a\\\"{","usage":{"prompt_tokens":30}}"#, usage(30, None, 0))]
#[case::escaped(r#"{"a":"\"usage\":{\"prompt_tokens\":1}"}"#, None)]
#[case::cut(r#"{"usage":{"prompt_tokens":3"#, None)]
#[case::open_text(r#"{"usage\"#, None)]
#[case::no_object("[]", None)]
#[case::nothing("", None)]
fn answers_that_begin_with_it(#[case] body: &str, #[case] expected: Option<Usage>) {
    check(UsageAt::Start, JSON, body, expected);
    let long = format!("{body}{}", " ".repeat(3 * KEPT_BYTES_MAX));
    let pieces: Vec<&[u8]> = long.as_bytes().chunks(100).collect();
    assert_eq!(feed(UsageAt::Start, JSON, &pieces), expected);
    assert_eq!(feed(UsageAt::Start, JSON, &[long.as_bytes()]), expected);
}

/// Quotes in a text are escaped.
#[rstest]
#[case::text(r#"{"content":"\"usage\":{\"prompt_tokens\":1}"}"#)]
#[case::text_at_the_end(r#"{"content":"x\",\"usage\":{\"prompt_tokens\":1}}"#)]
#[case::text_with_backslashes(r#"{"content":"\\\",\"usage\":{\"prompt_tokens\":1}"}"#)]
#[case::whole_text(r#"{"content":"usage","x":{"prompt_tokens":1}}"#)]
#[case::value(r#"{"content":"usage"}"#)]
#[case::longer_name(r#"{"the usage":{"prompt_tokens":1}}"#)]
#[case::in_an_array(r#"{"a":["usage",{"prompt_tokens":1}]}"#)]
#[case::no_object(r#"{"usage":[{"prompt_tokens":1}]}"#)]
#[case::number(r#"{"usage":5}"#)]
#[case::end_of_a_name(r#"{"the \"usage":{"prompt_tokens":1}}"#)]
#[case::no_key(r#"{"a":"x""usage":{"prompt_tokens":1}}"#)]
#[case::first_byte(r#""usage":{"prompt_tokens":1}"#)]
#[case::without_its_end(r#"{"usage":{"prompt_tokens":1,"x":[]"#)]
#[case::chunk(CHUNK)]
#[case::no_json("usage: 5")]
#[case::nothing("")]
fn what_is_no_usage(#[case] body: &str) {
    check(UsageAt::End, JSON, body, None);
}

#[rstest]
#[case::greatest(r#""prompt_tokens":18446744073709551615"#, usage(u64::MAX, None, 0))]
#[case::too_great(r#""prompt_tokens":18446744073709551616"#, None)]
#[case::negative(r#""prompt_tokens":-1"#, None)]
#[case::fraction(r#""prompt_tokens":1.0"#, None)]
#[case::power(r#""prompt_tokens":1e3"#, None)]
#[case::null(r#""prompt_tokens":null,"completion_tokens":1"#, None)]
#[case::text(r#""prompt_tokens":"1""#, None)]
#[case::missing(r#""completion_tokens":1"#, None)]
#[case::output_alone(r#""output_tokens":1"#, None)]
#[case::empty("", None)]
#[case::odd_answer(r#""prompt_tokens":1,"completion_tokens":-5"#, usage(1, None, 0))]
#[case::odd_cache(
    r#""prompt_tokens":1,"prompt_tokens_details":{"cached_tokens":-5}"#,
    usage(1, None, 0)
)]
#[case::odd_details(r#""prompt_tokens":1,"prompt_tokens_details":[7]"#, usage(1, None, 0))]
#[case::more_cached_than_asked(
    r#""prompt_tokens":1,"prompt_tokens_details":{"cached_tokens":9}"#,
    usage(1, Some(9), 0)
)]
#[case::sum_too_great(r#""input_tokens":18446744073709551615,"cache_read_input_tokens":1"#, None)]
#[case::odd_sum(r#""input_tokens":5,"cache_read_input_tokens":-1"#, usage(5, None, 0))]
#[case::a_field_twice(r#""prompt_tokens":1,"prompt_tokens":2"#, usage(2, None, 0))]
#[case::name_as_a_text(r#""x":"prompt_tokens","y":7"#, None)]
#[case::name_in_an_array(r#""x":["prompt_tokens",7]"#, None)]
#[case::name_deeper(r#""x":{"prompt_tokens":7}"#, None)]
#[case::escaped_name(r#""prompt\"_tokens":7,"\\":1"#, None)]
#[case::deep(r#""x":[[[[{"y":"}"}]]]],"prompt_tokens":1"#, usage(1, None, 0))]
#[case::broken(r#""prompt_tokens":1,,"x":1"#, usage(1, None, 0))]
fn numbers_may_be_anything(#[case] fields: &str, #[case] expected: Option<Usage>) {
    check(UsageAt::End, JSON, &format!(r#"{{"usage":{{{fields}}}}}"#), expected);
    check(UsageAt::Start, JSON, &format!(r#"{{"usage":{{{fields}}}}}"#), expected);
}

/// However long, and however it comes, a body is judged by the same bytes of it.
#[rstest]
#[case::near_enough(700, usage(5, None, 0))]
#[case::too_far(KEPT_BYTES_MAX, None)]
fn only_the_end_counts(#[case] behind: usize, #[case] expected: Option<Usage>) {
    let ids = "1,".repeat(behind / 2);
    let body = format!(
        r#"{{"content":"{}","usage":{{"prompt_tokens":5}},"prompt_token_ids":[{ids}1]}}"#,
        "x".repeat(2_000)
    );
    check(UsageAt::End, JSON, &body, expected);
}

#[rstest]
#[case::closing("}".repeat(100_000))]
#[case::opening("{".repeat(100_000))]
#[case::quotes("\"".repeat(100_000))]
#[case::backslashes("\\".repeat(100_000))]
#[case::escaped_quotes("\\\"".repeat(50_000))]
#[case::keys("\"usage\":".repeat(12_500))]
#[case::usages("\"usage\":{}".repeat(10_000))]
#[case::nested(format!("{}{}", "{\"usage\":".repeat(10_000), "}".repeat(10_000)))]
#[case::arrays_in_a_usage(format!("{{\"usage\":{{\"x\":{}{}}}}}", "[".repeat(600), "]".repeat(600)))]
#[case::no_text(String::from("\u{0}\u{fffd}").repeat(10_000))]
fn hostile_ends_say_nothing(#[case] body: String) {
    for (at, kind) in [(UsageAt::End, JSON), (UsageAt::End, EVENTS), (UsageAt::Start, JSON)] {
        for tail in ["", "}", "}}", "\"}}"] {
            let body = format!("{body}{tail}");
            let pieces: Vec<&[u8]> = body.as_bytes().chunks(999).collect();
            assert_eq!(feed(at, kind, &pieces), None);
            assert_eq!(feed(at, kind, &[body.as_bytes()]), None);
        }
    }
}

#[rstest]
#[case::before(b"{\"x\":\"\xff\xfe\",\"usage\":{\"prompt_tokens\":1}}", usage(1, None, 0))]
#[case::within(b"{\"usage\":{\"prompt_tokens\":1,\"x\":\"\xff\"}}", usage(1, None, 0))]
#[case::a_count(b"{\"usage\":{\"prompt_tokens\":\"\xff\"}}", None)]
fn bytes_that_are_no_text(#[case] body: &[u8], #[case] expected: Option<Usage>) {
    assert_eq!(feed(UsageAt::End, JSON, &[body]), expected);
    assert_eq!(feed(UsageAt::Start, JSON, &[body]), expected);
}

#[rstest]
#[case::json(&[("content-type", "application/json")], true)]
#[case::upper_case(&[("CONTENT-TYPE", "Application/JSON; charset=utf-8")], true)]
#[case::events(&[("content-type", "text/event-stream")], true)]
#[case::bytes(&[("content-type", "application/octet-stream")], false)]
#[case::text(&[("content-type", "text/plain")], false)]
#[case::nothing(&[], false)]
#[case::compressed(&[("content-type", "application/json"), ("Content-Encoding", "gzip")], false)]
#[case::compressed_first(&[("content-encoding", "br"), ("content-type", "application/json")], false)]
fn bodies_that_are_read(#[case] headers: &[(&'static str, &str)], #[case] is_read: bool) {
    assert_eq!(reader(UsageAt::End, headers).is_some(), is_read);
    assert_eq!(reader(UsageAt::Start, headers).is_some(), is_read);
    assert!(reader(UsageAt::Nowhere, headers).is_none());
}

/// No memory for a body that comes in one piece, the same for one of any length.
#[test]
fn memory_is_bounded() {
    let body = format!(r#"{{"x":"{}","usage":{{"prompt_tokens":1}}}}"#, "x".repeat(5_000));
    let mut whole = reader(UsageAt::End, &[("content-type", JSON)]).expect("JSON");
    assert_eq!(whole.end(body.as_bytes()), usage(1, None, 0));
    assert_eq!(whole.kept.capacity(), 0);
    let mut cut = reader(UsageAt::End, &[("content-type", JSON)]).expect("JSON");
    for piece in body.as_bytes().chunks(100) {
        cut.read(piece);
        assert_eq!(cut.kept.capacity(), KEPT_BYTES_MAX);
    }
    assert_eq!(cut.end(b""), usage(1, None, 0));
}
