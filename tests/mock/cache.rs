//! The KV cache behind the answers: what is found again, who tells of it, and what it forgets.

use crate::server::{Mock, post};
use crate::{CHAT, COMPLETIONS, MESSAGES, RESPONSES, RUNNING, chat};
use rstest::rstest;
use serde_json::{Value, json};

const DETAILS: &str = "--enable-prompt-tokens-details";
const WAITING: &str = r#"vllm:num_requests_waiting{engine="0",model_name="tiny"}"#;
const USAGE: &str = r#"vllm:kv_cache_usage_perc{engine="0",model_name="tiny"}"#;
const STOPPED: &str =
    r#"vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny"}"#;
const ABORTED: &str =
    r#"vllm:request_success_total{engine="0",finished_reason="abort",model_name="tiny"}"#;

/// Has the first token come at once, and the second in an hour.
const ENDLESS: &str = r#","mock":{"ttft_ms":0,"itl_ms":3600000}"#;

/// A chat with a message of that many letters, to which the template adds 50.
fn long(letter: &str, letters: usize, fields: &str) -> String {
    let text = letter.repeat(letters);
    format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}]{fields}}}"#)
}

/// What a chat with 50 tokens says it found.
fn found(mock: &Mock, letter: &str, fields: &str) -> u64 {
    let answer = mock.post(CHAT, &long(letter, 150, fields)).json();
    let details = &answer["usage"]["prompt_tokens_details"];
    details["cached_tokens"].as_u64().unwrap_or_else(|| panic!("{answer}"))
}

/// The last `usage` of an answer, as it is written.
fn usage(text: &str) -> &str {
    let from = text.rfind(r#""usage":{"#).expect("there is one") + r#""usage":"#.len();
    let mut depth = 0;
    let end = text[from..].find(|letter| {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        depth == 0
    });
    &text[from..=from + end.expect("it ends")]
}

/// The prompts of these cases are 200 letters, in chats 250.
#[rstest]
#[case::chat(
    CHAT,
    r#""messages":[{"role":"user","content":"TEXT"}],"max_tokens":1"#,
    r#"{"prompt_tokens":63,"total_tokens":64,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":48,"created_cache_tokens":0,"multimodal_tokens":null},"completion_tokens_details":null}"#
)]
#[case::chat_stream(
    CHAT,
    r#""messages":[{"role":"user","content":"TEXT"}],"max_tokens":1,"stream":true,"stream_options":{"include_usage":true}"#,
    r#"{"prompt_tokens":63,"total_tokens":64,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":48,"created_cache_tokens":0}}"#
)]
#[case::completion(
    COMPLETIONS,
    r#""prompt":"TEXT","max_tokens":1"#,
    r#"{"prompt_tokens":50,"total_tokens":51,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":48,"created_cache_tokens":null,"multimodal_tokens":null},"completion_tokens_details":null}"#
)]
#[case::completion_stream(
    COMPLETIONS,
    r#""prompt":"TEXT","max_tokens":1,"stream":true,"stream_options":{"include_usage":true}"#,
    r#"{"prompt_tokens":50,"total_tokens":51,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":48}}"#
)]
#[case::message(
    MESSAGES,
    r#""model":"tiny","messages":[{"role":"user","content":"TEXT"}],"max_tokens":1"#,
    r#"{"input_tokens":15,"output_tokens":1,"cache_creation_input_tokens":0,"cache_read_input_tokens":48}"#
)]
#[case::message_stream(
    MESSAGES,
    r#""model":"tiny","messages":[{"role":"user","content":"TEXT"}],"max_tokens":1,"stream":true"#,
    r#"{"input_tokens":15,"output_tokens":1,"cache_creation_input_tokens":0,"cache_read_input_tokens":48}"#
)]
#[case::response(
    RESPONSES,
    r#""input":"TEXT","max_output_tokens":1"#,
    r#"{"input_tokens":63,"input_tokens_details":{"cached_tokens":48,"cache_write_tokens":0,"input_tokens_per_turn":[],"cached_tokens_per_turn":[]},"output_tokens":1,"output_tokens_details":{"reasoning_tokens":0,"tool_output_tokens":0,"output_tokens_per_turn":[],"tool_output_tokens_per_turn":[]},"total_tokens":64}"#
)]
fn a_prompt_that_comes_again_is_found(
    #[case] path: &str,
    #[case] fields: &str,
    #[case] expected: &str,
) {
    let body = format!("{{{}}}", fields.replace("TEXT", &"x".repeat(200)));
    // All but whole blocks and the last token. Only /v1/responses tells without being told to.
    let told = Mock::start(&[DETAILS]);
    assert_ne!(usage(&told.post(path, &body).text()), expected);
    assert_eq!(usage(&told.post(path, &body).text()), expected);
    let untold = Mock::start(&[]);
    untold.post(path, &body);
    let again = untold.post(path, &body).text();
    assert_eq!(usage(&again) == expected, path == RESPONSES, "{again}");
    assert_eq!(again.contains("cache"), path == RESPONSES, "{again}");
}

#[test]
fn the_first_time_all_is_put_into_the_cache() {
    let mock = Mock::start(&[DETAILS]);
    let body = long("x", 200, "");
    let details = |answer: Value| answer["usage"]["prompt_tokens_details"].clone();
    assert_eq!(
        details(mock.post(CHAT, &body).json()),
        json!({"cached_tokens": 0, "created_cache_tokens": 48, "multimodal_tokens": null})
    );
    let other = long("y", 200, r#","model":"tiny","max_tokens":1"#);
    assert_eq!(
        mock.post(MESSAGES, &other).json()["usage"],
        json!({
            "input_tokens": 15, "output_tokens": 1,
            "cache_creation_input_tokens": 48, "cache_read_input_tokens": 0,
        })
    );
}

#[test]
fn what_is_kept_apart_is_not_found() {
    let mock = Mock::start(&[DETAILS, "--lora", "one", "--lora", "two"]);
    let salts = ["", r#","cache_salt":"a""#, r#","cache_salt":"b""#];
    let models = ["", r#","model":"one""#, r#","model":"two""#];
    let all = || salts.iter().flat_map(|salt| models.map(|model| format!("{salt}{model}")));
    let first: Vec<_> = all().map(|fields| found(&mock, "x", &fields)).collect();
    assert_eq!(first, [0; 9]);
    let again: Vec<_> = all().map(|fields| found(&mock, "x", &fields)).collect();
    assert_eq!(again, [48; 9]);
    assert_eq!(found(&mock, "y", ""), 0);
}

#[rstest]
#[case::empty(r#""""#, "must be a non-empty string if provided.")]
#[case::number("1", "must be a non-empty string if provided.")]
#[case::slash(
    r#""a/b""#,
    r"must be at most 128 characters and must not contain '@', '/', '\\', or NUL."
)]
fn salts_are_checked(#[case] salt: &str, #[case] message: &str) {
    let mock = Mock::start(&[]);
    let answer = mock.post(CHAT, &chat(&format!(r#","cache_salt":{salt}"#)));
    let expected = format!("Parameter 'cache_salt' {message} (parameter=cache_salt)");
    assert_eq!((answer.status, &answer.json()["error"]["message"]), (400, &json!(expected)));
}

#[test]
fn the_next_turn_of_a_chat_finds_the_answer_too() {
    let mock = Mock::start(&[DETAILS]);
    let question = json!({"role": "user", "content": "x".repeat(150)});
    let body = json!({"messages": [question], "max_tokens": 50});
    let answer = mock.post(CHAT, &body.to_string()).json();
    let text = &answer["choices"][0]["message"]["content"];
    let said = json!({"role": "assistant", "content": text});
    let next = json!({"role": "user", "content": "and then?"});
    let body = json!({"messages": [question, said, next]});
    let answer = mock.post(CHAT, &body.to_string()).json();
    // 50 tokens of prompt and 50 of the answer: six full blocks, and a last one that is not.
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 96, "{answer}");
}

#[rstest]
#[case::small(&["--num-gpu-blocks-override", "8"], 0)]
#[case::large(&["--num-gpu-blocks-override", "80"], 48)]
#[case::off(&["--no-enable-prefix-caching"], 0)]
fn a_cache_holds_what_fits(#[case] options: &[&str], #[case] again: u64) {
    let mock = Mock::start(&[&[DETAILS], options].concat());
    let letters = ["x", "y", "z", "x"];
    let fields = r#","max_tokens":1"#;
    assert_eq!(letters.map(|letter| found(&mock, letter, fields)), [0, 0, 0, again]);
}

#[rstest]
#[case::reset("/reset_prefix_cache", "", 0)]
#[case::sleep("/sleep?level=1", "/wake_up", 0)]
#[case::nap("/sleep?level=0", "/wake_up", 48)]
#[case::pause("/pause", "/resume", 0)]
#[case::pause_and_keep("/pause?clear_cache=false", "/resume", 48)]
#[case::other_caches("/reset_mm_cache", "", 48)]
fn a_cache_can_be_cleared(#[case] path: &str, #[case] then: &str, #[case] again: u64) {
    let mock = Mock::start(&["--dev-mode", DETAILS]);
    assert_eq!((found(&mock, "x", ""), found(&mock, "x", "")), (0, 48));
    assert_eq!(mock.post(path, "").status, 200);
    if !then.is_empty() {
        assert_eq!(mock.post(then, "").status, 200);
    }
    assert_eq!(found(&mock, "x", ""), again);
}

#[test]
fn metrics_tell_the_truth_about_the_cache() {
    let mock = Mock::start(&["--num-gpu-blocks-override", "100"]);
    for letter in ["x", "x", "y"] {
        mock.post(CHAT, &long(letter, 150, ""));
    }
    let value = |name: &str, more: &str| {
        mock.metric(&format!(r#"vllm:{name}_total{{engine="0",model_name="tiny"{more}}}"#))
    };
    assert_eq!(value("prefix_cache_queries", ""), 150.0);
    assert_eq!(value("prefix_cache_hits", ""), 48.0);
    assert_eq!(value("prompt_tokens", ""), 150.0);
    assert_eq!(value("prompt_tokens_cached", ""), 48.0);
    let by_source =
        |source: &str| value("prompt_tokens_by_source", &format!(r#",source="{source}""#));
    assert_eq!(by_source("local_cache_hit"), 48.0);
    assert_eq!(by_source("local_compute"), 150.0 - 48.0);
    assert_eq!(mock.metric(USAGE), 0.0, "what is cached is not in use");
    let page = mock.get("/metrics").text();
    let info = page.lines().find(|line| line.starts_with("vllm:cache_config_info{"));
    for label in [
        r#",block_size="16","#,
        r#",enable_prefix_caching="True","#,
        r#",kv_cache_size_tokens="1600","#,
        r#",num_gpu_blocks="100","#,
        r#",num_gpu_blocks_override="100","#,
    ] {
        assert!(info.is_some_and(|info| info.contains(label)), "{label} in {info:?}");
    }
    let room = mock.get("/v1/models").json()["data"][0]["max_model_len"].clone();
    assert_eq!(room, 1_584, "no request may be longer than the cache");
}

#[test]
fn who_finds_no_place_in_the_batch_waits() {
    let in_time = || {
        let mock = Mock::start(&["--max-num-seqs", "1", "--itl-ms", "50", "--tokens", "30"]);
        let stream = post(CHAT, &chat(r#","stream":true"#));
        let mut first = mock.send(&stream);
        first.head().expect("an answer");
        first.chunk().expect("its role, when it has its first token");
        let mut second = mock.send(&stream);
        while mock.metric(WAITING) != 1.0 && mock.metric(STOPPED) == 0.0 {}
        let running = mock.metric(RUNNING);
        if mock.metric(STOPPED) > 0.0 {
            return false;
        }
        assert_eq!(running, 1.0);
        second.head().expect("an answer");
        second.chunk().expect("its role");
        assert!(mock.metric(STOPPED) >= 1.0, "the first was over before");
        assert!(second.chunk().is_some());
        true
    };
    // The first runs for a second and a half: who comes to it later than that has to try again.
    assert!((0..20).any(|_| in_time()), "nobody waits");
}

#[test]
fn answers_that_outgrow_the_cache_give_way() {
    // Each comes to 7 blocks in the end, of which there are 8.
    let mock = Mock::start(&["--num-gpu-blocks-override", "8", "--tokens", "90"]);
    let answer = mock.post(CHAT, &chat(r#","n":2"#)).json();
    assert_eq!(answer["usage"]["completion_tokens"], 180);
    let preemptions = r#"vllm:num_preemptions_total{engine="0",model_name="tiny"}"#;
    assert_eq!(mock.metric(preemptions), 1.0);
}

#[test]
fn who_leaves_gives_the_cache_back() {
    let mock = Mock::start(&["--num-gpu-blocks-override", "20"]);
    let fields = format!(r#","max_tokens":90,"stream":true{ENDLESS}"#);
    let mut client = mock.send(&post(CHAT, &long("x", 800, &fields)));
    client.head().expect("an answer");
    client.chunk().expect("its role");
    assert!(mock.metric(USAGE) >= 0.65, "214 tokens of 320");
    drop(client);
    mock.await_metric(USAGE, 0.0);
    assert_eq!((mock.metric(STOPPED), mock.metric(ABORTED)), (0.0, 1.0));
}

#[test]
fn a_cache_is_not_cleared_under_those_who_use_it_unless_they_may_begin_anew() {
    let options = ["--dev-mode", DETAILS, "--itl-ms", "50", "--tokens", "30"];
    let fields = r#","stream":true,"stream_options":{"include_usage":true}"#;
    let preemptions = r#"vllm:num_preemptions_total{engine="0",model_name="tiny"}"#;
    let in_time = || {
        let mock = Mock::start(&options);
        let mut client = mock.send(&post(CHAT, &long("x", 150, fields)));
        client.head().expect("an answer");
        client.chunk().expect("its role");
        let reset = mock.post("/reset_prefix_cache", "");
        let forced = mock.post("/reset_prefix_cache?reset_running_requests=true", "");
        assert_eq!(forced.text(), r#"{"success":true}"#);
        let mut rest = String::new();
        while let Some(chunk) = client.chunk().filter(|chunk| !chunk.is_empty()) {
            rest.push_str(&chunk);
        }
        assert!(usage(&rest).contains(r#""completion_tokens":30"#), "{rest}");
        if mock.metric(preemptions) == 0.0 {
            return false;
        }
        assert_eq!(reset.text(), r#"{"success":false}"#);
        assert_eq!(mock.metric(preemptions), 1.0);
        true
    };
    // It runs for a second and a half: who comes to it later than that has to try again.
    assert!((0..20).any(|_| in_time()), "what runs does not begin anew");
}
