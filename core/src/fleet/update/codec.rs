//! Codec: updates as bytes.
//!
//! Owns the layout. Does not know what becomes of an update, or what travels around it.
//!
//! ```text
//! update = version, field*             about  = field*
//! field  = tag, length, bytes          tag, version = one byte
//! number = LEB128                      hash   = eight bytes, the lowest first
//! ```
//!
//! **Invariant: who knows less ignores what is more.** A field whose tag is not known is passed
//! over, and one that is not there means what it meant before there was one. So proxies of several
//! builds hear each other. The bytes of a field that is known never change; what is new gets a new
//! tag. The version only changes where that cannot be.
//!
//! **Invariant: nothing is kept that the bytes do not hold.** Every item takes some of them, no
//! number says how much room to make, and there are limits besides.

#[cfg(test)]
mod tests;

use super::bytes::{Reader, put, put_amount, put_field, put_hash, put_number, put_time};
use super::{
    About, Average, BackendName, Capacity, Clock, Head, InHand, Learned, Lesson, Owned, Placed,
    PromptLength, ProxyId, Update, UpdateError,
};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Of the layout.
const VERSION: u8 = 1;

/// Backends of one update. A proxy tells of 1,280 at once at most; each takes who hears it some
/// time in which requests wait.
const ABOUT_MAX: usize = 2_048;
/// Chunks of one update, eight times as many as any proxy tells at once.
const CHUNKS_MAX: usize = 4_096;
/// Proxies whose counters are told in one update: as many as an index tells apart, for each of the
/// 16 backends of a snapshot's page.
const COUNTERS_MAX: usize = 1_024;
/// Lessons of one update, and lengths of prompts.
const LESSONS_MAX: usize = 4_096;
/// Models of one backend whose tokens are told of.
const TOKEN_LENGTHS_MAX: usize = 64;
/// Stored responses of one update, twice as many as any proxy tells at once.
const OWNED_MAX: usize = 512;
/// Bytes of a model's name. A longer one is not told.
const MODEL_BYTES_MAX: usize = 1_024;

/// Tags of an update.
const PROXY: u8 = 1;
const NUMBER: u8 = 2;
const ABOUT: u8 = 3;
const PROMPT_LENGTH: u8 = 4;

/// Tags of what is said of a backend.
const BACKEND: u8 = 1;
const GENERATION: u8 = 2;
const IN_HAND: u8 = 3;
const HEAD: u8 = 4;
const FIRST_TOKEN: u8 = 5;
const INSERTED: u8 = 6;
const PLACED: u8 = 7;
const CLOCK: u8 = 8;
const PACE: u8 = 9;
const CACHED: u8 = 10;
const OWNED: u8 = 11;
const CHANGES: u8 = 12;
const LEARNED_PACE: u8 = 13;
const TRUST: u8 = 14;
const CAPACITY: u8 = 15;
const TOKEN_LENGTH: u8 = 16;
const DRAINS: u8 = 17;

impl Update {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        put_field(out, PROXY, |out| put_hash(out, self.proxy.0));
        put_number(out, NUMBER, self.number);
        for about in &self.about {
            put_field(out, ABOUT, |out| about.encode(out));
        }
        let told = self.lengths.iter().filter(|length| length.model.len() <= MODEL_BYTES_MAX);
        for PromptLength { model, bytes, tokens } in told {
            put_field(out, PROMPT_LENGTH, |out| {
                put(out, *bytes);
                put(out, *tokens);
                out.extend_from_slice(model.as_bytes());
            });
        }
    }

    /// Reads what [`encode`](Self::encode) wrote, here or in another build.
    pub fn decode(bytes: &[u8]) -> Result<Self, UpdateError> {
        Self::read(Reader::new(bytes))
    }

    pub(super) fn read(mut reader: Reader<'_>) -> Result<Self, UpdateError> {
        let version = reader.byte("a version")?;
        if version != VERSION {
            return Err(UpdateError::UnknownVersion { version });
        }
        let mut proxy = None;
        let (mut number, mut about, mut lengths) = (0, Vec::new(), Vec::new());
        let mut room = Room {
            chunks: CHUNKS_MAX,
            lessons: LESSONS_MAX,
            owned: OWNED_MAX,
            counters: COUNTERS_MAX,
        };
        while let Some((tag, mut field)) = reader.field()? {
            match tag {
                PROXY => proxy = Some(ProxyId(field.hash("a proxy's number")?)),
                NUMBER => number = field.number(u64::MAX, "a number of an update")?,
                ABOUT if about.len() < ABOUT_MAX => about.push(About::read(&mut field, &mut room)?),
                ABOUT => return Err(field.wrong("2048 backends at most")),
                PROMPT_LENGTH if lengths.len() < LESSONS_MAX => lengths.push(PromptLength {
                    bytes: field.number(u64::MAX, "bytes of a prompt")?,
                    tokens: field.number(u64::MAX, "tokens of a prompt")?,
                    model: Arc::from(field.text(MODEL_BYTES_MAX, "a model's name")?),
                }),
                PROMPT_LENGTH => return Err(field.wrong("4096 lengths of prompts at most")),
                _ => continue,
            }
            field.end()?;
        }
        let proxy = proxy.ok_or_else(|| reader.wrong("a proxy's number"))?;
        Ok(Self { proxy, number, about, lengths })
    }
}

/// How much more one update may tell.
struct Room {
    chunks: usize,
    lessons: usize,
    owned: usize,
    counters: usize,
}

impl About {
    fn encode(&self, out: &mut Vec<u8>) {
        put_field(out, BACKEND, |out| put_hash(out, self.backend.0));
        put_number(out, GENERATION, self.generation.into());
        put_number(out, CHANGES, self.changes.into());
        put_number(out, DRAINS, self.drains);
        if let Some(InHand { in_flight, queued, resident, head, first_token_age }) = self.in_hand {
            put_field(out, IN_HAND, |out| {
                put(out, in_flight.into());
                put_amount(out, queued);
                put_amount(out, resident);
            });
            if let Some(Head { age, uncached }) = head {
                put_field(out, HEAD, |out| {
                    put_time(out, age);
                    put_amount(out, uncached);
                });
            }
            if let Some(age) = first_token_age {
                put_field(out, FIRST_TOKEN, |out| put_time(out, age));
            }
        }
        put_number(out, INSERTED, self.inserted_tokens);
        for Placed { stamp, chunks } in &self.placed {
            put_field(out, PLACED, |out| {
                put(out, (*stamp).into());
                chunks.iter().for_each(|&chunk| put_hash(out, chunk));
            });
        }
        if let Some(Clock { counters, inserted_tokens, fresh_tokens }) = &self.clock {
            put_field(out, CLOCK, |out| {
                put(out, *inserted_tokens);
                put(out, *fresh_tokens);
                for (proxy, tokens) in counters {
                    put_hash(out, proxy.0);
                    put(out, *tokens);
                }
            });
        }
        for lesson in &self.lessons {
            lesson.encode(out);
        }
        if !self.owned.is_empty() {
            put_field(out, OWNED, |out| {
                for Owned { response, moves, age } in &self.owned {
                    put_hash(out, *response);
                    put(out, (*moves).into());
                    put_time(out, *age);
                }
            });
        }
        self.learned.encode(out);
    }

    fn read(reader: &mut Reader<'_>, room: &mut Room) -> Result<Self, UpdateError> {
        let mut backend = None;
        let mut about = Self::of(BackendName(0), 0);
        let (mut in_hand, mut head, mut first_token_age) = (None, None, None);
        while let Some((tag, mut field)) = reader.field()? {
            match tag {
                BACKEND => backend = Some(BackendName(field.hash("a backend's name")?)),
                GENERATION => about.generation = field.small("a generation")?,
                CHANGES => about.changes = field.small("a count of changes")?,
                DRAINS => about.drains = field.number(u64::MAX, "a count of drains")?,
                IN_HAND => {
                    in_hand = Some(InHand {
                        in_flight: field.small("requests in flight")?,
                        queued: field.amount("queued tokens")?,
                        resident: field.amount("resident tokens")?,
                        ..InHand::default()
                    });
                }
                HEAD => {
                    let age = field.time("the age of a head")?;
                    head = Some(Head { age, uncached: field.amount("tokens of a head")? });
                }
                FIRST_TOKEN => first_token_age = Some(field.time("the age of a first token")?),
                INSERTED => about.inserted_tokens = field.number(u64::MAX, "inserted tokens")?,
                PLACED => about.placed.push(Placed::read(&mut field, room)?),
                CLOCK => about.clock = Some(Clock::read(&mut field, room)?),
                PACE | CACHED => {
                    let left = room.lessons.checked_sub(1);
                    room.lessons = left.ok_or_else(|| field.wrong("4096 lessons at most"))?;
                    about.lessons.push(Lesson::read(&mut field, tag)?);
                }
                LEARNED_PACE => about.learned.pace = Average::read(&mut field)?,
                TRUST => about.learned.trust = Average::read(&mut field)?,
                CAPACITY => {
                    about.learned.capacity = Some(Capacity {
                        samples: field.small("samples")?,
                        start: field.number(u64::MAX, "tokens of a cache")?,
                        milli: field.number(u64::MAX, "tokens of a cache")?,
                    });
                }
                TOKEN_LENGTH if about.learned.token_lengths.len() < TOKEN_LENGTHS_MAX => {
                    let length = Average::read(&mut field)?;
                    let model = Arc::from(field.text(MODEL_BYTES_MAX, "a model's name")?);
                    about.learned.token_lengths.push((model, length));
                }
                TOKEN_LENGTH => return Err(field.wrong("64 models at most")),
                OWNED => {
                    while !field.is_empty() {
                        let left = room.owned.checked_sub(1);
                        room.owned = left.ok_or_else(|| field.wrong("512 responses at most"))?;
                        about.owned.push(Owned {
                            response: field.hash("a response's hash")?,
                            moves: field.small("moves of a response")?,
                            age: field.time("the age of a response")?,
                        });
                    }
                }
                _ => continue,
            }
            field.end()?;
        }
        let in_hand = in_hand.map(|in_hand| InHand { head, first_token_age, ..in_hand });
        let backend = backend.ok_or_else(|| reader.wrong("a backend's name"))?;
        Ok(Self { backend, in_hand, ..about })
    }
}

impl Placed {
    fn read(field: &mut Reader<'_>, room: &mut Room) -> Result<Self, UpdateError> {
        let stamp = field.small("a stamp")?;
        let count = field.len() / size_of::<u64>();
        let left = room.chunks.checked_sub(count);
        room.chunks = left.ok_or_else(|| field.wrong("4096 chunks at most"))?;
        let mut chunks = Vec::with_capacity(count);
        for _ in 0..count {
            chunks.push(field.hash("a chunk")?);
        }
        Ok(Self { stamp, chunks })
    }
}

impl Clock {
    fn read(field: &mut Reader<'_>, room: &mut Room) -> Result<Self, UpdateError> {
        let inserted_tokens = field.number(u64::MAX, "inserted tokens")?;
        let fresh_tokens = field.number(u64::MAX, "fresh tokens")?;
        let mut counters = Vec::new();
        while !field.is_empty() {
            let left = room.counters.checked_sub(1);
            room.counters = left.ok_or_else(|| field.wrong("1024 counters at most"))?;
            let proxy = ProxyId(field.hash("a proxy's number")?);
            counters.push((proxy, field.number(u64::MAX, "inserted tokens")?));
        }
        Ok(Self { counters, inserted_tokens, fresh_tokens })
    }
}

impl Learned {
    fn encode(&self, out: &mut Vec<u8>) {
        for (tag, average) in [(LEARNED_PACE, self.pace), (TRUST, self.trust)] {
            if average != Average::default() {
                put_field(out, tag, |out| average.encode(out));
            }
        }
        if let Some(Capacity { samples, start, milli }) = self.capacity {
            put_field(out, CAPACITY, |out| {
                put(out, samples.into());
                put(out, start);
                put(out, milli);
            });
        }
        let told = self.token_lengths.iter().filter(|(model, _)| model.len() <= MODEL_BYTES_MAX);
        for (model, length) in told {
            put_field(out, TOKEN_LENGTH, |out| {
                length.encode(out);
                out.extend_from_slice(model.as_bytes());
            });
        }
    }
}

impl Average {
    fn encode(&self, out: &mut Vec<u8>) {
        put(out, self.samples.into());
        put(out, self.value);
    }

    fn read(field: &mut Reader<'_>) -> Result<Self, UpdateError> {
        let samples = field.small("samples")?;
        Ok(Self { samples, value: field.number(u64::MAX, "what samples made")? })
    }
}

impl Lesson {
    fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Pace { work, time } => put_field(out, PACE, |out| {
                put_amount(out, work);
                put_time(out, time);
            }),
            Self::Cached { promised_tokens, cached_tokens, chunk_tokens, had_more } => {
                put_field(out, CACHED, |out| {
                    put(out, promised_tokens);
                    put(out, cached_tokens);
                    put(out, chunk_tokens.into());
                    put(out, had_more.into());
                });
            }
        }
    }

    fn read(field: &mut Reader<'_>, tag: u8) -> Result<Self, UpdateError> {
        if tag == PACE {
            let work = field.amount("computed tokens")?;
            return Ok(Self::Pace { work, time: field.time("a time")? });
        }
        Ok(Self::Cached {
            promised_tokens: field.number(u64::MAX, "promised tokens")?,
            cached_tokens: field.number(u64::MAX, "cached tokens")?,
            chunk_tokens: field.small("tokens of a chunk")?,
            had_more: field.flag("0 or 1")?,
        })
    }
}
