//! A backend's answers to our own questions, turned into a [`Probe`].
//!
//! Knows their JSON; does not know who asks, or what follows. Backends are not trusted: what they
//! list is bounded, and what does not look like a card is left out.

use alloc::borrow::{Cow, ToOwned};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::Deserialize;
use serde_json::value::RawValue;

/// Cards taken of one list. vLLM lists every adapter it has loaded; thousands are rare.
const CARDS_MAX: usize = 10_000;
/// Length of a name, in bytes: of a model, or of a version.
const NAME_BYTES_MAX: usize = 4_096;

/// What a round of questions to one backend brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// Status of `GET /health`.
    pub health: u16,
    /// The cards of `GET /v1/models`, in its order; `None` if that was not answered by a 200 that
    /// parses (a 401, for one).
    pub models: Option<Vec<ModelCard>>,
    /// `GET /version`, if it was asked and answered.
    pub version: Option<String>,
    /// Whether `GET /v1/models` without a key was 401; `None` if that was not answered.
    pub keyed: Option<bool>,
    /// Whether it sleeps or is paused, if it was asked and answered.
    pub rests: Option<bool>,
    /// What `GET /metrics` says of its KV cache, if it was asked and answered. That it did not is
    /// nothing against its health.
    pub cache: Option<CacheReport>,
}

/// What a backend's metrics say of its KV cache; the sum of its engines, if there are several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheReport {
    /// Tokens that fit in: `kv_cache_size_tokens` of `vllm:cache_config_info`. Where that is not
    /// said it is `num_gpu_blocks` times `block_size`, which is too much for models with several
    /// groups of layers.
    pub kv_tokens: Option<u64>,
    /// `enable_prefix_caching` of the same: whether it looks for prefixes at all.
    pub prefix_caching: Option<bool>,
    /// `vllm:prefix_cache_queries`: prompt tokens looked up since the start.
    pub queries: Option<u64>,
    /// `vllm:prefix_cache_hits`: those of them that were found.
    pub hits: Option<u64>,
}

/// One card of `/v1/models`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelCard {
    /// The name that requests use.
    pub id: String,
    /// The base model's name, for a LoRA adapter; `None` for a base name or alias.
    pub parent: Option<String>,
    /// Where its weights are from: the same for all aliases of a model; an adapter's path.
    pub root: Option<String>,
    /// The longest context, in tokens; vLLM says none for adapters.
    pub max_model_len: Option<u64>,
    /// The card as the backend wrote it, compact JSON.
    pub raw: String,
}

impl ModelCard {
    /// The card as JSON, with this for its `max_model_len`.
    pub fn with_length(&self, length: Option<u64>) -> Cow<'_, str> {
        let Some(length) = length.filter(|_| length != self.max_model_len) else {
            return Cow::Borrowed(&self.raw);
        };
        let Some(found) = Card::of(&self.raw).and_then(|card| card.max_model_len) else {
            return Cow::Borrowed(&self.raw);
        };
        // serde lends the value as a part of the text.
        let start = (found.get().as_ptr() as usize).wrapping_sub(self.raw.as_ptr() as usize);
        let end = start.saturating_add(found.get().len());
        match (self.raw.get(..start), self.raw.get(end..)) {
            (Some(before), Some(after)) => Cow::Owned(format!("{before}{length}{after}")),
            _ => Cow::Borrowed(&self.raw),
        }
    }
}

/// Why a probe brought nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeError {
    /// No connection: refused, unreachable.
    Connect,
    /// A connection, and then an end, a reset or an answer that is not HTTP.
    Broken,
    /// No answer in time: of a busy server as well as of a dead one.
    Timeout,
}

/// What was last found of a backend that is suspect or down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A request met a failure.
    Traffic,
    /// A probe found nobody there: refused, unreachable.
    Connect,
    /// A probe met an end, a reset or what is not HTTP.
    Broken,
    /// Probes got no answer in time.
    Timeout,
    /// `/health` answered so.
    Status(u16),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Traffic => f.write_str("a request failed"),
            Self::Connect => f.write_str("no connection"),
            Self::Broken => f.write_str("no HTTP answer to /health"),
            Self::Timeout => f.write_str("no answer to /health in time"),
            Self::Status(status) => write!(f, "/health says {status}"),
        }
    }
}

impl From<&ProbeError> for Finding {
    fn from(error: &ProbeError) -> Self {
        match error {
            ProbeError::Connect => Self::Connect,
            ProbeError::Broken => Self::Broken,
            ProbeError::Timeout => Self::Timeout,
        }
    }
}

/// The cards of a `/v1/models` body, in its order; `None` if it is not such a list.
pub fn parse_models(body: &[u8]) -> Option<Vec<ModelCard>> {
    #[derive(Deserialize)]
    struct List<'a> {
        #[serde(borrow)]
        data: Vec<&'a RawValue>,
    }
    let list: List<'_> = serde_json::from_slice(object(body)?).ok()?;
    Some(list.data.into_iter().filter_map(card).take(CARDS_MAX).collect())
}

#[derive(Deserialize)]
struct Card<'a> {
    id: String,
    #[serde(borrow, default)]
    parent: Option<&'a RawValue>,
    #[serde(borrow, default)]
    root: Option<&'a RawValue>,
    #[serde(borrow, default)]
    max_model_len: Option<&'a RawValue>,
}

impl<'a> Card<'a> {
    fn of(raw: &'a str) -> Option<Self> {
        object(raw.as_bytes())?;
        serde_json::from_str(raw).ok()
    }
}

fn card(raw: &RawValue) -> Option<ModelCard> {
    let raw = raw.get();
    let card = Card::of(raw)?;
    let text = |field: Option<&RawValue>| {
        let text: Option<String> = serde_json::from_str(field?.get()).ok();
        text.filter(|text| text.len() <= NAME_BYTES_MAX)
    };
    let (parent, root) = (text(card.parent), text(card.root));
    let max_model_len =
        card.max_model_len.and_then(|length| serde_json::from_str(length.get()).ok());
    let named = !card.id.is_empty() && card.id.len() <= NAME_BYTES_MAX;
    named.then(|| ModelCard { id: card.id, parent, root, max_model_len, raw: raw.to_owned() })
}

/// A boolean field of a JSON object.
pub fn parse_flag(body: &[u8], field: &str) -> Option<bool> {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(object(body)?).ok()?;
    serde_json::from_str(fields.get(field)?.get()).ok()
}

/// The same text, if it can be a JSON object: serde reads structs from arrays as well.
fn object(json: &[u8]) -> Option<&[u8]> {
    json.trim_ascii_start().starts_with(b"{").then_some(json)
}

/// The version in a `/version` body.
pub fn parse_version(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Body {
        version: String,
    }
    let Body { version } = serde_json::from_slice(object(body)?).ok()?;
    (!version.is_empty() && version.len() <= NAME_BYTES_MAX).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use rstest::rstest;

    #[test]
    fn cards_keep_their_text() {
        let base = r#"{"id":"Qwen/Qwen3","object":"model","created":1,"owned_by":"vllm","root":"Qwen/Qwen3","parent":null,"max_model_len":40960,"permission":[{"id":"modelperm-1"}],"unheard_of":{"a":[1.50]}}"#;
        let adapter = r#"{"id":"sql \"é\u00e9","parent":"Qwen/Qwen3","max_model_len":null}"#;
        let body = format!(r#"{{"object":"list","more":0, "data" : [ {base} ,{adapter}]}}"#);
        let cards = parse_models(body.as_bytes()).expect("a list");
        assert_eq!(cards.len(), 2);
        assert_eq!((cards[0].id.as_str(), cards[0].parent.as_deref()), ("Qwen/Qwen3", None));
        assert_eq!(cards[0].raw, base);
        let parent = cards[1].parent.as_deref();
        assert_eq!((cards[1].id.as_str(), parent), ("sql \"éé", Some("Qwen/Qwen3")));
        assert_eq!(cards[1].raw, adapter);
    }

    #[rstest]
    #[case::empty(r#"{"data":[]}"#, Some(0))]
    #[case::without_a_name(r#"{"data":[{"id":""},{},3,null,{"id":4},{"id":"a"}]}"#, Some(1))]
    #[case::arrays_are_no_objects(r#"{"data":[["a",null],{"id":"a"}]}"#, Some(1))]
    #[case::an_array(r#"[[{"id":"a"}]]"#, None)]
    #[case::odd_parent(r#"{"data":[{"id":"a","parent":{"x":1}}]}"#, Some(1))]
    #[case::a_field_twice(r#"{"data":[{"id":"a","id":"b"}]}"#, Some(0))]
    #[case::not_a_list(r#"{"data":{"id":"a"}}"#, None)]
    #[case::no_data(r#"{"object":"list"}"#, None)]
    #[case::unauthorized(r#"{"error":"Unauthorized"}"#, None)]
    #[case::cut_short(r#"{"data":[{"id":"a"}"#, None)]
    #[case::bytes_behind(r#"{"data":[]}x"#, None)]
    #[case::nothing("", None)]
    fn lists(#[case] body: &str, #[case] count: Option<usize>) {
        assert_eq!(parse_models(body.as_bytes()).map(|cards| cards.len()), count);
    }

    #[test]
    fn hostile_lists_are_bounded() {
        let many = format!(r#"{{"data":[{}{{"id":"z"}}]}}"#, r#"{"id":"a"},"#.repeat(CARDS_MAX));
        assert_eq!(parse_models(many.as_bytes()).map(|cards| cards.len()), Some(CARDS_MAX));
        let long = format!(r#"{{"data":[{{"id":"{}"}}]}}"#, "a".repeat(NAME_BYTES_MAX + 1));
        assert_eq!(parse_models(long.as_bytes()).map(|cards| cards.len()), Some(0));
        let deep = format!(r#"{{"data":[{}]}}"#, "[".repeat(1 << 20));
        assert_eq!(parse_models(deep.as_bytes()), None);
        let deep = format!(r#"{{"data":[{}{}]}}"#, "[".repeat(1 << 20), "]".repeat(1 << 20));
        assert_eq!(parse_models(deep.as_bytes()).map(|cards| cards.len()), Some(0));
        assert_eq!(parse_models(b"{\"data\":[{\"id\":\"\xff\"}]}"), None);
    }

    #[rstest]
    #[case::in_the_middle(
        r#"{"id":"a","max_model_len":100, "z":1}"#,
        Some(7),
        r#"{"id":"a","max_model_len":7, "z":1}"#
    )]
    #[case::alike(
        r#"{"id":"a","max_model_len" : 100}"#,
        Some(100),
        r#"{"id":"a","max_model_len" : 100}"#
    )]
    #[case::unknown(r#"{"id":"a","max_model_len":100}"#, None, r#"{"id":"a","max_model_len":100}"#)]
    #[case::none_to_replace(r#"{"id":"max_model_len"}"#, Some(7), r#"{"id":"max_model_len"}"#)]
    fn the_length_of_a_card_can_be_another(
        #[case] raw: &str,
        #[case] length: Option<u64>,
        #[case] expected: &str,
    ) {
        let list = format!(r#"{{"data":[{raw}]}}"#);
        let cards = parse_models(list.as_bytes()).expect("a list");
        assert_eq!(cards[0].with_length(length), expected);
    }

    #[rstest]
    #[case::on(r#"{"is_sleeping":true}"#, Some(true))]
    #[case::off(r#"{"x":[1],"is_sleeping":false}"#, Some(false))]
    #[case::text(r#"{"is_sleeping":"true"}"#, None)]
    #[case::missing(r#"{"detail":"Not Found"}"#, None)]
    #[case::no_json("true", None)]
    fn flags(#[case] body: &str, #[case] expected: Option<bool>) {
        assert_eq!(parse_flag(body.as_bytes(), "is_sleeping"), expected);
    }

    #[rstest]
    #[case::plain(r#"{"version":"0.33.0"}"#, Some("0.33.0"))]
    #[case::more_fields(
        r#"{"a":[],"version":"0.33.1rc2.dev3+g1234"}"#,
        Some("0.33.1rc2.dev3+g1234")
    )]
    #[case::empty(r#"{"version":""}"#, None)]
    #[case::number(r#"{"version":1}"#, None)]
    #[case::array(r#"["0.33.0"]"#, None)]
    #[case::text("0.33.0", None)]
    fn versions(#[case] body: &str, #[case] expected: Option<&str>) {
        assert_eq!(parse_version(body.as_bytes()).as_deref(), expected);
    }
}
