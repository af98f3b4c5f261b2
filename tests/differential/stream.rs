//! Streams that are cut differently: vLLM merges tokens into one event when its reader is slow,
//! so two runs of one request can differ in their events and still say the same.

use serde_json::Value;

/// Typed events that carry a piece of text: of /v1/messages and of /v1/responses.
const PIECES: [&str; 2] = ["content_block_delta", "response.output_text.delta"];

/// Whether this line gives the type of the event that follows.
fn names(line: &str, kind: &str) -> bool {
    line.strip_prefix("event: ").and_then(|rest| rest.strip_suffix("\\n")) == Some(kind)
}

/// The lines of a transcript with neighbouring events that continue each other made one.
///
/// Only the fallback of the comparison: it forgets how the JSON was spelled.
pub(crate) fn joined(lines: &[String]) -> Vec<String> {
    let mut out = Vec::new();
    let mut events: Vec<Value> = Vec::new();
    for line in lines {
        let event = line
            .strip_prefix("data: ")
            .and_then(|data| data.strip_suffix("\\n"))
            .and_then(|data| serde_json::from_str::<Value>(&spell_volatile(data)).ok())
            .filter(Value::is_object);
        match event {
            Some(mut event) => {
                // Counts the events, so that it says how the stream was cut.
                if let Some(number) = event.get_mut("sequence_number") {
                    *number = Value::Null;
                }
                events.push(event);
            }
            // The empty line behind an event, and the type before it, which it names too.
            None if !events.is_empty()
                && (line == "\\n" || PIECES.iter().any(|p| names(line, p))) => {}
            None => {
                flush(&mut events, &mut out);
                out.push(line.clone());
            }
        }
    }
    flush(&mut events, &mut out);
    out
}

/// Writes down a run of events: choice by choice, for theirs come in any order.
fn flush(events: &mut Vec<Value>, out: &mut Vec<String>) {
    // Sorting is stable: events that name no choice keep their order.
    events.sort_by_key(|event| event["choices"][0]["index"].as_u64().unwrap_or(u64::MAX));
    let mut joined: Vec<Value> = Vec::new();
    for event in events.drain(..) {
        match joined.last_mut() {
            Some(before) if continues(before, &event) => merge(before, event),
            Some(_) | None => joined.push(event),
        }
    }
    out.extend(joined.iter().map(Value::to_string));
}

/// The mark in place of a time is no JSON.
fn spell_volatile(data: &str) -> String {
    data.replace(":<time>", ":0")
}

/// Whether both are chunks of one choice, and the first does not end it.
fn continues(before: &Value, event: &Value) -> bool {
    let kind = |value: &Value| value.get("type").and_then(Value::as_str).map(str::to_owned);
    if let (Some(a), Some(b)) = (kind(before), kind(event)) {
        return a == b && PIECES.contains(&a.as_str());
    }
    let choice = |value: &Value| {
        let choices = value.get("choices")?.as_array()?;
        let [one] = choices.as_slice() else { return None };
        // The first chunk, which names the role, stands alone.
        let role = one.get("delta").and_then(|delta| delta.get("role")).is_some();
        Some((one.get("index")?.as_u64()?, role, one.get("finish_reason")?.is_null()))
    };
    match (choice(before), choice(event)) {
        (Some((a, false, true)), Some((b, false, _))) => a == b,
        (Some(_) | None, _) => false,
    }
}

/// Strings of text and lists go on; of all else the later one holds.
fn merge(before: &mut Value, event: Value) {
    match (before, event) {
        (Value::Object(before), Value::Object(event)) => {
            for (key, value) in event {
                match (before.get_mut(&key), value) {
                    (Some(Value::String(text)), Value::String(more))
                        if matches!(key.as_str(), "content" | "text" | "reasoning" | "delta") =>
                    {
                        text.push_str(&more);
                    }
                    (Some(old @ (Value::Object(_) | Value::Array(_))), value) => merge(old, value),
                    (_, value) => {
                        before.insert(key, value);
                    }
                }
            }
        }
        (Value::Array(before), Value::Array(mut event)) => {
            // The one choice of a chunk.
            if event.len() == 1 && event[0].get("finish_reason").is_some() && before.len() == 1 {
                merge(&mut before[0], event.remove(0));
            } else {
                before.extend(event);
            }
        }
        (before, event) => *before = event,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(pieces: &[&str]) -> Vec<String> {
        let chunk = |text: &&str| {
            let json = format!(
                r#"{{"created":<time>,"choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":null}}]}}"#
            );
            [format!("data: {json}\\n"), "\\n".to_owned()]
        };
        let mut lines: Vec<String> = pieces.iter().flat_map(chunk).collect();
        lines.push("data: [DONE]\\n".to_owned());
        lines
    }

    #[test]
    fn joins_events_that_continue_each_other() {
        assert_eq!(joined(&stream(&["a", "b", "c"])), joined(&stream(&["a", "bc"])));
        assert_ne!(joined(&stream(&["a", "b", "c"])), joined(&stream(&["a", "cb"])));
        assert_ne!(joined(&stream(&["a", "b"])), joined(&stream(&["a", "b"])[..4]));
    }
}
