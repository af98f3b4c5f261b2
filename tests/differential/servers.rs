//! Starts the product's own programs for a test and ends them with it.

use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::answer::{self, Step};
use crate::patience::PATIENCE;

/// Longest wait for a program to listen and be healthy, for busy build machines.
const START: Duration = PATIENCE;

/// Where a server listens.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    /// As an upstream of the proxy is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => write!(f, "http://{addr}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// A running `vllm-proxy` and where it listens; killed when dropped.
pub(crate) struct Program {
    child: Child,
    pub(crate) addr: Address,
    log: Arc<Mutex<VecDeque<String>>>,
}

impl Program {
    /// A proxy on this runtime before these servers.
    pub(crate) fn proxy(runtime: &str, upstreams: &[&Address]) -> Self {
        let args = ["server", "-R", "off", "-H", "127.0.0.1", "-p", "0", "--runtime", runtime];
        let mut args: Vec<String> = args.map(str::to_owned).to_vec();
        args.extend(upstreams.iter().map(ToString::to_string));
        Self::start(&args)
    }

    /// A simulated vLLM, with the alias that the servers of `tests/real` have.
    pub(crate) fn mock(model: &str) -> Self {
        let alias = format!("{model}-alias");
        let quick =
            ["--ttft-ms", "1", "--itl-ms", "1", "--prefill-tps", "0", "--max-model-len", "2048"];
        let args =
            [["mock", "--port", "0", "--model", model, "--model", &alias].as_slice(), &quick]
                .concat();
        Self::start(&args.into_iter().map(str::to_owned).collect::<Vec<_>>())
    }

    fn start(args: &[String]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vllm-proxy"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("VLLM_PXY_") {
                command.env_remove(name);
            }
        }
        if let Ok(key) = std::env::var("VLLM_PXY_TEST_KEY") {
            command.env("VLLM_PXY_BACKEND_KEY", key);
        }
        command.env("VLLM_PXY_LOGFORMAT", "json").args(args);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cargo builds the binary before this test");
        let stdout = child.stdout.take().expect("standard output is piped above");
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let (found, listening) = mpsc::channel();
        let kept = Arc::clone(&log);
        // Reads to the end, so that the program never waits for a full pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(addr) = listening_address(&line) {
                    let _ = found.send(addr);
                }
                let mut kept = kept.lock().expect("no holder of the log panics");
                kept.push_back(line);
                if kept.len() > 40 {
                    kept.pop_front();
                }
            }
        });
        let nowhere = Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut program = Self { child, addr: nowhere, log };
        match listening.recv_timeout(START) {
            Ok(addr) => program.addr = Address::Tcp(addr),
            Err(_) => panic!(
                "`vllm-proxy {}` does not say that it listens:\n{}",
                args.join(" "),
                program.log()
            ),
        }
        assert!(
            healthy(&program.addr),
            "{} does not become healthy:\n{}",
            args.join(" "),
            program.log()
        );
        program
    }

    /// The last lines that it logged.
    pub(crate) fn log(&self) -> String {
        let log = self.log.lock().expect("no holder of the log panics");
        log.iter().map(|line| format!("    {line}\n")).collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed otherwise.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address in the log entry that tells it: the proxy's `listening`, the mock's `serving`.
fn listening_address(line: &str) -> Option<SocketAddr> {
    let entry: serde_json::Value = serde_json::from_str(line).ok()?;
    let (message, values) = (entry.get("message")?.as_str()?, entry.get("values")?);
    let told = match message {
        "listening" => values.get("address")?,
        "mock vLLM serving" => values.get("url")?,
        _ => return None,
    };
    told.as_str()?.trim_start_matches("http://").parse().ok()
}

/// Polls `/health` until it is 200.
pub(crate) fn healthy(addr: &Address) -> bool {
    let deadline = Instant::now() + START;
    let ask = [Step::Send(b"GET /health HTTP/1.1\r\nHost: vllm.test\r\n\r\n".to_vec())];
    while Instant::now() < deadline {
        let seen = answer::run(addr, &ask, &[false], PATIENCE);
        if seen.answers.first().is_some_and(|answer| answer.status() == 200) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// `host:port` or `unix:///path` of an environment variable, `None` when it is unset or empty.
pub(crate) fn address_from(variable: &str) -> Option<Address> {
    let value = std::env::var(variable).ok().filter(|value| !value.is_empty())?;
    if let Some(path) = value.strip_prefix("unix://") {
        return Some(Address::Unix(path.into()));
    }
    let mut addrs = value.to_socket_addrs().unwrap_or_else(|e| {
        panic!("invalid value `{value}` of {variable}: expected host:port or unix:///path ({e})")
    });
    addrs.next().map(Address::Tcp)
}
