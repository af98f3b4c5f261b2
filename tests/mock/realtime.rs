//! The websocket: handshake, events, frames. What is expected was taken from vLLM 0.32.

use crate::server::{Client, Mock, head};
use rstest::rstest;
use serde_json::{Value, json};
use std::time::Duration;

const UPGRADE: &str = "connection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-version: 13\r\n\
                       sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// One connection, after its handshake.
struct Socket(Client);

impl Socket {
    fn open(mock: &Mock) -> Self {
        let mut client = mock.send(&head("GET", "/v1/realtime", UPGRADE, None));
        let (status, headers) = client.head().expect("an answer");
        assert_eq!(status, 101);
        // The example of RFC 6455, section 1.3.
        assert!(headers.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        Self(client)
    }

    /// A frame whose mask changes nothing.
    fn send(&mut self, opcode: u8, payload: &[u8]) {
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            length @ ..126 => frame.push(0x80 | length as u8),
            length => {
                frame.push(0xff);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        self.0.send_bytes(&frame);
    }

    fn say(&mut self, event: &str) {
        self.send(TEXT, event.as_bytes());
    }

    fn frame(&mut self) -> (u8, Vec<u8>) {
        let start = self.0.exactly(2).expect("a frame");
        let length = match start[1] {
            126 => {
                let length = self.0.exactly(2).expect("a length");
                usize::from(u16::from_be_bytes([length[0], length[1]]))
            }
            length => usize::from(length),
        };
        (start[0] & 0xf, self.0.exactly(length).expect("a payload"))
    }

    fn event(&mut self) -> Value {
        let (opcode, payload) = self.frame();
        assert_eq!(opcode, TEXT);
        serde_json::from_slice(&payload).expect("events are JSON")
    }
}

fn realtime() -> Mock {
    Mock::start(&["--realtime", "--lora", "accent"])
}

#[test]
fn sound_becomes_words() {
    let mock = realtime();
    let mut socket = Socket::open(&mock);
    let created = socket.event();
    assert_eq!(created["type"], "session.created");
    assert!(created["id"].as_str().is_some_and(|id| id.starts_with("sess-")), "{created}");
    socket.say(r#"{"type":"session.update","model":"tiny"}"#);
    socket.say(r#"{"type":"input_audio_buffer.append","audio":"AAAAAA=="}"#);
    socket.say(r#"{"type":"input_audio_buffer.commit"}"#);
    let first = socket.event();
    assert_eq!(first["type"], "transcription.delta");
    socket.say(r#"{"type":"input_audio_buffer.append","audio":"AAAAAA=="}"#);
    let second = socket.event();
    socket.say(r#"{"type":"input_audio_buffer.commit","final":true}"#);
    let done = socket.event();
    let text = |event: &Value| event["delta"].as_str().expect("a text").to_owned();
    assert_eq!(
        done,
        json!({
            "type": "transcription.done",
            "text": text(&first) + &text(&second),
            "usage": {
                "prompt_tokens": 1, "total_tokens": 3, "completion_tokens": 2,
                "prompt_tokens_details": null, "completion_tokens_details": null,
            },
        })
    );
    // And once more on the same connection.
    socket.say(r#"{"type":"input_audio_buffer.commit"}"#);
    socket.say(r#"{"type":"input_audio_buffer.append","audio":"AAA="}"#);
    assert_eq!(socket.event()["type"], "transcription.delta");
}

#[rstest]
#[case::no_json("{", "Invalid JSON", "invalid_json")]
#[case::no_object("[]", "'list' object has no attribute 'get'", "processing_error")]
#[case::no_type("{}", "Unknown event type: None", "unknown_event")]
#[case::unknown(r#"{"type":"foo"}"#, "Unknown event type: foo", "unknown_event")]
#[case::no_model(r#"{"type":"session.update"}"#, "Missing required field: model", "invalid_event")]
#[case::unknown_model(
    r#"{"type":"session.update","model":"nope"}"#,
    "The model `nope` does not exist.",
    "model_not_found"
)]
#[case::adapter(
    r#"{"type":"session.update","model":"accent"}"#,
    "The model `accent` does not exist.",
    "model_not_found"
)]
#[case::too_early(
    r#"{"type":"input_audio_buffer.commit"}"#,
    "Model not validated. Make sure to validate the model by sending a session.update event.",
    "model_not_validated"
)]
#[case::no_sound(
    r#"{"type":"input_audio_buffer.append","audio":"@@"}"#,
    "Invalid audio data",
    "invalid_audio"
)]
#[case::number_for_sound(
    r#"{"type":"input_audio_buffer.append","audio":5}"#,
    "1 validation error for InputAudioBufferAppend\naudio\n  Input should be a valid string [type=string_type, input_value=5, input_type=int]\n    For further information visit https://errors.pydantic.dev/2.14/v/string_type",
    "processing_error"
)]
#[case::sound_left_out(
    r#"{"type":"input_audio_buffer.append"}"#,
    "1 validation error for InputAudioBufferAppend\naudio\n  Field required [type=missing, input_value={'type': 'input_audio_buffer.append'}, input_type=dict]\n    For further information visit https://errors.pydantic.dev/2.14/v/missing",
    "processing_error"
)]
fn mistakes_are_told_and_forgiven(#[case] event: &str, #[case] error: &str, #[case] code: &str) {
    let mock = realtime();
    let mut socket = Socket::open(&mock);
    socket.event();
    socket.say(event);
    assert_eq!(socket.event(), json!({"type": "error", "error": error, "code": code}));
    socket.say(r#"{"type":"session.update","model":"tiny"}"#);
    socket.say("{");
    assert_eq!(socket.event()["code"], "invalid_json", "no answer to what is right, but it lives");
}

#[test]
fn frames_are_answered() {
    let mock = realtime();
    let mut socket = Socket::open(&mock);
    socket.event();
    socket.send(PING, b"are you there");
    assert_eq!(socket.frame(), (PONG, b"are you there".to_vec()));
    assert!(socket.0.silent(Duration::from_millis(50)));
    socket.send(CLOSE, &[0x03, 0xe8, b'b', b'y', b'e']);
    let (opcode, payload) = socket.frame();
    assert_eq!((opcode, &payload[..2]), (CLOSE, &[0x03, 0xe8][..]));
    socket.0.end().expect("then it is over");
}

#[test]
fn binary_messages_end_it() {
    let mock = realtime();
    let mut socket = Socket::open(&mock);
    socket.event();
    socket.send(2, b"abc");
    socket.0.end().expect("without a close frame, as vLLM does");
}

#[test]
fn messages_may_not_be_too_long() {
    let mock = realtime();
    let mut socket = Socket::open(&mock);
    socket.event();
    // Its length alone is too much.
    socket.0.send_bytes(&[0x81, 0xff, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0]);
    let (opcode, payload) = socket.frame();
    assert_eq!((opcode, &payload[..2]), (CLOSE, &1009_u16.to_be_bytes()[..]));
}

#[test]
fn what_came_with_the_head_is_heard() {
    let mock = realtime();
    let mut client = mock.connect();
    let request = head("GET", "/v1/realtime", UPGRADE, None);
    client.send_bytes(&[request.as_bytes(), &[0x81, 0x81, 0, 0, 0, 0, b'{']].concat());
    client.head().expect("an answer");
    let mut socket = Socket(client);
    assert_eq!(socket.event()["type"], "session.created");
    assert_eq!(socket.event()["code"], "invalid_json");
}

#[test]
fn a_connection_can_be_upgraded_late() {
    let mock = realtime();
    let mut client = mock.send(&head("GET", "/version", "", None));
    assert_eq!(client.answer().status, 200);
    client.send(&head("GET", "/v1/realtime", UPGRADE, None));
    assert_eq!(client.head().expect("an answer").0, 101);
}

#[test]
fn a_paused_engine_hears_nothing() {
    let mock = Mock::start(&["--realtime", "--dev-mode"]);
    let mut socket = Socket::open(&mock);
    socket.event();
    mock.post("/pause", "");
    socket.say(r#"{"type":"session.update","model":"tiny"}"#);
    socket.say(r#"{"type":"input_audio_buffer.append","audio":"AAA="}"#);
    socket.say(r#"{"type":"input_audio_buffer.commit"}"#);
    let error = "Generation is paused. Please retry after it resumes.";
    let expected = json!({"type": "error", "error": error, "code": "processing_error"});
    assert_eq!(socket.event(), expected);
}

#[rstest]
#[case::off(&[], "/v1/realtime")]
#[case::no_websocket(&["--realtime"], "/v1/models")]
#[case::nothing_there(&["--realtime"], "/nope")]
#[case::open_path(&["--realtime", "--api-key", "secret"], "/nope")]
fn other_websockets_are_forbidden(#[case] options: &[&str], #[case] path: &str) {
    let answer = Mock::start(options).send(&head("GET", path, UPGRADE, None)).rest();
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\nDate: "), "{answer}");
    assert!(
        answer.ends_with(
            "\r\nConnection: close\r\nContent-Length: 0\r\nContent-Type: text/plain; \
             charset=utf-8\r\n\r\n"
        ),
        "{answer}"
    );
}

#[rstest]
#[case::no_key(&[], UPGRADE.split("sec-websocket-key").next().expect("a part"), 400, "Failed to open a WebSocket connection: missing Sec-WebSocket-Key header.\n")]
#[case::old(&[], "connection: upgrade\r\nupgrade: WebSocket\r\nsec-websocket-version: 12\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n", 400, "Failed to open a WebSocket connection: invalid Sec-WebSocket-Version header: 12.\n")]
#[case::no_right(&["--api-key", "secret"], UPGRADE, 401, r#"{"error":"Unauthorized"}"#)]
fn wrong_handshakes_are_refused(
    #[case] options: &[&str],
    #[case] headers: &str,
    #[case] status: u16,
    #[case] body: &str,
) {
    let mock = Mock::start(&[&["--realtime"], options].concat());
    let answer = mock.send(&head("GET", "/v1/realtime", headers, None)).rest();
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
}

#[test]
fn without_an_upgrade_there_is_no_such_route() {
    let mock = realtime();
    assert_eq!(mock.get("/v1/realtime").status, 404);
    let half = head("GET", "/v1/realtime", "upgrade: websocket\r\n", None);
    assert_eq!(mock.send(&half).answer().status, 404);
}
