//! Connections to Redis, and what is wrong where there is none, in words for an operator.
//!
//! Knows the `redis` crate; does not know what is said over a connection.

use crate::redis_url::{RedisUrl, Server};
use crate::values::Host;
use redis::{
    Client, Connection, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, RedisError,
    RedisResult,
};
use std::time::Duration;

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

/// The pauses between attempts to connect.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    taken: usize,
}

impl Pauses {
    /// How long to wait before the next attempt.
    pub(super) fn next(&mut self) -> Duration {
        let pause = PAUSES[self.taken.min(PAUSES.len() - 1)];
        self.taken += 1;
        pause
    }

    /// Whether several attempts in a row have failed.
    pub(super) const fn are_long(&self) -> bool {
        self.taken >= PAUSES.len()
    }

    /// An attempt succeeded.
    pub(super) const fn reset(&mut self) {
        self.taken = 0;
    }
}

/// Connects, shows the password and selects the database.
pub(super) fn connect(url: &RedisUrl) -> RedisResult<Connection> {
    let client = Client::open(info(url)?)?;
    let mut connection = client.get_connection_with_timeout(PATIENCE)?;
    // Else a Redis that hangs would hold the thread for ever.
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    refuse_others(&mut connection)?;
    Ok(connection)
}

/// A cluster's nodes keep parts of a database each, and a sentinel none.
fn refuse_others(connection: &mut Connection) -> RedisResult<()> {
    // Whoever may not ask is believed to know what he named.
    let told: String = redis::cmd("INFO").arg("server").query(connection).unwrap_or_default();
    let mode = told.lines().find_map(|line| line.strip_prefix("redis_mode:"));
    match mode.map(str::trim) {
        Some(mode @ ("cluster" | "sentinel")) => {
            let what = format!("this is a Redis {mode}; a single server was expected");
            Err(RedisError::from((redis::ErrorKind::InvalidClientConfig, "not usable", what)))
        }
        _ => Ok(()),
    }
}

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
    let mut settings = RedisConnectionInfo::default().set_db(url.db.into()).set_skip_set_lib_name();
    if let Some(user) = &url.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &url.password {
        settings = settings.set_password(password.expose());
    }
    // Words are small and must not wait for the acknowledgement of the ones before.
    let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
    Ok(address.into_connection_info()?.set_redis_settings(settings).set_tcp_settings(tcp))
}

/// What is wrong, in one line without a secret. `command` is what was being said.
pub(super) fn reason(error: &RedisError, command: &str) -> String {
    let said = error.detail().unwrap_or_default();
    match error.code() {
        Some("NOPERM") => format!("the user has no permission for {command}: NOPERM {said}"),
        Some("READONLY") => format!("{command} was refused: this is a read-only replica"),
        Some("MOVED" | "ASK" | "CLUSTERDOWN") => {
            "this is a node of a Redis cluster; a single server was expected".to_owned()
        }
        Some("OOM") => format!("{command} was refused: Redis has no memory left (maxmemory)"),
        Some(code) => format!("{command} was refused: {code} {said}"),
        None if error.kind() == redis::ErrorKind::InvalidClientConfig => said.to_owned(),
        None if is_silence(error) => format!("{command} was not answered in time"),
        None => error.to_string(),
    }
}

/// Whether nothing came in time, rather than that the connection is broken.
pub(super) fn is_silence(error: &RedisError) -> bool {
    error.is_timeout()
}
