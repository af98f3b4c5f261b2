//! Stored responses: fetched, replayed, continued and cancelled. A request may name its own id, so
//! that equal requests leave equal traces.

use crate::answer::Step;
use crate::cases::{Case, Request, keep_open};

const RESPONSES: &str = "/v1/responses";

/// All of them, for a server of this model.
pub(crate) fn cases(model: &str) -> Vec<Case> {
    // Each model its own ids: behind one address an id means one response.
    let tag: String = model.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
    let own = |text: &str| text.replace("diff", &tag);
    let create = |id: &str, more: &str| {
        let body = format!(
            r#"{{"model":"{model}","input":"Hi","max_output_tokens":4,"temperature":0,"request_id":"{}"{}}}"#,
            own(id),
            own(more)
        );
        Request::post(RESPONSES, &body)
    };
    let fetch = |id: &str| Request::get(&format!("{RESPONSES}/{}", own(id)));
    let cancel = |id: &str| Request::new("POST", &format!("{RESPONSES}/{}/cancel", own(id)));
    let mut cases = vec![
        Case::talk(
            "stored",
            &[
                create("resp_diff_1", ""),
                fetch("resp_diff_1"),
                fetch("resp_diff_1?starting_after=1"),
            ],
        ),
        Case::talk("stored_any_id", &[create("diff", ""), fetch("diff"), fetch("resp_other")]),
        Case::talk(
            "stored_not",
            &[create("resp_diff_2", r#","store":false"#), fetch("resp_diff_2")],
        ),
        Case::talk(
            "stored_stream",
            &[create("resp_diff_3", r#","stream":true"#), fetch("resp_diff_3")],
        ),
        without_events(
            "stored_replayed",
            [create("resp_diff_4", ""), fetch("resp_diff_4?stream=true")],
        ),
        without_events(
            "stored_replayed_from",
            [create("resp_diff_4", ""), fetch("resp_diff_4?stream=true&starting_after=1")],
        ),
        Case::talk(
            "stored_cancelled_too_late",
            &[create("resp_diff_5", ""), cancel("resp_diff_5")],
        ),
        Case::talk(
            "stored_continued",
            &[
                create("resp_diff_6", ""),
                create("resp_diff_7", r#","previous_response_id":"resp_diff_6""#),
                create(
                    "resp_diff_8",
                    r#","previous_response_id":"resp_diff_7","instructions":"Be brief.""#,
                ),
                create("resp_diff_9", r#","previous_response_id":"resp_diff_6","stream":true"#),
                fetch("resp_diff_8"),
            ],
        ),
        Case::talk(
            "stored_continued_unknown",
            &[create("resp_diff_10", r#","previous_response_id":"resp_nobody""#)],
        ),
        Case::talk(
            "stored_continued_empty",
            &[create("resp_diff_11", r#","previous_response_id":"""#)],
        ),
        Case::talk(
            "stored_continued_number",
            &[create("resp_diff_12", r#","previous_response_id":7"#)],
        ),
        Case::talk(
            "background_stream",
            &[
                create("resp_diff_13", r#","background":true,"stream":true"#),
                fetch("resp_diff_13?stream=true"),
                fetch("resp_diff_13?stream=true&starting_after=0"),
                fetch("resp_diff_13?stream=true&starting_after=2"),
                fetch("resp_diff_13"),
            ],
        ),
        Case::talk(
            "background_not_stored",
            &[create("resp_diff_14", r#","background":true,"store":false"#)],
        ),
        Case::talk(
            "background_cancelled",
            &[
                create("resp_diff_15", r#","background":true,"max_output_tokens":1500"#),
                cancel("resp_diff_15"),
                fetch("resp_diff_15"),
                cancel("resp_diff_15"),
            ],
        ),
        Case::steps(
            "background",
            vec![
                Step::Send(create("resp_diff_16", r#","background":true"#).bytes()),
                Step::Await,
                Step::Until(fetch("resp_diff_16").bytes(), r#""status":"incomplete""#),
                Step::Send(cancel("resp_diff_16").bytes()),
                Step::Await,
            ],
        )
        .answers(3),
        Case::talk(
            "stored_unknown",
            &[fetch("resp_nobody"), fetch("resp_nobody?stream=true"), cancel("resp_nobody")],
        ),
        Case::talk("stored_other_id", &[fetch("nobody"), cancel("nobody"), fetch("a%2Fb")]),
        Case::talk(
            "stored_bad_query",
            &[
                fetch("resp_nobody?stream=perhaps"),
                fetch("resp_nobody?starting_after=x"),
                fetch("resp_nobody?include[]=x"),
            ],
        ),
        Case::get("stored_input_items", "/v1/responses/resp_nobody/input_items"),
        Case::raw("stored_delete", Request::new("DELETE", "/v1/responses/resp_nobody").bytes()),
        Case::get("stored_list", RESPONSES),
        Case::get("stored_no_id", "/v1/responses/"),
        Case::raw(
            "cancel_with_body",
            Request::post("/v1/responses/resp_nobody/cancel", "{}").bytes(),
        ),
        Case::raw(
            "cancel_malformed_body",
            Request::post("/v1/responses/resp_nobody/cancel", "{").bytes(),
        ),
    ];
    // A client that comes back on another connection.
    cases.push(Case::raw("stored_fetched_later", fetch("resp_diff_1").bytes()));
    cases
}

/// Replays a response that kept no events: an empty stream, whose failure inside makes uvicorn end
/// the connection, behind the last chunk or, as versions go, before it.
fn without_events(name: &str, requests: [Request; 2]) -> Case {
    Case::talk(name, &requests).rewritten(
        "a connection that the server ends unannounced is its own, and a head alone no answer",
        refused_if_cut,
    )
}

/// An answer's head waits for the first byte of its body: what breaks before that did not begin.
fn refused_if_cut(lines: &mut Vec<String>) {
    keep_open(lines);
    let [.., framing, end, _] = lines.as_slice() else { return };
    let nothing = framing.starts_with("[framing:") && end == "[cut short]";
    let start = lines.iter().rposition(|line| line.starts_with("HTTP/1.1 200 "));
    if let (true, Some(start)) = (nothing, start) {
        lines.truncate(start);
        lines.extend(NO_ANSWER.map(str::to_owned));
    }
}

const NO_ANSWER: [&str; 10] = [
    "HTTP/1.1 502 Bad Gateway",
    "date: <date>",
    "server: uvicorn",
    "content-length: 101",
    "content-type: application/json",
    "vary: Origin",
    "[framing: Length(101)]",
    r#"{"error":{"message":"No backend answered the request.","type":"Bad Gateway","param":null,"code":502}}"#,
    "[complete]",
    "[connection: open]",
];
