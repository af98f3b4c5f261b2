//! Websockets: however frames are cut they say the same, and what is sent of it says it again.

use vllm_proxy_core::wire::websocket::{self, Close, Message, MessageReader};

const BYTES_MAX: usize = 200;

fn read(masked: bool, pieces: &[&[u8]]) -> (Vec<Message>, Option<Close>) {
    let mut reader = MessageReader::new(masked, BYTES_MAX);
    let mut messages = Vec::new();
    for piece in pieces {
        let mut at = 0;
        while at < piece.len() {
            let (used, message) = match reader.read(&piece[at..]) {
                Ok(read) => read,
                Err(close) => return (messages, Some(close)),
            };
            assert!(used > 0 && at + used <= piece.len());
            at += used;
            messages.extend(message);
        }
    }
    (messages, None)
}

/// Nothing panics, frames cut anywhere say what whole ones say, no message is longer than agreed,
/// and a message sent by us is read as it was meant. The first two bytes say who speaks and where
/// the frames are cut.
pub fn websocket(data: &[u8]) {
    let [side, cut, bytes @ ..] = data else { return };
    let masked = side & 1 != 0;
    let whole = read(masked, &[bytes]);
    let cut = usize::from(*cut) * (bytes.len() + 1) / 256;
    assert_eq!(read(masked, &[&bytes[..cut], &bytes[cut..]]), whole, "cut at {cut}");
    assert_eq!(read(masked, &bytes.chunks(1).collect::<Vec<_>>()), whole, "byte by byte");
    let mask = masked.then_some([*side, 1, 2, 3]);
    for message in whole.0 {
        let mut out = Vec::new();
        match &message {
            Message::Text(text) => {
                assert!(text.len() <= BYTES_MAX);
                websocket::text(&mut out, text, mask);
            }
            Message::Pong(payload) => websocket::pong(&mut out, payload, mask),
            Message::Close { code, reason } => websocket::close(&mut out, *code, reason, mask),
            Message::Binary(payload) | Message::Ping(payload) => {
                assert!(payload.len() <= BYTES_MAX);
                continue;
            }
        }
        assert_eq!(read(masked, &[&out]), (vec![message], None));
    }
}
