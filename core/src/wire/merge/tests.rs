//! Every rule on vLLM's own answers, and on such as no backend should give.

use super::*;
use alloc::string::ToString;
use proptest::prelude::*;
use rstest::rstest;
use std::vec;

const BACKENDS: [&str; 4] = ["10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000", "10.0.0.4:8000"];

type Reported = Result<(u16, &'static str), &'static str>;

const DOWN: Reported = Err("no connection");

fn ok(body: &'static str) -> Reported {
    Ok((200, body))
}

fn said(all: &[Reported]) -> Vec<Said<'static>> {
    let reply = |&(status, body): &(u16, &str)| Reply {
        status,
        head: b"vary: Origin\r\n".to_vec(),
        body: body.as_bytes().to_vec(),
    };
    let said = BACKENDS.iter().zip(all);
    said.map(|(backend, said)| Said { backend, result: said.as_ref().map(reply).map_err(|e| *e) })
        .collect()
}

#[track_caller]
fn passes(rule: Merge, all: &[Reported], at: usize) {
    assert_eq!(merge(rule, &said(all), b""), Merged::One(at));
}

/// The status and body of an answer of ours.
#[track_caller]
fn answered(rule: Merge, all: &[Reported]) -> (u16, String) {
    let Merged::Answer(answer) = merge(rule, &said(all), b"") else { panic!("one passes") };
    assert_eq!(answer.content_type, Some("application/json"));
    (answer.status, String::from_utf8(answer.body).expect("our JSON is text"))
}

/// The status and message of an error of ours.
#[track_caller]
fn failure(rule: Merge, all: &[Reported]) -> (u16, String) {
    let (status, body) = answered(rule, all);
    let body: serde_json::Value = serde_json::from_str(&body).expect("an error is JSON");
    assert_eq!(body["error"]["code"], status);
    assert_eq!(body["error"]["param"], serde_json::Value::Null);
    assert!(body["error"]["type"].is_string());
    (status, body["error"]["message"].as_str().expect("a message").to_string())
}

const UNAUTHORIZED: &str = r#"{"error":"Unauthorized"}"#;
const AND: Merge = Merge::And("success");
const OR: Merge = Merge::Or("is_sleeping");
const LOAD: Merge = Merge::Sum("server_load", Failures::LeaveOut);
const ABORTED: Merge = Merge::Sum("aborted", Failures::Fail);
const CONCAT: Merge = Merge::Concat("results");

const ALL: [Merge; 10] = [
    Merge::Same,
    AND,
    OR,
    LOAD,
    ABORTED,
    CONCAT,
    Merge::Awake,
    Merge::Ranks,
    Merge::Compare,
    Merge::LoadLora,
];

const YES: &str = r#"{"success":true}"#;
const NO: &str = r#"{"success":false}"#;
const ASLEEP: &str = r#"{"is_sleeping":true}"#;
const UP: &str = r#"{"is_sleeping":false}"#;
const AWAKE: &str = r#"{"status":"awake","tags":null}"#;
const TIRED: &str = r#"{"status":"sleeping","tags":["weights"]}"#;
const LOADED: &str = "Success: LoRA adapter 'x' added successfully.";
const HAD: &str = r#"{"error":{"message":"The lora adapter 'x' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True.","type":"InvalidUserInput","param":null,"code":400}}"#;
const CONFLICTS: &str = r#"{"error":{"message":"The lora adapter 'x' conflicts with a served base model.","type":"InvalidUserInput","param":null,"code":400}}"#;
const UNLOADED: &str = "Success: LoRA adapter 'x' removed successfully.";
const LACKED: &str = r#"{"error":{"message":"The lora adapter 'x' cannot be found.","type":"NotFoundError","param":null,"code":404}}"#;
const NO_ROUTE: &str = r#"{"detail":"Not Found"}"#;
const BROKEN: &str =
    r#"{"error":{"message":"boom","type":"InternalServerError","param":null,"code":500}}"#;

#[rstest]
fn one_backend_speaks_for_itself(
    #[values(ok(""), ok("{}"), ok("not JSON"), Ok((500, BROKEN)), Ok((307, "")), Ok((404, NO_ROUTE)))]
    one: Reported,
) {
    for rule in ALL {
        passes(rule, &[one], 0);
    }
}

#[rstest]
#[case::no_content(ok(""))]
#[case::not_json(ok("<html>"))]
#[case::paused(ok(r#"{"status":"paused"}"#))]
#[case::all_lack_the_route(Ok((404, NO_ROUTE)))]
#[case::all_break(Ok((500, BROKEN)))]
fn what_all_say_alike_passes(#[case] each: Reported) {
    for rule in [Merge::Same, AND, OR, Merge::Awake, Merge::Compare, Merge::LoadLora] {
        passes(rule, &[each; 3], 0);
    }
}

#[rstest]
fn alike_failures_pass_where_successes_would_add_up(
    #[values(LOAD, ABORTED, CONCAT, Merge::Ranks)] rule: Merge,
) {
    passes(rule, &[Ok((500, BROKEN)); 3], 0);
}

#[rstest]
#[case::same_differs(Merge::Same, &[ok(r#"{"a":1}"#), ok(r#"{"a":2}"#)], 0)]
#[case::same_of_two_kinds(Merge::Same, &[Ok((202, "")), ok("")], 0)]
#[case::and_false(AND, &[ok(YES), ok(NO), ok(YES)], 1)]
#[case::and_false_twice(AND, &[ok(YES), ok(r#"{"success":false,"a":1}"#), ok(NO)], 1)]
#[case::and_all_true(AND, &[ok(YES), ok(r#" { "success" : true , "new_version":"v2"}"#)], 0)]
#[case::and_escaped_name(AND, &[ok(YES), ok(r#"{"succ\u0065ss":false}"#)], 1)]
#[case::or_true(OR, &[ok(UP), ok(ASLEEP), ok(UP)], 1)]
#[case::or_none_true(OR, &[ok(UP), ok(r#"{"is_sleeping":false,"phase":null}"#)], 0)]
#[case::awake_but_one(Merge::Awake, &[ok(AWAKE), ok(TIRED), ok(AWAKE)], 1)]
#[case::awake_all(Merge::Awake, &[ok(AWAKE), ok(r#"{"status":"awake","tags":[]}"#)], 0)]
#[case::awake_in_other_words(Merge::Awake, &[ok(AWAKE), ok(r#"{"status":"dozing"}"#)], 1)]
#[case::no_results(CONCAT, &[ok(""), ok("")], 0)]
#[case::equal_weights(Merge::Compare, &[ok(r#"{"a":1}"#), Ok((203, r#"{"a":1}"#))], 0)]
#[case::lora_was_there(Merge::LoadLora, &[Ok((400, HAD)), ok(LOADED), Ok((400, HAD))], 1)]
#[case::lora_is_nowhere(Merge::LoadLora, &[Ok((400, HAD)), Ok((400, HAD))], 0)]
#[case::lora_was_not_there(Merge::UnloadLora, &[Ok((404, LACKED)), ok(UNLOADED)], 1)]
fn a_reply_passes(#[case] rule: Merge, #[case] all: &[Reported], #[case] at: usize) {
    passes(rule, all, at);
}

#[rstest]
#[case::load(LOAD, &[ok(r#"{"server_load":2}"#), ok(r#"{"server_load":40}"#)], r#"{"server_load":42}"#)]
#[case::equal_loads(LOAD, &[ok(r#"{"server_load":2}"#); 3], r#"{"server_load":6}"#)]
#[case::load_of_those_that_answer(
    LOAD,
    &[DOWN, ok(r#"{"server_load":2}"#), Ok((500, BROKEN)), ok("{}")],
    r#"{"server_load":2}"#
)]
#[case::aborted(
    ABORTED,
    &[ok(r#"{"status":"aborted","aborted":1}"#), ok(r#"{"status":"aborted","aborted":2}"#)],
    r#"{"status":"aborted","aborted":3}"#
)]
#[case::bytes_stay(
    ABORTED,
    &[ok(r#"{"z":1.50, "aborted":-1 ,"\u0061":"\u00e9 é","n":{"aborted":[ 1 ]}}"#), ok(r#"{"aborted":0}"#)],
    r#"{"z":1.50,"aborted":-1,"\u0061":"\u00e9 é","n":{"aborted":[ 1 ]}}"#
)]
#[case::large(
    ABORTED,
    &[ok(r#"{"aborted":9223372036854775807}"#); 3],
    r#"{"aborted":27670116110564327421}"#
)]
#[case::results(
    CONCAT,
    &[ok(r#"{"results":[null,"a"]}"#), ok(r#"{"results":[]}"#), ok(""), ok(r#"{"results": [ {"b" : 1.0} ] }"#)],
    r#"{"results":[null,"a",{"b" : 1.0}]}"#
)]
#[case::equal_results(CONCAT, &[ok(r#"{"results":[null]}"#); 2], r#"{"results":[null,null]}"#)]
#[case::first_without_results(CONCAT, &[ok(""), ok(r#"{"results":[1]}"#)], r#"{"results":[1]}"#)]
#[case::ranks(
    Merge::Ranks,
    &[ok(r#"{"0":{"endpoint":"tcp://10.0.0.1:5557"},"1":{"endpoint":"b"}}"#), ok("{}"), ok(r#"{"0":{"endpoint" :"c"}}"#)],
    r#"{"0":{"endpoint":"tcp://10.0.0.1:5557"},"1":{"endpoint":"b"},"2":{"endpoint" :"c"}}"#
)]
#[case::no_ranks(Merge::Ranks, &[ok("{}"); 2], "{}")]
fn replies_add_up(#[case] rule: Merge, #[case] all: &[Reported], #[case] expected: &str) {
    assert_eq!(answered(rule, all), (200, expected.to_string()));
}

#[rstest]
#[case::one_breaks(
    Merge::Same,
    &[ok(""), Ok((500, "boom\n\"x\"\u{7f}")), ok("")],
    500,
    "1 of 3 backends failed. 10.0.0.2:8000: 500 Internal Server Error: boom\\n\"x\"\\u{7f}."
)]
#[case::one_is_gone(Merge::Same, &[ok(""), DOWN], 502, "1 of 2 backends failed. 10.0.0.2:8000: no connection.")]
#[case::only_one_and_gone(Merge::Same, &[DOWN], 502, "1 of 1 backend failed. 10.0.0.1:8000: no connection.")]
#[case::all_gone(
    Merge::Same,
    &[DOWN, Err("no answer in time")],
    502,
    "2 of 2 backends failed. 10.0.0.1:8000: no connection; 10.0.0.2:8000: no answer in time."
)]
#[case::gone_counts_as_first(
    AND,
    &[DOWN, Ok((404, "")), ok(YES)],
    502,
    "2 of 3 backends failed. 10.0.0.1:8000: no connection; 10.0.0.2:8000: 404 Not Found."
)]
#[case::all_fail_differently(
    Merge::Compare,
    &[Ok((409, "a")), Ok((409, "b"))],
    409,
    "2 of 2 backends failed. 10.0.0.1:8000: 409 Conflict: a; 10.0.0.2:8000: 409 Conflict: b."
)]
#[case::a_redirect_is_no_success(
    Merge::Same,
    &[Ok((307, "")), ok("")],
    502,
    "1 of 2 backends failed. 10.0.0.1:8000: 307 Temporary Redirect."
)]
#[case::a_status_of_no_name(Merge::Same, &[ok(""), Ok((599, ""))], 599, "1 of 2 backends failed. 10.0.0.2:8000: 599.")]
#[case::asleep_and_one_fails(
    OR,
    &[ok(ASLEEP), Ok((500, ""))],
    500,
    "1 of 2 backends failed. 10.0.0.2:8000: 500 Internal Server Error."
)]
#[case::no_load_at_all(
    LOAD,
    &[DOWN, Ok((500, ""))],
    502,
    "2 of 2 backends failed. 10.0.0.1:8000: no connection; 10.0.0.2:8000: 500 Internal Server Error."
)]
#[case::adapter_in_the_way(
    Merge::LoadLora,
    &[ok(LOADED), Ok((400, HAD)), DOWN],
    502,
    "1 of 3 backends failed. 10.0.0.3:8000: no connection."
)]
#[case::route_is_off(
    Merge::UnloadLora,
    &[ok(UNLOADED), Ok((404, NO_ROUTE))],
    404,
    "1 of 2 backends failed. 10.0.0.2:8000: 404 Not Found: {\"detail\":\"Not Found\"}."
)]
fn failures_are_told(
    #[case] rule: Merge,
    #[case] all: &[Reported],
    #[case] status: u16,
    #[case] message: &str,
) {
    assert_eq!(failure(rule, all), (status, message.to_string()));
}

/// An error of ours would name the backends to a client that shows no key.
#[rstest]
#[case::gone(&[DOWN, Ok((401, UNAUTHORIZED))], 1)]
#[case::route_is_off(&[Ok((404, NO_ROUTE)), Ok((401, UNAUTHORIZED)), DOWN], 1)]
#[case::in_other_words(&[Ok((401, "a")), Ok((401, "b"))], 0)]
fn a_refused_key_passes_where_nobody_obeyed(#[case] all: &[Reported], #[case] at: usize) {
    for rule in ALL {
        passes(rule, all, at);
    }
}

#[test]
fn a_refused_key_is_told_where_others_obeyed() {
    let told = failure(Merge::Same, &[ok(""), Ok((401, UNAUTHORIZED))]);
    let message =
        "1 of 2 backends failed. 10.0.0.2:8000: 401 Unauthorized: {\"error\":\"Unauthorized\"}.";
    assert_eq!(told, (401, message.to_string()));
}

#[test]
fn other_failures_of_an_adapter_are_failures() {
    let (status, message) = failure(Merge::LoadLora, &[Ok((400, CONFLICTS)), ok(LOADED)]);
    assert_eq!(status, 400);
    assert!(message.starts_with("1 of 2 backends failed. 10.0.0.1:8000: 400 Bad Request: {"));
    let (status, message) = failure(Merge::LoadLora, &[Ok((400, HAD)), Ok((500, BROKEN))]);
    assert_eq!(status, 400);
    assert!(message.starts_with("2 of 2 backends failed."), "{message}");
}

#[rstest]
#[case::and(AND, ok(YES), "200 without a boolean `success`")]
#[case::or(OR, ok(ASLEEP), "200 without a boolean `is_sleeping`")]
#[case::sum(ABORTED, ok(r#"{"aborted":1}"#), "200 without an integer `aborted`")]
#[case::concat(CONCAT, ok(r#"{"results":[]}"#), "200 without an array `results`")]
#[case::awake(Merge::Awake, ok(AWAKE), "200 without a string `status`")]
#[case::ranks(Merge::Ranks, ok("{}"), "200 without ranks")]
fn what_is_no_such_object_is_a_failure(
    #[case] rule: Merge,
    #[case] good: Reported,
    #[case] why: &str,
    #[values(
        " ", "x", "null", "[]", "3", r#"["success",true]"#, r#"{"a":1"#, r#"{"a":1}x"#, r#"{"":1}"#,
        r#"{"success":null,"aborted":1.5,"results":{},"status":1,"is_sleeping":"true"}"#,
        r#"{"success":1,"aborted":"1","results":null,"status":null,"is_sleeping":[]}"#,
        r#"{"aborted":9223372036854775808,"success":"true"}"#,
        r#"{"success":true,"success":true,"aborted":1,"aborted":1,"results":[],"results":[],
            "status":"awake","status":"awake","is_sleeping":true,"is_sleeping":true,"0":1,"0":1}"#,
        r#"{"success":true,"is_sleeping":true,"aborted":1,"results":[],"status":"awake","a":1,"\u0061":2}"#,
        r#"{"\ud800":1,"success":true,"is_sleeping":true,"aborted":1,"results":[],"status":"awake"}"#
    )]
    bad: &'static str,
) {
    let (status, message) = failure(rule, &[good, ok(bad)]);
    assert_eq!(status, 502);
    let expected = format!("1 of 2 backends failed. 10.0.0.2:8000: {why}: ");
    assert!(message.starts_with(&expected), "{message}");
}

#[rstest]
#[case::short(
    &[ok(r#"{"weight_version":"a"}"#), ok(r#"{"weight_version":"b"}"#), ok(r#"{"weight_version":"a"}"#)],
    "The backends differ. 10.0.0.1:8000 and 1 more: {\"weight_version\":\"a\"}; \
     10.0.0.2:8000: {\"weight_version\":\"b\"}."
)]
#[case::one_is_shorter(&[ok("ab"), ok("a"), ok("")], "The backends differ. 10.0.0.1:8000: ab; 10.0.0.2:8000: a; 10.0.0.3:8000: nothing.")]
fn differences_are_told(#[case] all: &[Reported], #[case] message: &str) {
    assert_eq!(failure(Merge::Compare, all), (409, message.to_string()));
}

/// However the first quoted byte falls upon the characters before the difference.
#[rstest]
fn a_difference_far_inside_is_shown(#[values("", "a", "ab", "abc", "abcd")] more: &str) {
    let reply = |sum: &str| {
        let sums = "ä模🦀".repeat(900);
        let body = format!(r#"{{"checksums":{{"{sums}{more}":"{sum}"}}}}"#);
        Reply { status: 200, head: Vec::new(), body: body.into_bytes() }
    };
    let all: Vec<_> = BACKENDS
        .iter()
        .zip(["c6aa", "e3b0", "c6aa"])
        .map(|(backend, sum)| Said { backend, result: Ok(reply(sum)) })
        .collect();
    let Merged::Answer(answer) = merge(Merge::Compare, &all, b"") else { panic!("they differ") };
    let body = String::from_utf8(answer.body).expect("our JSON is text");
    assert!(body.contains(r#":\"c6aa\"}}; 10.0.0.2:8000: ..."#), "{body}");
    assert!(body.contains(r#":\"e3b0\"}}."#), "{body}");
    assert!(!body.contains('\u{fffd}') && body.len() < 400, "{body}");
}

#[rstest]
#[case::all_of_it("a".repeat(200), "a".repeat(200))]
#[case::one_more("a".repeat(201), "a".repeat(200) + "...")]
#[case::an_escape_fits("a".repeat(198) + "\n", "a".repeat(198) + "\\n")]
#[case::an_escape_does_not("a".repeat(199) + "\n", "a".repeat(199) + "...")]
#[case::a_cut_character("a".repeat(199) + "é", "a".repeat(199) + "...")]
#[case::direction_of_text("a\u{202e}b".into(), "a\\u{202e}b".into())]
fn excerpts(#[case] body: String, #[case] expected: String) {
    let mut message = String::new();
    excerpt(&mut message, body.as_bytes(), 0);
    assert_eq!(message, expected);
}

#[test]
fn nobody_asked() {
    for rule in ALL {
        assert_eq!(failure(rule, &[]), (503, "No backend is there to be asked.".to_string()));
    }
}

#[test]
fn messages_are_bounded() {
    let bodies = [b"\x00\xff\"".repeat(1 << 16), "\u{2028}é".repeat(1 << 16).into_bytes()];
    let names: Vec<String> =
        (0..1_000).map(|at| format!("10.0.{}.{}:8000", at / 250, at % 250)).collect();
    for (rule, status) in [(Merge::Same, 503), (Merge::Compare, 200)] {
        let reply = |at: usize| {
            let mut body = bodies[at % 2].clone();
            body.truncate(10_000 + at);
            Reply { status, head: Vec::new(), body }
        };
        let all: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(at, backend)| Said { backend, result: Ok(reply(at)) })
            .collect();
        let Merged::Answer(answer) = merge(rule, &all, b"") else { panic!("they differ") };
        let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        let message = body["error"]["message"].as_str().expect("a message");
        assert!(message.ends_with("; and 984 more."), "{message}");
        assert_eq!(message.matches(":8000: ").count(), NAMED_MAX);
        assert!(message.len() < NAMED_MAX * (EXCERPT_BYTES_MAX + 60), "{}", message.len());
        assert!(!message.chars().any(|c| c.is_control() || c == '\u{2028}'));
    }
}

#[test]
fn hostile_bodies_do_no_harm() {
    let deep = format!(r#"{{"results":{}}}"#, "[".repeat(1 << 20));
    let closed = format!(r#"{{"results":{}{}}}"#, "[".repeat(1 << 20), "]".repeat(1 << 20));
    let names = format!(
        "{{{}\"results\":[]}}",
        (0..999).map(|at| format!("\"{at}\":0,")).collect::<String>()
    );
    let latin = b"{\"results\":[\"\xff\"]}".to_vec();
    for (body, is_good) in [(deep, false), (closed, true), (names, true)]
        .map(|(body, is_good)| (body.into_bytes(), is_good))
        .into_iter()
        .chain([(latin, false)])
    {
        let reply = |body: &[u8]| Ok(Reply { status: 200, head: Vec::new(), body: body.to_vec() });
        let all = [
            Said { backend: "a", result: reply(br#"{"results":[1]}"#) },
            Said { backend: "b", result: reply(&body) },
        ];
        for rule in ALL {
            let merged = merge(rule, &all, b"");
            if rule == CONCAT {
                let Merged::Answer(answer) = merged else { panic!("neither passes") };
                assert_eq!(answer.status == 200, is_good);
            }
        }
    }
}

/// What is longer than anybody would answer is told of, and not read.
#[rstest]
#[case::names(1_000, 1, None)]
#[case::a_name_more(1_001, 1, Some("with more than 1000 fields"))]
#[case::bytes(1, 1 << 20, None)]
#[case::a_byte_more(1, (1 << 20) + 1, Some("with more than 1 MiB"))]
fn an_object_has_limits(
    #[values(
        (OR, r#""is_sleeping":false"#),
        (AND, r#""success":true"#),
        (LOAD, r#""server_load":1"#),
        (ABORTED, r#""aborted":1"#),
        (Merge::Awake, r#""status":"awake""#),
        (Merge::Ranks, r#""0":1"#),
        (CONCAT, r#""results":[]"#)
    )]
    (rule, good): (Merge, &str),
    #[case] names: usize,
    #[case] bytes: usize,
    #[case] why: Option<&str>,
) {
    let others: String = (1..names).map(|at| format!(",\"{at}\":0")).collect();
    let mut long = format!("{{{good}{others}}}");
    long.extend(core::iter::repeat_n(' ', bytes.saturating_sub(long.len())));
    let reply = |body: &str| Reply { status: 200, head: Vec::new(), body: body.into() };
    let all = [
        Said { backend: "a", result: Ok(reply(&format!("{{{good}}}"))) },
        Said { backend: "b", result: Ok(reply(&long)) },
    ];
    let told = match merge(rule, &all, b"") {
        Merged::One(_) => None,
        Merged::Answer(answer) => Some(String::from_utf8(answer.body).expect("JSON is text")),
    };
    let told = told.filter(|body| body.contains(r#""error""#));
    // A reading is of those that can be read, and results may be long.
    let excused = rule == LOAD || (rule == CONCAT && bytes > 1);
    let why = why.filter(|_| !excused).map(|why| format!("failed. b: 200 {why}: "));
    match (told, why) {
        (None, None) => {}
        (Some(told), Some(why)) => assert!(told.contains(&why), "{told}"),
        (told, why) => panic!("{told:?} instead of {why:?}"),
    }
}

#[test]
fn metrics_are_one_page() {
    let page = "# TYPE a gauge\na 1\nb b b\n";
    let own = b"# TYPE vllm_proxy_c gauge\nvllm_proxy_c 1\n";
    let all = said(&[ok(page), Ok((500, BROKEN)), DOWN, ok(page)]);
    let Merged::Answer(answer) = merge(Merge::Metrics, &all, own) else { panic!("a page is ours") };
    assert_eq!((answer.status, answer.content_type), (200, Some(metrics::CONTENT_TYPE)));
    assert_eq!(
        String::from_utf8(answer.body).expect("a page is text"),
        "# TYPE a gauge\na{backend=\"10.0.0.1:8000\"} 1\na{backend=\"10.0.0.4:8000\"} 1\n\
         # TYPE vllm_proxy_c gauge\nvllm_proxy_c 1\n\
         # HELP vllm_proxy_metrics_up Whether the backend's own metrics are part of this page.\n\
         # TYPE vllm_proxy_metrics_up gauge\n\
         vllm_proxy_metrics_up{backend=\"10.0.0.1:8000\"} 1\n\
         vllm_proxy_metrics_up{backend=\"10.0.0.2:8000\"} 0\n\
         vllm_proxy_metrics_up{backend=\"10.0.0.3:8000\"} 0\n\
         vllm_proxy_metrics_up{backend=\"10.0.0.4:8000\"} 1\n\
         # HELP vllm_proxy_metrics_lines_left_out Lines of backends that could not be part of this page.\n\
         # TYPE vllm_proxy_metrics_lines_left_out gauge\nvllm_proxy_metrics_lines_left_out 2\n"
    );
}

#[test]
fn metrics_of_one_or_none_are_ours_too() {
    for all in [vec![], vec![ok("a 1\n")], vec![DOWN]] {
        let Merged::Answer(answer) = merge(Merge::Metrics, &said(&all), b"") else {
            panic!("ours")
        };
        let page = String::from_utf8(answer.body).expect("a page is text");
        assert_eq!(
            page.contains("a{backend=\"10.0.0.1:8000\"} 1\n"),
            all.first().is_some_and(Result::is_ok)
        );
        assert!(page.ends_with("vllm_proxy_metrics_lines_left_out 0\n"));
    }
}

proptest! {
    /// Whatever backends say, one of them passes or an answer of ours is a whole one.
    #[test]
    fn whatever_comes_is_answered(
        all in prop::collection::vec(
            prop_oneof![
                4 => (
                    prop_oneof![3 => Just(200_u16), 1 => 100..600_u16],
                    "([{}\\[\\]:,]|\"(success|aborted|results|status|0)\"|true|[0-9]|\"awake\"){0,8}",
                ).prop_map(Ok),
                1 => Just(Err("no connection")),
            ],
            0..4,
        ),
    ) {
        let said: Vec<_> = BACKENDS
            .iter()
            .zip(all)
            .map(|(backend, result)| {
                let reply = |(status, body): (u16, String)| {
                    Reply { status, head: Vec::new(), body: body.into_bytes() }
                };
                Said { backend, result: result.map(reply) }
            })
            .collect();
        for rule in ALL {
            match merge(rule, &said, b"") {
                Merged::One(at) => prop_assert!(said[at].result.is_ok()),
                Merged::Answer(answer) => {
                    let body = serde_json::from_slice::<serde_json::Value>(&answer.body);
                    let body = body.expect("our JSON is good");
                    prop_assert_eq!(body.get("error").is_some(), answer.status >= 400);
                    prop_assert!(matches!(answer.status, 200..=299 | 400..=599));
                }
            }
        }
    }
}
