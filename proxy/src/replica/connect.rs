//! Connections to Redis, and what is wrong where there is none, in words for an operator.
//!
//! Knows the `redis` crate; does not know what is said over a connection.

use crate::redis_url::{Redis, RedisUrl, Server};
use crate::values::Host;
use redis::{
    Client, Cmd, Connection, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisConnectionInfo,
    RedisError, RedisResult,
};
use rustls::AlertDescription;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a connection, a password or any answer may take. Ten times what a Redis on another
/// continent needs.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// Pauses between attempts, one after another; the last one for ever.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// A connection that lasted so long was a good one: after it pauses begin anew.
const GOOD: Duration = Duration::from_secs(5);

/// The pauses between attempts to connect. One that succeeds is no reason for a shorter pause if
/// what it brought ends at once.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    taken: usize,
    last: Option<Instant>,
}

impl Pauses {
    /// How long to wait before the next attempt, now that the last one, or what came of it, ended.
    pub(super) fn next(&mut self, now: Instant) -> Duration {
        self.taken = self.failed(now);
        let pause = PAUSES[self.taken.min(PAUSES.len() - 1)];
        self.taken += 1;
        self.last = Some(now + pause);
        pause
    }

    /// Whether several attempts in a row have failed.
    pub(super) fn are_long(&self, now: Instant) -> bool {
        self.failed(now) >= PAUSES.len()
    }

    /// Attempts that failed since the last good connection.
    fn failed(&self, now: Instant) -> usize {
        let lasted = self.last.is_some_and(|last| now.duration_since(last) > GOOD);
        if lasted { 0 } else { self.taken }
    }
}

/// What went wrong, and what was being done or said.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) doing: String,
    pub(super) error: RedisError,
}

/// At what something went wrong.
pub(super) trait During<T> {
    fn during(self, doing: &str) -> Result<T, Trouble>;
}

impl<T> During<T> for RedisResult<T> {
    fn during(self, doing: &str) -> Result<T, Trouble> {
        self.map_err(|error| Trouble { doing: doing.to_owned(), error })
    }
}

/// Connects, shows the password and selects the database.
pub(super) fn connect(url: &RedisUrl) -> Result<Connection, Trouble> {
    let client = info(url).and_then(Client::open).during(CONNECTING)?;
    let mut connection = client.get_connection_with_timeout(PATIENCE).during(CONNECTING)?;
    // Else a Redis that hangs would hold the thread for ever.
    let limit = Some(PATIENCE);
    let limited = connection.set_read_timeout(limit);
    limited.and_then(|()| connection.set_write_timeout(limit)).during(CONNECTING)?;
    // The library would tell nothing of why a password is refused.
    if let Some(password) = &url.password {
        let auth = redis::cmd("AUTH").arg(&url.user).arg(password.expose()).take();
        auth.exec(&mut connection).during(AUTH)?;
    }
    refuse_others(&mut connection)?;
    // After that, since who is no single server knows no databases.
    if url.db != 0 {
        let doing = format!("SELECT {}", url.db);
        redis::cmd("SELECT").arg(url.db).exec(&mut connection).during(&doing)?;
    }
    Ok(connection)
}

const CONNECTING: &str = "connecting";

/// The command whose arguments are secret, and with them what an answer may repeat.
const AUTH: &str = "AUTH";

/// What may be repeated of an answer to it.
const KNOWN_OF_AUTH: [&str; 4] = [
    "called without any password configured",
    "max number of clients reached",
    "unknown command",
    "wrong number of arguments",
];

/// A cluster's nodes keep parts of a database each, and a sentinel none.
fn refuse_others(connection: &mut Connection) -> Result<(), Trouble> {
    let told = match Cmd::new().arg("INFO").arg("server").query::<String>(connection) {
        // Whoever may not ask is believed to know what he named.
        Err(error) if error.code() == Some("NOPERM") || is_unknown(&error) => String::new(),
        told => told.during("INFO")?,
    };
    let mode = told.lines().find_map(|line| line.strip_prefix("redis_mode:"));
    let what = match mode.map(str::trim) {
        Some("cluster") => A_NODE,
        Some("sentinel") => A_SENTINEL,
        _ => return Ok(()),
    };
    let error = (ErrorKind::InvalidClientConfig, "not usable", what.to_owned());
    Err(RedisError::from(error)).during("INFO")
}

/// The command was renamed, or this is an older server.
fn is_unknown(error: &RedisError) -> bool {
    error.code() == Some("ERR") && error.detail().is_some_and(|said| said.contains("unknown comm"))
}

const A_NODE: &str = "this is a node of a Redis cluster: a single server was expected";
const A_SENTINEL: &str = "this is a Redis sentinel: a single server was expected";

fn info(url: &RedisUrl) -> RedisResult<redis::ConnectionInfo> {
    let address = match &url.server {
        Server::Tcp { host, port, tls } => {
            let host = match host {
                Host::Ip(ip) => ip.to_string(),
                Host::Name(name) => name.clone(),
            };
            if *tls {
                let (insecure, tls_params) = (false, None);
                ConnectionAddr::TcpTls { host, port: *port, insecure, tls_params }
            } else {
                ConnectionAddr::Tcp(host, *port)
            }
        }
        Server::Unix(path) => ConnectionAddr::Unix(path.into()),
    };
    // Older servers do not know how a library names itself.
    let settings = RedisConnectionInfo::default().set_skip_set_lib_name();
    // Words are small and must not wait for the acknowledgement of the ones before.
    let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
    Ok(address.into_connection_info()?.set_redis_settings(settings).set_tcp_settings(tcp))
}

/// What is wrong there, in one line without a secret: what it was, and what was expected.
pub(super) fn reason(url: &RedisUrl, Trouble { doing, error }: &Trouble) -> String {
    if let Some(code) = error.code() {
        return refusal(doing, code, error.detail().unwrap_or_default());
    }
    let tls = matches!(url.server, Server::Tcp { tls: true, .. });
    let (place, with_tls) = (Redis::At(url.clone()), if tls { " that speaks TLS" } else { "" });
    let expected = format!("a Redis server{with_tls} was expected");
    if let Some(failure) = tls_failure(error) {
        let asks = rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
        let expected = if matches!(failure, rustls::Error::InvalidCertificate(_)) {
            TRUST
        } else if *failure == asks {
            NO_CERTIFICATE
        } else {
            &expected
        };
        return format!("TLS failed at {place}: {failure}: {expected}");
    }
    if error.kind() == ErrorKind::InvalidClientConfig {
        error.detail().unwrap_or("no usable address").to_owned()
    } else if !error.is_io_error() {
        // What it says may be anything, an echo of a password for one.
        format!("{place} answers {doing} as Redis never would: {expected}")
    } else if doing == CONNECTING {
        format!("cannot connect to {place}: {error}")
    } else if error.is_timeout() {
        let seconds = PATIENCE.as_secs();
        format!("no answer to {doing} from {place} within {seconds} s: {expected}")
    } else if error.is_connection_dropped() {
        format!("{place} closed the connection at {doing}: {expected} ({error})")
    } else {
        format!("{doing} failed at {place}: {error}")
    }
}

/// What Redis means by this answer.
fn refusal(doing: &str, code: &str, said: &str) -> String {
    // An unknown command is repeated with all that was said with it.
    let said = said.split(", with args beginning").next().unwrap_or_default();
    let why = match code {
        "WRONGPASS" => return "the user or the password is wrong (WRONGPASS)".to_owned(),
        "NOAUTH" => return "Redis wants a password, and none was given (NOAUTH)".to_owned(),
        "DENIED" => "Redis is in protected mode, and from elsewhere it wants a password",
        "NOPERM" => return format!("the user has no permission for {doing}: NOPERM {said}"),
        "READONLY" => "this is a read-only replica",
        "MASTERDOWN" => "this is a replica that has lost its master",
        "MOVED" | "ASK" | "CLUSTERDOWN" | "CROSSSLOT" | "TRYAGAIN" => A_NODE,
        "OOM" => "Redis has no memory left (maxmemory)",
        "LOADING" => "Redis has just started and is still loading what was on its disk",
        "MISCONF" => "Redis cannot save to its disk, and takes nothing new meanwhile",
        "NOREPLICAS" => "Redis has too few replicas (min-replicas-to-write)",
        "BUSY" => "Redis is busy with a script",
        "ERR" if doing == AUTH => {
            let known = KNOWN_OF_AUTH.into_iter().find(|part| said.contains(part));
            known.unwrap_or_default()
        }
        _ if doing == AUTH => "",
        _ => said,
    };
    format!("{doing} was refused: {code} {why}").trim_end().to_owned()
}

const TRUST: &str =
    "a certificate was expected that the system trusts, or one of those in SSL_CERT_FILE";
const NO_CERTIFICATE: &str =
    "a Redis was expected that wants no certificate of its clients (tls-auth-clients no)";

/// What is wrong with TLS, if that is it.
fn tls_failure(error: &RedisError) -> Option<&rustls::Error> {
    // The library's own pointer to what went wrong is what it shows.
    let source: &Arc<dyn Error + Send + Sync> = error.source()?.downcast_ref()?;
    let within = || source.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref();
    source.downcast_ref().or_else(within)
}

/// Whether nothing came in time, rather than that the connection is broken.
pub(super) fn is_silence(error: &RedisError) -> bool {
    error.is_timeout()
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::Value;
    use rstest::rstest;

    const A_SECRET: &str = "hunter2";

    fn url(text: &str) -> RedisUrl {
        let Ok(Redis::At(url)) = Redis::parse(text) else { panic!("{text} is one") };
        url
    }

    /// What is said of an answer of Redis, and that it holds no secret.
    #[rstest]
    #[case::wrong_password(
        "AUTH",
        "WRONGPASS invalid username-password pair or user is disabled.",
        "the user or the password is wrong (WRONGPASS)"
    )]
    #[case::no_password(
        "INFO",
        "NOAUTH Authentication required.",
        "Redis wants a password, and none was given (NOAUTH)"
    )]
    #[case::protected(
        "INFO",
        "DENIED Redis is running in protected mode because protected mode is enabled..",
        "INFO was refused: DENIED Redis is in protected mode, and from elsewhere it wants a password"
    )]
    #[case::password_too_many(
        "AUTH",
        "ERR AUTH <password> called without any password configured for the default user.",
        "AUTH was refused: ERR called without any password configured"
    )]
    #[case::auth_repeated(
        "AUTH",
        "ERR unknown command 'AUTH', with args beginning with: 'someone' 'hunter2' ",
        "AUTH was refused: ERR unknown command"
    )]
    #[case::auth_answered_by_anything("AUTH", "ERR what is hunter2?", "AUTH was refused: ERR")]
    #[case::auth_refused_otherwise("AUTH", "NOSUCH hunter2", "AUTH was refused: NOSUCH")]
    #[case::permission(
        "PUBLISH",
        "NOPERM this user has no permissions to run the 'publish' command",
        "the user has no permission for PUBLISH: NOPERM this user has no permissions to run the \
         'publish' command"
    )]
    #[case::replica(
        "APPEND",
        "READONLY You can't write against a read only replica.",
        "APPEND was refused: READONLY this is a read-only replica"
    )]
    #[case::lost_master(
        "GET",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "GET was refused: MASTERDOWN this is a replica that has lost its master"
    )]
    #[case::cluster(
        "GET",
        "MOVED 3999 127.0.0.1:6381",
        "GET was refused: MOVED this is a node of a Redis cluster: a single server was expected"
    )]
    #[case::memory(
        "APPEND",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "APPEND was refused: OOM Redis has no memory left (maxmemory)"
    )]
    #[case::loading(
        "GET",
        "LOADING Redis is loading the dataset in memory",
        "GET was refused: LOADING Redis has just started and is still loading what was on its disk"
    )]
    #[case::disk(
        "APPEND",
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to",
        "APPEND was refused: MISCONF Redis cannot save to its disk, and takes nothing new meanwhile"
    )]
    #[case::few_replicas(
        "APPEND",
        "NOREPLICAS Not enough good replicas to write.",
        "APPEND was refused: NOREPLICAS Redis has too few replicas (min-replicas-to-write)"
    )]
    #[case::busy(
        "GET",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL",
        "GET was refused: BUSY Redis is busy with a script"
    )]
    #[case::database(
        "SELECT 99",
        "ERR DB index is out of range",
        "SELECT 99 was refused: ERR DB index is out of range"
    )]
    #[case::renamed(
        "PUBLISH",
        "ERR unknown command 'PUBLISH', with args beginning with: 'vllm-proxy:1:0' '..' ",
        "PUBLISH was refused: ERR unknown command 'PUBLISH'"
    )]
    #[case::something_new("GET", "NEW kind of error", "GET was refused: NEW kind of error")]
    fn refusals_are_explained(#[case] doing: &str, #[case] answer: &str, #[case] expected: &str) {
        let value = redis::parse_redis_value(format!("-{answer}\r\n").as_bytes());
        let Ok(Value::ServerError(error)) = value else { panic!("it is an error: {value:?}") };
        let trouble = Trouble { doing: doing.to_owned(), error: error.into() };
        let said = reason(&url("redis://someone:hunter2@cache/3"), &trouble);
        assert_eq!(said, expected);
        assert!(!said.contains(A_SECRET), "{said}");
    }

    #[rstest]
    #[case::refused(
        "redis://cache", "connecting", io::ErrorKind::ConnectionRefused.into(),
        "cannot connect to redis://cache:6379/0: connection refused"
    )]
    #[case::silent(
        "rediss://me:hunter2@cache", "INFO", io::ErrorKind::WouldBlock.into(),
        "no answer to INFO from rediss://cache:6379/0 within 2 s: a Redis server that speaks TLS was \
         expected"
    )]
    #[case::closed(
        "redis+unix://me:hunter2@/run/redis", "AUTH", io::ErrorKind::UnexpectedEof.into(),
        "redis+unix:///run/redis closed the connection at AUTH: a Redis server was expected \
         (unexpected end of file)"
    )]
    #[case::not_trusted(
        "rediss://cache",
        "INFO",
        io::Error::other(rustls::Error::from(rustls::CertificateError::UnknownIssuer)),
        "TLS failed at rediss://cache:6379/0: invalid peer certificate: UnknownIssuer: a certificate \
         was expected that the system trusts, or one of those in SSL_CERT_FILE"
    )]
    #[case::wants_a_certificate(
        "rediss://cache",
        "INFO",
        io::Error::other(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)),
        "TLS failed at rediss://cache:6379/0: received fatal alert: CertificateRequired: a Redis was \
         expected that wants no certificate of its clients (tls-auth-clients no)"
    )]
    #[case::speaks_no_tls(
        "rediss://cache",
        "INFO",
        io::Error::other(rustls::Error::HandshakeNotComplete),
        "TLS failed at rediss://cache:6379/0: handshake not complete: a Redis server that speaks TLS \
         was expected"
    )]
    fn failures_are_explained(
        #[case] place: &str,
        #[case] doing: &str,
        #[case] error: io::Error,
        #[case] expected: &str,
    ) {
        let trouble = Trouble { doing: doing.to_owned(), error: error.into() };
        assert_eq!(reason(&url(place), &trouble), expected);
    }

    #[test]
    fn what_is_no_redis_is_not_repeated() {
        let error = redis::parse_redis_value(b"HTTP/1.1 hunter2\r\n").expect_err("it is none");
        let said = reason(&url("redis://cache"), &Trouble { doing: "INFO".to_owned(), error });
        assert_eq!(
            said,
            "redis://cache:6379/0 answers INFO as Redis never would: a Redis server was expected"
        );
    }

    #[test]
    fn pauses_grow_until_a_connection_was_a_good_one() {
        let mut pauses = Pauses::default();
        let mut now = Instant::now();
        let mut millis = |lasted: u64| {
            now += Duration::from_secs(lasted);
            let pause = pauses.next(now);
            now += pause;
            pause.as_millis()
        };
        assert_eq!([0; 6].map(&mut millis), [50, 200, 500, 1_000, 1_000, 1_000]);
        assert_eq!([2, 5, 6, 0, 0].map(millis), [1_000, 1_000, 50, 200, 500]);
    }
}
