//! How the answers of several backends to one request become one answer.
//!
//! Knows what vLLM 0.32 and 0.33 answer on routes that go to all backends; does not know which
//! backends were asked, or by which path. A backend that failed is told of, not hidden: an
//! operator who resets, pauses or loads must know that it happened everywhere.
//!
//! Backends are not trusted: their bodies are read as JSON no deeper than the merge needs, and
//! what a merge does not touch keeps its bytes.

mod object;
#[cfg(test)]
mod tests;

use super::answers::{Answer, Shape, reason};
use super::metrics::{self, Families, Kind, Page, Value};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use object::{NAMES_MAX, Object, Unread};

/// Backends that a message names; of others it says how many.
const NAMED_MAX: usize = 16;
/// Length of what a message quotes of a backend's body, in bytes.
const EXCERPT_BYTES_MAX: usize = 200;
/// What is quoted before the byte in which bodies begin to differ.
const CONTEXT_BYTES: usize = 60;

/// Length of a JSON body that is read for a field; those that vLLM answers with have some
/// hundred bytes, or some hundred thousand with the addresses of a thousand ranks.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Length of one whose elements are joined: results have any size, and are only copied.
const JOINED_BYTES_MAX: usize = 16 << 20;

/// What one backend answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Three digits.
    pub status: u16,
    /// Header lines as they go to the client, without framing headers and the empty line.
    pub head: Vec<u8>,
    /// The body.
    pub body: Vec<u8>,
}

/// What came of asking one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said<'a> {
    /// Its address, such as `10.0.0.1:8000`.
    pub backend: &'a str,
    /// Its reply, or why there is none, such as `no connection`.
    pub result: Result<Reply, &'static str>,
}

/// What a backend that fails does to the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failures {
    /// One makes all fail.
    Fail,
    /// It is left out, unless all fail: for a reading, which is of those that can be read.
    LeaveOut,
}

/// How replies become one. Unless said otherwise, a reply that is not a 2xx makes all fail, and
/// so does one in which the named field is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// The first one, whatever it says.
    Same,
    /// The first in which this field is `false`, else the first.
    And(&'static str),
    /// The first in which this field is `true`, else the first.
    Or(&'static str),
    /// The first, with the sum of this field's integers.
    Sum(&'static str, Failures),
    /// The first, with the elements of this field's arrays one after the other. An empty body
    /// has none: `/collective_rpc` answers so where there is no result.
    Concat(&'static str),
    /// `/wake_up`: the first whose `status` is not `awake`, else the first.
    Awake,
    /// `/kv_event_sources`: the entries of all, numbered anew. A rank is one of its backend's.
    Ranks,
    /// The first, if all are equal; else 409, which says in what they differ.
    Compare,
    /// The first of those that loaded a LoRA adapter. Where others had it already, they are
    /// as good.
    LoadLora,
    /// The first of those that unloaded a LoRA adapter. Where others did not have it, they are as
    /// good.
    UnloadLora,
    /// Pages of metrics. Those that failed are left out, and a series says so.
    Metrics,
}

/// One answer of many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merged {
    /// This one's reply as it is.
    One(usize),
    /// An answer of our own.
    Answer(Answer),
}

/// Merges what the backends said, in their order; `own` are the proxy's own families, for
/// [`Merge::Metrics`].
///
/// What one backend alone said passes as it is, and so does what all said alike (unless it is to
/// be added up). So does a 401 if nobody did what was asked: who shows no key is not told which
/// backends there are.
pub fn merge(rule: Merge, said: &[Said<'_>], own: &[u8]) -> Merged {
    let merged = match rule {
        Merge::Metrics => Ok(metrics_page(said, own)),
        _ if is_unanimous(rule, said) => Ok(Merged::One(0)),
        _ if let Some(at) = refused(said) => Ok(Merged::One(at)),
        Merge::Same => Replies::read(said, |_| Ok(())).first(|()| true),
        Merge::And(field) => Replies::read(said, |reply| boolean(reply, field)).first(|is| !is),
        Merge::Or(field) => Replies::read(said, |reply| boolean(reply, field)).first(|is| *is),
        Merge::Awake => Replies::read(said, is_awake).first(|awake| !awake),
        Merge::Sum(field, failures) => sum(said, field, failures),
        Merge::Concat(field) => concat(said, field),
        Merge::Ranks => ranks(said),
        Merge::Compare => compare(said),
        Merge::LoadLora => Replies::excusing(said, had_adapter).first(|()| true),
        Merge::UnloadLora => Replies::excusing(said, lacked_adapter).first(|()| true),
    };
    merged.unwrap_or_else(Merged::Answer)
}

/// Whether the first reply stands for all.
fn is_unanimous(rule: Merge, said: &[Said<'_>]) -> bool {
    let Some((Said { result: Ok(first), .. }, others)) = said.split_first() else { return false };
    let adds = matches!(rule, Merge::Sum(..) | Merge::Concat(_) | Merge::Ranks);
    let equals = |other: &Reply| other.status == first.status && other.body == first.body;
    others.is_empty()
        || ((!adds || !succeeded(first))
            && others.iter().all(|said| said.result.as_ref().is_ok_and(equals)))
}

/// Which reply demands a key, where none did what was asked.
fn refused(said: &[Said<'_>]) -> Option<usize> {
    let is = |said: &Said<'_>, is: fn(&Reply) -> bool| said.result.as_ref().is_ok_and(is);
    match said.iter().any(|said| is(said, succeeded)) {
        true => None,
        false => said.iter().position(|said| is(said, |reply| reply.status == 401)),
    }
}

const fn succeeded(reply: &Reply) -> bool {
    matches!(reply.status, 200..=299)
}

/// What was found in the replies, and who failed.
struct Replies<'a, T> {
    /// With the place of each.
    good: Vec<(usize, T)>,
    failed: Vec<Failed<'a>>,
    asked: usize,
}

struct Failed<'a> {
    backend: &'a str,
    why: Why<'a>,
}

enum Why<'a> {
    NoReply(&'static str),
    Status(&'a Reply),
    /// It says that it succeeded, and then not what it should.
    Content(&'a Reply, String),
}

impl<'a, T> Replies<'a, T> {
    /// Reads each reply that is a success.
    fn read(said: &'a [Said<'_>], read: impl Fn(&'a Reply) -> Result<T, String>) -> Self {
        let mut replies = Self { good: Vec::new(), failed: Vec::new(), asked: said.len() };
        for (at, Said { backend, result }) in said.iter().enumerate() {
            let why = match result {
                Err(why) => Why::NoReply(why),
                Ok(reply) if !succeeded(reply) => Why::Status(reply),
                Ok(reply) => match read(reply) {
                    Ok(found) => {
                        replies.good.push((at, found));
                        continue;
                    }
                    Err(why) => Why::Content(reply, why),
                },
            };
            replies.failed.push(Failed { backend, why });
        }
        replies
    }

    /// The first reply of this kind, or the first at all.
    fn first(self, is: impl Fn(&T) -> bool) -> Result<Merged, Answer> {
        let good = self.all()?;
        let found = good.iter().find(|(_, found)| is(found)).or(good.first());
        Ok(Merged::One(found.map_or(0, |(at, _)| *at)))
    }

    /// What was found, if nobody failed and somebody was asked.
    fn all(self) -> Result<Vec<(usize, T)>, Answer> {
        if self.failed.is_empty() && !self.good.is_empty() {
            return Ok(self.good);
        }
        Err(told(&self.failed, self.asked))
    }
}

impl<'a> Replies<'a, ()> {
    /// Replies of which these failures are as good as a success, beside one.
    fn excusing(said: &'a [Said<'_>], excused: impl Fn(&Reply) -> bool) -> Self {
        let mut replies = Self::read(said, |_| Ok(()));
        if !replies.good.is_empty() {
            replies.failed.retain(|failed| match failed.why {
                Why::Status(reply) => !excused(reply),
                Why::NoReply(_) | Why::Content(..) => true,
            });
        }
        replies
    }
}

/// vLLM's answer if an adapter of that name is loaded and was not to be replaced.
fn had_adapter(reply: &Reply) -> bool {
    reply.status == 400 && holds(reply, b"has already been loaded")
}

/// vLLM's answer if there is no adapter of that name; not the 404 of one that lacks the route,
/// whose adapters are there to stay.
fn lacked_adapter(reply: &Reply) -> bool {
    reply.status == 404 && (holds(reply, b"NotFoundError") || holds(reply, b"cannot be found"))
}

fn holds(reply: &Reply, text: &[u8]) -> bool {
    memchr::memmem::find(&reply.body, text).is_some()
}

/// What is found in the object that a reply is; else what is said of it.
fn read<'a, T>(
    reply: &'a Reply,
    bytes_max: usize,
    find: impl FnOnce(Object<'a>) -> Option<T>,
    missing: impl FnOnce() -> String,
) -> Result<T, String> {
    match Object::parse(&reply.body, bytes_max) {
        Ok(object) => find(object).ok_or_else(missing),
        Err(Unread::NoObject) => Err(missing()),
        Err(Unread::TooLong) => Err(format!("with more than {} MiB", bytes_max >> 20)),
        Err(Unread::TooManyNames) => Err(format!("with more than {NAMES_MAX} fields")),
    }
}

fn boolean(reply: &Reply, field: &str) -> Result<bool, String> {
    let find = |object: Object<'_>| match object.value(field) {
        Some("true") => Some(true),
        Some("false") => Some(false),
        _ => None,
    };
    read(reply, BODY_BYTES_MAX, find, || format!("without a boolean `{field}`"))
}

fn is_awake(reply: &Reply) -> Result<bool, String> {
    let find = |object: Object<'_>| {
        let status = object.value("status").filter(|status| status.starts_with('"'));
        status.map(|status| status == r#""awake""#)
    };
    read(reply, BODY_BYTES_MAX, find, || "without a string `status`".into())
}

fn sum(said: &[Said<'_>], field: &str, failures: Failures) -> Result<Merged, Answer> {
    let mut replies = Replies::read(said, |reply| {
        let integer = |object: &Object<'_>| object.value(field)?.parse::<i64>().ok();
        let find = |object| integer(&object).map(|integer| (object, integer));
        read(reply, BODY_BYTES_MAX, find, || format!("without an integer `{field}`"))
    });
    if failures == Failures::LeaveOut && !replies.good.is_empty() {
        replies.failed.clear();
    }
    let good = replies.all()?;
    // As many 64-bit numbers as fit into memory fit into this one.
    let sum: i128 = good.iter().map(|(_, (_, integer))| i128::from(*integer)).sum();
    Ok(with_field(
        said,
        good.iter().map(|(at, (object, _))| (*at, object)),
        field,
        &format!("{sum}"),
    ))
}

fn concat<'a>(said: &'a [Said<'_>], field: &str) -> Result<Merged, Answer> {
    let replies = Replies::read(said, |reply| {
        if reply.body.is_empty() {
            return Ok(None);
        }
        let find = |object: Object<'a>| object.elements(field).is_some().then_some(Some(object));
        read(reply, JOINED_BYTES_MAX, find, || format!("without an array `{field}`"))
    });
    let good = replies.all()?;
    let objects = || good.iter().filter_map(|(at, object)| Some((*at, object.as_ref()?)));
    let all = || objects().filter_map(|(_, object)| object.elements(field));
    let len = all().map(|elements| elements.len() + ",".len()).sum::<usize>();
    let mut joined = String::with_capacity(len + "[]".len());
    joined.push('[');
    for elements in all() {
        if joined.len() > 1 && !elements.is_empty() {
            joined.push(',');
        }
        joined.push_str(elements);
    }
    joined.push(']');
    Ok(with_field(said, objects(), field, &joined))
}

/// The first of the objects with another value for a field, under its reply's status; without
/// any object, the first reply.
fn with_field<'o>(
    said: &[Said<'_>],
    mut objects: impl Iterator<Item = (usize, &'o Object<'o>)>,
    field: &str,
    value: &str,
) -> Merged {
    let Some((at, object)) = objects.next() else { return Merged::One(0) };
    let status = said[at].result.as_ref().map_or(200, |reply| reply.status);
    Merged::Answer(Answer::json(status, object.with(field, value)))
}

fn ranks(said: &[Said<'_>]) -> Result<Merged, Answer> {
    let replies = Replies::read(said, |reply| {
        let numbered = |object: &Object<'_>| object.names().all(|name| name.parse::<u32>().is_ok());
        let find = |object| Some(object).filter(numbered);
        read(reply, BODY_BYTES_MAX, find, || "without ranks".into())
    });
    let mut body = String::from("{");
    let good = replies.all()?;
    for (rank, source) in good.iter().flat_map(|(_, object)| object.values()).enumerate() {
        let comma = if rank == 0 { "" } else { "," };
        let _ = write!(body, "{comma}\"{rank}\":{source}");
    }
    body.push('}');
    Ok(Merged::Answer(Answer::json(200, body.into_bytes())))
}

fn compare(said: &[Said<'_>]) -> Result<Merged, Answer> {
    let good = Replies::read(said, |reply| Ok(reply.body.as_slice())).all()?;
    let first = good.first().map_or(&[][..], |(_, body)| *body);
    // How many bytes all have in common, and who says the same.
    let mut common = first.len();
    let mut groups: Vec<(&[u8], &str, usize)> = Vec::new();
    let mut others = 0;
    for (at, body) in good {
        let equal = first.iter().zip(body).take_while(|(a, b)| a == b).count();
        common = if body == first { common } else { common.min(equal) };
        if let Some((_, _, count)) = groups.iter_mut().find(|group| group.0 == body) {
            *count += 1;
        } else if groups.len() < NAMED_MAX {
            groups.push((body, said[at].backend, 1));
        } else {
            others += 1;
        }
    }
    if groups.len() < 2 {
        return Ok(Merged::One(0));
    }
    let from = if common <= 2 * CONTEXT_BYTES { 0 } else { common - CONTEXT_BYTES };
    let mut message = String::from("The backends differ.");
    for (body, backend, count) in groups {
        message.push(' ');
        excerpt(&mut message, backend.as_bytes(), 0);
        if count > 1 {
            let _ = write!(message, " and {} more", count - 1);
        }
        message.push_str(if body.is_empty() { ": nothing" } else { ": " });
        excerpt(&mut message, body, from);
        message.push(';');
    }
    finish(&mut message, others);
    Err(Answer::error(409, &message, None, Shape::OpenAi))
}

/// An error that names who failed, and how.
fn told(failed: &[Failed<'_>], asked: usize) -> Answer {
    if asked == 0 {
        return Answer::error(503, "No backend is there to be asked.", None, Shape::OpenAi);
    }
    let noun = if asked == 1 { "backend" } else { "backends" };
    let mut message = format!("{} of {asked} {noun} failed.", failed.len());
    for Failed { backend, why } in failed.iter().take(NAMED_MAX) {
        message.push(' ');
        excerpt(&mut message, backend.as_bytes(), 0);
        message.push_str(": ");
        match why {
            Why::NoReply(why) => message.push_str(why),
            Why::Status(reply) => {
                let _ = write!(message, "{}", reply.status);
                let reason = reason(reply.status);
                let blank = if reason.is_empty() { "" } else { " " };
                let _ = write!(message, "{blank}{reason}");
                quote(&mut message, reply);
            }
            Why::Content(reply, why) => {
                let _ = write!(message, "{} {why}", reply.status);
                quote(&mut message, reply);
            }
        }
        message.push(';');
    }
    finish(&mut message, failed.len().saturating_sub(NAMED_MAX));
    let status = match failed.first().map(|failed| &failed.why) {
        // Others would promise another place, or no body.
        Some(Why::Status(reply)) if matches!(reply.status, 400..=599) => reply.status,
        _ => 502,
    };
    Answer::error(status, &message, None, Shape::OpenAi)
}

/// Ends a list of backends, of which some were not named.
fn finish(message: &mut String, others: usize) {
    if others > 0 {
        let _ = write!(message, " and {others} more;");
    }
    message.pop();
    message.push('.');
}

fn quote(message: &mut String, reply: &Reply) {
    if !reply.body.is_empty() {
        message.push_str(": ");
        excerpt(message, &reply.body, 0);
    }
}

/// Some bytes of a text from a place on. What a terminal or a log would not show is escaped.
fn excerpt(message: &mut String, text: &[u8], from: usize) {
    if from > 0 {
        message.push_str("...");
    }
    let rest = text.get(from..).unwrap_or_default();
    // A character that is cut at the front is left out; one at the end becomes a mark.
    let cut = rest.iter().take(3).take_while(|&&byte| from > 0 && byte & 0xc0 == 0x80).count();
    let rest = &rest[cut..];
    let window = &rest[..rest.len().min(EXCERPT_BYTES_MAX)];
    let mut left = EXCERPT_BYTES_MAX;
    for c in String::from_utf8_lossy(window).chars() {
        let start = message.len();
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}') {
            message.extend(c.escape_default());
        } else {
            message.push(c);
        }
        let len = message.len() - start;
        if len > left {
            message.truncate(start);
            message.push_str("...");
            return;
        }
        left -= len;
    }
    if window.len() < rest.len() {
        message.push_str("...");
    }
}

/// All pages of metrics with the proxy's own families, and two more about the pages.
fn metrics_page(said: &[Said<'_>], own: &[u8]) -> Merged {
    const UP: &str = "vllm_proxy_metrics_up";
    const LEFT_OUT: &str = "vllm_proxy_metrics_lines_left_out";
    let mut about = Families::default();
    about.family(UP, Kind::Gauge, "Whether the backend's own metrics are part of this page.");
    let mut pages = Vec::new();
    for Said { backend, result } in said {
        let page = result.as_ref().ok().filter(|reply| succeeded(reply));
        pages.extend(page.map(|reply| Page { backend, text: &reply.body }));
        let up = Value::Integer(u64::from(page.is_some()));
        about.sample(UP, &[("backend", backend)], up);
    }
    let (mut text, left_out) = metrics::merge(&pages, own);
    about.family(LEFT_OUT, Kind::Gauge, "Lines of backends that could not be part of this page.");
    about.sample(LEFT_OUT, &[], Value::Integer(left_out));
    let about = about.finish();
    // Pages are long: growing by half again would be in memory what nobody writes.
    text.reserve_exact(about.len());
    text.extend_from_slice(&about);
    let content_type = Some(metrics::CONTENT_TYPE);
    Merged::Answer(Answer { content_type, ..Answer::json(200, text) })
}
