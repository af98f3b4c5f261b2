//! A JSON object whose values keep their bytes.
//!
//! Knows names and where values begin and end; does not look into values, however deep they are.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;
use serde::de::{Deserializer as _, Error, MapAccess, Visitor};
use serde_json::Deserializer;
use serde_json::value::RawValue;

/// Names of one object, of which vLLM's answers to what is merged have a few, and ranks as many as
/// there are engines. Each takes ten times the memory of its shortest text.
pub(super) const NAMES_MAX: usize = 1_000;

/// Why a body is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    TooLong,
    TooManyNames,
    /// Or one that has a name twice: readers differ in which of the two holds.
    NoObject,
}

/// The fields in their order, each with its name as it is meant and as it was written.
pub(super) struct Object<'a>(Vec<(String, &'a RawValue, &'a RawValue)>);

impl<'a> Object<'a> {
    /// The object that a body of at most so many bytes is.
    pub(super) fn parse(body: &'a [u8], bytes_max: usize) -> Result<Self, Unread> {
        if body.len() > bytes_max {
            return Err(Unread::TooLong);
        }
        let crowded = Cell::new(false);
        let mut json = Deserializer::from_slice(body);
        let object = json.deserialize_map(Fields { crowded: &crowded });
        match object.and_then(|object| json.end().map(|()| object)) {
            Ok(object) => Ok(object),
            Err(_) if crowded.get() => Err(Unread::TooManyNames),
            Err(_) => Err(Unread::NoObject),
        }
    }

    /// A field's value.
    pub(super) fn value(&self, field: &str) -> Option<&'a str> {
        self.0.iter().find(|(name, ..)| name == field).map(|(_, _, value)| value.get())
    }

    /// What stands between the brackets of a field that is an array.
    pub(super) fn elements(&self, field: &str) -> Option<&'a str> {
        Some(self.value(field)?.strip_prefix('[')?.strip_suffix(']')?.trim_ascii())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, ..)| name.as_str())
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &'a str> {
        self.0.iter().map(|(_, _, value)| value.get())
    }

    /// The object with another value for a field, as compact JSON.
    pub(super) fn with(&self, field: &str, value: &str) -> Vec<u8> {
        let len = |(_, written, old): &(String, &RawValue, &RawValue)| {
            written.get().len() + old.get().len() + ":,".len()
        };
        let mut json = Vec::with_capacity(self.0.iter().map(len).sum::<usize>() + value.len());
        for (name, written, old) in &self.0 {
            json.push(if json.is_empty() { b'{' } else { b',' });
            json.extend_from_slice(written.get().as_bytes());
            json.push(b':');
            let value = if name == field { value } else { old.get() };
            json.extend_from_slice(value.as_bytes());
        }
        json.push(b'}');
        json
    }
}

struct Fields<'c> {
    /// Whether there were too many.
    crowded: &'c Cell<bool>,
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
        let (mut fields, mut names) = (Vec::new(), BTreeSet::new());
        while let Some((written, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            let name: String = serde_json::from_str(written.get()).map_err(A::Error::custom)?;
            if fields.len() == NAMES_MAX {
                self.crowded.set(true);
                return Err(A::Error::custom("too many names"));
            }
            if !names.insert(name.clone()) {
                return Err(A::Error::custom("a name twice"));
            }
            fields.push((name, written, value));
        }
        Ok(Object(fields))
    }
}
