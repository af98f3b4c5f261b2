//! Drained: what operators are told who had a backend drained or undrained.
//!
//! Owns the words and the names of the fields. Does not know who is drained, or why.

use crate::wire::answers::{Answer, Shape};
use alloc::format;
use alloc::string::String;
use serde::Serialize;

/// How it stands with a backend behind an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drained {
    /// Which one.
    pub address: String,
    /// Whether it gets no new requests.
    pub draining: bool,
    /// Whether a label in the file of upstreams says so, whatever is ordered.
    pub by_label: bool,
    /// Requests that this proxy has there.
    pub in_flight: u32,
    /// Requests that other proxies have there.
    pub in_flight_elsewhere: u32,
}

impl Drained {
    /// The whole answer.
    pub fn answer(&self) -> Answer {
        let body = serde_json::to_vec(self).expect("text and numbers have a JSON form");
        Answer::json(200, body)
    }
}

/// 400: the order says of no backend.
pub(crate) fn nameless(known: &[String]) -> Answer {
    let known = known.join(", ");
    let message = format!(
        "Name a backend by the query parameter `backend`, as in `?backend=HOST:PORT`. \
         Backends: {known}."
    );
    Answer::error(400, &message, None, Shape::OpenAi)
}

/// 400: an upstream's name means several.
pub(crate) fn ambiguous(wanted: &str, several: &[String]) -> Answer {
    let several = several.join(", ");
    let message = format!("`{wanted}` is several backends. Name one by its address: {several}.");
    Answer::error(400, &message, None, Shape::OpenAi)
}

/// 409: what a label holds cannot be undrained by an order.
pub(crate) fn held(wanted: &str) -> Answer {
    let message = format!(
        "The backend `{wanted}` is drained by its label in the file of upstreams. \
         Take the label away there."
    );
    Answer::error(409, &message, None, Shape::OpenAi)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use rstest::rstest;

    #[test]
    fn the_fields_have_these_names() {
        let told = Drained {
            address: "unix:/a\"b".to_string(),
            draining: true,
            by_label: false,
            in_flight: 1,
            in_flight_elsewhere: 2,
        };
        let expected = r#"{"address":"unix:/a\"b","draining":true,"by_label":false,"in_flight":1,"in_flight_elsewhere":2}"#;
        let answer = told.answer();
        assert_eq!((answer.status, &*answer.body), (200, expected.as_bytes()));
    }

    #[rstest]
    #[case::nameless(nameless(&["a:1".to_string(), "b:2".to_string()]), 400, "Backends: a:1, b:2.")]
    #[case::ambiguous(ambiguous("n", &["a:1".to_string()]), 400, "`n` is several backends.")]
    #[case::held(held("a:1"), 409, "`a:1` is drained by its label")]
    fn refusals_name_the_culprit(#[case] answer: Answer, #[case] status: u16, #[case] words: &str) {
        let text = core::str::from_utf8(&answer.body).expect("it is JSON");
        assert!(answer.status == status && text.contains(words), "{text}");
    }
}
