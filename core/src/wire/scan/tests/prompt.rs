//! Fingerprints: which bodies share them, how far, and which numbers they are.

use super::*;
use crate::route::{CHUNK_BYTES, CHUNKS_MAX};

/// The fingerprint of a body with these members, and with a last section of two chunks: whatever
/// differs before it differs in its chunks.
#[track_caller]
fn of(members: &str) -> Fingerprint {
    let comma = if members.is_empty() { "" } else { "," };
    let body = format!(r#"{{{members}{comma}"suffix":"{}"}}"#, "s".repeat(2 * CHUNK_BYTES));
    let found = scan(body.as_bytes()).fingerprint;
    assert!(found.chunks().len() >= 2, "the suffix was not found");
    if let Some(expected) = naive(body.as_bytes()) {
        assert_eq!(found, expected.fingerprint);
    }
    found
}

#[rstest]
#[case::spaces(
    r#""messages":[{"role":"user","content":"a"}]"#,
    "\"messages\" : [ {\n\"role\" :\t\"user\" , \"content\":\"a\"\r} ]\n"
)]
#[case::keys_in_another_order(
    r#""model":"m","tools":[{"type":"function"}],"messages":[{"role":"user"}]"#,
    r#""messages":[{"role":"user"}],"tools":[{"type":"function"}],"model":"m""#
)]
#[case::fields_in_another_order(
    r#""messages":[{"role":"assistant","content":"c","tool_calls":[{"id":"1"}]}]"#,
    r#""messages":[{"tool_calls":[{"id":"1"}],"content":"c","role":"assistant"}]"#
)]
#[case::unlisted_fields_in_another_order(
    r#""messages":[{"x":1,"y":{"z":2}}]"#,
    r#""messages":[{"y":{"z":2},"x":1}]"#
)]
#[case::escaped_text(r#""prompt":"A/é😀""#, r#""prompt":"\u0041\/\u00E9\ud83d\uDE00""#)]
#[case::escaped_signs(
    r#""prompt":"\"\\\b\f\n\r\t""#,
    r#""prompt":"\u0022\u005c\u0008\u000c\u000a\u000d\u0009""#
)]
#[case::escaped_keys(
    r#""messages":[{"role":"user","type":"text"}]"#,
    r#""m\u0065ssages":[{"rol\u0065":"us\u0065r","\u0074ype":"te\u0078t"}]"#
)]
#[case::content_as_part(
    r#""messages":[{"role":"user","content":"a"}]"#,
    r#""messages":[{"role":"user","content":[{"type":"text","text":"a"}]}]"#
)]
#[case::content_as_output(r#""input":[{"role":"user","content":"a"}]"#, r#""input":[{"type":"message","id":"msg_1","status":"completed","role":"user","content":[{"text":"a","annotations":[],"type":"output_text"}]}]"#)]
#[case::input_as_message(r#""input":"a""#, r#""input":[{"role":"user","content":"a"}]"#)]
#[case::system_as_block(
    r#""system":"a""#,
    r#""system":[{"type":"text","text":"a","cache_control":{"type":"ephemeral"}}]"#
)]
#[case::cache_control_moves(
    r#""tools":[{"name":"a","cache_control":{"type":"ephemeral"}}]"#,
    r#""tools":[{"name":"a"}]"#
)]
#[case::billing_header(r#""system":[{"type":"text","text":"s"}]"#, r#""system":[{"type":"text","text":"x-anthropic-billing-header: cch=1"},{"type":"text","text":"s"}]"#)]
#[case::billing_header_escaped(r#""system":[{"type":"text","text":"s"}]"#, r#""system":[{"type":"text","text":"\u0078-anthropic\u002dbilling-header"},{"type":"text","text":"s"}]"#)]
#[case::prompt_in_list(r#""prompt":"a""#, r#""prompt":["a","b"]"#)]
#[case::ids_spaced(r#""prompt":[1,22,333]"#, r#""prompt":[ 1, 22 ,333 ]"#)]
#[case::ids_in_list(r#""prompt":[[1,2],[3]]"#, r#""prompt":[[1,2]]"#)]
#[case::conversations(
    r#""messages":[[{"role":"a"}],[{"role":"b"}]]"#,
    r#""messages":[[{"role":"a"}]]"#
)]
#[case::nulls(r#""messages":[{"role":"a"}]"#, r#""tools":null,"cache_salt":null,"documents":[],"messages":[{"role":"a","content":null,"tool_calls":[ ],"name":""}]"#)]
#[case::old_name_of_reasoning(
    r#""messages":[{"reasoning":"r"}]"#,
    r#""messages":[{"reasoning_content":"r"}]"#
)]
#[case::what_makes_no_prompt(r#""prompt":"a""#, r#""prompt":"a","stream":true,"temperature":0.5,"user":"u","n":2,"add_generation_prompt":false"#)]
#[case::the_last_of_a_key(
    r#""messages":[{"role":"b"}]"#,
    r#""messages":[{"role":"a"}],"messages":[{"role":"b"}]"#
)]
#[case::the_last_of_a_setting(r#""model":"b""#, r#""model":"a","model":"b""#)]
#[case::the_last_of_a_field(
    r#""messages":[{"role":"b"}]"#,
    r#""messages":[{"role":"a","role":"b"}]"#
)]
#[case::the_last_of_a_key_is_null("", r#""messages":[{"role":"a"}],"messages":null"#)]
fn equal(#[case] one: &str, #[case] other: &str) {
    assert_eq!(of(one), of(other));
}

#[rstest]
#[case::model(r#""model":"a""#, r#""model":"b""#)]
#[case::no_model(r#""model":"a""#, "")]
#[case::salt(r#""cache_salt":"a""#, r#""cache_salt":"b""#)]
#[case::model_and_salt(r#""model":"a","cache_salt":"b""#, r#""model":"b","cache_salt":"a""#)]
#[case::response(r#""previous_response_id":"resp_1""#, r#""previous_response_id":"resp_2""#)]
#[case::template_settings(
    r#""chat_template_kwargs":{"enable_thinking":true}"#,
    r#""chat_template_kwargs":{"enable_thinking":false}"#
)]
#[case::effort(r#""reasoning_effort":"low""#, r#""reasoning_effort":"high""#)]
#[case::documents(r#""documents":[{"text":"a"}]"#, r#""documents":[{"text":"b"}]"#)]
#[case::embeds(r#""prompt_embeds":"QUJD""#, r#""prompt_embeds":"QUJE""#)]
#[case::role(
    r#""messages":[{"role":"user","content":"a"}]"#,
    r#""messages":[{"role":"system","content":"a"}]"#
)]
#[case::name(
    r#""messages":[{"role":"user","name":"a"}]"#,
    r#""messages":[{"role":"user","name":"b"}]"#
)]
#[case::content(r#""messages":[{"content":"a"}]"#, r#""messages":[{"content":"b"}]"#)]
#[case::one_message_or_two(
    r#""messages":[{"content":"ab"}]"#,
    r#""messages":[{"content":"a"},{"content":"b"}]"#
)]
#[case::order_of_messages(
    r#""messages":[{"content":"a"},{"content":"b"}]"#,
    r#""messages":[{"content":"b"},{"content":"a"}]"#
)]
#[case::one_part_or_two(
    r#""messages":[{"content":"ab"}]"#,
    r#""messages":[{"content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]"#
)]
#[case::fields_swapped(
    r#""messages":[{"role":"a","name":"b"}]"#,
    r#""messages":[{"role":"b","name":"a"}]"#
)]
#[case::reasoning(
    r#""messages":[{"reasoning":"a","content":"b"}]"#,
    r#""messages":[{"content":"ab"}]"#
)]
#[case::calls(
    r#""messages":[{"tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}]"#,
    r#""messages":[{"tool_calls":[{"function":{"name":"g","arguments":"{}"}}]}]"#
)]
#[case::call_id(
    r#""messages":[{"role":"tool","tool_call_id":"1"}]"#,
    r#""messages":[{"role":"tool","tool_call_id":"2"}]"#
)]
#[case::unlisted_field(r#""messages":[{"plan":"a"}]"#, r#""messages":[{"plan":"b"}]"#)]
#[case::unlisted_name(r#""messages":[{"plan":"a"}]"#, r#""messages":[{"plot":"a"}]"#)]
#[case::image(
    r#""messages":[{"content":[{"type":"image_url","image_url":{"url":"data:,a"}}]}]"#,
    r#""messages":[{"content":[{"type":"image_url","image_url":{"url":"data:,b"}}]}]"#
)]
#[case::images_swapped(
    r#""messages":[{"content":[{"image_url":"a"},{"image_url":"b"}]}]"#,
    r#""messages":[{"content":[{"image_url":"b"},{"image_url":"a"}]}]"#
)]
#[case::image_in_a_result(
    r#""messages":[{"content":[{"type":"tool_result","content":[{"source":"a"}]}]}]"#,
    r#""messages":[{"content":[{"type":"tool_result","content":[{"source":"b"}]}]}]"#
)]
#[case::type_of_part(
    r#""messages":[{"content":[{"type":"refusal","text":"a"}]}]"#,
    r#""messages":[{"content":[{"type":"text","text":"a"}]}]"#
)]
#[case::tool(
    r#""tools":[{"type":"function","function":{"name":"f"}}]"#,
    r#""tools":[{"type":"function","function":{"name":"g"}}]"#
)]
#[case::parameters_in_another_order(
    r#""tools":[{"parameters":{"a":1,"b":2}}]"#,
    r#""tools":[{"parameters":{"b":2,"a":1}}]"#
)]
#[case::text_like_json(
    r#""tools":[{"parameters":{"a":"1,b:2"}}]"#,
    r#""tools":[{"parameters":{"a":"1","b":2}}]"#
)]
#[case::text_like_a_number(r#""prompt":[1]"#, r#""prompt":["1"]"#)]
#[case::ids(r#""prompt":[1,23]"#, r#""prompt":[12,3]"#)]
#[case::section(r#""query":"a""#, r#""prompt":"a""#)]
#[case::between_sections(r#""query":"ab","queries":"c""#, r#""query":"a","queries":"bc""#)]
#[case::billing_header_of_a_user(
    r#""messages":[{"content":[{"text":"x-anthropic-billing-header"},{"text":"a"}]}]"#,
    r#""messages":[{"content":[{"text":"a"}]}]"#
)]
#[case::nearly_a_billing_header(
    r#""system":[{"text":"x-anthropic-billing"},{"text":"a"}]"#,
    r#""system":[{"text":"a"}]"#
)]
#[case::half_pairs(r#""prompt":"\ud83d""#, r#""prompt":"\ud83e""#)]
#[case::half_pair_and_whole(r#""prompt":"\ud83d\u0041\ude00""#, r#""prompt":"\ud83d\ude00A""#)]
#[case::no_escape(r#""prompt":"\x41""#, r#""prompt":"A""#)]
fn different(#[case] one: &str, #[case] other: &str) {
    let (one, other) = (of(one), of(other));
    for chunk in one.chunks() {
        assert!(!other.chunks().contains(chunk));
    }
}

#[test]
fn long_keys_are_equal_too() {
    let of = |first: &str| {
        let key = format!("{first}{}", "k".repeat(200));
        of(&format!(r#""messages":[{{"{key}":1,"{key}2":"a"}}]"#))
    };
    assert_eq!(of("ö"), of(r"\u00f6"));
    assert_ne!(of("ö"), of("o"));
}

/// How many chunks two conversations share is how far they are alike.
#[rstest]
#[case::next_turn("", r#",{"role":"assistant","content":"b"},{"role":"user","content":"c"}"#, 4)]
#[case::other_turn(r#",{"content":"c"}"#, r#",{"content":"d"}"#, 4)]
fn shared_beginning(#[case] one: &str, #[case] other: &str, #[case] shared: usize) {
    let long = "t".repeat(4 * CHUNK_BYTES);
    let of = |behind| {
        let filler = r#",{"content":"e"}"#.repeat(CHUNK_BYTES);
        let messages = format!(r#"[{{"role":"user","content":"{long}"}}{behind}{filler}]"#);
        scan(format!(r#"{{"model":"m","messages":{messages}}}"#).as_bytes()).fingerprint
    };
    let (one, other) = (of(one), of(other));
    let pairs = one.chunks().iter().zip(other.chunks());
    let alike: Vec<_> = pairs.map(|(one, other)| one == other).collect();
    assert_eq!(alike.iter().filter(|alike| **alike).count(), shared);
    assert!(alike[..shared].iter().all(|alike| *alike), "{alike:?}");
}

#[rstest]
#[case::no_prompt(r#"{"model":"m"}"#, 0)]
#[case::text(r#"{"prompt":"a\u0041\ud83d\ude00"}"#, 6)]
#[case::message(r#"{"messages":[{"role":"user","content":"abc"}]}"#, 1 + 6 + 5)]
#[case::ids(r#"{"prompt":[1, 22]}"#, 1 + 4)]
#[case::image(r#"{"messages":[{"content":[{"image_url":"data:image/png;base64,AAAAAAAA"}]}]}"#, 1 + 2 + 1 + 2 + 8)]
#[case::two_sections(r#"{"prompt":"ab","suffix":"c"}"#, 3)]
#[case::first_prompt_only(r#"{"prompt":["ab","cdef"]}"#, 2)]
#[case::cut(r#"{"messages":[{"content":"abc"},"#, 0)]
fn length_of_the_text(#[case] body: &str, #[case] bytes: u64) {
    assert_eq!(check(body.as_bytes()).fingerprint.bytes(), bytes);
}

#[rstest]
#[case::none(0, 0, 0)]
#[case::less_than_one(511, 0, 511)]
#[case::one(512, 1, 512)]
#[case::more_than_one(513, 1, 513)]
#[case::all_that_are_kept(CHUNKS_MAX * CHUNK_BYTES, CHUNKS_MAX, CHUNKS_MAX * CHUNK_BYTES)]
#[case::more(2 * CHUNKS_MAX * CHUNK_BYTES + 1, CHUNKS_MAX, 2 * CHUNKS_MAX * CHUNK_BYTES + 1)]
fn chunks_are_whole_and_limited(#[case] len: usize, #[case] chunks: usize, #[case] bytes: usize) {
    let body = format!(r#"{{"prompt":"{}","suffix":""}}"#, "p".repeat(len));
    let found = scan(body.as_bytes()).fingerprint;
    assert_eq!((found.chunks().len(), found.bytes()), (chunks, bytes as u64));
}

#[test]
fn what_is_not_kept_is_counted_as_it_stands() {
    // One escape is read, then it shows that nothing more is of use.
    let kept = CHUNKS_MAX * CHUNK_BYTES;
    let body =
        format!(r#"{{"prompt":"{}\n\n\n","suffix":"{}"}}"#, "p".repeat(kept), "s".repeat(600));
    let found = scan(body.as_bytes()).fingerprint;
    assert_eq!((found.chunks().len(), found.bytes()), (CHUNKS_MAX, kept as u64 + 5 + 600));
    let ids = format!(r#"{{"prompt":[{}7]}}"#, "7, ".repeat(kept));
    let found = scan(ids.as_bytes()).fingerprint;
    assert_eq!(found.chunks().len(), CHUNKS_MAX);
    assert!((kept as u64 * 2..kept as u64 * 3).contains(&found.bytes()), "{}", found.bytes());
}

/// Whoever makes us work until nothing is left has the same beginning as before.
#[rstest]
#[case::messages("", r#"{"a":1,"b":2,"c":3}"#, 200_000)]
#[case::parts(r#"{"content":["#, r#"{"a":1,"b":2,"c":3}"#, 200_000)]
#[case::escapes("", r#"{"x":"ESCAPES"}"#, 100)]
fn work_is_limited(#[case] before: &str, #[case] filling: &str, #[case] times: usize) {
    let filling = filling.replace("ESCAPES", &r"\n".repeat(1 << 16));
    let long = "t".repeat(4 * CHUNK_BYTES);
    let behind = if before.is_empty() { "" } else { "]}" };
    let of = |times, end| {
        let filling = format!("{filling},").repeat(times);
        let body =
            format!(r#"{{"messages":[{{"role":"{long}"}},{before}{filling}"{end}"{behind}]}}"#);
        scan(body.as_bytes()).fingerprint
    };
    let (one, other) = (of(times, "x"), of(times, "y"));
    let few = of(times / 4, "x");
    assert_eq!(one.chunks()[..4], few.chunks()[..4]);
    assert_eq!(one.chunks().len(), other.chunks().len());
    assert_eq!(one.bytes(), other.bytes());
    let most = few.chunks().len().min(one.chunks().len()) - 1;
    assert_eq!(one.chunks()[..most], few.chunks()[..most]);
}

/// However large they are.
#[test]
fn images() {
    let of = |image: &str, times, space| {
        let url = image.repeat(times);
        of(&format!(r#""messages":[{{"content":[{{"image_url":{{"url"{space}:"{url}"}}}}]}}]"#))
    };
    let large = 20 << 20;
    assert_eq!(of("i", large, "").bytes(), of("i", 10, "").bytes());
    assert_eq!(of("i", large, ""), of("i", large, " "));
    assert_ne!(of("i", large, ""), of("i", large + 1, ""));
    assert_ne!(of("i", large, ""), of("j", large, ""));
}

/// These must never change as long as the version stays: other proxies, and older ones, compare
/// theirs with ours.
#[test]
fn golden() {
    let text: String = (0..400).map(|number| format!("{number} \\u00e9\\n")).collect();
    let body = format!(
        r#"{{"messages":[{{"role":"system","content":"{text}"}},{{"role":"user","content":[
        {{"type":"text","text":"{text}"}},{{"type":"image_url","image_url":{{"url":"data:,x"}}}}]}}],
        "tools":[{{"type":"function","function":{{"name":"f","parameters":{{"x":[1,"{text}"]}}}}}}],
        "cache_salt":"salt","model":"model"}}"#
    );
    let found = check(body.as_bytes()).fingerprint;
    let some = [found.chunks()[0], found.chunks()[7], found.chunks()[14]];
    assert_eq!((found.chunks().len(), found.bytes()), (15, 8166));
    assert_eq!(naive(body.as_bytes()).map(|scan| scan.fingerprint), Some(found));
    let expected =
        [17_414_693_604_597_198_273, 303_471_599_864_182_483, 11_214_213_266_415_051_366];
    assert_eq!(some, expected);
}

/// Looking again from the beginning at each bracket, or at each level, would not end within the
/// hour.
#[rstest]
#[case::messages(r#"{"messages":["#, r#"{"role":"a"},"#, "]}")]
#[case::parts(r#"{"messages":[{"content":["#, r#"{"text":"a"},"#, "]}]}")]
#[case::lists(r#"{"messages":"#, "[", "")]
#[case::closed_lists(r#"{"prompt":["#, "[],", "]}")]
#[case::contents(r#"{"messages":["#, r#"{"content":["#, "")]
#[case::junk(r#"{"messages":["#, ":[]}{", "]}")]
#[case::keys(r#"{"messages":[{"#, r#""k":1,"#, "}]}")]
#[case::sections("{", r#""messages":[{}],"#, "}")]
#[case::blocks(r#"{"system":["#, r#"{"text":"x-anthropic-billing-header"},"#, "]}")]
#[case::escapes(r#"{"prompt":""#, r"\ud83d", r#""}"#)]
#[case::ids(r#"{"prompt":["#, "1 , ", "1]}")]
fn linear(#[case] before: &str, #[case] filling: &str, #[case] behind: &str) {
    let body = format!("{before}{}{behind}", filling.repeat(2_000_000 / filling.len()));
    let body = body.as_bytes();
    let mut scanner = Scanner::new();
    for end in (0..body.len()).step_by(97) {
        scanner.feed(&body[..end]);
    }
    assert_eq!(scanner.finish(body), scan(body));
}

/// A nested list of some depth is closed as deep as it was opened.
#[rstest]
#[case::list("[", "]")]
#[case::content(r#"{"content":["#, "]}")]
fn deep(#[case] open: &str, #[case] close: &str) {
    let nest =
        |inner: &str| format!(r#""messages":[{}{inner}{}]"#, open.repeat(100), close.repeat(100));
    assert_ne!(of(&nest("1")), of(&nest("2")));
}

/// Content, tools and settings as clients send them, and worse.
fn body() -> impl Strategy<Value = String> {
    let members = |keys: &'static str, value: BoxedStrategy<String>, most| {
        let member = (keys, value).prop_map(|(key, value)| format!("\"{key}\" :{value}"));
        vec(member, 0..most).prop_map(|members| format!("{{{}}}", members.join(" ,")))
    };
    let long = (text(), 0..200_usize)
        .prop_map(|(text, times)| format!("\"{}\"", text[1..text.len() - 1].repeat(times)));
    let any = prop_oneof![3 => text(), 1 => value(), 1 => long].boxed();
    let list = |of: BoxedStrategy<String>| {
        vec(of, 0..4).prop_map(|items| format!("[ {} ]", items.join(",")))
    };
    let part_type = "\"(text|input_text|image_url)\"".boxed();
    let part = prop_oneof![
        3 => members("text|type|content|id|image_url|x|reasoning", any.clone(), 4),
        2 => (part_type, any.clone())
            .prop_map(|(kind, value)| format!(r#"{{"type":{kind},"text":{value}}}"#)),
        1 => any.clone(),
    ];
    let content = prop_oneof![1 => any.clone(), 2 => list(part.boxed())].boxed();
    let fields = "role|content|name|tool_calls|type|reasoning_content|refusal|output|x";
    let message = prop_oneof![4 => members(fields, content.clone(), 5), 1 => any.clone()];
    let messages = prop_oneof![4 => list(message.boxed()), 1 => content, 1 => any].boxed();
    let keys =
        "messages|tools|system|input|prompt|model|cache_salt|documents|instructions|suffix|n";
    members(keys, messages, 6)
}

proptest! {
    #[test]
    fn what_a_naive_reader_finds(body in body()) {
        let found = scan(body.as_bytes());
        prop_assert_eq!(Some(found.clone()), naive(body.as_bytes()));
        let mut pieces = Scanner::new();
        for end in (0..body.len()).step_by(1 + body.len() / 300) {
            pieces.feed(&body.as_bytes()[..end]);
        }
        prop_assert_eq!(pieces.finish(body.as_bytes()), found);
    }
}
