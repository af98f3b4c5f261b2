//! How generated answers are laid out, what they count, and what their texts follow from.
//!
//! The expected bodies were taken from vLLM 0.32, run with the same requests; what differs by
//! nature (ids, times, texts, counts) is filled in here.

use crate::server::{Answer, Mock, post_with};
use crate::{CHAT, COMPLETIONS, HELLO, MESSAGES, RESPONSES, chat, content};
use serde_json::{Value, json};

/// Fills what differs by nature out of `real`, the mock's own answer to the same request.
fn expect(real: &str, expected: &str) {
    let created = real.split(r#""created":"#).nth(1).and_then(|rest| rest.split(',').next());
    let print = real.split(r#""system_fingerprint":""#).nth(1).and_then(|r| r.split('"').next());
    let expected = expected
        .replace("CREATED", created.unwrap_or_default())
        .replace("FINGERPRINT", print.unwrap_or_default());
    assert_eq!(real, expected);
}

#[test]
fn a_chat_answer_is_laid_out_as_vllms() {
    let mock = Mock::start(&["--model", "alias"]);
    let answer = mock.post(CHAT, &chat(r#","model":"alias","max_tokens":2"#));
    let text = content(&answer.json());
    expect(
        &answer.text(),
        &format!(
            r#"{{"id":"chatcmpl-rid","object":"chat.completion","created":CREATED,"model":"tiny","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}","refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null}},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,"routed_experts":null}}],"service_tier":null,"system_fingerprint":"FINGERPRINT","usage":{{"prompt_tokens":15,"total_tokens":17,"completion_tokens":2,"prompt_tokens_details":null,"completion_tokens_details":null}},"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}"#
        ),
    );
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("server"), Some("uvicorn"));
    assert_eq!(answer.header("vary"), Some("Origin"));
    assert!(answer.header("date").is_some_and(|date| date.ends_with(" GMT")));
}

#[test]
fn a_chat_stream_is_laid_out_as_vllms() {
    let mock = Mock::start(&[]);
    let whole = content(&mock.post(CHAT, &chat(r#","max_tokens":2"#)).json());
    let (one, two) = whole.split_at(3);
    let answer = mock.post(CHAT, &chat(r#","max_tokens":2,"stream":true"#));
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let start = r#"data: {"id":"chatcmpl-rid","object":"chat.completion.chunk","created":CREATED,"model":"tiny","choices":[{"index":0,"delta":{"#;
    let expected = [
        format!(
            r#"{start}"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}],"prompt_token_ids":null,"prompt_text":null}}"#
        ),
        format!(
            r#"{start}"content":"{one}"}},"logprobs":null,"finish_reason":null,"token_ids":null}}]}}"#
        ),
        format!(
            r#"{start}"content":"{two}"}},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}}],"system_fingerprint":"FINGERPRINT"}}"#
        ),
        "data: [DONE]".to_owned(),
    ];
    assert!(answer.complete);
    assert_eq!(answer.chunks.len(), expected.len(), "each event is a chunk of its own");
    expect(&answer.text(), &format!("{}\n\n", expected.join("\n\n")));
}

#[test]
fn a_stream_tells_its_usage_if_asked() {
    let mock = Mock::start(&[]);
    let options = r#","max_tokens":3,"stream":true,"stream_options":{"include_usage":true"#;
    let end = r#","choices":[],"usage":{"prompt_tokens":15,"total_tokens":18,"completion_tokens":3},"system_fingerprint":""#;
    let last = |answer: &Answer| answer.chunks[answer.chunks.len() - 2].clone();

    let answer = mock.post(CHAT, &chat(&format!("{options}}}")));
    assert!(last(&answer).contains(end), "{}", last(&answer));
    assert_eq!(answer.text().matches("usage").count(), 1);
    assert_eq!(answer.text().matches("system_fingerprint").count(), 1);

    let answer = mock.post(CHAT, &chat(&format!(r#"{options},"continuous_usage_stats":true}}"#)));
    assert!(last(&answer).contains(end), "{}", last(&answer));
    assert!(answer.chunks[0].contains(
        r#"}],"usage":{"prompt_tokens":15,"total_tokens":15,"completion_tokens":0,"completion_tokens_details":null},"prompt_token_ids""#
    ));
    assert!(answer.chunks[2].contains(
        r#"}],"usage":{"prompt_tokens":15,"total_tokens":17,"completion_tokens":2,"completion_tokens_details":null}}"#
    ));
}

#[test]
fn completions_take_many_prompts_and_choices() {
    let mock = Mock::start(&[]);
    let body = r#"{"prompt":["once","upon a"],"n":2,"max_tokens":2,"echo":true}"#;
    let answer = mock.post(COMPLETIONS, body).json();
    assert_eq!(answer["id"], "cmpl-rid");
    // 1 and 2 tokens, each counted once; 2 tokens for each of 4 choices.
    assert_eq!(
        answer["usage"],
        json!({
            "prompt_tokens": 3, "total_tokens": 11, "completion_tokens": 8,
            "prompt_tokens_details": null, "completion_tokens_details": null,
        })
    );
    let choices = answer["choices"].as_array().expect("choices");
    let starts: Vec<_> = choices
        .iter()
        .map(|choice| (choice["index"].as_u64(), choice["text"].as_str().expect("a text")))
        .collect();
    assert_eq!(starts.len(), 4);
    for (index, (number, text)) in starts.iter().enumerate() {
        assert_eq!(*number, Some(index as u64));
        assert!(text.starts_with(if index < 2 { "once" } else { "upon a" }), "{text}");
    }
    assert_ne!(starts[0].1, starts[1].1, "choices differ");

    let ids = mock.post(COMPLETIONS, r#"{"prompt":[5,6,7,8,9]}"#).json();
    assert_eq!(ids["usage"]["prompt_tokens"], 5);
    assert_eq!(ids["usage"]["completion_tokens"], 16, "vLLM's default for completions");
}

#[test]
fn a_completion_stream_is_laid_out_as_vllms() {
    let mock = Mock::start(&[]);
    let body = r#"{"prompt":"once","max_tokens":2"#;
    let whole = mock.post(COMPLETIONS, &format!("{body}}}")).json();
    let (one, two) = whole["choices"][0]["text"].as_str().expect("a text").split_at(3);
    let answer = mock.post(COMPLETIONS, &format!(r#"{body},"stream":true}}"#));
    let start = r#"data: {"id":"cmpl-rid","object":"text_completion","created":CREATED,"model":"tiny","choices":[{"index":0,"text":"#;
    let expected = [
        format!(
            r#"{start}"{one}","logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}}]}}"#
        ),
        format!(
            r#"{start}"{two}","logprobs":null,"finish_reason":"length","stop_reason":null,"prompt_token_ids":null,"token_ids":null}}],"system_fingerprint":"FINGERPRINT"}}"#
        ),
        "data: [DONE]".to_owned(),
    ];
    expect(&answer.text(), &format!("{}\n\n", expected.join("\n\n")));
}

#[test]
fn messages_are_laid_out_as_vllms() {
    let mock = Mock::start(&[]);
    let body = format!(r#"{{"model":"tiny","max_tokens":1,{HELLO}"#);
    let answer = mock.post(MESSAGES, &format!("{body}}}"));
    let text = answer.json()["content"][0]["text"].as_str().expect("a text").to_owned();
    assert_eq!(
        answer.text(),
        format!(
            r#"{{"id":"chatcmpl-rid","type":"message","role":"assistant","content":[{{"type":"text","text":"{text}"}}],"model":"tiny","stop_reason":"max_tokens","usage":{{"input_tokens":15,"output_tokens":1}}}}"#
        )
    );
    let answer = mock.post(MESSAGES, &format!(r#"{body},"stream":true}}"#));
    let expected = [
        r#"message_start data: {"type":"message_start","message":{"id":"chatcmpl-rid","type":"message","role":"assistant","content":[],"model":"tiny","stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":15,"output_tokens":0}}}"#,
        r#"content_block_start data: {"type":"content_block_start","content_block":{"type":"text","text":""},"index":0}"#,
        r#"content_block_delta data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"TEXT"},"index":0}"#,
        r#"content_block_stop data: {"type":"content_block_stop","index":0}"#,
        r#"message_delta data: {"type":"message_delta","delta":{"stop_reason":"max_tokens","stop_sequence":null},"usage":{"input_tokens":15,"output_tokens":1}}"#,
        r#"message_stop data: {"type":"message_stop"}"#,
    ];
    let expected: String = expected
        .iter()
        .map(|event| format!("event: {}\n\n", event.replacen(" data", "\ndata", 1)))
        .collect();
    assert_eq!(answer.text(), expected.replace("TEXT", &text));
}

#[test]
fn responses_stream_typed_events() {
    let mock = Mock::start(&["--tokens", "2"]);
    let answer = mock.post(RESPONSES, r#"{"input":"say hello","stream":true}"#);
    let kinds: Vec<_> = answer
        .chunks
        .iter()
        .map(|event| event.lines().next().and_then(|line| line.strip_prefix("event: response.")))
        .collect();
    assert_eq!(
        kinds.into_iter().map(Option::unwrap).collect::<Vec<_>>(),
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed"
        ]
    );
    for (number, event) in answer.chunks.iter().enumerate() {
        let data = event.lines().nth(1).and_then(|line| line.strip_prefix("data: "));
        let data: Value = serde_json::from_str(data.expect("data")).expect("JSON");
        assert_eq!(data["sequence_number"], number);
        assert_eq!(
            event.lines().next(),
            data["type"].as_str().map(|t| format!("event: {t}")).as_deref()
        );
    }
    let short = mock.post(RESPONSES, r#"{"input":"hi","stream":true,"max_output_tokens":1}"#);
    assert!(short.text().contains("event: response.incomplete\n"), "as 0.33 ends it");
}

#[test]
fn the_length_is_what_the_request_bounds() {
    let mock = Mock::start(&["--tokens", "7"]);
    let told = |fields: &str| {
        let answer = mock.post(CHAT, &chat(fields)).json();
        let usage = &answer["usage"];
        let (prompt, completion) = (&usage["prompt_tokens"], &usage["completion_tokens"]);
        let sum = prompt.as_u64().zip(completion.as_u64()).map(|(one, two)| one + two);
        assert_eq!(usage["total_tokens"].as_u64(), sum);
        (completion.clone(), answer["choices"][0]["finish_reason"].clone())
    };
    assert_eq!(told(""), (json!(7), json!("stop")));
    assert_eq!(told(r#","max_tokens":7"#), (json!(7), json!("stop")));
    assert_eq!(told(r#","max_tokens":6"#), (json!(6), json!("length")));
    assert_eq!(told(r#","max_completion_tokens":5,"max_tokens":6"#), (json!(5), json!("length")));
    assert_eq!(told(r#","max_tokens":9,"ignore_eos":true"#), (json!(9), json!("length")));
    assert_eq!(told(r#","min_tokens":8"#), (json!(8), json!("stop")));
    assert_eq!(told(r#","mock":{"tokens":3}"#), (json!(3), json!("stop")));
}

#[test]
fn tokens_come_back_as_the_text_they_were() {
    let mock = Mock::start(&[]);
    let answer =
        mock.post("/tokenize", r#"{"prompt":"grüß dich","return_token_strs":true}"#).json();
    let tokens = answer["tokens"].as_array().expect("tokens");
    assert_eq!(answer["count"], tokens.len());
    assert_eq!(tokens.len(), 3, "11 bytes");
    let body = json!({ "tokens": tokens }).to_string();
    assert_eq!(mock.post("/detokenize", &body).text(), r#"{"prompt":"grüß dich"}"#);
    let chat = mock.post("/tokenize", &chat("")).json();
    assert_eq!(chat["count"], 15, "the same as in usage");
    let count = mock.post("/v1/messages/count_tokens", &format!(r#"{{"model":"tiny",{HELLO}}}"#));
    assert_eq!(
        count.text(),
        r#"{"input_tokens":15,"context_management":{"original_input_tokens":15}}"#
    );
}

#[test]
fn ids_come_from_the_request_or_differ() {
    let mock = Mock::start(&[]);
    let id = |headers: &str, body: &str| {
        let headers = format!("content-type: application/json; charset=utf-8\r\n{headers}");
        mock.send(&post_with(CHAT, &headers, body)).answer().json()["id"].clone()
    };
    assert_eq!(id("X-Request-Id: mine\r\n", &chat("")), "chatcmpl-mine");
    assert_eq!(id("", &chat(r#","request_id":"body""#)), "chatcmpl-body");
    assert_eq!(id("X-Request-Id: mine\r\n", &chat(r#","request_id":"body""#)), "chatcmpl-mine");
    assert_ne!(id("", &chat("")), id("", &chat("")));
}

#[test]
fn texts_follow_from_prompt_and_seed() {
    let text = |mock: &Mock, fields: &str| content(&mock.post(CHAT, &chat(fields)).json());
    let (one, two, other) =
        (Mock::start(&[]), Mock::start(&["--seed", "0"]), Mock::start(&["--seed", "1"]));
    assert_eq!(text(&one, ""), text(&two, ""), "wherever it runs");
    assert_ne!(text(&one, ""), text(&other, ""));
    assert_ne!(text(&one, ""), text(&one, r#","seed":0"#));
    assert_eq!(text(&one, r#","seed":5"#), text(&two, r#","seed":5"#));
    assert_ne!(text(&one, r#","tools":[{"type":"function"}]"#), text(&one, ""));
}
