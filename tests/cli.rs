//! The command line as users meet it: runs the binary and looks at its exit status and its words.

#![expect(clippy::unwrap_used, reason = "what a test needs and does not get fails it")]

#[path = "cli/deployed.rs"]
mod deployed;
#[path = "patience.rs"]
mod patience;
#[path = "cli/printed.rs"]
mod printed;

use patience::PATIENCE;
use rstest::rstest;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// What must not be printed, whatever is wrong.
const SECRET: &str = "hunter2";

/// One that is built in.
const RUNTIME: &str = if cfg!(feature = "smol") { "smol" } else { "glommio" };

/// Every option with its variable, a valid value and a wrong one.
const OPTIONS: &[(&str, &str, &str, &str)] = &[
    ("--redis", "VLLM_PXY_REDIS", "off", "nowhere"),
    ("--log-format", "VLLM_PXY_LOGFORMAT", "yml", "xml"),
    ("--http-timeout", "VLLM_PXY_HTTP_TIMEOUT", "0.5", "soon"),
    ("--host", "VLLM_PXY_HOST", "127.0.0.1", "a b"),
    ("--port", "VLLM_PXY_PORT", "0", "65536"),
    ("--admin", "VLLM_PXY_ADMIN", "127.0.0.1:0", "8001"),
    ("--runtime", "VLLM_PXY_RUNTIME", RUNTIME, "tokio"),
    ("--threads", "VLLM_PXY_THREADS", "2", "0"),
    ("--upstreams-file", "VLLM_PXY_UPSTREAMS_FILE", "/dev/null", "\n"),
    ("--resolve-interval", "VLLM_PXY_RESOLVE_INTERVAL", "0.5", "0.09"),
    ("--policy", "VLLM_PXY_POLICY", "round-robin", "random"),
    ("--default-model", "VLLM_PXY_DEFAULT_MODEL", "m", "\n"),
    ("--max-body", "VLLM_PXY_MAX_BODY", "1GiB", "1GB"),
    ("--body-memory", "VLLM_PXY_BODY_MEMORY", "1KiB", "-1"),
    ("--index-memory", "VLLM_PXY_INDEX_MEMORY", "1MiB", "much"),
    ("--drain-grace", "VLLM_PXY_DRAIN_GRACE", "0", "-1"),
    ("--drain-timeout", "VLLM_PXY_DRAIN_TIMEOUT", "0.5", "1m"),
];

fn command<A: AsRef<OsStr>>(arguments: &[A], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vllm-proxy"));
    command.args(arguments).env_clear().envs(variables.iter().copied()).stdin(Stdio::null());
    command
}

fn run<A: AsRef<OsStr>>(arguments: &[A], variables: &[(&str, &str)]) -> Output {
    command(arguments, variables).output().unwrap()
}

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

/// The line on standard error of a run that must fail with this status and print nothing else.
fn complaint(output: &Output, status: i32) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert_eq!(said.matches('\n').count(), 1, "{said:?}");
    assert!(said.ends_with('\n'), "{said:?}");
    assert!(!said.contains(SECRET), "{said}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains(SECRET));
    said
}

/// The line of a run that is refused before anything else happens.
fn refusal<A: AsRef<OsStr>>(arguments: &[A], variables: &[(&str, &str)]) -> String {
    let output = run(arguments, variables);
    assert!(output.stdout.is_empty(), "{output:?}");
    complaint(&output, 2)
}

#[test]
fn a_wrong_value_is_named_with_its_culprit_and_what_was_expected() {
    for (option, variable, valid, wrong) in OPTIONS {
        let shown = wrong.escape_default().to_string();
        let check = |arguments: &[&str], variables: &[(&str, &str)], culprit: &str| {
            let said = refusal(arguments, variables);
            let start = format!("vllm-proxy: invalid value `{shown}` for {culprit}: expected ");
            assert!(said.starts_with(&start), "{said}");
        };
        check(&["server", "http://a", option, wrong], &[], option);
        check(&["server", "http://a"], &[(variable, wrong)], variable);
        // Overridden by the option, and by a later one of its kind.
        check(&["server", "http://a", option, valid], &[(variable, wrong)], variable);
        check(&["server", "http://a", option, wrong, option, valid], &[], option);
    }
    // It may stand without a value, so that one must be joined to it.
    let said = refusal(&["server", "http://a", "--explain=2", "--explain"], &[]);
    assert!(
        said.contains("invalid value `2` for --explain: expected 1, true, yes or on"),
        "{said}"
    );
}

#[rstest]
#[case::verbosity("server http://a", "VLLM_PXY_VERBOSITY", "shout")]
#[case::verbosity_overridden("-v server -q http://a", "VLLM_PXY_VERBOSITY", "2")]
#[case::upstreams("server", "VLLM_PXY_UPSTREAMS", "http://")]
#[case::upstreams_overridden("server http://a", "VLLM_PXY_UPSTREAMS", "a:80")]
#[case::other_subcommand("health", "VLLM_PXY_POLICY", "random")]
#[case::mock("mock", "VLLM_PXY_LOGFORMAT", "xml")]
fn a_wrong_variable_is_named(#[case] line: &str, #[case] name: &str, #[case] value: &str) {
    let said = refusal(&words(line), &[(name, value)]);
    let start = format!("vllm-proxy: invalid value `{value}` for {name}: expected ");
    assert!(said.starts_with(&start), "{said}");
}

#[test]
fn one_wrong_upstream_of_many_is_named() {
    let said = refusal::<&str>(&[], &[]);
    assert!(said.contains("missing subcommand: expected server, "), "{said}");
    let said = refusal(&["server"], &[("VLLM_PXY_UPSTREAMS", "http://a,  http://b:x, http://c")]);
    assert!(said.contains("`http://b:x` for VLLM_PXY_UPSTREAMS: expected http://host"), "{said}");
    let said = refusal(&["server", "http://a", "ftp://b"], &[]);
    assert!(said.contains("`ftp://b` for UPSTREAM: expected http://host"), "{said}");
}

#[test]
fn https_upstreams_are_refused_with_advice() {
    let said = refusal(&["server", "https://a"], &[]);
    assert!(said.contains("`https://a` for UPSTREAM: "), "{said}");
    assert!(said.contains("no TLS: let the backend serve plain HTTP"), "{said}");
}

#[test]
fn runtimes_that_are_built_in_are_offered() {
    let (smol, glommio) = (cfg!(feature = "smol"), cfg!(feature = "glommio"));
    let (offered, usual) = match (smol, glommio) {
        (true, true) => ("smol or glommio", "smol"),
        (true, false) => ("smol", "smol"),
        (false, _) => ("glommio", "glommio"),
    };
    let said = refusal(&["server", "--runtime", "tokio", "http://a"], &[]);
    assert!(said.contains(&format!("expected {offered} (built in)")), "{said}");
    for (name, is_built_in) in [("smol", smol), ("glommio", glommio)] {
        if !is_built_in {
            let said = refusal(&["server", "--runtime", name, "http://a"], &[]);
            let expected = format!("expected {offered}, since this was built without the feature");
            assert!(said.contains(&format!("{expected} {name}")), "{said}");
        }
    }
    let help = String::from_utf8(run(&["server", "--help"], &[]).stdout).unwrap();
    assert!(help.contains(&format!("What moves the bytes: {offered}\n")), "{help}");
    let default = format!("[variable: VLLM_PXY_RUNTIME] [default: {usual}]");
    assert!(help.contains(&default), "{help}");
    assert_eq!(help.contains("io_uring"), glommio, "{help}");
}

#[rstest]
#[case::none("server")]
#[case::only_options("server --port 0")]
fn upstreams_are_required(#[case] line: &str) {
    for variables in [&[] as &[_], &[("VLLM_PXY_UPSTREAMS", "")], &[("VLLM_PXY_UPSTREAMS", ", ")]] {
        let said = refusal(&words(line), variables);
        assert!(said.contains("missing UPSTREAM: expected at least one http://host"), "{said}");
        assert!(said.contains("VLLM_PXY_UPSTREAMS"), "{said}");
    }
}

/// A file that ends with the test.
struct File(String);

impl File {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let name = format!("vllm-proxy-cli-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).unwrap();
        Self(path.display().to_string())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[rstest]
#[case::upstream(
    "wrong",
    b"http://a\n\nftp://b\n",
    "`ftp://b` for line 3 of PATH: expected http://"
)]
#[case::label("label", b"http://a weight=0", "`weight=0` for line 1 of PATH: expected weight=N")]
#[case::no_text("bytes", b"#\n\xff", "`...` for line 2 of PATH: expected text, this is no UTF-8")]
#[case::password(
    "secret",
    b"http://me:hunter2@a",
    "`http://...` for line 1 of PATH: expected http"
)]
fn a_mistake_in_a_file_of_upstreams_is_named(
    #[case] name: &str,
    #[case] bytes: &[u8],
    #[case] expected: &str,
) {
    let file = File::new(name, bytes);
    let expected = expected.replace("PATH", &file.0);
    let said = refusal(&["server", "--upstreams-file", &file.0, "http://a"], &[]);
    assert!(said.contains(&format!("invalid value {expected}")), "{said}");
    let said = refusal(&["server"], &[("VLLM_PXY_UPSTREAMS_FILE", &file.0)]);
    assert!(said.contains(&format!("invalid value {expected}")), "{said}");
    // Who does not serve does not need it.
    let said = run(&["health", ":1"], &[("VLLM_PXY_UPSTREAMS_FILE", &file.0)]);
    assert_eq!(said.status.code(), Some(1), "{said:?}");
}

#[test]
fn a_file_of_upstreams_must_be_there_and_name_one() {
    let expected = "`/nowhere` for --upstreams-file: expected a file that can be read (No such";
    let said = refusal(&["server", "--upstreams-file", "/nowhere", "http://a"], &[]);
    assert!(said.contains(expected), "{said}");
    let variables = [("VLLM_PXY_UPSTREAMS_FILE", "/nowhere")];
    let said = refusal(&["server", "http://a"], &variables);
    assert!(said.contains("`/nowhere` for VLLM_PXY_UPSTREAMS_FILE: expected a file"), "{said}");
    let empty = File::new("empty", b"# nobody\n");
    let said = refusal(&["server", "--upstreams-file", &empty.0], &[]);
    assert!(said.contains("missing UPSTREAM: expected at least one http://host"), "{said}");
    let file = File::new("other", b"http://b\n");
    let line = ["server", "--upstreams-file", &file.0, "http://a", "--forward-unknown", "http://c"];
    let said = refusal(&line, &[]);
    let expected =
        "`http://c` for --forward-unknown: expected one of the upstreams (http://a http://b)";
    assert!(said.contains(expected), "{said}");
}

#[rstest]
#[case::unknown_option("server --prot 1 http://a", "`--prot`: expected perhaps --port")]
#[case::unknown_option_before("--prot=1 server http://a", "`--prot`")]
#[case::unknown_short("server -z http://a", "`-z`")]
#[case::unknown_subcommand("sever http://a", "unknown subcommand `sever`: expected server, ")]
#[case::value_missing("server --port", "missing value for --port")]
#[case::value_of_a_flag("--verbose=3 server http://a", "unexpected value for --verbose")]
#[case::argument_of_readme("readme http://a", "unexpected argument")]
#[case::shell("completions ksh", "`ksh` for SHELL: expected bash, elvish, fish, powershell or zsh")]
#[case::no_shell("completions", "missing SHELL: expected bash, ")]
#[case::two_shells("completions bash zsh", "unexpected argument")]
#[case::health_address("health 8000", "`8000` for ADDR: expected host:port")]
#[case::two_addresses("health :1 :2", "unexpected argument")]
#[case::mock_value("mock --port x", "`x` for --port")]
fn usage_errors_are_one_line(#[case] line: &str, #[case] expected: &str) {
    let said = refusal(&words(line), &[]);
    assert!(said.contains(expected), "{said}");
}

#[rstest]
#[case::at_in_password("redis://me:hun@hunter2@cache")]
#[case::slash_in_password("redis://me:/hunter2@cache")]
#[case::no_host("redis://me:hunter2")]
#[case::no_host_but_db("redis://me:hunter2/0")]
#[case::bad_port("redis://me:hunter2@cache:x")]
#[case::bad_db("redis://me:hunter2@cache/x")]
#[case::bad_escape("redis://me:%zzhunter2@cache")]
#[case::scheme_forgotten("me:hunter2@cache")]
#[case::slashes_forgotten("redis:me:hunter2@cache")]
#[case::wrong_scheme("http://me:hunter2@cache")]
#[case::scheme_is_the_password("hunter2://cache")]
#[case::query("redis://cache/?password=hunter2")]
#[case::password_alone("hunter2")]
#[case::new_line("redis://me:\nhunter2@cache")]
fn passwords_of_redis_are_not_shown(#[case] url: &str) {
    for (arguments, variable) in [
        (vec!["-R", url, "server", "http://a"], None),
        (vec!["server", "--redis", url, "http://a"], None),
        (vec!["--redis", url, "readme"], None),
        (vec!["server", "http://a"], Some(url)),
        (vec!["-R", "off", "server", "http://a"], Some(url)),
    ] {
        let variables: Vec<_> = variable.map(|url| ("VLLM_PXY_REDIS", url)).into_iter().collect();
        let said = refusal(&arguments, &variables);
        let culprit = if variable.is_some() { "VLLM_PXY_REDIS" } else { "--redis" };
        assert!(said.contains(&format!("` for {culprit}: expected redis://[user:")), "{said}");
    }
}

#[rstest]
#[case::misspelt_option(&["server", "--reddis", "redis://me:hunter2@cache", "http://a"])]
#[case::misspelt_with_equals(&["--reddis=redis://me:hunter2@cache", "server", "http://a"])]
#[case::no_dashes(&["server", "redis", "redis://me:hunter2@cache"])]
#[case::as_subcommand(&["redis://me:hunter2@cache"])]
#[case::key_as_subcommand(&["hunter2", "server"])]
#[case::for_readme(&["readme", "redis://me:hunter2@cache"])]
#[case::for_completions(&["completions", "redis://me:hunter2@cache"])]
#[case::for_health(&["health", "http://me:hunter2@a"])]
#[case::second_for_health(&["health", "a", "http://me:hunter2@a"])]
#[case::value_of_a_flag(&["--verbose=hunter2", "server", "http://a"])]
#[case::short(&["-zhunter2", "server", "http://a"])]
#[case::in_an_upstream(&["server", "http://me:hunter2@a"])]
#[case::in_a_tls_upstream(&["server", "https://me:hunter2@a"])]
#[case::in_a_cut_upstream(&["server", "http://me:hunter2", "3@a"])]
#[case::in_a_query(&["server", "http://a/?key=hunter2"])]
#[case::upstream_without_scheme(&["server", "me:hunter2@a"])]
#[case::mock_key(&["mock", "--port", "x", "--api-key", "hunter2"])]
fn secrets_at_the_wrong_place_are_not_shown(#[case] arguments: &[&str]) {
    refusal(arguments, &[]);
}

#[rstest]
#[case::space("hunter2 ")]
#[case::new_line("hunter2\nx: y")]
#[case::not_ascii("hunter2é")]
fn a_wrong_key_is_not_shown(#[case] key: &str) {
    let said = refusal(&["server", "http://a"], &[("VLLM_PXY_BACKEND_KEY", key)]);
    assert!(said.contains("for VLLM_PXY_BACKEND_KEY: expected visible ASCII"), "{said}");
}

#[test]
fn what_is_no_utf8_is_refused() {
    let wrong = OsStr::from_bytes(b"hunter2\xff");
    for (option, variable, ..) in OPTIONS {
        let arguments = [OsStr::new("server"), OsStr::new("http://a"), OsStr::new(option), wrong];
        let said = refusal(&arguments, &[]);
        assert!(said.contains(&format!(" for {option}: expected text")), "{said}");
        let output = command(&["server", "http://a"], &[]).env(variable, wrong).output().unwrap();
        let said = complaint(&output, 2);
        assert!(said.contains(&format!(" for {variable}: expected text")), "{said}");
    }
    for arguments in [vec![wrong], vec![OsStr::new("server"), wrong]] {
        refusal(&arguments, &[]);
    }
}

#[test]
fn help_names_every_option_with_its_variable_and_no_value() {
    let variables = [
        ("VLLM_PXY_REDIS", "redis://me:hunter2@cache"),
        ("VLLM_PXY_BACKEND_KEY", SECRET),
        ("VLLM_PXY_PORT", "not checked by help"),
    ];
    for arguments in [["server", "--help"], ["help", "server"]] {
        let output = run(&arguments, &variables);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let help = String::from_utf8(output.stdout).unwrap();
        for (option, variable, ..) in OPTIONS {
            assert!(help.contains(option), "{option} in {help}");
            assert!(help.contains(variable), "{variable} in {help}");
        }
        for other in [
            "VLLM_PXY_VERBOSITY",
            "VLLM_PXY_UPSTREAMS",
            "VLLM_PXY_BACKEND_KEY",
            "-R, ",
            "-v, ",
            "-q, ",
            "-L, ",
            "-T, ",
            "-H, ",
            "-p, ",
            "Examples:",
            "UPSTREAM",
        ] {
            assert!(help.contains(other), "{other} in {help}");
        }
        assert!(!help.contains(SECRET) && !help.contains("me:"), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    }
    let help = String::from_utf8(run(&["--help"], &variables).stdout).unwrap();
    for name in ["server", "readme", "mock", "health", "Exit status:", "VLLM_PXY_VERBOSITY"] {
        assert!(help.contains(name), "{name} in {help}");
    }
}

#[test]
fn a_taken_port_is_found() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for threads in ["1", "4"] {
        let arguments =
            ["server", "-H", "127.0.0.1", "-p", &port, "--threads", threads, "http://127.0.0.1:1"];
        let said = complaint(&run(&arguments, &[]), 1);
        assert!(said.contains(&format!("cannot listen on 127.0.0.1:{port}: ")), "{said}");
    }
}

/// A running proxy over nobody, and where it listens. It ends with the test.
struct Proxy {
    process: Child,
    address: String,
    log: Receiver<String>,
}

impl Proxy {
    fn start(arguments: &str, variables: &[(&str, &str)]) -> Self {
        let line = format!("server -R off --host 127.0.0.1 --port 0 {arguments}");
        let mut process = command(&words(&line), variables).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("a proxy that listens").unwrap();
            if let Some((_, rest)) = line.split_once(r#""listening","values":{"address":""#) {
                break rest.split('"').next().unwrap().to_owned();
            }
        };
        // Read on, so that it never writes into a closed pipe.
        let (read, log) = channel();
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| read.send(line).unwrap_or_default());
        });
        Self { process, address, log }
    }

    /// Waits for an entry with this message.
    fn logged(&self, message: &str) {
        let message = format!(r#""message":"{message}""#);
        while !self.log.recv_timeout(PATIENCE).expect("an entry").contains(&message) {}
    }

    fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Its exit status, once it ends.
    fn end(&mut self) -> Option<i32> {
        let limit = Instant::now() + PATIENCE;
        while Instant::now() < limit {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it does not end");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[rstest]
#[cfg_attr(not(feature = "smol"), ignore = "built without smol")]
#[case::term("TERM", "smol")]
#[cfg_attr(not(feature = "smol"), ignore = "built without smol")]
#[case::interrupt("INT", "smol")]
#[cfg_attr(not(feature = "glommio"), ignore = "built without glommio")]
#[cfg_attr(
    all(feature = "glommio", io_uring_refused),
    ignore = "io_uring was refused as this was built"
)]
#[case::term_on_glommio("TERM", "glommio")]
fn one_signal_stops_it_cleanly(#[case] signal: &str, #[case] runtime: &str) {
    let options = format!("--drain-grace 0 --runtime {runtime} http://127.0.0.1:1");
    let mut proxy = Proxy::start(&options, &[]);
    proxy.signal(signal);
    assert_eq!(proxy.end(), Some(0));
}

#[rstest]
#[cfg_attr(not(feature = "smol"), ignore = "built without smol")]
#[case::smol("smol")]
#[cfg_attr(not(feature = "glommio"), ignore = "built without glommio")]
#[cfg_attr(
    all(feature = "glommio", io_uring_refused),
    ignore = "io_uring was refused as this was built"
)]
#[case::glommio("glommio")]
fn a_second_signal_ends_it_at_once(#[case] runtime: &str) {
    let options = format!("--drain-grace 600 --runtime {runtime} http://127.0.0.1:1");
    let mut proxy = Proxy::start(&options, &[]);
    proxy.signal("TERM");
    // Two signals that arrive before one is handled are one.
    proxy.logged("stopping");
    assert!(proxy.process.try_wait().unwrap().is_none());
    proxy.signal("INT");
    assert_eq!(proxy.end(), Some(1));
}

#[rstest]
#[cfg_attr(not(feature = "smol"), ignore = "built without smol")]
#[case::smol("smol")]
#[cfg_attr(not(feature = "glommio"), ignore = "built without glommio")]
#[cfg_attr(
    all(feature = "glommio", io_uring_refused),
    ignore = "io_uring was refused as this was built"
)]
#[case::glommio("glommio")]
fn a_port_that_a_proxy_shares_is_taken(#[case] runtime: &str) {
    let options = format!("--threads 3 --runtime {runtime} http://127.0.0.1:1");
    let proxy = Proxy::start(&options, &[]);
    let port = proxy.address.rsplit(':').next().unwrap();
    let line = format!("server -H 127.0.0.1 -p {port} {options}");
    let said = complaint(&run(&words(&line), &[]), 1);
    assert!(said.contains("the port is taken"), "{said}");
}

#[test]
fn empty_variables_count_as_not_set() {
    let mut variables: Vec<_> = OPTIONS.iter().map(|(_, variable, ..)| (*variable, "")).collect();
    variables.extend([("VLLM_PXY_VERBOSITY", ""), ("VLLM_PXY_BACKEND_KEY", "")]);
    Proxy::start("http://127.0.0.1:1", &variables);
}

#[test]
fn a_name_that_does_not_resolve_is_no_reason_to_end() {
    let mut proxy = Proxy::start("--drain-grace 0 http://does-not-exist.invalid:1", &[]);
    TcpStream::connect(&proxy.address).unwrap();
    assert!(proxy.process.try_wait().unwrap().is_none());
    proxy.signal("TERM");
    assert_eq!(proxy.end(), Some(0));
}

/// Answers one connection with these bytes; returns its address.
fn answering(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 1024];
        let count = stream.read(&mut head).unwrap();
        assert!(head[..count].starts_with(b"GET /health HTTP/1.1\r\n"));
        stream.write_all(answer.as_bytes()).unwrap();
        // Whoever asked closes.
        let _ = stream.read(&mut head);
    });
    address
}

#[test]
fn health_tells_by_its_exit_status() {
    let healthy = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let output = run(&["health", &answering(healthy)], &[]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");

    let url = format!("http://{}", answering(healthy));
    assert!(run(&["health", &url], &[]).status.success());

    let address = answering(healthy);
    let port = address.rsplit(':').next().unwrap();
    let variables = [("VLLM_PXY_HOST", "0.0.0.0"), ("VLLM_PXY_PORT", port)];
    assert!(run(&["health"], &variables).status.success());

    let address = answering("HTTP/1.1 503 Service Unavailable\r\n\r\n");
    let said = complaint(&run(&["health", &address], &[]), 1);
    assert!(said.contains(&format!("{address} is not healthy: status 503")), "{said}");

    let said = complaint(&run(&["health", &answering("SSH-2.0-OpenSSH\r\n")], &[]), 1);
    assert!(said.contains("gives no answer"), "{said}");

    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let said = complaint(&run(&["health", &nobody], &[]), 1);
    assert!(said.contains(&nobody), "{said}");
}
