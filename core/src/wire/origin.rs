//! Origin: whether a browser asks because a page of elsewhere told it to.
//!
//! Knows the headers by which browsers say so (Fetch standard, sections "`Origin` header" and
//! "Sec-Fetch-Site"). Does not know which requests it matters for.
//!
//! A page may have a browser send a POST to any address that the browser reaches, without asking
//! whether it may; only the answer is kept from it. `Origin` comes with every POST of a browser, a
//! form's too. Who is no browser sends none, and is believed.
//!
//! A page whose name is made to resolve to this address (DNS rebinding) counts as ours to the
//! browser. Over plain HTTP it is therefore believed only by a name that no stranger can have: an
//! IP address, a name without a dot, or one that no public server resolves. TLS in front of us
//! shows a certificate that such a page does not have.

use super::head::{RequestHead, absolute};
use core::net::Ipv4Addr;
use core::str::from_utf8;

/// Ends of names that no public server resolves (RFC 6761, RFC 6762, and `internal`, which ICANN
/// reserved in 2024); those of Kubernetes end in `cluster.local`.
const PRIVATE: [&str; 3] = [".localhost", ".local", ".internal"];

/// Whether a page of elsewhere has a browser ask this.
pub fn is_foreign(head: &RequestHead<'_>) -> bool {
    let values = |name: &'static str| {
        let named = head.headers.iter().filter(move |one| one.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value)
    };
    if values("sec-fetch-site").any(|site| !matches!(site, b"same-origin" | b"none")) {
        return true;
    }
    let host = match absolute(head.target) {
        Some((authority, _)) => Some(authority.as_bytes()),
        None => values("host").next(),
    };
    let mut origins = values("origin");
    match (origins.next(), origins.next()) {
        (None, _) => false,
        (Some(origin), None) => !host.is_some_and(|host| is_own(origin, host)),
        (Some(_), Some(_)) => true,
    }
}

/// Whether a page of this origin came from the address that was asked. Compared as they are:
/// browsers write both in lower case, and leave out a port that is the scheme's own.
fn is_own(origin: &[u8], host: &[u8]) -> bool {
    let (authority, is_safe) =
        match (origin.strip_prefix(b"https://"), origin.strip_prefix(b"http://")) {
            (Some(authority), _) => (authority, true),
            (None, Some(authority)) => (authority, is_unresolvable(host)),
            (None, None) => return false,
        };
    !authority.is_empty() && authority == host && is_safe
}

/// Whether no stranger can make this name resolve to an address of his choice.
fn is_unresolvable(host: &[u8]) -> bool {
    let Ok(host) = from_utf8(host) else { return false };
    if host.starts_with('[') {
        return true;
    }
    let name = host.split(':').next().unwrap_or_default();
    !name.contains('.')
        || name.parse::<Ipv4Addr>().is_ok()
        || PRIVATE.iter().any(|private| name.ends_with(private))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;
    use crate::wire::head::{header_room, parse_request};
    use alloc::format;
    use alloc::string::String;
    use rstest::rstest;

    fn foreign(target: &str, minor: u8, headers: &[&str]) -> bool {
        let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        let head = format!("POST {target} HTTP/1.{minor}\r\n{lines}\r\n");
        let mut room = header_room();
        let head = parse_request(head.as_bytes(), &Limits::default(), &mut room);
        is_foreign(&head.expect("it is well-formed"))
    }

    #[rstest]
    #[case::curl(&[])]
    #[case::own_page(&["Origin: http://10.0.0.1:9000"])]
    #[case::own_page_as_fetch_says(&[
        "Origin: http://10.0.0.1:9000",
        "Sec-Fetch-Site: same-origin",
        "Sec-Fetch-Mode: cors",
    ])]
    #[case::behind_tls(&["Origin: https://10.0.0.1:9000"])]
    #[case::spaces_around(&["oRiGiN:   http://10.0.0.1:9000  "])]
    #[case::asked_by_the_user(&["Sec-Fetch-Site: none"])]
    #[case::referer_is_no_witness(&["Referer: http://evil.example/"])]
    fn one_of_ours(#[case] headers: &[&str]) {
        assert!(!foreign("/proxy/drain", 1, &[&["Host: 10.0.0.1:9000"], headers].concat()));
    }

    #[rstest]
    #[case::another(&["Origin: http://evil.example"])]
    #[case::another_port(&["Origin: http://10.0.0.1:9001"])]
    #[case::no_port(&["Origin: http://10.0.0.1"])]
    #[case::longer(&["Origin: http://10.0.0.1:9000.evil.example"])]
    #[case::as_a_user(&["Origin: http://10.0.0.1:9000@evil.example"])]
    #[case::with_a_path(&["Origin: http://10.0.0.1:9000/"])]
    #[case::sandboxed_or_a_file(&["Origin: null"])]
    #[case::empty(&["Origin:"])]
    #[case::no_scheme(&["Origin: 10.0.0.1:9000"])]
    #[case::scheme_in_upper_case(&["Origin: HTTP://10.0.0.1:9000"])]
    #[case::an_extension(&["Origin: chrome-extension://10.0.0.1:9000"])]
    #[case::two(&["Origin: http://10.0.0.1:9000", "Origin: http://evil.example"])]
    #[case::two_alike(&["Origin: http://10.0.0.1:9000", "Origin: http://10.0.0.1:9000"])]
    #[case::a_list(&["Origin: http://10.0.0.1:9000 http://evil.example"])]
    #[case::another_with_a_comma(&["Origin: http://10.0.0.1:9000, http://evil.example"])]
    #[case::no_text(&["Origin: http://10.0.0.1:9000\u{ff}"])]
    #[case::cross_site(&["Sec-Fetch-Site: cross-site"])]
    #[case::same_site(&["Sec-Fetch-Site: same-site"])]
    #[case::a_site_to_come(&["Sec-Fetch-Site: near-site"])]
    #[case::one_site_of_two(&["Sec-Fetch-Site: same-origin", "sec-fetch-site: cross-site"])]
    #[case::own_origin_of_another_site(&[
        "Origin: http://10.0.0.1:9000",
        "Sec-Fetch-Site: cross-site",
    ])]
    #[case::a_form(&[
        "Origin: http://evil.example",
        "Content-Type: application/x-www-form-urlencoded",
    ])]
    fn one_of_elsewhere(#[case] headers: &[&str]) {
        assert!(foreign("/proxy/drain", 1, &[&["Host: 10.0.0.1:9000"], headers].concat()));
    }

    /// A page that says the same of itself and of the address asked, as one does that was moved
    /// here by its name server.
    #[rstest]
    #[case::ip_4("http://127.0.0.1:9000", false)]
    #[case::ip_6("http://[::1]:9000", false)]
    #[case::default_port("http://10.0.0.1", false)]
    #[case::this_machine("http://localhost:9000", false)]
    #[case::below_it("http://proxy.localhost:9000", false)]
    #[case::a_short_name("http://vllm-proxy-admin:9000", false)]
    #[case::a_service("http://proxy.vllm.svc.cluster.local:9000", false)]
    #[case::private("http://proxy.corp.internal", false)]
    #[case::with_a_certificate("https://proxy.example.com", false)]
    #[case::rebound("http://evil.example:9000", true)]
    #[case::rebound_without_a_port("http://evil.example", true)]
    #[case::rebound_root("http://localhost.:9000", true)]
    #[case::looks_like_an_address("http://127.0.0.1.evil.example:9000", true)]
    #[case::looks_like_a_private_name("http://local.evil.example:9000", true)]
    #[case::no_name("http://", true)]
    fn the_same_name_is_not_enough(#[case] origin: &str, #[case] expected: bool) {
        let host = origin.split("://").nth(1).unwrap_or_default();
        let headers = [format!("Host: {host}"), format!("Origin: {origin}")];
        let headers = [headers[0].as_str(), headers[1].as_str()];
        assert_eq!(foreign("/proxy/drain", 1, &headers), expected);
    }

    #[rstest]
    #[case::its_authority_counts("http://10.0.0.1/", &["Host: b", "Origin: http://10.0.0.1"], false)]
    #[case::and_not_the_host("http://10.0.0.1/", &["Host: b", "Origin: http://b"], true)]
    fn absolute_targets(#[case] target: &str, #[case] headers: &[&str], #[case] expected: bool) {
        assert_eq!(foreign(target, 1, headers), expected);
    }

    #[test]
    fn who_names_no_host_is_elsewhere_if_a_browser() {
        assert!(foreign("/proxy/drain", 0, &["Origin: http://10.0.0.1"]));
        assert!(!foreign("/proxy/drain", 0, &[]));
        assert!(foreign("/proxy/drain", 1, &["Host:", "Origin: http://"]));
    }
}
