//! The fingerprint of a prompt: which parts of a body belong to it, and in which order.
//!
//! Knows the keys at the top level, of all routes at once: no route uses two of them for different
//! things. What a value says is `render`'s to tell, how it is hashed [`Fingerprint`]'s.
//!
//! # What is equal
//!
//! A chunk of one body's fingerprint is equal to the same one of another's if vLLM would render
//! the same text up to the end of it, as far as that can be told without the template. So none of
//! this makes a difference:
//!
//! - spaces, escapes, and the order of keys, at the top level and within a message, a tool, or a
//!   part of a content. Deeper down (a tool's parameters, a call's arguments) the order counts, as
//!   it does in templates that print such JSON;
//! - whether a content is a string or one part of type `text`, `input_text` or `output_text`, and
//!   the `input` of a response a string or one message of the user's;
//! - keys with null, an empty string, list or object, or none at all;
//! - what does not reach a template (`temperature`, `stream`, `user`, `cache_control`, ids of
//!   messages) or only its end (`add_generation_prompt`).
//!
//! What changes a prompt from its first token on makes all chunks differ: the model's name (an
//! adapter's name is one), the salt, settings of the template. An image or other medium, and every
//! field of a message that is not listed in `render`, is eight bytes of text, by its content.
//! Numbers are compared as they are written. Nothing is promised for broken JSON but that it does
//! no harm; of a key that occurs twice the last one counts, as in Python.
//!
//! Where a value is beyond all use, less is promised: what comes when [`render`] has worked enough
//! on it is compared as it stands in the body.
//!
//! # What it costs
//!
//! GB/s of a whole scan with its fingerprint: CPU time of one core of an AMD EPYC with other work
//! beside it, the best of seven runs, the lesser of two such measurements.
//!
//! | body                                                |                 |
//! |-----------------------------------------------------|-----------------|
//! | chat text without escapes, 4 MB                     | 13              |
//! | chat text, `\n` every 80 bytes, 2 KB / 64 KB / 4 MB | 2.8 / 3.4 / 3.6 |
//! | the same in messages of 1.6 KB, 4 MB                | 2.9             |
//! | code, `\n` or `\"` every 9 bytes                    | 0.66            |
//! | messages of 25 bytes                                | 0.53            |
//! | tools: JSON with strings of 10 bytes                | 0.53            |
//! | text in `\u4f60`                                    | 0.52            |
//! | token ids, dense / with spaces                      | 1.2 / 0.8       |
//! | an image of 20 MB                                   | 6.7             |
//!
//! A string is read when it is complete, so the last byte of a prompt of a million tokens in one
//! message waits for a millisecond; of one in many messages, for the last message only.

use super::render::{self, List, Place, Writer};
use super::value::Value;
use crate::route::prompt::{Composer, Fingerprint};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// What changes a prompt from its beginning, or parts backends' caches.
///
/// `documents` are text for templates and for `/rerank`, but where in the prompt they stand is a
/// template's own affair. `truncation` and its like move the beginning.
const SEEDS: [&[u8]; 20] = [
    b"model",
    b"cache_salt",
    b"previous_response_id",
    b"chat_template",
    b"chat_template_kwargs",
    b"documents",
    b"reasoning_effort",
    b"reasoning",
    b"thinking",
    b"output_config",
    b"add_special_tokens",
    b"truncate_prompt_tokens",
    b"truncation_side",
    b"truncation",
    b"mm_processor_kwargs",
    b"media_io_kwargs",
    b"prompt_embeds",
    b"features",
    b"images",
    b"item_first",
];

/// The sections of a prompt, in the order in which templates and vLLM itself put them.
const SECTIONS: [(&[u8], Place); 22] = [
    (b"instructions", Place::Parts),
    (b"tools", Place::Parts),
    (b"system", Place::System),
    (b"previous_input_messages", Place::Top),
    (b"state", Place::Top),
    (b"messages", Place::Top),
    (b"input", Place::Input),
    (b"prompt", Place::Top),
    (b"token_ids", Place::Top),
    (b"tokens", Place::Top),
    (b"query", Place::Top),
    (b"queries", Place::Top),
    (b"data_1", Place::Top),
    (b"text_1", Place::Top),
    (b"items", Place::Top),
    (b"texts", Place::Top),
    (b"inputs", Place::Top),
    (b"data", Place::Top),
    (b"data_2", Place::Top),
    (b"text_2", Place::Top),
    (b"questions", Place::Top),
    (b"suffix", Place::Top),
];

/// What a value at the top level is to the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Seed(usize),
    Section(usize),
}

impl Part {
    pub(super) fn named(name: &[u8]) -> Option<Self> {
        let seed = SEEDS.iter().position(|seed| *seed == name).map(Self::Seed);
        let section = || SECTIONS.iter().position(|(section, _)| *section == name);
        seed.or_else(|| section().map(Self::Section))
    }
}

/// What was read of a prompt.
#[derive(Debug, Default)]
pub(super) struct Prompt {
    seeds: [u64; SEEDS.len()],
    sections: Vec<(usize, Box<Writer>)>,
    /// The section in hand: a list of which some elements were read.
    open: Option<(List, Box<Writer>)>,
}

impl Prompt {
    /// Reads what is complete of a value: from its bracket to the end of an element, if it is a
    /// list. `last` is where that element begins.
    pub(super) fn arrives(&mut self, part: Part, raw: &[u8], last: usize) {
        let (Part::Section(number), Some(b'[')) = (part, raw.first()) else { return };
        let open = || (List::new(SECTIONS[number].1), Box::new(Writer::new()));
        let (list, writer) = self.open.get_or_insert_with(open);
        list.write(raw, Some(last), 0, writer);
    }

    /// A value is complete.
    pub(super) fn value(&mut self, part: Part, value: Value<'_>) {
        let open = self.open.take();
        match part {
            Part::Seed(number) => {
                let seed = || render::seed(SEEDS[number], value);
                self.seeds[number] = if value.is_empty() { 0 } else { seed() };
            }
            Part::Section(number) => {
                let writer = match (open, value) {
                    (Some((mut list, mut writer)), Value::Array(raw)) => {
                        list.write(raw, None, 0, &mut writer);
                        writer
                    }
                    _ => {
                        let mut writer = Box::new(Writer::new());
                        render::value(SECTIONS[number].1, value, &mut writer);
                        writer
                    }
                };
                self.sections.retain(|(other, _)| *other != number);
                self.sections.push((number, writer));
            }
        }
    }

    /// All values are complete; one that is not does not count.
    pub(super) fn finish(mut self) -> Fingerprint {
        let mut composer = Composer::new();
        for (name, total) in SEEDS.iter().zip(self.seeds).filter(|(_, total)| *total != 0) {
            composer.seed(name, total);
        }
        self.sections.sort_unstable_by_key(|(number, _)| *number);
        for (number, writer) in &self.sections {
            composer.section(SECTIONS[*number].0, &writer.chain);
        }
        composer.finish()
    }
}
