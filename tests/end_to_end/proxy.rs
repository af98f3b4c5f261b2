//! The product's binary, run for one test, and the runtimes that it can be run on.

use crate::backend::Backend;
use crate::wire::{PATIENCE, Wire, get};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What the whole suite runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runtime {
    Smol,
    Glommio,
}

impl Runtime {
    const fn name(self) -> &'static str {
        match self {
            Self::Smol => "smol",
            Self::Glommio => "glommio",
        }
    }
}

/// Makes each of these functions a test on every runtime. Those of one that is not built in, or is
/// refused by this machine, count as ignored and say why.
macro_rules! on_every_runtime {
    ($($test:ident),+ $(,)?) => {
        mod tests {
            use crate::proxy::Runtime;

            $(
                #[rstest::rstest]
                #[cfg_attr(not(feature = "smol"), ignore = "built without smol")]
                #[case::smol(Runtime::Smol)]
                #[cfg_attr(not(feature = "glommio"), ignore = "built without glommio")]
                #[cfg_attr(
                    all(feature = "glommio", io_uring_refused),
                    ignore = "io_uring was refused as this was built"
                )]
                #[case::glommio(Runtime::Glommio)]
                fn $test(#[case] runtime: Runtime) {
                    super::$test(runtime);
                }
            )+
        }
    };
}
pub(crate) use on_every_runtime;

/// Entries of the log, as they come.
#[derive(Default)]
struct Log {
    state: Mutex<Entries>,
    changed: Condvar,
}

#[derive(Default)]
struct Entries {
    entries: Vec<serde_json::Value>,
    /// The process has closed its standard output: it is about to end, or has.
    ended: bool,
}

/// A running proxy; killed when dropped.
pub(crate) struct Proxy {
    child: Child,
    pub(crate) address: SocketAddr,
    log: Arc<Log>,
    stderr: Option<JoinHandle<String>>,
}

impl Proxy {
    /// In front of these, all of which are up when it returns.
    pub(crate) fn start(runtime: Runtime, backends: &[&Backend]) -> Self {
        Self::with(runtime, &[], backends)
    }

    pub(crate) fn with(runtime: Runtime, options: &[&str], backends: &[&Backend]) -> Self {
        let upstreams: Vec<_> = backends.iter().map(|backend| backend.upstream()).collect();
        let proxy = Self::before(runtime, options, &upstreams);
        proxy.await_entries("backend is up", backends.len());
        // Each of the two threads answers those whom the kernel gives to it: after so many both
        // have started, and what they hold is what is counted before a test.
        for _ in 0..16 {
            assert_eq!(proxy.ask(&get("/health")), 200, "{}", proxy.told());
        }
        proxy
    }

    /// In front of whatever these are; it listens when this returns, and that is all.
    pub(crate) fn before(runtime: Runtime, options: &[&str], upstreams: &[String]) -> Self {
        Self::among(runtime, options, &[], upstreams)
    }

    /// The same, among these variables.
    pub(crate) fn among(
        runtime: Runtime,
        options: &[&str],
        variables: &[(&str, &str)],
        upstreams: &[String],
    ) -> Self {
        let mut args = vec!["-p", "0"];
        args.extend_from_slice(options);
        let mut proxy = Self::spawn(runtime, &args, variables, upstreams);
        proxy.await_listening();
        proxy
    }

    /// Waits until it listens, and remembers where.
    pub(crate) fn await_listening(&mut self) {
        if !self.listens() {
            let why = if self.log.lock().ended { self.stderr() } else { String::new() };
            panic!("it does not listen: {}\n{why}", self.told())
        }
    }

    /// Waits until it listens, and remembers where, or has ended.
    pub(crate) fn listens(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let entries = self.log.wait(deadline, |log| log.ended || find(log, "listening").is_some());
        let address = find(&entries, "listening")
            .and_then(|entry| entry["values"]["address"].as_str()?.parse().ok());
        drop(entries);
        self.address = address.unwrap_or(self.address);
        address.is_some()
    }

    /// As it is, whatever comes of it.
    pub(crate) fn spawn(
        runtime: Runtime,
        options: &[&str],
        variables: &[(&str, &str)],
        upstreams: &[String],
    ) -> Self {
        let program = Command::new(env!("CARGO_BIN_EXE_vllm-proxy"));
        Self::spawn_by(program, runtime, options, variables, upstreams)
    }

    /// The same, by a command that is given what to do.
    pub(crate) fn spawn_by(
        mut command: Command,
        runtime: Runtime,
        options: &[&str],
        variables: &[(&str, &str)],
        upstreams: &[String],
    ) -> Self {
        for (name, _) in std::env::vars_os() {
            if ["VLLM_PXY_", "SSL_CERT_"].iter().any(|one| name.to_string_lossy().starts_with(one))
            {
                command.env_remove(name);
            }
        }
        command.args(["server", "-L", "json", "--threads", "2", "-H", "127.0.0.1"]);
        if !options.contains(&"--redis") {
            command.env("VLLM_PXY_REDIS", "off");
        }
        command.args(["--runtime", runtime.name()]).args(options).args(upstreams);
        command.envs(variables.iter().copied());
        if std::env::var_os("VLLM_PXY_TEST_VERBOSE").is_some() {
            command.arg("-v");
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cargo builds the binary before this test");
        let log = Arc::new(Log::default());
        let stdout = child.stdout.take().expect("it is piped");
        let kept = Arc::clone(&log);
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let entry = serde_json::from_str(&line)
                    .unwrap_or_else(|_| serde_json::json!({"level": "error", "message": line}));
                kept.lock().entries.push(entry);
                kept.changed.notify_all();
            }
            kept.lock().ended = true;
            kept.changed.notify_all();
        });
        let mut errors = child.stderr.take().expect("it is piped");
        let stderr = thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { child, address, log, stderr: Some(stderr) }
    }

    /// Where operators come, if it was told to have such an address.
    pub(crate) fn admin(&self) -> SocketAddr {
        let values = self.values("listening for operators");
        let address = values.first().and_then(|values| values["address"].as_str());
        address.and_then(|address| address.parse().ok()).expect("it was told --admin")
    }

    /// An operator, of its own connection.
    pub(crate) fn operator(&self) -> Wire {
        Wire::connect(self.admin())
    }

    /// A client of its own connection.
    pub(crate) fn client(&self) -> Wire {
        Wire::connect(self.address)
    }

    /// Sends a request on a connection of its own, and says the status of the answer.
    pub(crate) fn ask(&self, request: &[u8]) -> u16 {
        let mut client = self.client();
        client.send(request);
        client.answer().unwrap_or_else(|end| panic!("no answer: {end:?} {}", self.told())).status()
    }

    /// Waits until so many entries of this message were logged.
    pub(crate) fn await_entries(&self, message: &str, count: usize) {
        let is_so = |log: &Entries| {
            log.entries.iter().filter(|entry| entry["message"] == message).count() >= count
        };
        let entries = self.log.wait(Instant::now() + PATIENCE, |log| log.ended || is_so(log));
        let is_so = is_so(&entries);
        drop(entries);
        assert!(is_so, "never logged {count} times: {message}: {}", self.told());
    }

    /// How often this message was logged.
    pub(crate) fn entries(&self, message: &str) -> usize {
        let log = self.log.lock();
        log.entries.iter().filter(|entry| entry["message"] == message).count()
    }

    /// The values of each entry of this message.
    pub(crate) fn values(&self, message: &str) -> Vec<serde_json::Value> {
        let log = self.log.lock();
        let entries = log.entries.iter().filter(|entry| entry["message"] == message);
        entries.map(|entry| entry["values"].clone()).collect()
    }

    /// What it says of itself, to operators if they have an address of their own.
    pub(crate) fn status(&self) -> serde_json::Value {
        let apart = self.entries("listening for operators") > 0;
        let mut client = if apart { self.operator() } else { self.client() };
        client.send(get("/proxy/status"));
        let answer = client.answer().unwrap_or_else(|end| panic!("no answer: {end:?}"));
        assert_eq!(answer.status(), 200, "{answer:?}");
        serde_json::from_slice(&answer.body).expect("it is JSON")
    }

    /// Ends it without a word, as by `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is our child");
    }

    /// The log, for people.
    pub(crate) fn told(&self) -> String {
        let line = |entry: &serde_json::Value| {
            let part = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
            format!("\n    {} {} {}", part("time"), part("message"), entry["values"])
        };
        self.log.lock().entries.iter().map(line).collect()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Descriptors that are open.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it runs").count()
    }

    /// Memory in use, in KiB: its own, wherever that is. How much of the program itself is in
    /// memory is the kernel's choice.
    pub(crate) fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).expect("it runs");
        let kib = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok());
            kib.unwrap_or_else(|| panic!("no {name} in {status}"))
        };
        kib("RssAnon:") + kib("VmSwap:")
    }

    pub(crate) fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).expect("it runs");
    }

    /// Has it look at upstreams again.
    pub(crate) fn hang_up(&self) {
        kill_process(self.pid(), Signal::HUP).expect("it runs");
    }

    /// Waits for its end: the exit status, and what it wrote to standard error.
    pub(crate) fn exit(&mut self) -> (Option<i32>, String) {
        let ended = self.log.wait(Instant::now() + PATIENCE, |log| log.ended).ended;
        assert!(ended, "it does not end: {}", self.told());
        let status = self.child.wait().expect("it is our child");
        (status.code(), self.stderr())
    }

    fn stderr(&mut self) -> String {
        let reader = self.stderr.take();
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed otherwise.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let stderr = self.stderr();
        if thread::panicking() {
            println!("the proxy's log:{}\n{stderr}", self.told());
            return;
        }
        assert!(!stderr.contains("panicked"), "the proxy panicked:\n{stderr}");
        // An operator's mistakes while it runs are errors, too: nobody else can be told of them.
        let theirs = |message: &str| message.starts_with("upstreams file ");
        let bugs = |entry: &&serde_json::Value| {
            !entry["message"].as_str().is_some_and(theirs)
                && entry["level"].as_str().is_some_and(|level| level.eq_ignore_ascii_case("error"))
        };
        let bug = self.log.lock().entries.iter().find(bugs).cloned();
        assert!(bug.is_none(), "the proxy logged a bug of its own: {bug:?}");
    }
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, deadline: Instant, is_so: impl Fn(&Entries) -> bool) -> MutexGuard<'_, Entries> {
        let limit = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |log| !is_so(log));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

fn find<'a>(log: &'a Entries, message: &str) -> Option<&'a serde_json::Value> {
    log.entries.iter().find(|entry| entry["message"] == message)
}

/// Asks again and again until it is so; for what nobody tells when it happens.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "never within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
    start.elapsed()
}
