//! Request bodies, queries and forms read field by field, with vLLM's complaints (pydantic's,
//! rendered) about wrong ones. Knows nothing of what the fields mean.

use super::answers::Answer;
use serde_json::{Map, Value};
use std::fmt::Write;

/// vLLM lists at most so many.
const COMPLAINTS_MAX: usize = 10;

/// A body being read: complaints gather until [`Fields::done`].
#[derive(Debug)]
pub(super) struct Fields<'a> {
    body: &'a Map<String, Value>,
    /// What complaints call the whole.
    place: &'static str,
    complaints: Vec<Complaint>,
}

#[derive(Debug)]
struct Complaint {
    kind: &'static str,
    place: String,
    message: String,
    input: String,
    /// The one entry of `ctx`, as Python shows it.
    context: Option<(&'static str, String)>,
}

/// The object that a body holds, or vLLM's 400.
pub(super) fn object(
    content_type: Option<&str>,
    body: &[u8],
) -> Result<Map<String, Value>, Answer> {
    let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
    if !media_type.trim().eq_ignore_ascii_case("application/json") {
        let message =
            "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed";
        return Err(Answer::error(400, "Bad Request", message, None));
    }
    if body.is_empty() {
        return Err(complain(&[missing("body", "None".to_owned())]));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(complain(&[Complaint {
            kind: "model_attributes_type",
            place: "body".to_owned(),
            message: "Input should be a valid dictionary or object to extract fields from"
                .to_owned(),
            input: shown(&other),
            context: None,
        }])),
        Err(error) => {
            let (offset, cause) = python_error(body, &error);
            Err(complain(&[Complaint {
                kind: "json_invalid",
                place: format!("body.{offset}"),
                message: "JSON decode error".to_owned(),
                input: "<dict of 0 items>".to_owned(),
                context: Some(("error", python_string(cause))),
            }]))
        }
    }
}

/// Where and how Python's parser would fail: near enough to know one error from another.
fn python_error(body: &[u8], error: &serde_json::Error) -> (usize, &'static str) {
    let lines = body.split_inclusive(|byte| *byte == b'\n');
    let before: usize = lines.take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
    let column = if error.is_eof() { error.column() } else { error.column().saturating_sub(1) };
    let offset = (before + column).min(body.len());
    let last = body[..offset].iter().rev().find(|byte| !byte.is_ascii_whitespace());
    let cause = match last {
        Some(b'{' | b',') => "Expecting property name enclosed in double quotes",
        None | Some(b':' | b'[') => "Expecting value",
        Some(_) => "Expecting ',' delimiter",
    };
    (offset, cause)
}

fn missing(place: &str, input: String) -> Complaint {
    Complaint {
        kind: "missing",
        place: place.to_owned(),
        message: "Field required".to_owned(),
        input,
        context: None,
    }
}

/// A value as vLLM shows it in a complaint.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("<list of {} items>", items.len()),
        Value::Object(fields) => format!("<dict of {} items>", fields.len()),
    }
}

fn complain(complaints: &[Complaint]) -> Answer {
    let plural = if complaints.len() == 1 { "" } else { "s" };
    let mut message = format!("{} validation error{plural}:", complaints.len());
    for complaint in complaints.iter().take(COMPLAINTS_MAX) {
        let Complaint { kind, place, message: said, input, context } = complaint;
        let said = python_string(said);
        let _ = write!(
            message,
            "\n  {{'type': '{kind}', 'loc': '{place}', 'msg': {said}, 'input': '{input}'"
        );
        if let Some((name, value)) = context {
            let _ = write!(message, ", 'ctx': {{'{name}': {value}}}");
        }
        message.push('}');
    }
    let param = complaints.first().map(|complaint| complaint.place.as_str());
    Answer::error(400, "Bad Request", &message, param)
}

/// Python prefers single quotes, unless there are some inside.
fn python_string(text: &str) -> String {
    if text.contains('\'') { format!("\"{text}\"") } else { format!("'{text}'") }
}

impl<'a> Fields<'a> {
    pub(super) const fn new(body: &'a Map<String, Value>) -> Self {
        Self { body, place: "body", complaints: Vec::new() }
    }

    /// The parameters of a query.
    pub(super) const fn of_query(query: &'a Map<String, Value>) -> Self {
        Self { body: query, place: "query", complaints: Vec::new() }
    }

    /// A field that is there and not null.
    pub(super) fn value(&self, name: &str) -> Option<&'a Value> {
        self.body.get(name).filter(|value| !value.is_null())
    }

    /// Whether a field is missing; null is not missing, and has the wrong type.
    pub(super) fn require(&mut self, name: &str) {
        self.require_of(name, self.body.len());
    }

    /// The same, where pydantic counts fields that were not given.
    pub(super) fn require_of(&mut self, name: &str, fields: usize) {
        if !self.body.contains_key(name) {
            let input = format!("<dict of {fields} items>");
            self.complaints.push(missing(&format!("{}.{name}", self.place), input));
        }
    }

    /// The same, where the route takes the fields one by one.
    pub(super) fn require_apart(&mut self, name: &str) {
        if !self.body.contains_key(name) {
            self.complaints.push(missing(&format!("{}.{name}", self.place), "None".to_owned()));
        }
    }

    fn wrong(&mut self, name: &str, kind: &'static str, message: &str, value: &Value) {
        self.complaints.push(Complaint {
            kind,
            place: format!("{}.{name}", self.place),
            message: message.to_owned(),
            input: shown(value),
            context: None,
        });
    }

    /// One of a few words.
    pub(super) fn word(&mut self, name: &str, words: &[&'static str]) -> Option<&'static str> {
        let value = self.value(name)?;
        let word = words.iter().find(|word| value.as_str() == Some(word)).copied();
        if word.is_none() {
            self.no_such_word(name, words);
        }
        word
    }

    /// Complains that the field is none of these words.
    pub(super) fn no_such_word(&mut self, name: &str, words: &[&'static str]) {
        let quoted: Vec<_> = words.iter().map(|word| python_string(word)).collect();
        let expected = match quoted.as_slice() {
            [most @ .., last] if !most.is_empty() => format!("{} or {last}", most.join(", ")),
            all => all.join(""),
        };
        self.complaints.push(Complaint {
            kind: "literal_error",
            place: format!("{}.{name}", self.place),
            message: format!("Input should be {expected}"),
            input: self.value(name).map_or_else(String::new, shown),
            context: Some(("expected", python_string(&expected))),
        });
    }

    /// A whole number from 0 to `most`.
    pub(super) fn number_to(&mut self, name: &str, most: i64) -> Option<i64> {
        let number = self.number(name)?;
        let (kind, what, limit, key) = if number < 0 {
            ("greater_than_equal", "greater", 0, "ge")
        } else if number > most {
            ("less_than_equal", "less", most, "le")
        } else {
            return Some(number);
        };
        self.complaints.push(Complaint {
            kind,
            place: format!("{}.{name}", self.place),
            message: format!("Input should be {what} than or equal to {limit}"),
            input: number.to_string(),
            context: Some((key, limit.to_string())),
        });
        None
    }

    pub(super) fn string(&mut self, name: &str) -> Option<&'a str> {
        let value = self.value(name)?;
        if !value.is_string() {
            self.wrong(name, "string_type", "Input should be a valid string", value);
        }
        value.as_str()
    }

    /// An object, if it is one.
    pub(super) fn object(&mut self, name: &str) -> Option<&'a Map<String, Value>> {
        let value = self.value(name)?;
        if !value.is_object() {
            self.wrong(name, "dict_type", "Input should be a valid dictionary", value);
        }
        value.as_object()
    }

    pub(super) fn list(&mut self, name: &str) -> Option<&'a [Value]> {
        let value = self.value(name)?;
        if !value.is_array() {
            self.wrong(name, "list_type", "Input should be a valid list", value);
        }
        value.as_array().map(Vec::as_slice)
    }

    /// A whole number; digits in a string count too.
    pub(super) fn number(&mut self, name: &str) -> Option<i64> {
        let value = self.value(name)?;
        let number = value.as_i64().or_else(|| value.as_str()?.trim().parse().ok());
        if number.is_none() {
            let (kind, message) = if value.is_string() {
                let message =
                    "Input should be a valid integer, unable to parse string as an integer";
                ("int_parsing", message)
            } else {
                ("int_type", "Input should be a valid integer")
            };
            self.wrong(name, kind, message, value);
        }
        number
    }

    /// Yes or no, in pydantic's lenient reading; absent is no.
    pub(super) fn flag(&mut self, name: &str) -> bool {
        let Some(value) = self.value(name) else { return false };
        match shown(value).to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" | "t" | "y" => true,
            "false" | "0" | "no" | "off" | "f" | "n" => false,
            _ => {
                let message = "Input should be a valid boolean, unable to interpret input";
                self.wrong(name, "bool_parsing", message, value);
                false
            }
        }
    }

    /// The complaints, if there are any.
    pub(super) fn done(&self) -> Result<(), Answer> {
        if self.complaints.is_empty() { Ok(()) } else { Err(complain(&self.complaints)) }
    }
}
