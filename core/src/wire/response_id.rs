//! Finds the id of a response in an answer of the Responses API, while the answer passes.
//!
//! Knows where the id stands: at the top of a plain answer, in the `response` of the first event
//! of a stream (vLLM 0.32 puts it first, into `response.created`). Knows neither routes nor what
//! the id is for. It is no validator: what is no such answer has no id.

use alloc::string::String;
use alloc::vec::Vec;
use memchr::memchr2;
use serde_json::from_slice;

/// Nothing is looked at behind this: the id is the first thing vLLM says of a response, and other
/// servers echo no more than a request's instructions before it.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// With quotes and escapes. No request with a longer one is understood (see [`super::scan`]).
const ID_BYTES_MAX: usize = 4 * 1024;

/// No key of the path takes more with quotes, were each character written as `\u0061`.
const KEY_BYTES_MAX: usize = 2 + 6 * 8;

/// How far a search has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Search {
    /// It takes more of the answer.
    More,
    /// This is the id.
    Found(String),
    /// There is none, or not where it would be. What follows need not be shown.
    Absent,
}

/// Looks at an answer's body piece by piece. Of what is no longer shown it keeps one token at most,
/// and nothing if the id is in the first piece.
#[derive(Debug)]
pub struct IdFinder {
    /// Bytes that will still be looked at.
    left: usize,
    /// Of a stream, where in a line we are; `None` for a plain answer.
    line: Option<Line>,
    /// Whether a LF that follows belongs to the line end before.
    after_cr: bool,
    json: Json,
}

#[derive(Clone, Copy, Debug)]
enum Line {
    /// So much of [`FIELD`] was there.
    Field(usize),
    /// Behind it.
    Data,
    /// In a comment or another field.
    Other,
}

const FIELD: &[u8] = b"data:";

impl IdFinder {
    /// At the beginning of an answer's body. `events` says that it is a stream of them.
    pub const fn new(events: bool) -> Self {
        let line = if events { Some(Line::Field(0)) } else { None };
        let path: &[&str] = if events { &["response", "id"] } else { &["id"] };
        Self { left: ANSWER_BYTES_MAX, line, after_cr: false, json: Json::new(path) }
    }

    /// Shows the next bytes. After anything but [`Search::More`] the search is over.
    pub fn feed(&mut self, bytes: &[u8]) -> Search {
        let shown = bytes.get(..self.left).unwrap_or(bytes);
        self.left -= shown.len();
        let search = match self.line {
            None => self.json.feed(shown),
            Some(line) => self.events(line, shown),
        };
        if search == Search::More && self.left > 0 {
            return Search::More;
        }
        self.left = 0;
        if search == Search::More { Search::Absent } else { search }
    }

    fn events(&mut self, mut line: Line, bytes: &[u8]) -> Search {
        let mut rest = bytes;
        while let [byte, behind @ ..] = rest {
            if matches!(line, Line::Data) && !matches!(byte, b'\r' | b'\n') {
                let end = memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
                let (data, behind) = rest.split_at(end);
                // Events without a response may come before, whatever they are.
                if let found @ Search::Found(_) = self.json.feed(data) {
                    return found;
                }
                rest = behind;
                continue;
            }
            let after_cr = core::mem::replace(&mut self.after_cr, *byte == b'\r');
            line =
                match (line, byte) {
                    (_, b'\n') if after_cr => line,
                    (_, b'\r' | b'\n') => {
                        // An empty line ends the event.
                        if matches!(line, Line::Field(0)) {
                            self.json = Json::new(self.json.path);
                        }
                        Line::Field(0)
                    }
                    (Line::Field(at), byte) if FIELD.get(at) == Some(byte) => {
                        if at + 1 == FIELD.len() { Line::Data } else { Line::Field(at + 1) }
                    }
                    _ => Line::Other,
                };
            rest = behind;
        }
        self.line = Some(line);
        Search::More
    }
}

/// Follows one JSON object down a path of keys to a text.
#[derive(Debug)]
struct Json {
    path: &'static [&'static str],
    /// How many keys of the path were entered.
    level: usize,
    state: State,
    /// The token in hand as far as it was in earlier pieces, or one byte more than any may have.
    kept: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// The outermost object is due.
    Object,
    /// A key is due, or the end of the object.
    Key,
    /// Inside a key.
    KeyText { escaped: bool },
    /// The colon is due. `next`: its key is the next one of the path.
    Colon { next: bool },
    /// A value is due.
    Value { next: bool },
    /// Inside the text at the end of the path.
    Id { escaped: bool },
    /// Inside another text, within so many brackets.
    Text { escaped: bool, depth: usize },
    /// Inside a number or a word.
    Scalar,
    /// Inside an array or object that is none of the path, so deep.
    Nested { depth: usize },
    /// A comma is due, or the end of the object.
    Comma,
    /// Behind the object, or it is broken, or its id is none.
    Done,
}

impl Json {
    const fn new(path: &'static [&'static str]) -> Self {
        Self { path, level: 0, state: State::Object, kept: Vec::new() }
    }

    fn feed(&mut self, bytes: &[u8]) -> Search {
        // Where the key or the id in hand begins, with its quote.
        let mut start = 0;
        for (at, &byte) in bytes.iter().enumerate() {
            self.state = match self.state {
                State::Done => return Search::Absent,
                State::KeyText { escaped: false } if byte == b'"' => {
                    let name = self.path.get(self.level).copied().unwrap_or_default();
                    let key = token(&mut self.kept, bytes.get(start..=at).unwrap_or_default());
                    let next = is_key(key, name);
                    self.kept.clear();
                    State::Colon { next }
                }
                State::Id { escaped: false } if byte == b'"' => {
                    let id = token(&mut self.kept, bytes.get(start..=at).unwrap_or_default());
                    let id = if id.len() > ID_BYTES_MAX { None } else { from_slice(id).ok() };
                    self.kept = Vec::new();
                    match id.filter(|id: &String| !id.is_empty()) {
                        Some(id) => {
                            self.state = State::Done;
                            return Search::Found(id);
                        }
                        None => State::Done,
                    }
                }
                State::KeyText { escaped } => State::KeyText { escaped: !escaped && byte == b'\\' },
                State::Id { escaped } => State::Id { escaped: !escaped && byte == b'\\' },
                State::Text { escaped: false, depth } if byte == b'"' => nested(depth),
                State::Text { escaped, depth } => {
                    State::Text { escaped: !escaped && byte == b'\\', depth }
                }
                State::Nested { depth } => match byte {
                    b'"' => State::Text { escaped: false, depth },
                    b'{' | b'[' => State::Nested { depth: depth + 1 },
                    b'}' | b']' => nested(depth - 1),
                    _ => State::Nested { depth },
                },
                State::Scalar if byte.is_ascii_alphanumeric() || b"+-.".contains(&byte) => {
                    State::Scalar
                }
                State::Object
                | State::Key
                | State::Colon { .. }
                | State::Value { .. }
                | State::Scalar
                | State::Comma => {
                    start = at;
                    self.punctuation(byte)
                }
            };
        }
        if matches!(self.state, State::KeyText { .. } | State::Id { .. }) {
            keep(&mut self.kept, bytes.get(start..).unwrap_or_default());
        }
        if matches!(self.state, State::Done) {
            return Search::Absent;
        }
        Search::More
    }

    fn punctuation(&mut self, byte: u8) -> State {
        let last = self.level + 1 == self.path.len();
        match (self.state, byte) {
            (State::Scalar, b' ' | b'\t' | b'\n' | b'\r') => State::Comma,
            (state, b' ' | b'\t' | b'\n' | b'\r') => state,
            (State::Object, b'{') | (State::Comma | State::Scalar, b',') => State::Key,
            (State::Key, b'"') => State::KeyText { escaped: false },
            (State::Colon { next }, b':') => State::Value { next },
            (State::Value { next: true }, b'{') if !last => {
                self.level += 1;
                State::Key
            }
            (State::Value { next: true }, b'"') if last => State::Id { escaped: false },
            (State::Value { .. }, b'"') => State::Text { escaped: false, depth: 0 },
            (State::Value { .. }, b'{' | b'[') => State::Nested { depth: 1 },
            (State::Value { .. }, b'-' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') => State::Scalar,
            (State::Key | State::Comma | State::Scalar, b'}') if self.level > 0 => {
                self.level -= 1;
                State::Comma
            }
            _ => State::Done,
        }
    }
}

/// Within brackets, or behind the last of them.
const fn nested(depth: usize) -> State {
    if depth == 0 { State::Comma } else { State::Nested { depth } }
}

/// The token that ends with this piece. Nothing is copied if it began there, too.
fn token<'a>(kept: &'a mut Vec<u8>, piece: &'a [u8]) -> &'a [u8] {
    if kept.is_empty() {
        return piece;
    }
    keep(kept, piece);
    kept
}

/// Whoever is longer than a token may be will not be taken for one, so one byte more will do.
fn keep(kept: &mut Vec<u8>, piece: &[u8]) {
    let room = (ID_BYTES_MAX + 1).saturating_sub(kept.len());
    kept.extend_from_slice(piece.get(..room).unwrap_or(piece));
}

fn is_key(raw: &[u8], name: &str) -> bool {
    let plain = raw.strip_prefix(b"\"").and_then(|raw| raw.strip_suffix(b"\""));
    let escaped = || raw.len() <= KEY_BYTES_MAX && raw.contains(&b'\\');
    plain == Some(name.as_bytes())
        || (escaped() && from_slice(raw).is_ok_and(|key: String| key == name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use rstest::rstest;
    use std::format;

    fn feed(events: bool, pieces: &[&[u8]]) -> Search {
        let mut finder = IdFinder::new(events);
        let mut search = Search::More;
        for piece in pieces {
            if search != Search::More {
                assert_eq!(finder.feed(piece), Search::Absent, "it was over");
                continue;
            }
            search = finder.feed(piece);
            assert!(finder.json.kept.len() <= ID_BYTES_MAX + 1);
        }
        search
    }

    /// Feeds `body` whole, byte by byte, at every split, and with bytes behind.
    fn check(events: bool, body: &str) -> Option<String> {
        let bytes = body.as_bytes();
        let whole = feed(events, &[bytes]);
        assert_eq!(feed(events, &bytes.chunks(1).collect::<Vec<_>>()), whole, "byte by byte");
        for split in 1..bytes.len() {
            let (early, late) = bytes.split_at(split);
            assert_eq!(feed(events, &[early, late]), whole, "at {split}");
        }
        match whole {
            Search::Found(id) => {
                let behind = [bytes, b"\"\x00"].concat();
                assert_eq!(feed(events, &[&behind]), Search::Found(id.clone()), "bytes behind");
                Some(id)
            }
            Search::More | Search::Absent => None,
        }
    }

    #[rstest]
    #[case::first(r#"{"id":"resp_1","object":"response"}"#, Some("resp_1"))]
    #[case::last(r#"{"object":"response","n":1,"x":null,"id":"resp_1"}"#, Some("resp_1"))]
    #[case::spaces(" {\r\n\t\"a\" : 1 , \"id\" : \"resp_1\" } ", Some("resp_1"))]
    #[case::nested_before(
        r#"{"output":[{"id":"msg_1","x":{"id":"a"}}],"id":"resp_1"}"#,
        Some("resp_1")
    )]
    #[case::nested_only(r#"{"error":{"id":"a"},"output":[{"id":"b"}]}"#, None)]
    #[case::as_a_value(r#"{"x":"id","y":"\"id\":\"a\"","id":"b"}"#, Some("b"))]
    #[case::brackets_in_text(r#"{"x":["}]\"]}"],"y":"{[","id":"b"}"#, Some("b"))]
    #[case::backslashes(r#"{"x":"\\","y":["\\\""],"id":"b"}"#, Some("b"))]
    #[case::longer_key(r#"{"idx":"a","i":"b","ID":"c","":"d"}"#, None)]
    #[case::key_escaped(r#"{"\u0069\u0064":"a"}"#, Some("a"))]
    #[case::key_badly_escaped(r#"{"\x69d":"a","id":"b"}"#, Some("b"))]
    #[case::id_escaped(r#"{"id":"a\"b\\\u00e9\/"}"#, Some("a\"b\\\u{e9}/"))]
    #[case::id_utf8(r#"{"id":"é"}"#, Some("é"))]
    #[case::id_badly_escaped(r#"{"id":"\x"}"#, None)]
    #[case::id_empty(r#"{"id":""}"#, None)]
    #[case::id_number(r#"{"id":1}"#, None)]
    #[case::id_object(r#"{"id":{"id":"a"}}"#, None)]
    #[case::id_null(r#"{"id":null,"x":["a"]}"#, None)]
    #[case::empty("", None)]
    #[case::empty_object("{}", None)]
    #[case::behind_the_object(r#"{} {"id":"a"}"#, None)]
    #[case::array(r#"[{"id":"a"}]"#, None)]
    #[case::text(r#""id""#, None)]
    #[case::cut(r#"{"id":"resp_"#, None)]
    #[case::broken(r#"{"a" "id":"a"}"#, None)]
    #[case::no_json("Internal Server Error", None)]
    #[case::an_event(r#"{"response":{"id":"a"}}"#, None)]
    fn plain(#[case] body: &str, #[case] expected: Option<&str>) {
        assert_eq!(check(false, body).as_deref(), expected);
    }

    const CREATED: &str = "event: response.created\ndata: {\"response\":{\"id\":\"resp_1\",\
        \"created_at\":1},\"sequence_number\":0,\"type\":\"response.created\"}\n\n";

    #[rstest]
    #[case::of_vllm(CREATED, Some("resp_1"))]
    #[case::crlf(&CREATED.replace('\n', "\r\n"), Some("resp_1"))]
    #[case::cr(&CREATED.replace('\n', "\r"), Some("resp_1"))]
    #[case::comment(&format!(": keep-alive\n\n{CREATED}"), Some("resp_1"))]
    #[case::later_event(&format!("data: {{\"a\":{{\"id\":\"b\"}}}}\n\n{CREATED}"), Some("resp_1"))]
    #[case::broken_event(&format!("data: {{\"a\n\r\n{CREATED}"), Some("resp_1"))]
    #[case::no_json(&format!("data: [DONE]\n\n{CREATED}"), Some("resp_1"))]
    #[case::no_space("data:{\"response\":{\"id\":\"a\"}}", Some("a"))]
    #[case::two_lines("data: {\"response\":\r\ndata: {\"id\":\"a\"}}", Some("a"))]
    #[case::other_line_between("data: {\"response\":\nx: {\ndata: {\"id\":\"a\"}}", Some("a"))]
    #[case::type_first(r#"data: {"type":"x","id":"b","response":{"o":[],"id":"a"}}"#, Some("a"))]
    #[case::id_of_the_event(r#"data: {"id":"a","response":{}}"#, None)]
    #[case::id_behind_the_response(r#"data: {"response":{"x":1},"id":"a"}"#, None)]
    #[case::deeper(r#"data: {"response":{"output":[{"id":"a"}],"x":{"id":"b"}}}"#, None)]
    #[case::wrapped(r#"data: {"x":{"response":{"id":"a"}}}"#, None)]
    #[case::response_null(r#"data: {"response":null,"id":"a"}"#, None)]
    #[case::response_text(r#"data: {"response":"id","id":"a"}"#, None)]
    #[case::other_field(r#"dat: {"response":{"id":"a"}}"#, None)]
    #[case::longer_field(r#"database: {"response":{"id":"a"}}"#, None)]
    #[case::field_inside(r#"xdata: {"response":{"id":"a"}}"#, None)]
    #[case::comment_only(r#": data: {"response":{"id":"a"}}"#, None)]
    #[case::empty("", None)]
    #[case::plain(r#"{"id":"a"}"#, None)]
    fn streams(#[case] body: &str, #[case] expected: Option<&str>) {
        assert_eq!(check(true, body).as_deref(), expected);
    }

    #[rstest]
    #[case::id(ID_BYTES_MAX - 2, 0, true)]
    #[case::longer_id(ID_BYTES_MAX - 1, 0, false)]
    #[case::far(2, ANSWER_BYTES_MAX - r#"{"x":"","id":"__"}"#.len(), true)]
    #[case::up_to_the_limit(2, ANSWER_BYTES_MAX - r#"{"x":"","id":"__""#.len(), true)]
    #[case::farther(2, ANSWER_BYTES_MAX - r#"{"x":"","id":"__"#.len(), false)]
    fn limits(#[case] id: usize, #[case] before: usize, #[case] found: bool) {
        let (text, id) = ("x".repeat(before), "_".repeat(id));
        let body = format!(r#"{{"x":"{text}","id":"{id}"}}"#);
        let expected = if found { Search::Found(id) } else { Search::Absent };
        for size in [1, 1000, 1 << 20] {
            let pieces: Vec<&[u8]> = body.as_bytes().chunks(size).collect();
            assert_eq!(feed(false, &pieces), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn an_endless_answer_is_given_up() {
        let mut finder = IdFinder::new(true);
        let pieces = core::iter::repeat_n(&[b'x'; 1 << 10], 64);
        let searches: Vec<_> = pieces.map(|piece| finder.feed(piece)).collect();
        assert!(searches[..63].iter().all(|search| *search == Search::More));
        assert_eq!(searches[63], Search::Absent);
    }

    /// Whole objects in random order, of which the ids are known.
    fn member() -> impl Strategy<Value = String> {
        let text = r#""([a-z{}\[\],: é]|\\["\\/n]|\\u0069){0,8}""#;
        let leaf = prop_oneof![text, "true|null", "-?[1-9](\\.5)?(e[+-]?7)?"];
        let value = leaf.prop_recursive(3, 12, 3, |inner| {
            let member = ("(id|response|x)", inner.clone());
            let member = member.prop_map(|(key, value)| format!("\"{key}\" :{value}"));
            prop_oneof![
                vec(inner, 0..3).prop_map(|items| format!("[{}]", items.join(", "))),
                vec(member, 0..3).prop_map(|members| format!("{{{}}}", members.join(","))),
            ]
        });
        ("(a|b|ids|i\\\\u0064x|response)", value).prop_map(|(key, it)| format!("\"{key}\": {it}"))
    }

    proptest! {
        #[test]
        fn found_among_whatever(members in vec(member(), 0..5), at in any::<prop::sample::Index>()) {
            let without = format!("{{{}}}", members.join(","));
            prop_assert_eq!(check(false, &without), None);
            let mut with = members;
            with.insert(at.index(with.len() + 1), "\"id\":\"it\"".into());
            let object = format!("{{{}}}", with.join(","));
            prop_assert_eq!(check(false, &object), Some("it".into()));
            let event = format!("data: {{\"x\":{without},\"response\":{object}}}");
            prop_assert_eq!(check(true, &event), Some("it".into()));
        }

        #[test]
        fn any_bytes_mean_the_same_however_they_are_cut(
            events: bool,
            body in "([{}\\[\\]\":, \n\r\\\\]|data:|\"id\"|\"response\":|x|\"a\"){0,24}",
        ) {
            check(events, &body);
        }
    }
}
