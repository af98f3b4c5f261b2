//! The log as its readers meet it: runs the binary and parses what it writes to standard output.

#![expect(clippy::unwrap_used, reason = "what a test needs and does not get fails it")]

#[path = "patience.rs"]
mod patience;

use patience::PATIENCE;
use rstest::rstest;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Everything that an upstream may hold and that some parser minds. Control characters no value of
/// the command line may hold; tests of the formats have them.
const HOSTILE: &str =
    "unix:///nonexistent/\"q\\uote]'[={}#:,&*!|>%@` \u{2028}\u{feff}\u{fffe}\u{1f600}";

fn server(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vllm-proxy"));
    let common = ["server", "-R", "off", "--host", "127.0.0.1", "--drain-grace", "0"];
    command.env_clear().args(common).args(arguments).stdin(Stdio::null());
    command
}

fn terminate(process: &Child) {
    let id = process.id().to_string();
    assert!(Command::new("kill").args(["-s", "TERM", &id]).status().unwrap().success());
}

/// Waits for the end, which must come soon and be a clean one.
fn end(process: &mut Child) {
    let limit = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            assert_eq!(status.code(), Some(0));
            return;
        }
        if Instant::now() > limit {
            process.kill().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// All that a proxy over `upstream` logs until it has listened and stopped.
fn log_of(arguments: &[&str], upstream: &str) -> String {
    log_until("listening", arguments, upstream)
}

/// All that a proxy over `upstream` logs until it has said `word` and stopped.
fn log_until(word: &str, arguments: &[&str], upstream: &str) -> String {
    let mut process =
        server(&["--port", "0", upstream]).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = process.stdout.take().unwrap();
    let mut log = Vec::new();
    while !String::from_utf8_lossy(&log).contains(word) {
        let mut bytes = [0; 4096];
        let count = stdout.read(&mut bytes).unwrap();
        assert_ne!(count, 0, "{}", String::from_utf8_lossy(&log));
        log.extend_from_slice(&bytes[..count]);
    }
    terminate(&process);
    stdout.read_to_end(&mut log).unwrap();
    end(&mut process);
    String::from_utf8(log).unwrap()
}

/// A backend that is well but lists its models to nobody, until the test ends.
fn locked_backend() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let healthy = head.starts_with(b"GET /health ");
            let status = if healthy { "200 OK" } else { "401 Unauthorized" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    url
}

#[test]
fn a_backend_that_asks_for_a_key_is_told() {
    let backend = locked_backend();
    let log = log_until("VLLM_PXY_BACKEND_KEY", &["--log-format", "json"], &backend);
    let told: Vec<_> = json(&log)
        .into_iter()
        .filter(|entry| entry["message"].as_str().unwrap().contains("VLLM_PXY_BACKEND_KEY"))
        .collect();
    assert_eq!(told.len(), 1, "{log}");
    assert_eq!(told[0]["level"], "Warning");
    assert_eq!(told[0]["values"]["address"], backend.strip_prefix("http://").unwrap());
}

/// The entries of a JSON log: every line is one.
fn json(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The entries of a YAML log, read as what it is meant to be: documents of plain keys and scalars
/// of JSON, the values one step in.
fn yaml(log: &str) -> Vec<Value> {
    let documents = log.strip_prefix("---\n").unwrap().split("\n---\n");
    let document = |text: &str| {
        let mut entry = serde_json::Map::new();
        for line in text.lines() {
            if let Some(pair) = line.strip_prefix("  ") {
                let pair: Value = serde_json::from_str(&format!("{{{pair}}}")).unwrap();
                let values = entry["values"].as_object_mut().unwrap();
                values.extend(pair.as_object().unwrap().clone());
            } else {
                let (name, value) = line.split_once(':').unwrap();
                let value = value.trim_start();
                let value = if value.is_empty() { "{}" } else { value };
                entry.insert(name.to_owned(), serde_json::from_str(value).unwrap());
            }
        }
        Value::Object(entry)
    };
    documents.map(document).collect()
}

/// The entries of a txt log: time, level and message in brackets, then `[name="value"]` groups.
fn txt(log: &str) -> Vec<Value> {
    let entry = |line: &str| {
        let inner = line.strip_prefix('[').unwrap().strip_suffix(']').unwrap();
        let mut groups = inner.split("] [");
        let mut next = || Value::from(groups.next().unwrap());
        let mut entry = serde_json::json!({ "time": next(), "level": next(), "message": next() });
        let mut rest = groups.collect::<Vec<_>>().join("] [");
        let mut values = serde_json::Map::new();
        while !rest.is_empty() {
            let (name, value) = rest.split_once('=').unwrap();
            let mut value = serde_json::Deserializer::from_str(value).into_iter::<String>();
            let text = value.next().unwrap().unwrap();
            let end = name.len() + 1 + value.byte_offset();
            values.insert(name.to_owned(), text.into());
            rest = rest[end..].strip_prefix("] [").unwrap_or_default().to_owned();
        }
        entry["values"] = values.into();
        entry
    };
    log.lines().map(entry).collect()
}

#[rstest]
#[case::json("json", json)]
#[case::yaml("yaml", yaml)]
#[case::yml("yml", yaml)]
#[case::txt("txt", txt)]
fn every_entry_parses(#[case] format: &str, #[case] parse: fn(&str) -> Vec<Value>) {
    let entries = parse(&log_of(&["-L", format, "-vvv"], HOSTILE));
    for entry in &entries {
        let time = entry["time"].as_str().unwrap();
        assert!(time.len() == 27 && time.ends_with('Z') && time[10..].starts_with('T'), "{time}");
    }
    let named = |message: &str| entries.iter().find(|entry| entry["message"] == message).unwrap();
    let starting = named("starting");
    assert_eq!(starting["level"], "Info");
    assert_eq!(starting["values"]["upstreams"], HOSTILE);
    assert!(named("listening")["values"]["address"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(!named("stopped").is_null());
}

#[test]
fn json_is_what_a_pipe_gets_with_all_details() {
    let log = log_of(&[], "http://127.0.0.1:1");
    for entry in json(&log) {
        let names: Vec<_> = entry.as_object().unwrap().keys().map(String::as_str).collect();
        for name in ["time", "level", "message", "values", "target", "thread", "module", "file"] {
            assert!(names.contains(&name), "{name} in {entry}");
        }
        assert!(entry["line"].is_u64(), "{entry}");
        assert!(entry["target"].as_str().unwrap().starts_with("vllm_proxy"), "{entry}");
    }
    assert!(!log.contains('\x1b'));
}

#[test]
fn secrets_are_not_logged() {
    let mut process = server(&["--port", "0", "-vvv", "http://127.0.0.1:1"])
        .args(["-R", "redis://me:hunter2@127.0.0.1:1/7"])
        .env("VLLM_PXY_BACKEND_KEY", "hunter2")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(process.stdout.take().unwrap());
    let mut log = String::new();
    while !log.contains("\"listening\"") {
        assert!(output.read_line(&mut log).unwrap() > 0, "it ended: {log}");
    }
    terminate(&process);
    output.read_to_string(&mut log).unwrap();
    end(&mut process);
    assert!(log.contains("redis://127.0.0.1:1/7"), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
}

/// A port that was free a moment ago, for a proxy whose log cannot tell it.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Asks `/health` so often that every question gets an answer soon.
fn answers(port: u16, times: usize) {
    let limit = Instant::now() + PATIENCE;
    let mut stream = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < limit, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..times {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(&head));
    }
}

#[test]
fn a_closed_output_ends_nothing() {
    for closed_at_start in [true, false] {
        let port = free_port();
        let number = port.to_string();
        let arguments = ["--port", &number, "-vvv", "http://127.0.0.1:1"];
        let (reader, writer) = std::io::pipe().unwrap();
        let reader = if closed_at_start { None } else { Some(reader) };
        let mut process = server(&arguments).stdout(writer).spawn().unwrap();
        answers(port, 3);
        drop(reader);
        answers(port, 100);
        terminate(&process);
        end(&mut process);
    }
}

#[test]
fn no_output_at_all_ends_nothing() {
    let port = free_port();
    let number = port.to_string();
    let server = server(&["--port", &number, "http://127.0.0.1:1"]);
    let mut process = Command::new("sh")
        .env_clear()
        .args(["-c", r#"exec "$0" "$@" >&- 2>&- <&-"#])
        .arg(server.get_program())
        .args(server.get_args())
        .spawn()
        .unwrap();
    answers(port, 10);
    terminate(&process);
    end(&mut process);
}

#[test]
fn a_stuck_output_stalls_nothing() {
    let port = free_port();
    let number = port.to_string();
    let (reader, writer) = std::io::pipe().unwrap();
    // Fills the pipe, and waits for a reader that never comes.
    let mut filler = writer.try_clone().unwrap();
    std::thread::spawn(move || filler.write_all(&[b'x'; 1 << 20]));
    let mut process =
        server(&["--port", &number, "-vvv", "http://127.0.0.1:1"]).stdout(writer).spawn().unwrap();
    answers(port, 1000);
    terminate(&process);
    end(&mut process);
    drop(reader);
}
