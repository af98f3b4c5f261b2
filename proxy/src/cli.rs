//! The command line: what can be written, and what `--help` says about it.
//!
//! Takes every value as it was written and judges none: that is [`config`](crate::config)'s. Lets
//! none of clap's own messages out, since they repeat values, and a value may hold a password.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "clap prints these comments as they are: brackets mean what can be left out, not links"
)]

mod wording;

use crate::config::Runtime;
use crate::usage::UsageError;
use crate::{completions, demo, mock, simulate, version};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

const ABOUT: &str = "One address for many vLLM servers: a load-balancing reverse proxy.";

const LONG_ABOUT: &str = "\
One address for many vLLM servers: a load-balancing reverse proxy.

Clients cannot tell it from a single vLLM server that serves many models. Which models there are \
it learns from the servers; every request goes to one that serves its model and has the least \
work in hand.";

const AFTER_HELP: &str = "\
Examples:
  vllm-proxy demo
  vllm-proxy server http://gpu1:8000 http://gpu2:8000
  vllm-proxy server --help

Variables:
  Every option can be set by the environment variable named with it. The option wins. All variables
  are checked, those that an option overrides too; one that is set to nothing counts as not set.

Exit status:
  0  stopped cleanly
  1  could not start (the port is taken), or was cut short by a second signal
  2  the command line or a variable is wrong";

const SERVER_AFTER_HELP: &str = "\
Examples:
  Two servers, any models:
    vllm-proxy server http://gpu1:8000 http://gpu2:8000

  All replicas behind one name, of a Kubernetes headless service or a scaled Compose service for
  one; names are looked up again every 5 seconds:
    vllm-proxy server http://vllm.default.svc.cluster.local:8000

  A list that changes while the proxy runs:
    vllm-proxy server --upstreams-file /etc/vllm-proxy/upstreams

  A local server on a Unix socket, given up when it has said nothing for 5 minutes:
    vllm-proxy -T 5 server unix:///run/vllm.sock

  The same by variables, as in a container:
    VLLM_PXY_UPSTREAMS=http://gpu1:8000,http://gpu2:8000 VLLM_PXY_PORT=8080 vllm-proxy server

Variables:
  VLLM_PXY_BACKEND_KEY
          The key that the proxy's own questions present to servers started with --api-key. Clients
          bring their own. Without it such servers cannot list their models, and get no requests.
          There is no option for it, since other users can read command lines.

  Every option can be set by the environment variable named with it. The option wins. All variables
  are checked, those that an option overrides too; one that is set to nothing counts as not set.

Signals:
  SIGTERM and SIGINT stop the proxy in order, see --drain-grace and --drain-timeout. A second one
  ends it at once, with exit status 1. SIGHUP has --upstreams-file read and all names looked up
  again, at once.";

const HEALTH_AFTER_HELP: &str = "\
Examples:
  vllm-proxy health
  vllm-proxy health :8080
  vllm-proxy health http://proxy.internal:8000

  In a Dockerfile:
    HEALTHCHECK CMD [\"vllm-proxy\", \"health\"]

Exit status:
  0  a proxy answers, and is healthy
  1  it is not, or nobody answered within 5 seconds; one line on standard error says which
  2  the command line or a variable is wrong";

#[derive(Parser)]
#[command(
    name = "vllm-proxy",
    version = version::short(),
    long_version = version::long(),
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_long_help = AFTER_HELP,
    subcommand_required = true,
    max_term_width = 100
)]
struct Cli {
    #[command(flatten)]
    globals: GlobalArgs,
    #[command(subcommand)]
    command: Commands,
}

/// The subcommands as clap sees them. Global options are spelled out in each: clap's own "global"
/// would forget what stood before the subcommand when something stands behind it.
#[derive(Subcommand)]
enum Commands {
    /// Run the proxy
    #[command(after_long_help = SERVER_AFTER_HELP)]
    Server(With<ServerArgs>),
    /// Print this program's README
    Readme(With<NoArgs>),
    // What these are is said where their options are.
    Demo(With<demo::Args>),
    Mock(With<mock::Args>),
    Simulate(With<simulate::Args>),
    /// Ask whether a proxy is healthy, for container health checks
    ///
    /// It is when GET /health answers 200 within 5 seconds.
    #[command(after_long_help = HEALTH_AFTER_HELP)]
    Health(With<HealthArgs>),
    Completions(With<completions::Args>),
}

#[derive(Args)]
struct With<A: Args> {
    #[command(flatten)]
    args: A,
    #[command(flatten)]
    globals: GlobalArgs,
}

#[derive(Args)]
struct NoArgs {}

/// What to do, and with what.
pub(crate) enum Command {
    Server(ServerArgs),
    Readme,
    Demo(demo::Args),
    Mock(mock::Args),
    Simulate(simulate::Args),
    Health(HealthArgs),
    Completions(completions::Args),
}

// Values are kept in the order written: the last one counts, all are checked. No `///` here and
// below: clap would take it for what the subcommand is about.
#[derive(Args, Default)]
#[command(next_help_heading = "Global options (before or after the subcommand)")]
pub(crate) struct GlobalArgs {
    /// The Redis that proxies are to share what they know through
    ///
    /// Up to 63 proxies with the same database, which must be theirs alone, decide as one: each
    /// knows what the others have in hand and which prompts they sent where. No request waits for
    /// Redis; without it each proxy goes on with what it knows, and looks for it again and again.
    ///
    /// redis://[user:password@]host[:port][/db], rediss:// for TLS,
    /// redis+unix://[user:password@]/path[?db=0], `local` for localhost:6379, or `off` for none. A
    /// single server, 6.2 or later, or Valkey; no cluster, no sentinel. TLS trusts the certificates
    /// that the system trusts, or those in the file that the variable SSL_CERT_FILE names.
    ///
    /// A password belongs in the variable, since other users can read command lines; `%`, `:`, `@`,
    /// `/`, `?` and `#` in it are written %25, %3A, %40, %2F, %3F and %23. What a user of Redis
    /// must be allowed to do is in `vllm-proxy readme`.
    ///
    /// [variable: VLLM_PXY_REDIS] [default: local]
    #[arg(short = 'R', long, value_name = "CONN_URI")]
    pub(crate) redis: Vec<OsString>,

    /// Log more; twice, still more
    ///
    /// Each one is a level louder. Levels from the loudest: Loud (or 1), Verbose, Debug, Info,
    /// Warning, Quiet (or Error, or 0). Requests are logged at Debug, changes of state at Info.
    ///
    /// [variable: VLLM_PXY_VERBOSITY, a level to start from, in any case] [default: Info]
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Log less; twice, still less
    ///
    /// Each one is a level quieter. Those before and after the subcommand add up, as do -v and -q.
    ///
    /// [variable: VLLM_PXY_VERBOSITY]
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) quiet: u8,

    /// How log entries look: txt, json or yaml (or yml)
    ///
    /// txt is a line for people, json an object a line, yaml a document an entry. Entries go to
    /// standard output.
    ///
    /// [variable: VLLM_PXY_LOGFORMAT] [default: txt on a terminal, else json]
    #[arg(short = 'L', long, value_name = "SUFFIX")]
    pub(crate) log_format: Vec<OsString>,

    /// Minutes without a byte from a backend that owes an answer; then 504
    ///
    /// Never a limit on a whole response. Decimals are allowed, and 0 waits for ever.
    ///
    /// [variable: VLLM_PXY_HTTP_TIMEOUT] [default: 60]
    #[arg(short = 'T', long, value_name = "MINS", allow_negative_numbers = true)]
    pub(crate) http_timeout: Vec<OsString>,
}

#[derive(Args, Default)]
pub(crate) struct ServerArgs {
    /// The vLLM servers: http://host[:port][/prefix] or unix:///path
    ///
    /// Every address that a name resolves to is a backend of its own: the IPv4 ones if there are
    /// any, else the IPv6 ones. Names are looked up again while the proxy runs. Without a port it
    /// is 80.
    ///
    /// [variable: VLLM_PXY_UPSTREAMS, separated by commas or spaces] [required, unless they are in
    /// a file: see --upstreams-file]
    #[arg(value_name = "UPSTREAM")]
    pub(crate) upstreams: Vec<OsString>,

    /// A file that names more upstreams, one a line, read again when it changes
    ///
    /// Behind an upstream may stand labels: weight=N (0.01 to 100, 1 being usual: how much of the
    /// work each of its backends gets beside others; decimals count to the hundredth), drain (they
    /// get no new requests) and forward-unknown (as by the option of that name). `#` begins a
    /// comment. Of an upstream that is also an argument the file's labels count.
    ///
    /// The file is looked at every second and at SIGHUP. One that is broken or gone changes nothing
    /// and is told once in the log; an empty one leaves those upstreams that are arguments. What
    /// leaves the list finishes the requests that it has.
    ///
    /// [variable: VLLM_PXY_UPSTREAMS_FILE]
    #[arg(long, value_name = "PATH", help_heading = "Finding backends")]
    pub(crate) upstreams_file: Vec<OsString>,

    /// Seconds after which names are looked up again
    ///
    /// 0.1 to 86400, decimals are allowed. A look-up that fails, or finds no address, changes
    /// nothing. SIGHUP has all names looked up at once.
    ///
    /// [variable: VLLM_PXY_RESOLVE_INTERVAL] [default: 5]
    #[arg(
        long,
        value_name = "SECS",
        help_heading = "Finding backends",
        allow_negative_numbers = true
    )]
    pub(crate) resolve_interval: Vec<OsString>,

    /// Address to listen on; `::` for IPv4 and IPv6
    ///
    /// [variable: VLLM_PXY_HOST] [default: 0.0.0.0]
    #[arg(short = 'H', long, help_heading = "Listening")]
    pub(crate) host: Vec<OsString>,

    /// Port to listen on
    ///
    /// 0 picks one, which the log entry `listening` tells. One that is taken is waited for, for 2
    /// seconds.
    ///
    /// [variable: VLLM_PXY_PORT] [default: 8000]
    #[arg(short, long, help_heading = "Listening", allow_negative_numbers = true)]
    pub(crate) port: Vec<OsString>,

    /// Address for /proxy/*, for operators: host:port, or :port on the address of --host
    ///
    /// How the proxy and its backends are, what changes that (POST), and all that the main address
    /// serves. The main one serves nothing below /proxy/ then; without this option it serves what
    /// can be read (GET). There is no authentication: let nobody reach it who is not an operator.
    ///
    /// POST /proxy/drain?backend=HOST:PORT keeps new requests from a backend, at all proxies on one
    /// Redis, and POST /proxy/undrain?backend=HOST:PORT ends that. What it has goes on to its end.
    ///
    /// [variable: VLLM_PXY_ADMIN] [default: none]
    #[arg(long, value_name = "ADDR", help_heading = "Listening")]
    pub(crate) admin: Vec<OsString>,

    /// Tell clients that ask why a backend was chosen for them
    ///
    /// Who sends the header `x-vllm-proxy-explain: 1` gets x-vllm-proxy-backend, -reason,
    /// -predicted-cached-tokens and -attempts with the answer. They tell whether somebody else
    /// sent the same prompt before, so they are off; the address of --admin has them always.
    ///
    /// --explain=false overrides the variable.
    ///
    /// [variable: VLLM_PXY_EXPLAIN, 1 or 0] [default: 0]
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        help_heading = "Listening"
    )]
    pub(crate) explain: Vec<OsString>,

    /// How a backend is chosen: cache-aware, least-load or round-robin
    ///
    /// least-load takes the one with the least work in hand among those that serve the model.
    /// cache-aware does so, too, and does not count as work what a backend has probably cached of
    /// the prompt, by what this proxy has sent there and what its answers or metrics said of that.
    /// round-robin takes each in turn.
    ///
    /// [variable: VLLM_PXY_POLICY] [default: cache-aware]
    #[arg(long, help_heading = "Choosing backends")]
    pub(crate) policy: Vec<OsString>,

    /// The model of requests that name none
    ///
    /// [variable: VLLM_PXY_DEFAULT_MODEL] [default: the first model of the first upstream]
    #[arg(long, value_name = "NAME", help_heading = "Choosing backends")]
    pub(crate) default_model: Vec<OsString>,

    /// An upstream that accepts model names it does not list
    ///
    /// One of UPSTREAM, for servers that load adapters when they are asked for (LoRA resolvers).
    /// Names that nobody lists go there instead of getting 404. Repeatable.
    ///
    /// [variable: VLLM_PXY_FORWARD_UNKNOWN, separated by commas or spaces]
    #[arg(long, value_name = "URL", help_heading = "Choosing backends")]
    pub(crate) forward_unknown: Vec<OsString>,

    /// Memory for what backends have cached, under --policy cache-aware
    ///
    /// Bytes, or a number with KiB, MiB or GiB; taken at the start. A megabyte has room for some
    /// 45,000 pieces of 128 tokens.
    ///
    /// [variable: VLLM_PXY_INDEX_MEMORY] [default: 64MiB]
    #[arg(
        long,
        value_name = "BYTES",
        help_heading = "Choosing backends",
        allow_negative_numbers = true
    )]
    pub(crate) index_memory: Vec<OsString>,

    /// Largest request body; a larger one gets 413
    ///
    /// Bytes, or a number with KiB, MiB or GiB.
    ///
    /// [variable: VLLM_PXY_MAX_BODY] [default: 256MiB]
    #[arg(long, value_name = "BYTES", help_heading = "Resources", allow_negative_numbers = true)]
    pub(crate) max_body: Vec<OsString>,

    /// All request bodies held at once; beyond it reading pauses
    ///
    /// Bytes, or a number with KiB, MiB or GiB. The default knows a container's limit.
    ///
    /// [variable: VLLM_PXY_BODY_MEMORY] [default: a quarter of the memory]
    #[arg(long, value_name = "BYTES", help_heading = "Resources", allow_negative_numbers = true)]
    pub(crate) body_memory: Vec<OsString>,

    /// Event loop threads
    ///
    /// [variable: VLLM_PXY_THREADS] [default: the cores available]
    #[arg(long, value_name = "N", help_heading = "Resources", allow_negative_numbers = true)]
    pub(crate) threads: Vec<OsString>,

    // What it says depends on what is built in.
    #[arg(
        long,
        help = runtime_help(),
        long_help = runtime_help_long(),
        help_heading = "Resources"
    )]
    pub(crate) runtime: Vec<OsString>,

    /// Seconds between a signal to stop and the end of listening
    ///
    /// Meanwhile /health says 503 and answers carry `Connection: close`, so that load balancers
    /// turn away first. Decimals are allowed.
    ///
    /// [variable: VLLM_PXY_DRAIN_GRACE] [default: 5]
    #[arg(long, value_name = "SECS", help_heading = "Stopping", allow_negative_numbers = true)]
    pub(crate) drain_grace: Vec<OsString>,

    /// Seconds that open requests get after that
    ///
    /// Decimals are allowed.
    ///
    /// [variable: VLLM_PXY_DRAIN_TIMEOUT] [default: 300]
    #[arg(long, value_name = "SECS", help_heading = "Stopping", allow_negative_numbers = true)]
    pub(crate) drain_timeout: Vec<OsString>,
}

#[derive(Args)]
pub(crate) struct HealthArgs {
    /// The proxy: host:port, :port, host or http://host:port
    ///
    /// What is left out is taken from VLLM_PXY_HOST and VLLM_PXY_PORT, and else from the default,
    /// 127.0.0.1:8000. An address to listen on any interface stands for this machine. What a server
    /// was told by --host and --port is not known here.
    pub(crate) addr: Option<OsString>,
}

fn runtime_help() -> String {
    format!("What moves the bytes: {}", Runtime::names())
}

fn runtime_help_long() -> String {
    let mut text = runtime_help();
    if cfg!(feature = "glommio") {
        text += "\n\nglommio works through io_uring: it needs Linux 6.1, a container or sandbox that \
                 allows io_uring, and memory that may be locked. What is missing is told at the \
                 start; how to give it is in `vllm-proxy readme`.";
    }
    if cfg!(all(feature = "smol", feature = "glommio")) {
        text += " smol runs anywhere.";
    }
    let usual = Runtime::usual().name();
    text + &format!("\n\n[variable: VLLM_PXY_RUNTIME] [default: {usual}]")
}

impl GlobalArgs {
    /// What stood before the subcommand, then what stood behind it.
    fn followed_by(mut self, mut later: Self) -> Self {
        self.redis.append(&mut later.redis);
        self.verbose = self.verbose.saturating_add(later.verbose);
        self.quiet = self.quiet.saturating_add(later.quiet);
        self.log_format.append(&mut later.log_format);
        self.http_timeout.append(&mut later.http_timeout);
        self
    }
}

/// Why there is nothing to run.
pub(crate) enum Stop {
    /// Help or version was asked for.
    Told(clap::Error),
    Wrong(UsageError),
}

impl Stop {
    pub(crate) fn finish(&self) -> ExitCode {
        match self {
            Self::Told(text) => {
                // Whoever closed standard output does not read it.
                let _ = text.print();
                ExitCode::SUCCESS
            }
            Self::Wrong(error) => complain(error, crate::USAGE),
        }
    }
}

pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<(GlobalArgs, Command), Stop> {
    let cli = Cli::try_parse_from(arguments).map_err(|error| {
        if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            Stop::Told(error)
        } else {
            Stop::Wrong(wording::of(&error, &program()))
        }
    })?;
    let (later, command) = match cli.command {
        Commands::Server(With { args, globals }) => (globals, Command::Server(args)),
        Commands::Readme(With { args: NoArgs {}, globals }) => (globals, Command::Readme),
        Commands::Demo(With { args, globals }) => (globals, Command::Demo(args)),
        Commands::Mock(With { args, globals }) => (globals, Command::Mock(args)),
        Commands::Simulate(With { args, globals }) => (globals, Command::Simulate(args)),
        Commands::Health(With { args, globals }) => (globals, Command::Health(args)),
        Commands::Completions(With { args, globals }) => (globals, Command::Completions(args)),
    };
    Ok((cli.globals.followed_by(later), command))
}

/// The definition of the command line.
pub(crate) fn program() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Prints to standard output, for a reader who may not stay to the end.
pub(crate) fn print(text: &str) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            complain(&format_args!("cannot print: {error}"), crate::FAILED)
        }
        _ => ExitCode::SUCCESS,
    }
}

/// One line on standard error.
pub(crate) fn complain(error: &dyn Display, status: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "vllm-proxy: {error}");
    ExitCode::from(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<(GlobalArgs, Command), Stop> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_definition_is_consistent() {
        program().debug_assert();
    }

    #[test]
    fn what_follows_the_options_is_wrapped_by_hand() {
        let program = program();
        for command in std::iter::once(&program).chain(program.get_subcommands()) {
            let text = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            for line in text.lines() {
                assert!(line.chars().count() <= 100, "{}: {line}", command.get_name());
            }
        }
    }

    #[test]
    fn global_options_of_both_places_add_up() {
        let line = "vllm-proxy -vv -q -T 1 -L json server -v --verbose -T 2 -L txt http://a";
        let Ok((globals, Command::Server(server))) = parsed(line) else { panic!("not parsed") };
        assert_eq!((globals.verbose, globals.quiet), (4, 1));
        assert_eq!(globals.http_timeout, ["1", "2"]);
        assert_eq!(globals.log_format, ["json", "txt"]);
        assert_eq!(server.upstreams, ["http://a"]);
    }
}
