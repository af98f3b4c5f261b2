//! Small values as operators write them: sizes, times, numbers, hosts and ports.
//!
//! Does not know which option a value belongs to.

use crate::usage::Invalid;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// Longer than any process lives, and far from overflow: 100 years.
const SECONDS_MAX: u64 = 100 * 365 * 86_400;

/// An IP address, or a name that is still to be looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Ip(IpAddr),
    Name(String),
}

impl Host {
    /// As it stands in a URL: IPv6 addresses in brackets.
    pub(crate) fn parse_in_url(text: &str) -> Option<Self> {
        match text.strip_prefix('[') {
            Some(rest) => {
                let address: Ipv6Addr = rest.strip_suffix(']')?.parse().ok()?;
                Some(Self::Ip(address.into()))
            }
            None => match text.parse::<Ipv4Addr>() {
                Ok(address) => Some(Self::Ip(address.into())),
                Err(_) => is_name(text).then(|| Self::Name(text.to_ascii_lowercase())),
            },
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Ip(IpAddr::V4(address)) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Whether a name can be looked up. Underscores are no host names by RFC 952, but container
/// networks make them.
fn is_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    // A last label of digits is a mistyped IPv4 address, which a resolver may take for another.
    let last_is_number =
        name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    name.len() <= 253 && name.split('.').all(label) && !last_is_number
}

/// `host[:port]` of a URL.
pub(crate) fn host_and_port(text: &str) -> Option<(Host, Option<u16>)> {
    // The colons of an IPv6 address stand within its brackets.
    let after_host = text.rfind(']').map_or(0, |bracket| bracket + 1);
    match text[after_host..].find(':') {
        Some(colon) => {
            let (host, port) = text.split_at(after_host + colon);
            let port = number(&port[1..]).filter(|port| *port != 0)?;
            Some((Host::parse_in_url(host)?, Some(u16::try_from(port).ok()?)))
        }
        None => Some((Host::parse_in_url(text)?, None)),
    }
}

/// Digits and nothing else: no sign, no space, which `str::parse` would take or not as it likes.
pub(crate) fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// `--host`: brackets around an IPv6 address may be left out, as there is no port.
pub(crate) fn listen_host(text: &str) -> Result<Host, Invalid> {
    text.parse::<IpAddr>()
        .ok()
        .map(Host::Ip)
        .or_else(|| Host::parse_in_url(text))
        .ok_or_else(|| Invalid::expected("an IP address or a host name"))
}

/// `--port`: 0 is one that the system picks.
pub(crate) fn listen_port(text: &str) -> Result<u16, Invalid> {
    number(text)
        .and_then(|port| u16::try_from(port).ok())
        .ok_or_else(|| Invalid::expected("a number from 0 to 65535"))
}

/// What is on or off, such as `--explain`.
pub(crate) fn switch(text: &str) -> Result<bool, Invalid> {
    let is = |words: [&str; 4]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is(["1", "true", "yes", "on"]) {
        Ok(true)
    } else if is(["0", "false", "no", "off"]) {
        Ok(false)
    } else {
        Err(Invalid::expected("1, true, yes or on, or 0, false, no or off"))
    }
}

/// `--threads`.
pub(crate) fn threads(text: &str) -> Result<NonZeroUsize, Invalid> {
    /// More than any machine has cores; each costs a stack and a listener.
    const THREADS_MAX: usize = 1024;
    number(text)
        .and_then(|count| usize::try_from(count).ok())
        .and_then(NonZeroUsize::new)
        .filter(|count| count.get() <= THREADS_MAX)
        .ok_or_else(|| Invalid::expected(format!("a number from 1 to {THREADS_MAX}")))
}

/// A number of bytes, `KiB`, `MiB` or `GiB`. Zero is refused: some would take it for "no limit".
pub(crate) fn size(text: &str) -> Result<u64, Invalid> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(split);
    let unit = match suffix {
        "" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1_u64 << 30),
        _ => None,
    };
    number(digits)
        .zip(unit)
        .and_then(|(count, unit)| count.checked_mul(unit))
        .filter(|bytes| *bytes != 0 && i64::try_from(*bytes).is_ok())
        .ok_or_else(|| Invalid::expected("a positive number of bytes, or of KiB, MiB or GiB"))
}

/// `--http-timeout`: minutes; `None` is never.
pub(crate) fn http_timeout(text: &str) -> Result<Option<Duration>, Invalid> {
    decimal(text, 60)
        .map(|timeout| (!timeout.is_zero()).then_some(timeout))
        .ok_or_else(|| Invalid::expected("a number of minutes, such as 60 or 0.5, or 0 for never"))
}

/// `--drain-grace` and `--drain-timeout`: seconds.
pub(crate) fn seconds(text: &str) -> Result<Duration, Invalid> {
    decimal(text, 1).ok_or_else(|| Invalid::expected("a number of seconds, such as 5 or 0.5"))
}

/// `--resolve-interval`: seconds. Shorter ones would only burden name servers, and more than a day
/// is a mistake.
pub(crate) fn resolve_interval(text: &str) -> Result<Duration, Invalid> {
    const SHORTEST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(86_400);
    decimal(text, 1)
        .filter(|interval| (SHORTEST..=LONGEST).contains(interval))
        .ok_or_else(|| Invalid::expected("a number of seconds from 0.1 to 86400, such as 5 or 0.5"))
}

/// `--upstreams-file`.
pub(crate) fn path(text: &str) -> Result<PathBuf, Invalid> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(Invalid::expected("the path of a file"));
    }
    Ok(PathBuf::from(text))
}

/// A weight, in hundredths.
pub(crate) fn weight(text: &str) -> Option<u16> {
    const HUNDREDTH_MICROS: u128 = 10_000;
    let micros = decimal(text, 1)?.as_micros();
    let hundredths = u16::try_from((micros + HUNDREDTH_MICROS / 2) / HUNDREDTH_MICROS).ok()?;
    (1..=10_000).contains(&hundredths).then_some(hundredths)
}

/// Digits with at most one point, in units of so many seconds. Rounded up, so that only zero is
/// zero.
fn decimal(text: &str, unit_seconds: u64) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // Twelve digits are a picominute; any further one only rounds up.
    let (kept, rest) = fraction.split_at(fraction.len().min(12));
    let mut parts: u128 = kept.bytes().fold(0, |sum, digit| sum * 10 + u128::from(digit - b'0'));
    parts *= 10_u128.pow(12 - u32::try_from(kept.len()).ok()?);
    parts += u128::from(rest.bytes().any(|digit| digit != b'0'));
    let micros = (parts * u128::from(unit_seconds)).div_ceil(1_000_000);
    let seconds = whole.checked_mul(unit_seconds).filter(|seconds| *seconds <= SECONDS_MAX)?;
    Some(Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(micros).ok()?))
}

/// `--default-model`.
pub(crate) fn model(text: &str) -> Result<String, Invalid> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(Invalid::expected("the name of a model"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::bytes("1000", Some(1_000))]
    #[case::kib("64KiB", Some(64 << 10))]
    #[case::mib("256MiB", Some(256 << 20))]
    #[case::gib("3GiB", Some(3 << 30))]
    #[case::zero("0", None)]
    #[case::zero_gib("0GiB", None)]
    #[case::empty("", None)]
    #[case::suffix_alone("MiB", None)]
    #[case::decimal_suffix("1MB", None)]
    #[case::fraction("1.5GiB", None)]
    #[case::space("1 MiB", None)]
    #[case::sign("+1", None)]
    #[case::negative("-1", None)]
    #[case::overflow("99999999999999999999", None)]
    #[case::overflow_by_unit("9999999999GiB", None)]
    fn sizes(#[case] text: &str, #[case] bytes: Option<u64>) {
        assert_eq!(size(text).ok(), bytes);
    }

    #[rstest]
    #[case::whole("60", Some(3_600_000_000))]
    #[case::decimals("0.5", Some(30_000_000))]
    #[case::no_whole(".25", Some(15_000_000))]
    #[case::no_fraction("1.", Some(60_000_000))]
    #[case::zero("0", Some(0))]
    #[case::zeros("0.000", Some(0))]
    #[case::tiny_is_not_never("0.00000000000000000001", Some(1))]
    #[case::long("0.333333333333333333333", Some(20_000_001))]
    #[case::empty("", None)]
    #[case::point(".", None)]
    #[case::negative("-1", None)]
    #[case::exponent("1e3", None)]
    #[case::infinite("inf", None)]
    #[case::not_a_number("NaN", None)]
    #[case::points("1.2.3", None)]
    #[case::huge("99999999999999999999", None)]
    #[case::too_long("999999999", None)]
    fn minutes(#[case] text: &str, #[case] micros: Option<u128>) {
        assert_eq!(decimal(text, 60).map(|timeout| timeout.as_micros()), micros);
    }

    #[rstest]
    #[case::usual("5", Some(5_000))]
    #[case::least("0.1", Some(100))]
    #[case::most("86400", Some(86_400_000))]
    #[case::too_short("0.099999", None)]
    #[case::never("0", None)]
    #[case::too_long("86400.1", None)]
    #[case::unit("5s", None)]
    fn intervals(#[case] text: &str, #[case] millis: Option<u128>) {
        assert_eq!(resolve_interval(text).ok().map(|interval| interval.as_millis()), millis);
    }

    #[rstest]
    #[case::name("vllm-1.internal:8000", Some(("vllm-1.internal", Some(8000))))]
    #[case::underscore("vllm_1", Some(("vllm_1", None)))]
    #[case::upper_case("HOST", Some(("host", None)))]
    #[case::rooted("host.:80", Some(("host.", Some(80))))]
    #[case::ipv4("10.0.0.1:1", Some(("10.0.0.1", Some(1))))]
    #[case::ipv6("[::1]:8000", Some(("[::1]", Some(8000))))]
    #[case::ipv6_without_port("[fe80::2]", Some(("[fe80::2]", None)))]
    #[case::no_port("host:", None)]
    #[case::port_zero("host:0", None)]
    #[case::port_too_large("host:65536", None)]
    #[case::port_signed("host:+80", None)]
    #[case::no_host(":80", None)]
    #[case::empty("", None)]
    #[case::ipv6_without_brackets("::1", None)]
    #[case::ipv6_unclosed("[::1", None)]
    #[case::ipv6_with_more("[::1]x:80", None)]
    #[case::ipv4_too_large("10.0.0.256", None)]
    #[case::ipv4_too_short("10.0.1", None)]
    #[case::empty_label("a..b", None)]
    #[case::space("a b", None)]
    #[case::not_ascii("höst", None)]
    #[case::two_ports("host:80:81", None)]
    fn hosts(#[case] text: &str, #[case] expected: Option<(&str, Option<u16>)>) {
        let got = host_and_port(text);
        assert_eq!(
            got.as_ref().map(|(host, port)| (host.to_string(), *port)),
            expected.map(|(host, port)| (host.to_owned(), port))
        );
    }

    #[rstest]
    #[case("0.0.0.0", true)]
    #[case("::", true)]
    #[case("[::]", true)]
    #[case("localhost", true)]
    #[case("", false)]
    #[case("localhost:8000", false)]
    #[case("http://localhost", false)]
    fn listen_hosts(#[case] text: &str, #[case] valid: bool) {
        assert_eq!(listen_host(text).is_ok(), valid);
    }
}
