//! Who wants a websocket, and what the server says to that before any route does (as uvicorn 0.54
//! with websockets 17 does). The frames are tungstenite's.

use super::realtime;
use super::routes;
use super::state::Mock;
use super::wire::Wire;
use async_tungstenite::WebSocketStream;
use async_tungstenite::tungstenite::handshake::derive_accept_key;
use async_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use smol::io::AsyncWriteExt;
use std::fmt::Write;
use std::rc::Rc;

/// uvicorn's longest message.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// A request for a websocket.
#[derive(Debug)]
pub(super) struct Upgrade {
    /// Bytes of its head.
    length: usize,
    method: String,
    target: String,
    /// With names in small letters.
    headers: Vec<(String, String)>,
}

impl Upgrade {
    /// The request that this head makes, if it is one for a websocket.
    pub(super) fn wanted(head: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(head).ok()?;
        let mut lines = text.split("\r\n");
        let mut line = lines.next()?.split(' ');
        let (method, target) = (line.next()?.to_owned(), line.next()?.to_owned());
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let this = Self { length: head.len(), method, target, headers };
        let mut tokens = this.header("connection")?.split(',').map(str::trim);
        let upgrades = tokens.any(|token| token.eq_ignore_ascii_case("upgrade"));
        let to = this.header("upgrade")?;
        (upgrades && to.eq_ignore_ascii_case("websocket")).then_some(this)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|(own, value)| (own == name).then_some(value.as_str()))
    }

    /// The key to answer, or what is wrong with the handshake.
    fn key(&self) -> Result<&str, String> {
        let key = self.header("sec-websocket-key").ok_or("missing Sec-WebSocket-Key header")?;
        match self.header("sec-websocket-version") {
            None => Err("missing Sec-WebSocket-Version header".to_owned()),
            Some("13") => Ok(key),
            Some(other) => Err(format!("invalid Sec-WebSocket-Version header: {other}")),
        }
    }
}

/// Answers the request, and speaks as long as the client does.
pub(super) async fn serve(mock: &Rc<Mock>, mut wire: Wire, upgrade: &Upgrade) {
    if upgrade.method != "GET" {
        // It is closed without a word.
        return;
    }
    let path = upgrade.target.split('?').next().unwrap_or_default();
    let path = routes::plain(mock, path);
    let text = "text/plain; charset=utf-8";
    let key = match upgrade.key() {
        Ok(key) => key,
        Err(wrong) => {
            let body = format!("Failed to open a WebSocket connection: {wrong}.\n");
            return refuse(wire, "400 Bad Request", text, &body).await;
        }
    };
    if !routes::lets_in(mock, &path, upgrade.header("authorization")) {
        let body = r#"{"error":"Unauthorized"}"#;
        return refuse(wire, "401 Unauthorized", "application/json", body).await;
    }
    if path != "/v1/realtime" || !mock.args.realtime {
        return refuse(wire, "403 Forbidden", text, "").await;
    }
    wire.consume(upgrade.length);
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\ndate: {}\r\nserver: uvicorn\r\n\r\n",
        derive_accept_key(key.as_bytes()),
        date()
    );
    if wire.write_all(head.as_bytes()).await.is_ok() {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let socket = WebSocketStream::from_raw_socket(wire, Role::Server, Some(config)).await;
        realtime::serve(mock, socket).await;
    }
}

fn date() -> String {
    http_types::other::Date::now().value().to_string()
}

async fn refuse(mut wire: Wire, status: &str, content_type: &str, body: &str) {
    let mut answer = String::new();
    let _ = write!(
        answer,
        "HTTP/1.1 {status}\r\nDate: {}\r\nConnection: close\r\nContent-Length: {}\r\n\
         Content-Type: {content_type}\r\n\r\n{body}",
        date(),
        body.len()
    );
    // It fails when the client is gone already.
    let _ = wire.write_all(answer.as_bytes()).await;
    let _ = wire.close().await;
}
