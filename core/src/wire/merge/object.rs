//! A JSON object whose values keep their bytes.
//!
//! Knows names and where values begin and end; does not look into values, however deep they are.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The fields in their order, each with its name as it is meant and as it was written.
pub(super) struct Object<'a>(Vec<(String, &'a RawValue, &'a RawValue)>);

impl<'a> Object<'a> {
    /// The object that a body is; `None` if it is none, or has a name twice: readers differ in
    /// which of the two holds.
    pub(super) fn parse(body: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
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
        let mut json = Vec::new();
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

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
        let (mut fields, mut names) = (Vec::new(), BTreeSet::new());
        while let Some((written, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            let name: String = serde_json::from_str(written.get()).map_err(A::Error::custom)?;
            if !names.insert(name.clone()) {
                return Err(A::Error::custom("a name twice"));
            }
            fields.push((name, written, value));
        }
        Ok(Object(fields))
    }
}
