//! The page for people, `/proxy/`: what it is made of, and what a browser may do with it.
//!
//! Knows nothing of what it shows: the browser asks for that, at `/proxy/events`.

use super::answers::Answer;
use alloc::vec::Vec;

/// All of it: style, script and picture are within.
const PAGE: &str = include_str!("page.html");

/// It loads nothing, sends nothing and shows itself in no other page. Of scripts only its own runs,
/// by its hash: were a name ever taken for markup, nothing of it would run all the same.
const POLICY: &str = "default-src 'none'; connect-src 'self'; img-src data:; \
     style-src 'sha256-27tM6TCTjm1tjOh2FGOCfhkGn2gCQxRLmeVy+ZjleGA='; script-src 'sha256-FTWZR7ECaeG+NIdtdh0e/sbOywwA+2oYsqGcTbc3cM8='; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page.
pub fn answer() -> Answer {
    const HEADERS: &[(&str, &str)] = &[
        ("cache-control", "no-store"),
        ("content-security-policy", POLICY),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
    ];
    Answer {
        content_type: Some("text/html; charset=utf-8"),
        headers: HEADERS,
        body: Vec::from(PAGE),
        ..Answer::empty(200)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use rstest::rstest;
    use sha2::{Digest, Sha256};
    use std::format;

    /// What stands between two tags, of which there is one each.
    fn within(tag: &str) -> &'static str {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        assert_eq!((PAGE.matches(&open).count(), PAGE.matches(&close).count()), (1, 1), "{tag}");
        let (_, behind) = PAGE.split_once(&open).expect("it is there");
        behind.split_once(&close).expect("it is there").0
    }

    #[rstest]
    #[case::style("style")]
    #[case::script("script")]
    fn the_policy_allows_what_is_there(#[case] tag: &str) {
        let mut hash = [0; 44];
        let digest = Sha256::digest(within(tag));
        STANDARD.encode_slice(digest, &mut hash).expect("32 bytes are 44 characters");
        let hash = core::str::from_utf8(&hash).expect("base64 is ASCII");
        assert!(POLICY.contains(&format!("{tag}-src 'sha256-{hash}'")), "of {tag}: sha256-{hash}");
    }

    #[rstest]
    #[case::addresses("http:")]
    #[case::secure_addresses("https:")]
    #[case::any_host("\"//")]
    #[case::imports("@import")]
    #[case::urls("url(")]
    #[case::markup_from_text("innerHTML")]
    #[case::more_markup("insertAdjacentHTML")]
    #[case::code_from_text("eval(")]
    #[case::attributes_of_style(" style=\"")]
    #[case::handlers(" onclick=")]
    fn the_page_has_nothing_of(#[case] what: &str) {
        let own = "http://www.w3.org/2000/svg";
        assert!(!PAGE.replace(own, "").contains(what));
    }
}
