//! `/v1/realtime` between an independent client and servers that behave as vLLM's: where they serve
//! different models, the first message chooses.

use crate::backend::{Backend, Then};
use crate::proxy::{Proxy, Runtime, on_every_runtime};
use crate::wire::{PATIENCE, Wire, assert_bytes, framed, header};
use std::net::TcpStream;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role};
use tungstenite::{Message, WebSocket};

/// A server of one model: greets, and says whose it is and what it hears.
fn server(model: &'static str) -> Backend {
    Backend::scripted(&[model], move |wire, asked| {
        let key = header(&asked.head, "sec-websocket-key").expect("it is an offer");
        wire.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\nserver: uvicorn\r\n\r\n",
            derive_accept_key(key.as_bytes())
        ));
        let mut socket = WebSocket::from_raw_socket(wire.stream(), Role::Server, None);
        let created = format!(r#"{{"type":"session.created","id":"sess-{model}","created":1}}"#);
        socket.send(Message::text(created)).expect("the client reads");
        while let Ok(message) = socket.read() {
            if let Message::Text(text) = message {
                socket.send(Message::text(format!("{model}: {text}"))).expect("it reads");
            }
        }
        Then::Close
    })
}

type Client = WebSocket<TcpStream>;

fn connect(proxy: &Proxy) -> Client {
    let stream = TcpStream::connect(proxy.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (socket, answer) = tungstenite::client("ws://proxy.test/v1/realtime", stream).unwrap();
    assert_eq!(answer.status(), 101);
    socket
}

#[track_caller]
fn hears(socket: &mut Client) -> String {
    socket.read().unwrap().into_text().unwrap().to_string()
}

fn update(model: &str) -> Message {
    Message::text(format!(r#"{{"type":"session.update","model":"{model}"}}"#))
}

const APPEND: &str = r#"{"type":"input_audio_buffer.append","audio":"AAAA"}"#;

const OFFER: &[u8] = b"GET /v1/realtime HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";

/// A short text of a client that does without a library.
fn frame(text: &str) -> Vec<u8> {
    [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0], text.as_bytes()].concat()
}

fn the_first_message_chooses(runtime: Runtime) {
    let (a, b) = (server("a"), server("b"));
    let proxy = Proxy::start(runtime, &[&a, &b]);
    for model in ["a", "b", "b", "a"] {
        let mut socket = connect(&proxy);
        let created = hears(&mut socket);
        assert!(created.starts_with(r#"{"type":"session.created","id":"sess-"#), "{created}");
        assert_ne!(
            created,
            format!(r#"{{"type":"session.created","id":"sess-{model}","created":1}}"#)
        );
        socket.send(Message::text(APPEND)).unwrap();
        socket.send(Message::text("{")).unwrap();
        assert_eq!(
            hears(&mut socket),
            r#"{"type":"error","error":"Invalid JSON","code":"invalid_json"}"#
        );
        socket.send(update("c")).unwrap();
        assert_eq!(
            hears(&mut socket),
            r#"{"type":"error","error":"The model `c` does not exist.","code":"model_not_found"}"#
        );
        socket.send(Message::Ping("p".into())).unwrap();
        assert_eq!(socket.read().unwrap(), Message::Pong("p".into()));
        socket.send(update(model)).unwrap();
        assert_eq!(hears(&mut socket), format!("{model}: {APPEND}"));
        assert_eq!(hears(&mut socket), format!("{model}: {}", update(model)));
        socket.send(Message::text("x".repeat(3 << 20))).unwrap();
        assert_eq!(hears(&mut socket).len(), (3 << 20) + 3);
        let reason = CloseFrame { code: CloseCode::Normal, reason: "done".into() };
        socket.close(Some(reason.clone())).unwrap();
        assert_eq!(socket.read().unwrap(), Message::Close(Some(reason)));
        assert!(matches!(socket.read(), Err(tungstenite::Error::ConnectionClosed)));
    }
    assert_eq!((a.requests(), b.requests()), (2, 2));
}

fn servers_that_serve_the_same_answer_themselves(runtime: Runtime) {
    let servers = [server("a"), server("a")];
    let proxy = Proxy::start(runtime, &[&servers[0], &servers[1]]);
    let mut socket = connect(&proxy);
    assert_eq!(hears(&mut socket), r#"{"type":"session.created","id":"sess-a","created":1}"#);
    let forbidden = b"HTTP/1.1 403 Forbidden\r\nDate: never\r\nContent-Length: 0\r\n\r\n";
    let other = Backend::answering(&["m"], move |_| forbidden.to_vec());
    let proxy = Proxy::start(runtime, &[&other]);
    let mut client = proxy.client();
    client.send(
        "GET /v1/realtime HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    assert_bytes(&client.answer().unwrap().raw, forbidden);
}

fn a_server_that_refuses_ends_it(runtime: Runtime) {
    for (status, code) in
        [("401 Unauthorized", CloseCode::Policy), ("404 Not Found", CloseCode::Error)]
    {
        let (a, b) = (server("a"), Backend::answering(&["b"], move |_| framed(status, "no")));
        let proxy = Proxy::start(runtime, &[&a, &b]);
        let mut socket = connect(&proxy);
        hears(&mut socket);
        socket.send(update("b")).unwrap();
        let words = format!("The backend refused the connection with status {}.", &status[..3]);
        assert_eq!(
            hears(&mut socket),
            format!(r#"{{"type":"error","error":"{words}","code":"processing_error"}}"#)
        );
        let Message::Close(Some(frame)) = socket.read().unwrap() else { panic!("not closed") };
        assert_eq!(frame.code, code);
        a.assert_untouched();
    }
}

fn a_server_that_is_gone_ends_it(runtime: Runtime) {
    let (a, mut b) = (server("a"), server("b"));
    let proxy = Proxy::start(runtime, &[&a, &b]);
    let mut socket = connect(&proxy);
    hears(&mut socket);
    b.stop();
    socket.send(update("b")).unwrap();
    let said = hears(&mut socket);
    assert!(said.contains("No backend of the model `b` is up."), "{said}");
    let Message::Close(Some(frame)) = socket.read().unwrap() else { panic!("not closed") };
    assert_eq!(frame.code, CloseCode::Error);
}

/// All at once, as no library would: what lies behind each step is not lost.
fn a_client_that_does_not_wait(runtime: Runtime) {
    let (a, b) = (server("a"), server("b"));
    let proxy = Proxy::start(runtime, &[&a, &b]);
    let mut client: Wire = proxy.client();
    let named = r#"{"type":"session.update","model":"b"}"#;
    client.send([OFFER, &frame(APPEND), &frame(named), &frame("last"), b"\x88\x80abcd"].concat());
    let head = String::from_utf8(client.head().unwrap()).unwrap();
    let (fixed, date) = head.split_once("date: ").unwrap();
    assert_eq!(
        fixed,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
    );
    assert!(date.ends_with(" GMT\r\nserver: uvicorn\r\n\r\n"), "{date}");
    client.until(b"session.created").unwrap();
    client.until(format!("b: {APPEND}").as_bytes()).unwrap();
    client.until(format!("b: {named}").as_bytes()).unwrap();
    client.until(b"b: last").unwrap();
    // And the close is answered by the server.
    let (rest, _) = client.rest();
    assert_bytes(&rest, b"\x88\x00");
    let head = String::from_utf8(b.heads().remove(0)).unwrap();
    assert!(!head.contains("Extensions") && head.contains("Upgrade: websocket"), "{head}");
    a.assert_untouched();
}

/// It never says what it should say first: nothing is kept for that.
fn a_greeting_without_an_end_passes(runtime: Runtime) {
    const FRAGMENTS: usize = 8 << 20;
    let a = server("a");
    let b = Backend::scripted(&["b"], |wire, _| {
        wire.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\
             \x01\0",
        );
        wire.send(b"\0\0".repeat(FRAGMENTS));
        // Were it to close with bytes unread, a reset would overtake the last of it.
        wire.rest();
        Then::Close
    });
    let proxy = Proxy::start(runtime, &[&a, &b]);
    let mut client: Wire = proxy.client();
    let before = proxy.resident_kib();
    client.send([OFFER, &frame(r#"{"type":"session.update","model":"b"}"#)].concat());
    client.head().unwrap();
    client.until(br#""session.created""#).unwrap();
    client.until(b"}").unwrap();
    let passed = client.exactly(2 + 2 * FRAGMENTS).unwrap();
    assert!(passed.starts_with(b"\x01\0") && passed[2..].iter().all(|byte| *byte == 0));
    let grown = proxy.resident_kib().saturating_sub(before);
    assert!(grown < 4_096, "{grown} KiB are held");
}

fn sockets_that_name_no_model_hold_little(runtime: Runtime) {
    const SOCKETS: usize = 50;
    let (a, b) = (server("a"), server("b"));
    let proxy = Proxy::start(runtime, &[&a, &b]);
    let append = |bytes: usize| {
        let audio = "A".repeat(bytes);
        Message::text(format!(r#"{{"type":"input_audio_buffer.append","audio":"{audio}"}}"#))
    };
    let before = proxy.resident_kib();
    let mut sockets: Vec<Client> = (0..SOCKETS).map(|_| connect(&proxy)).collect();
    for socket in &mut sockets {
        hears(socket);
        socket.send(append(60_000)).unwrap();
        socket.send(Message::Ping("p".into())).unwrap();
        assert_eq!(socket.read().unwrap(), Message::Pong("p".into()));
    }
    let grown = proxy.resident_kib().saturating_sub(before);
    assert!(grown < 200 * SOCKETS as u64 + 2_048, "it grew by {grown} KiB");
    for (number, socket) in sockets.iter_mut().enumerate() {
        if number % 2 == 0 {
            socket.send(update("b")).unwrap();
            assert!(hears(socket).starts_with("b: "));
            continue;
        }
        socket.send(append(1_000)).unwrap();
        socket.send(append(1_000_000)).unwrap();
        let Message::Close(Some(frame)) = socket.read().unwrap() else { panic!("not closed") };
        assert_eq!(frame.code, CloseCode::Size);
        assert_eq!(frame.reason.as_str(), "too much was said before a model was named");
    }
    a.assert_untouched();
}

fn many_unknown_models_are_answered_in_turns(runtime: Runtime) {
    const NAMES: usize = 2_000;
    let (a, b) = (server("a"), server("b"));
    let proxy = Proxy::start(runtime, &[&a, &b]);
    let mut client: Wire = proxy.client();
    let named = |model: &str| frame(&format!(r#"{{"type":"session.update","model":"{model}"}}"#));
    client.send([OFFER, &named("c").repeat(NAMES), &named("b"), b"\x88\x80abcd"].concat());
    client.head().unwrap();
    let said = client.until(b"b: ").unwrap();
    let unknown = b"The model `c` does not exist.";
    assert_eq!(said.windows(unknown.len()).filter(|part| part == unknown).count(), NAMES);
    let (rest, _) = client.rest();
    assert!(rest.ends_with(b"\x88\x00"), "{}", rest.escape_ascii());
    a.assert_untouched();
}

on_every_runtime!(
    the_first_message_chooses,
    servers_that_serve_the_same_answer_themselves,
    a_server_that_refuses_ends_it,
    a_server_that_is_gone_ends_it,
    a_client_that_does_not_wait,
    a_greeting_without_an_end_passes,
    sockets_that_name_no_model_hold_little,
    many_unknown_models_are_answered_in_turns,
);
