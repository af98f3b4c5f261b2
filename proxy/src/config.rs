//! From what was written to what is meant: every option and variable is checked here, once, before
//! a port is bound.
//!
//! Knows names and defaults; how a value is read is told by [`values`],
//! [`upstream`] and [`redis_url`](crate::redis_url).

use crate::cli::{GlobalArgs, HealthArgs, ServerArgs};
use crate::health::Address;
use crate::logging::{Format, Level};
use crate::redis_url::Redis;
use crate::replica::Named;
use crate::secret::Secret;
use crate::upstream::{self, Upstream};
use crate::upstreams::{self, Upstreams};
use crate::usage::{Invalid, UsageError};
use crate::values::{self, Host};
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroUsize;
use std::time::Duration;
use vllm_proxy_core::config::Policy;

const DEFAULT_HOST: Host = Host::Ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
const DEFAULT_PORT: u16 = 8000;
const MINUTE: Duration = Duration::from_secs(60);

/// What all subcommands share.
#[derive(Debug)]
pub(crate) struct Globals {
    pub(crate) redis: Redis,
    /// Whether somebody said where Redis is.
    pub(crate) redis_named: Named,
    pub(crate) level: Level,
    pub(crate) log_format: Format,
    /// `None`: never.
    pub(crate) http_timeout: Option<Duration>,
}

/// What `server` is to do.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) upstreams: Upstreams,
    /// How long an answer of a name server counts.
    pub(crate) resolve_interval: Duration,
    pub(crate) host: Host,
    pub(crate) port: u16,
    /// Where operators come; the port may be 0.
    pub(crate) admin: Option<Address>,
    /// Whether clients of the main address may ask why a backend was chosen.
    pub(crate) explain: bool,
    pub(crate) runtime: Runtime,
    /// `None`: as many as there are cores.
    pub(crate) threads: Option<NonZeroUsize>,
    pub(crate) policy: Policy,
    /// `None`: the first model of the first upstream.
    pub(crate) default_model: Option<String>,
    /// The budget of the prefix index, in bytes.
    pub(crate) index_memory: u64,
    pub(crate) max_body: u64,
    /// `None`: a share of the machine's memory.
    pub(crate) body_memory: Option<u64>,
    pub(crate) drain_grace: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) backend_key: Option<Secret>,
}

/// The front ends built in, the default first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runtime {
    #[cfg(feature = "smol")]
    Smol,
    #[cfg(feature = "glommio")]
    Glommio,
}

#[cfg(not(any(feature = "smol", feature = "glommio")))]
compile_error!("a proxy needs a runtime: build with the feature `smol`, `glommio` or both");

impl Runtime {
    const ALL: &[Self] = &[
        #[cfg(feature = "smol")]
        Self::Smol,
        #[cfg(feature = "glommio")]
        Self::Glommio,
    ];

    /// Those that somebody may ask for who does not know how this was built.
    const ELSEWHERE: &[&str] = &[
        #[cfg(not(feature = "smol"))]
        "smol",
        #[cfg(not(feature = "glommio"))]
        "glommio",
    ];

    /// Which there are, for people.
    pub(crate) fn names() -> String {
        Self::all_names().collect::<Vec<_>>().join(" or ")
    }

    pub(crate) fn all_names() -> impl Iterator<Item = &'static str> {
        Self::ALL.iter().map(|runtime| runtime.name())
    }

    /// The one that nobody has to ask for.
    pub(crate) fn usual() -> Self {
        Self::ALL[0]
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "smol")]
            Self::Smol => "smol",
            #[cfg(feature = "glommio")]
            Self::Glommio => "glommio",
        }
    }
}

/// All there are, the default first.
pub(crate) const POLICIES: [Policy; 3] =
    [Policy::CacheAware, Policy::LeastLoad, Policy::RoundRobin];

pub(crate) const fn policy_name(policy: Policy) -> &'static str {
    match policy {
        Policy::CacheAware => "cache-aware",
        Policy::LeastLoad => "least-load",
        Policy::RoundRobin => "round-robin",
    }
}

/// Where variables come from.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The process's own variables. One that is set to nothing counts as not set.
pub(crate) fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// No variables, for what is to work whatever they say.
pub(crate) const fn no_environment(_name: &str) -> Option<OsString> {
    None
}

pub(crate) fn server(
    globals: &GlobalArgs,
    args: &ServerArgs,
    env: Environment<'_>,
) -> Result<(Globals, Server), UsageError> {
    let (globals, mut server) = everything(globals, args, env)?;
    server.upstreams.read(culprit(&args.upstreams_file, UPSTREAMS_FILE))?;
    if server.upstreams.list().is_empty() {
        return Err(UsageError::new(
            "missing UPSTREAM: expected at least one http://host[:port][/prefix] or unix:///path, \
             as an argument, in VLLM_PXY_UPSTREAMS or in the file of --upstreams-file",
        ));
    }
    check_forward_unknown(args, &server.upstreams)?;
    Ok((globals, server))
}

pub(crate) fn health(
    globals: &GlobalArgs,
    args: &HealthArgs,
    env: Environment<'_>,
) -> Result<Address, UsageError> {
    let (_, server) = everything(globals, &ServerArgs::default(), env)?;
    let here = Address { host: server.host, port: server.port };
    let given: Vec<_> = args.addr.iter().cloned().collect();
    let parse = |text: &str| Address::parse(text, &here);
    let address = last_of(&given, "ADDR", &parse)?;
    Ok(address.unwrap_or_else(|| here.clone()).reachable())
}

/// Checks the whole of the environment and the global options, for subcommands that have their own
/// ways otherwise.
pub(crate) fn globals(globals: &GlobalArgs, env: Environment<'_>) -> Result<Globals, UsageError> {
    everything(globals, &ServerArgs::default(), env).map(|(globals, _)| globals)
}

fn everything(
    globals: &GlobalArgs,
    args: &ServerArgs,
    env: Environment<'_>,
) -> Result<(Globals, Server), UsageError> {
    let read = Reader { env };
    let level = read.variable("VLLM_PXY_VERBOSITY", &Level::parse)?.unwrap_or(Level::Info);
    let format = read.value(&globals.log_format, LOG_FORMAT, &Format::parse)?;
    let timeout = read.value(&globals.http_timeout, HTTP_TIMEOUT, &values::http_timeout)?;
    let redis = read.value(&globals.redis, REDIS, &Redis::parse)?;
    let globals = Globals {
        redis_named: if redis.is_some() { Named::Yes } else { Named::No },
        redis: redis.unwrap_or_else(Redis::local),
        level: level.louder(i32::from(globals.verbose) - i32::from(globals.quiet)),
        log_format: format.unwrap_or_else(|| Format::usual(std::io::stdout().is_terminal())),
        http_timeout: timeout.unwrap_or(Some(60 * MINUTE)),
    };
    let grace = read.value(&args.drain_grace, DRAIN_GRACE, &values::seconds)?;
    let drain = read.value(&args.drain_timeout, DRAIN_TIMEOUT, &values::seconds)?;
    let named = upstreams(&args.upstreams, UPSTREAMS, env)?;
    let forward_unknown = upstreams(&args.forward_unknown, FORWARD_UNKNOWN, env)?;
    let file = read.value(&args.upstreams_file, UPSTREAMS_FILE, &values::path)?;
    let upstreams = Upstreams::new(named, forward_unknown, file);
    // Where there is nothing yet to compare with another error says so, if it is one.
    if upstreams.file().is_none() && !upstreams.list().is_empty() {
        check_forward_unknown(args, &upstreams)?;
    }
    let interval =
        read.value(&args.resolve_interval, RESOLVE_INTERVAL, &values::resolve_interval)?;
    let host = read.value(&args.host, HOST, &values::listen_host)?.unwrap_or(DEFAULT_HOST);
    let admin = |text: &str| admin(text, &host);
    let server = Server {
        admin: read.value(&args.admin, ADMIN, &admin)?,
        explain: read.value(&args.explain, EXPLAIN, &values::switch)?.unwrap_or(false),
        upstreams,
        resolve_interval: interval.unwrap_or(Duration::from_secs(5)),
        host,
        port: read.value(&args.port, PORT, &values::listen_port)?.unwrap_or(DEFAULT_PORT),
        runtime: read.value(&args.runtime, RUNTIME, &runtime)?.unwrap_or(Runtime::usual()),
        threads: read.value(&args.threads, THREADS, &values::threads)?,
        policy: read.value(&args.policy, POLICY, &policy)?.unwrap_or_default(),
        default_model: read.value(&args.default_model, DEFAULT_MODEL, &values::model)?,
        index_memory: read
            .value(&args.index_memory, INDEX_MEMORY, &values::size)?
            .unwrap_or(64 << 20),
        max_body: read.value(&args.max_body, MAX_BODY, &values::size)?.unwrap_or(256 << 20),
        body_memory: read.value(&args.body_memory, BODY_MEMORY, &values::size)?,
        drain_grace: grace.unwrap_or(Duration::from_secs(5)),
        drain_timeout: drain.unwrap_or(Duration::from_secs(300)),
        backend_key: read.variable("VLLM_PXY_BACKEND_KEY", &backend_key)?,
    };
    Ok((globals, server))
}

/// An option and its variable.
type Names = (&'static str, &'static str);

const REDIS: Names = ("--redis", "VLLM_PXY_REDIS");
const LOG_FORMAT: Names = ("--log-format", "VLLM_PXY_LOGFORMAT");
const HTTP_TIMEOUT: Names = ("--http-timeout", "VLLM_PXY_HTTP_TIMEOUT");
const UPSTREAMS: Names = ("UPSTREAM", "VLLM_PXY_UPSTREAMS");
const UPSTREAMS_FILE: Names = ("--upstreams-file", "VLLM_PXY_UPSTREAMS_FILE");
const RESOLVE_INTERVAL: Names = ("--resolve-interval", "VLLM_PXY_RESOLVE_INTERVAL");
const HOST: Names = ("--host", "VLLM_PXY_HOST");
const PORT: Names = ("--port", "VLLM_PXY_PORT");
const ADMIN: Names = ("--admin", "VLLM_PXY_ADMIN");
const EXPLAIN: Names = ("--explain", "VLLM_PXY_EXPLAIN");
const RUNTIME: Names = ("--runtime", "VLLM_PXY_RUNTIME");
const THREADS: Names = ("--threads", "VLLM_PXY_THREADS");
const POLICY: Names = ("--policy", "VLLM_PXY_POLICY");
const DEFAULT_MODEL: Names = ("--default-model", "VLLM_PXY_DEFAULT_MODEL");
const FORWARD_UNKNOWN: Names = ("--forward-unknown", "VLLM_PXY_FORWARD_UNKNOWN");
const INDEX_MEMORY: Names = ("--index-memory", "VLLM_PXY_INDEX_MEMORY");
const MAX_BODY: Names = ("--max-body", "VLLM_PXY_MAX_BODY");
const BODY_MEMORY: Names = ("--body-memory", "VLLM_PXY_BODY_MEMORY");
const DRAIN_GRACE: Names = ("--drain-grace", "VLLM_PXY_DRAIN_GRACE");
const DRAIN_TIMEOUT: Names = ("--drain-timeout", "VLLM_PXY_DRAIN_TIMEOUT");

type Parse<'a, T> = &'a dyn Fn(&str) -> Result<T, Invalid>;

struct Reader<'a> {
    env: Environment<'a>,
}

impl Reader<'_> {
    /// The option's value, else the variable's. Both are checked.
    fn value<T>(
        &self,
        written: &[OsString],
        (option, variable): Names,
        parse: Parse<'_, T>,
    ) -> Result<Option<T>, UsageError> {
        let variable = self.variable(variable, parse)?;
        Ok(last_of(written, option, parse)?.or(variable))
    }

    fn variable<T>(&self, name: &str, parse: Parse<'_, T>) -> Result<Option<T>, UsageError> {
        last_of((self.env)(name).as_slice(), name, parse)
    }
}

/// Checks all, returns the last.
fn last_of<T>(
    written: &[OsString],
    culprit: &str,
    parse: Parse<'_, T>,
) -> Result<Option<T>, UsageError> {
    let mut last = None;
    for value in written {
        let text = text(value, culprit)?;
        last = Some(parse(text).map_err(|invalid| UsageError::value(culprit, text, &invalid))?);
    }
    Ok(last)
}

/// What is no UTF-8 is not shown: it may be a part of anything.
fn text<'a>(value: &'a OsStr, culprit: &str) -> Result<&'a str, UsageError> {
    value.to_str().ok_or_else(|| {
        UsageError::value(culprit, "...", &Invalid::expected("text, this is no UTF-8"))
    })
}

fn upstreams(
    written: &[OsString],
    (argument, variable): Names,
    env: Environment<'_>,
) -> Result<Vec<Upstream>, UsageError> {
    let parse = |culprit: &str, items: &[&str]| {
        upstream::parse_all(items)
            .map_err(|(item, invalid)| UsageError::value(culprit, &item, &invalid))
    };
    let mut upstreams = Vec::new();
    if let Some(value) = env(variable) {
        let items: Vec<_> = text(&value, variable)?
            .split(|c: char| c == ',' || c.is_whitespace())
            .filter(|item| !item.is_empty())
            .collect();
        upstreams = parse(variable, &items)?;
    }
    if !written.is_empty() {
        let items: Vec<_> =
            written.iter().map(|value| text(value, argument)).collect::<Result<_, _>>()?;
        upstreams = parse(argument, &items)?;
    }
    Ok(upstreams)
}

/// Those that are to take unknown names must be upstreams.
fn check_forward_unknown(args: &ServerArgs, upstreams: &Upstreams) -> Result<(), UsageError> {
    let Some(stranger) = upstreams.stranger() else { return Ok(()) };
    let listed = upstreams.list().iter().map(|one| &one.upstream);
    let expected = format!("one of the upstreams ({})", upstreams::shown(listed));
    let culprit = culprit(&args.forward_unknown, FORWARD_UNKNOWN);
    Err(UsageError::value(culprit, &stranger.to_string(), &Invalid::expected(expected)))
}

/// Which of the two named what counts.
const fn culprit(written: &[OsString], (option, variable): Names) -> &'static str {
    if written.is_empty() { variable } else { option }
}

/// `--admin`: where to listen, on the host of the main address if it names none.
fn admin(text: &str, host: &Host) -> Result<Address, Invalid> {
    let parse = || {
        let (before, port) = text.rsplit_once(':')?;
        let host = if before.is_empty() { host.clone() } else { Host::parse_in_url(before)? };
        Some(Address { host, port: values::listen_port(port).ok()? })
    };
    parse().ok_or_else(|| Invalid::expected("host:port or :port"))
}

fn runtime(text: &str) -> Result<Runtime, Invalid> {
    let found = Runtime::ALL.iter().find(|runtime| runtime.name() == text).copied();
    found.ok_or_else(|| {
        let names = Runtime::names();
        Invalid::expected(if Runtime::ELSEWHERE.contains(&text) {
            format!("{names}, since this was built without the feature {text}")
        } else {
            format!("{names} (built in)")
        })
    })
}

fn policy(text: &str) -> Result<Policy, Invalid> {
    POLICIES
        .into_iter()
        .find(|policy| policy_name(*policy) == text)
        .ok_or_else(|| Invalid::expected("cache-aware, least-load or round-robin"))
}

/// What can stand in a header.
fn backend_key(text: &str) -> Result<Secret, Invalid> {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(Secret::new(text.to_owned()));
    }
    Err(Invalid::shown_as("...".to_owned(), "visible ASCII characters, without spaces"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Command};
    use rstest::rstest;

    /// The configuration of `vllm-proxy <line>` among these variables.
    fn configured(line: &str, variables: &[(&str, &str)]) -> Result<(Globals, Server), UsageError> {
        let arguments = ["vllm-proxy"].into_iter().chain(line.split_whitespace());
        let Ok((globals, Command::Server(args))) = cli::parse(arguments.map(OsString::from)) else {
            panic!("cannot parse {line}");
        };
        let env = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        server(&globals, &args, &env)
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let (globals, server) = configured("server http://a", &[]).unwrap();
        assert_eq!(globals.redis, Redis::local());
        assert_eq!(globals.level, Level::Info);
        assert_eq!(globals.http_timeout, Some(Duration::from_secs(3600)));
        assert_eq!((server.host, server.port), (DEFAULT_HOST, 8000));
        assert_eq!(server.policy, Policy::CacheAware);
        assert_eq!(server.max_body, 256 << 20);
        assert_eq!(server.resolve_interval, Duration::from_secs(5));
        assert_eq!(server.drain_grace, Duration::from_secs(5));
        assert_eq!(server.drain_timeout, Duration::from_secs(300));
    }

    #[rstest]
    #[case::default("server http://a", None, Level::Info)]
    #[case::variable("server http://a", Some("deBUG"), Level::Debug)]
    #[case::steps_from_the_variable("-v server -v http://a", Some("Warning"), Level::Debug)]
    #[case::both_ways("-vvv server -q http://a", None, Level::Verbose)]
    #[case::clamped_loud("-vvvvvvvvvv server http://a", None, Level::Loud)]
    #[case::clamped_quiet("server http://a -qqqq -q -q", None, Level::Quiet)]
    fn levels(#[case] line: &str, #[case] variable: Option<&str>, #[case] level: Level) {
        let variables: Vec<_> =
            variable.map(|value| ("VLLM_PXY_VERBOSITY", value)).into_iter().collect();
        assert_eq!(configured(line, &variables).unwrap().0.level, level);
    }

    #[test]
    fn the_option_wins_and_the_last_of_several() {
        let variables = [("VLLM_PXY_PORT", "1"), ("VLLM_PXY_UPSTREAMS", "http://b, http://c")];
        let (_, server) = configured("server --port 2 -p 3 http://a", &variables).unwrap();
        assert_eq!(server.port, 3);
        assert_eq!(server.upstreams.list().len(), 1);
        let (_, server) = configured("server", &variables).unwrap();
        assert_eq!(server.port, 1);
        assert_eq!(server.upstreams.list().len(), 2);
    }

    #[rstest]
    #[case::variable("server --port 2 http://a", "VLLM_PXY_PORT", "x")]
    #[case::upstreams("server http://a", "VLLM_PXY_UPSTREAMS", "x")]
    fn what_is_overridden_is_checked(#[case] line: &str, #[case] name: &str, #[case] value: &str) {
        let error = configured(line, &[(name, value)]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("invalid value `{value}` for {name}: ")), "{error}");
    }

    #[rstest]
    #[case::none("server http://a http://b", None, &[])]
    #[case::option("server http://a http://b --forward-unknown http://b", None, &[1])]
    #[case::port_spelled_out("server http://a http://b --forward-unknown http://b:80", None, &[1])]
    #[case::several("server http://a http://b http://c", Some("http://c http://a"), &[0, 2])]
    #[case::the_option_wins(
        "server http://a http://b --forward-unknown http://a", Some("http://b"), &[0]
    )]
    fn unknown_names_go_to(
        #[case] line: &str,
        #[case] variable: Option<&str>,
        #[case] places: &[usize],
    ) {
        let variables: Vec<_> =
            variable.map(|value| ("VLLM_PXY_FORWARD_UNKNOWN", value)).into_iter().collect();
        let upstreams = configured(line, &variables).unwrap().1.upstreams;
        let list = upstreams.list().iter().enumerate();
        let got: Vec<_> =
            list.filter(|(_, one)| one.forward_unknown).map(|(place, _)| place).collect();
        assert_eq!(got, places);
    }

    #[rstest]
    #[case::nobody_said("", "", false)]
    #[case::option("--explain", "", true)]
    #[case::with_a_value("--explain=Yes", "", true)]
    #[case::variable("", "oN", true)]
    #[case::variable_off("", "0", false)]
    #[case::the_option_wins("--explain=false", "true", false)]
    #[case::and_the_last_of_several("--explain=no --explain", "no", true)]
    fn clients_may_ask_why(#[case] option: &str, #[case] variable: &str, #[case] may: bool) {
        let line = format!("server {option} http://a");
        let variables = [("VLLM_PXY_EXPLAIN", variable)];
        let variables = if variable.is_empty() { &[][..] } else { &variables };
        let (_, server) = configured(&line, variables).unwrap();
        assert_eq!((server.explain, server.upstreams.list().len()), (may, 1));
    }

    #[rstest]
    #[case::option("--explain=2", None, "`2` for --explain")]
    #[case::variable("--explain", Some("maybe"), "`maybe` for VLLM_PXY_EXPLAIN")]
    fn no_switch(#[case] option: &str, #[case] variable: Option<&str>, #[case] culprit: &str) {
        let variables: Vec<_> =
            variable.map(|value| ("VLLM_PXY_EXPLAIN", value)).into_iter().collect();
        let error = configured(&format!("server {option} http://a"), &variables).unwrap_err();
        let expected =
            format!("invalid value {culprit}: expected 1, true, yes or on, or 0, false, no or off");
        assert_eq!(error.to_string(), expected);
    }

    #[rstest]
    #[case::host_and_port("127.0.0.1:8001", "127.0.0.1:8001")]
    #[case::only_a_port(":8001", "10.0.0.1:8001")]
    #[case::six("[::1]:0", "[::1]:0")]
    #[case::name("localhost:8001", "localhost:8001")]
    fn operators_come_to(#[case] written: &str, #[case] expected: &str) {
        let line = format!("server http://a --host 10.0.0.1 --admin {written}");
        let admin = configured(&line, &[]).unwrap().1.admin.unwrap();
        assert_eq!(admin.to_string(), expected);
    }

    #[rstest]
    #[case::only_a_host("localhost")]
    #[case::no_port("localhost:")]
    #[case::too_high(":65536")]
    #[case::only_a_number("8001")]
    #[case::url("http://localhost:8001")]
    fn operators_come_nowhere(#[case] written: &str) {
        let error = configured(&format!("server http://a --admin {written}"), &[]).unwrap_err();
        let expected =
            format!("invalid value `{written}` for --admin: expected host:port or :port");
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn unknown_names_go_to_no_stranger() {
        let line = "server http://a:1 --forward-unknown http://b";
        let error = configured(line, &[]).unwrap_err().to_string();
        let expected = "invalid value `http://b` for --forward-unknown: \
             expected one of the upstreams (http://a:1)";
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn an_earlier_option_is_checked() {
        let error = configured("server -p x -p 3 http://a", &[]).unwrap_err().to_string();
        assert!(error.starts_with("invalid value `x` for --port: expected"), "{error}");
    }

    #[test]
    fn nothing_debugs_a_secret() {
        let variables =
            [("VLLM_PXY_BACKEND_KEY", "hunter2"), ("VLLM_PXY_REDIS", "redis://me:hunter2@cache")];
        let (globals, server) = configured("server http://a", &variables).unwrap();
        assert!(server.backend_key.is_some());
        assert!(!format!("{globals:?} {server:?} {}", globals.redis).contains("hunter2"));
    }
}
