//! The fingerprint of a body as serde_json reads it, written down a second time without any haste:
//! the whole text of each section first, then its hashes.

use super::{Pairs, RawValue};
use crate::route::{CHUNK_BYTES, CHUNKS_MAX};
use alloc::string::String;
use alloc::vec::Vec;
use rapidhash::v3::{RapidSecrets, rapidhash_v3_seeded};
use serde::de::Deserializer as _;
use std::string::ToString;
use std::vec;

enum Json {
    Text(String),
    Scalar(String),
    List(Vec<Self>),
    Object(Vec<(String, Self)>),
}

impl Json {
    /// `None` where there is half of a surrogate pair, which Python takes and serde_json does not.
    fn of(raw: &str) -> Option<Self> {
        Some(match raw.as_bytes()[0] {
            b'"' => Self::Text(serde_json::from_str(raw).ok()?),
            b'[' => {
                let list: Vec<&RawValue> = serde_json::from_str(raw).ok()?;
                Self::List(list.into_iter().map(|it| Self::of(it.get())).collect::<Option<_>>()?)
            }
            b'{' => {
                let mut reader = serde_json::Deserializer::from_str(raw);
                let pairs = reader.deserialize_map(Pairs).ok()?;
                let pair = |(key, value): (String, &RawValue)| Some((key, Self::of(value.get())?));
                Self::Object(pairs.into_iter().map(pair).collect::<Option<_>>()?)
            }
            _ => Self::Scalar(raw.to_string()),
        })
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Scalar(word) => word == "null",
            Self::List(list) => list.is_empty(),
            Self::Object(pairs) => pairs.is_empty(),
        }
    }

    /// As JSON without spaces and needless escapes.
    fn plain(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => {
                let text = text.replace('\\', r"\\").replace('"', r#"\""#);
                [b"\"", text.as_bytes(), b"\""].concat()
            }
            Self::Scalar(word) => word.clone().into_bytes(),
            Self::List(list) => {
                let list: Vec<_> = list.iter().map(Self::plain).collect();
                [b"[", &*list.join(&b','), b"]"].concat()
            }
            Self::Object(pairs) => {
                let pair = |(key, value): &(String, Self)| {
                    [&*Self::Text(key.clone()).plain(), b":", &*value.plain()].concat()
                };
                let pairs: Vec<_> = pairs.iter().map(pair).collect();
                [b"{", &*pairs.join(&b','), b"}"].concat()
            }
        }
    }

    /// Text as it is, the rest marked as JSON.
    fn marked(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.clone().into_bytes(),
            Self::Scalar(_) | Self::List(_) | Self::Object(_) => [b"\xfc", &*self.plain()].concat(),
        }
    }

    fn digest(&self, key: &str) -> u64 {
        hashes(&[key.as_bytes(), b"\xfd", &*self.marked()].concat()).1
    }
}

const FIELDS: [&str; 20] = [
    "role",
    "type",
    "name",
    "description",
    "parameters",
    "input_schema",
    "function",
    "tool_call_id",
    "tool_use_id",
    "call_id",
    "reasoning",
    "thinking",
    "summary",
    "content",
    "text",
    "refusal",
    "tool_calls",
    "arguments",
    "input",
    "output",
];
const IGNORED: [&str; 6] =
    ["cache_control", "id", "status", "annotations", "citations", "logprobs"];

fn item(pairs: &[(String, Json)], level: u32) -> Vec<u8> {
    let renamed =
        |name: &str| if name == "reasoning_content" { "reasoning" } else { name }.to_string();
    let mut fields = vec![];
    for (number, field) in FIELDS.into_iter().enumerate() {
        let Some((_, value)) = pairs.iter().rfind(|(key, _)| renamed(key) == field) else {
            continue;
        };
        let plain = |text: &str| ["text", "input_text", "output_text", "message"].contains(&text);
        let is_plain_type = field == "type" && matches!(value, Json::Text(text) if plain(text));
        if !value.is_empty() && !is_plain_type {
            fields.push((number as u8, field, value));
        }
    }
    let others = pairs.iter().filter(|(key, value)| {
        let key = renamed(key);
        !FIELDS.contains(&&*key) && !IGNORED.contains(&&*key) && !value.is_empty()
    });
    let others = others.fold(0_u64, |sum, (key, value)| sum.wrapping_add(value.digest(key)));
    if let ([(_, "text", Json::Text(text))], 0) = (&*fields, others) {
        return text.clone().into_bytes();
    }
    let mut out = vec![0xff];
    for (number, field, value) in fields {
        out.extend([0xfe, number]);
        out.extend(match value {
            Json::List(parts)
                if level < 4 && ["content", "summary", "reasoning", "output"].contains(&field) =>
            {
                elements(parts, "", level + 1)
            }
            Json::Text(_) | Json::Scalar(_) | Json::List(_) | Json::Object(_) => value.marked(),
        });
    }
    if others != 0 {
        out.extend(b"\xfe*");
        out.extend(others.to_le_bytes());
    }
    out
}

fn user(text: &str) -> Vec<u8> {
    item(
        &[("role", "user"), ("content", text)]
            .map(|(key, text)| (key.to_string(), Json::Text(text.to_string()))),
        0,
    )
}

/// The elements of a list that stands at a key of the top level, or anywhere below (no key).
fn elements(list: &[Json], section: &str, level: u32) -> Vec<u8> {
    let first_only = !["", "instructions", "tools", "system"].contains(&section);
    let mut out: Vec<Vec<u8>> = vec![];
    let mut in_scalars = false;
    for value in list {
        if let (true, Json::Scalar(word)) = (in_scalars, value) {
            let run = out.last_mut().expect("it was begun");
            run.push(b',');
            run.extend(word.as_bytes());
            continue;
        }
        in_scalars = matches!(value, Json::Scalar(_));
        match value {
            Json::Object(pairs) if section == "system" && is_billing(pairs) => {}
            Json::Object(pairs) if level < 4 => out.push(item(pairs, level)),
            Json::List(list) if level < 4 => out.push(elements(list, "", level + 1)),
            Json::Text(text) if section == "input" => out.push(user(text)),
            Json::Text(_) | Json::Scalar(_) | Json::List(_) | Json::Object(_) => {
                out.push(value.marked());
            }
        }
        if first_only && matches!(value, Json::Text(_) | Json::List(_)) {
            break;
        }
    }
    out.join(&0xfd)
}

fn is_billing(pairs: &[(String, Json)]) -> bool {
    let text = pairs.iter().rfind(|(key, _)| key == "text");
    matches!(text, Some((_, Json::Text(text))) if text.starts_with("x-anthropic-billing-header"))
}

fn section(name: &str, value: &Json) -> Vec<u8> {
    if value.is_empty() {
        return vec![];
    }
    match value {
        Json::Text(text) if name == "input" => user(text),
        Json::List(list) => elements(list, name, 0),
        Json::Object(pairs) => item(pairs, 0),
        Json::Text(_) | Json::Scalar(_) => value.marked(),
    }
}

fn hash(seed: u64, text: &[u8]) -> u64 {
    rapidhash_v3_seeded(text, &RapidSecrets::seed_cpp(seed))
}

fn mix(seed: u64, number: u64) -> u64 {
    hash(seed, &number.to_le_bytes())
}

fn hashes(text: &[u8]) -> (Vec<u64>, u64) {
    let mut last = 0;
    let mut chunks = vec![];
    let whole = text.chunks_exact(CHUNK_BYTES);
    let tail = whole.remainder();
    for chunk in whole {
        last = hash(last, chunk);
        chunks.push(last);
    }
    (chunks, hash(last, tail))
}

const SEEDS: [&str; 20] = [
    "model",
    "cache_salt",
    "previous_response_id",
    "chat_template",
    "chat_template_kwargs",
    "documents",
    "reasoning_effort",
    "reasoning",
    "thinking",
    "output_config",
    "add_special_tokens",
    "truncate_prompt_tokens",
    "truncation_side",
    "truncation",
    "mm_processor_kwargs",
    "media_io_kwargs",
    "prompt_embeds",
    "features",
    "images",
    "item_first",
];
const SECTIONS: [&str; 22] = [
    "instructions",
    "tools",
    "system",
    "previous_input_messages",
    "state",
    "messages",
    "input",
    "prompt",
    "token_ids",
    "tokens",
    "query",
    "queries",
    "data_1",
    "text_1",
    "items",
    "texts",
    "inputs",
    "data",
    "data_2",
    "text_2",
    "questions",
    "suffix",
];

/// The chunks, and the length of the text.
pub(super) fn fingerprint(pairs: &[(String, &RawValue)]) -> Option<(Vec<u64>, u64)> {
    let last = |name| match pairs.iter().rfind(|pair| pair.0 == name) {
        Some(pair) => Json::of(pair.1.get()),
        None => Some(Json::Text(String::new())),
    };
    let mut seed = 1;
    for name in SEEDS {
        let value = last(name)?;
        if !value.is_empty() {
            seed = mix(hash(seed, name.as_bytes()), value.digest(name));
        }
    }
    let (mut chunks, mut bytes) = (vec![], 0);
    for name in SECTIONS {
        let text = section(name, &last(name)?);
        if text.is_empty() {
            continue;
        }
        seed = hash(seed, name.as_bytes());
        let (own, total) = hashes(&text);
        chunks.extend(own.iter().map(|&chunk| mix(seed, chunk)));
        bytes += text.len() as u64;
        seed = mix(seed, total);
    }
    chunks.truncate(CHUNKS_MAX);
    Some((chunks, bytes))
}
