//! Where Redis is, as the operator says it: the whole of `--redis` checked, its password kept where
//! no message shows it.
//!
//! Does not connect.

use crate::secret::{Secret, redacted};
use crate::upstream::UNIX_PATH_BYTES_MAX;
use crate::usage::Invalid;
use crate::values::{Host, host_and_port, number};
use std::fmt;

const EXPECTED: &str = "redis://[user:password@]host[:port][/db], rediss:// for TLS, \
                        redis+unix://[user:password@]/path[?db=0], local or off";
const PORT: u16 = 6379;
/// Redis's own `databases` is an `int`.
const DB_MAX: u64 = i32::MAX as u64;

/// What `--redis` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Redis {
    /// What the proxy learns stays in this process.
    Off,
    /// What the proxy learns is shared there.
    At(RedisUrl),
}

/// A server, a database of it, and who we are to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RedisUrl {
    pub(crate) server: Server,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) db: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Tcp { host: Host, port: u16, tls: bool },
    Unix(String),
}

impl Redis {
    /// `localhost:6379`.
    pub(crate) fn local() -> Self {
        let host = Host::Name("localhost".to_owned());
        Self::At(RedisUrl {
            server: Server::Tcp { host, port: PORT, tls: false },
            user: None,
            password: None,
            db: 0,
        })
    }

    pub(crate) fn parse(text: &str) -> Result<Self, Invalid> {
        match text {
            "off" => Ok(Self::Off),
            "local" => Ok(Self::local()),
            _ => RedisUrl::parse(text)
                .map(Self::At)
                .map_err(|what| Invalid::shown_as(redacted(text), format!("{EXPECTED}{what}"))),
        }
    }
}

impl RedisUrl {
    /// The error says what is wrong, without a word of the value.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let Some((scheme, rest)) = text.split_once("://") else { return Err("") };
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "redis" => false,
            "rediss" => true,
            "redis+unix" => return Self::unix(rest),
            _ => return Err(""),
        };
        if rest.contains(['?', '#']) {
            return Err(" (`?` and `#` of a password are written %3F and %23)");
        }
        let (authority, db) = rest.split_once('/').unwrap_or((rest, ""));
        let (user_info, address) = match authority.rsplit_once('@') {
            Some((user_info, address)) => (Some(user_info), address),
            None if rest.contains('@') => return Err(" (`/` of a password is written %2F)"),
            None => (None, authority),
        };
        let (user, password) = match user_info {
            Some(user_info) => credentials(user_info)?,
            None => (None, None),
        };
        let (host, port) = host_and_port(address).ok_or(" (the host or port is not one)")?;
        let db = if db.is_empty() { Some(0) } else { database(db) };
        let db = db.ok_or(" (the database is a number)")?;
        let server = Server::Tcp { host, port: port.unwrap_or(PORT), tls };
        Ok(Self { server, user, password, db })
    }

    fn unix(rest: &str) -> Result<Self, &'static str> {
        // A path may hold an `@`; what is before the first `/` is none of it.
        let (user_info, path) = match rest.find('/').map(|at| rest.split_at(at)) {
            Some(("", path)) => (None, path),
            Some((user_info, path)) => {
                let user_info = user_info.strip_suffix('@');
                (Some(user_info.ok_or(" (the path is absolute and of at most 107 bytes)")?), path)
            }
            None => return Err(" (the path is absolute and of at most 107 bytes)"),
        };
        let (user, password) = match user_info {
            Some(user_info) => credentials(user_info)?,
            None => (None, None),
        };
        let (path, db) = match path.split_once('?') {
            Some((path, query)) => (path, query.strip_prefix("db=").map(database)),
            None => (path, Some(Some(0))),
        };
        let db = db.flatten().ok_or(" (nothing but ?db= and a number can follow the path)")?;
        if path.len() > UNIX_PATH_BYTES_MAX {
            return Err(" (the path is absolute and of at most 107 bytes)");
        }
        if path.contains('#') || path.chars().any(char::is_control) {
            return Err(" (nothing but ?db= and a number can follow the path)");
        }
        Ok(Self { server: Server::Unix(path.to_owned()), user, password, db })
    }
}

/// The number of a database.
fn database(text: &str) -> Option<u32> {
    let db = number(text).filter(|db| *db <= DB_MAX)?;
    u32::try_from(db).ok()
}

/// `user:password` or `:password`, with `%` escapes.
fn credentials(text: &str) -> Result<(Option<String>, Option<Secret>), &'static str> {
    let (user, password) = text.split_once(':').ok_or(" (`user:` or `:` before the password)")?;
    if password.contains(':') || password.contains('@') || user.contains('@') {
        return Err(" (`:` and `@` of a password are written %3A and %40)");
    }
    let decoded = |text: &str| unescaped(text).ok_or(" (`%` of a password is written %25)");
    let (user, password) = (decoded(user)?, decoded(password)?);
    if password.is_empty() {
        return Err(" (a user without a password)");
    }
    Ok(((!user.is_empty()).then_some(user), Some(Secret::new(password))))
}

/// Undoes percent-encoding; `None` if it is not, or if what comes out is no text.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            0..=b' ' | 0x7f => return None,
            _ => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Without user and password.
impl fmt::Display for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(RedisUrl { server: Server::Tcp { host, port, tls }, db, .. }) => {
                write!(f, "redis{}://{host}:{port}/{db}", if *tls { "s" } else { "" })
            }
            Self::At(RedisUrl { server: Server::Unix(path), db: 0, .. }) => {
                write!(f, "redis+unix://{path}")
            }
            Self::At(RedisUrl { server: Server::Unix(path), db, .. }) => {
                write!(f, "redis+unix://{path}?db={db}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::off("off", "off")]
    #[case::local("local", "redis://localhost:6379/0")]
    #[case::host("redis://cache", "redis://cache:6379/0")]
    #[case::slash("redis://cache/", "redis://cache:6379/0")]
    #[case::all("redis://me:hunter2@cache:7000/3", "redis://cache:7000/3")]
    #[case::no_user("redis://:hunter2@cache", "redis://cache:6379/0")]
    #[case::tls("rediss://me:hunter2@cache", "rediss://cache:6379/0")]
    #[case::ipv6("redis://[::1]:7000", "redis://[::1]:7000/0")]
    #[case::unix("redis+unix:///run/redis.sock", "redis+unix:///run/redis.sock")]
    #[case::unix_all("redis+unix://me:hunter2@/run/r@1?db=3", "redis+unix:///run/r@1?db=3")]
    #[case::unix_at("redis+unix:///run/a@b", "redis+unix:///run/a@b")]
    fn valid(#[case] text: &str, #[case] shown: &str) {
        let redis = Redis::parse(text).unwrap();
        assert_eq!(redis.to_string(), shown);
        assert!(!format!("{redis:?}").contains("hunter2"));
    }

    #[test]
    fn passwords_are_unescaped() {
        let Redis::At(url) = Redis::parse("redis://me:p%40%3a%2F%25@cache/1").unwrap() else {
            panic!("not a server");
        };
        assert_eq!(url.user.as_deref(), Some("me"));
        assert_eq!(url.password.unwrap().expose(), "p@:/%");
        assert_eq!(url.db, 1);
    }

    #[rstest]
    #[case::empty("")]
    #[case::word("hunter2")]
    #[case::no_scheme("me:hunter2@cache")]
    #[case::wrong_scheme("http://me:hunter2@cache")]
    #[case::no_host("redis://")]
    #[case::host_forgotten("redis://me:hunter2")]
    #[case::no_colon("redis://hunter2@cache")]
    #[case::no_password("redis://me:@cache")]
    #[case::at_in_password("redis://me:hunter@2@cache")]
    #[case::slash_in_password("redis://me:hunter/2@cache")]
    #[case::question_mark_in_password("redis://me:hunter?2@cache")]
    #[case::hash_in_password("redis://me:hunter#2@cache")]
    #[case::colon_in_password("redis://me:hunter:2@cache")]
    #[case::bad_escape("redis://me:hunter%zz2@cache")]
    #[case::bad_port("redis://me:hunter2@cache:x")]
    #[case::bad_db("redis://me:hunter2@cache/x")]
    #[case::negative_db("redis://cache/-1")]
    #[case::large_db("redis://cache/4294967296")]
    #[case::query("redis://cache?password=hunter2")]
    #[case::unix_relative("redis+unix://redis.sock")]
    #[case::unix_query("redis+unix:///redis.sock?pass=hunter2")]
    #[case::unix_db("redis+unix:///redis.sock?db=x")]
    #[case::unix_hash("redis+unix:///redis.sock#hunter2")]
    #[case::unix_no_path("redis+unix://me:hunter2@")]
    #[case::unix_no_user_info("redis+unix://hunter2/redis.sock")]
    #[case::upper_case_word("OFF")]
    fn invalid(#[case] text: &str) {
        let invalid = Redis::parse(text).unwrap_err();
        let said = format!("{invalid:?}");
        assert!(said.contains("redis://[user:password@]host[:port][/db]"), "{said}");
        assert!(!said.contains("hunter"), "{said}");
    }
}
