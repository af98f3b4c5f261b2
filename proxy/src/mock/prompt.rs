//! Prompts: what of a request the model reads, as text and in tokens.

use super::answers::Answer;
use super::check::Fields;
use super::machine::{BLOCK_TOKENS, Sequence};
use serde_json::Value;
use std::iter::once;
use std::rc::Rc;
use vllm_proxy_core::rng::mix;
use vllm_proxy_sim::reply::{Reply, TOKEN_BYTES, count, detokenize, tokenize};

/// A prompt as the engine sees it.
#[derive(Clone, Debug)]
pub(super) struct Prompt {
    pub(super) text: String,
    pub(super) tokens: u32,
    /// What each full block holds, together with all before it.
    blocks: Vec<u64>,
    /// Whether its tokens are those of the text.
    spelled: bool,
}

impl Prompt {
    pub(super) fn of(text: String) -> Self {
        let blocks = blocks(0, tokenize(&text));
        Self { tokens: count(&text), text, blocks, spelled: true }
    }

    fn of_ids(ids: &[Value]) -> Self {
        Self {
            tokens: ids.len() as u32,
            text: detokenize(token_ids(ids)),
            blocks: blocks(0, token_ids(ids)),
            spelled: false,
        }
    }

    /// The sequences that answer it. `whose` is all else that caches keep apart: the model, the
    /// adapter, the salt.
    pub(super) fn sequences<'a>(
        &'a self,
        replies: impl Iterator<Item = Reply> + 'a,
        whose: u64,
    ) -> impl Iterator<Item = Sequence> + 'a {
        let own = move |block: &u64| mix(block ^ whose);
        let of_prompt: Rc<[u64]> = self.blocks.iter().map(own).collect();
        replies.map(move |reply| Sequence {
            reply,
            prompt: self.tokens,
            blocks: Rc::clone(&of_prompt),
            answer: self.answered(reply).iter().map(own).collect(),
        })
    }

    /// What the blocks behind the prompt's full ones hold when this is answered.
    fn answered(&self, reply: Reply) -> Vec<u64> {
        if !self.spelled {
            // Where an answer to ids begins in a later text nobody knows.
            return Vec::new();
        }
        // The prompt's last token can be part of one in the text that goes on, and so its last
        // block another one there.
        let block = BLOCK_TOKENS as usize * TOKEN_BYTES;
        let whole = self.blocks.len().min(self.text.len() / block);
        let before = self.blocks[..whole].last().copied().unwrap_or(0);
        let rest = &self.text.as_bytes()[whole * block..];
        let mut text = [rest, reply.text().as_bytes()].concat();
        text.truncate(text.len() / TOKEN_BYTES * TOKEN_BYTES);
        let behind = self.blocks.len() - whole;
        blocks(before, tokenize(&text)).into_iter().skip(behind).collect()
    }
}

/// What each full block of `tokens` holds, together with all before it, of which `before` tells.
fn blocks(before: u64, tokens: impl Iterator<Item = u32>) -> Vec<u64> {
    let chain = tokens.scan(before, |chain, token| {
        *chain = mix(*chain ^ u64::from(token));
        Some(*chain)
    });
    chain.skip(BLOCK_TOKENS as usize - 1).step_by(BLOCK_TOKENS as usize).collect()
}

/// What keeps requests apart in the cache, as one number.
pub(super) fn whose(names: &[&str]) -> u64 {
    let bytes = names.iter().flat_map(|name| name.bytes().map(u64::from).chain(once(1 << 8)));
    bytes.fold(0, |hash, byte| mix(hash ^ byte))
}

/// Token ids, those beyond any vocabulary as 0.
pub(super) fn token_ids(ids: &[Value]) -> impl Iterator<Item = u32> + '_ {
    ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or(0))
}

/// A string, strings, token ids or lists of token ids.
pub(super) fn prompts(prompt: Option<&Value>) -> Result<Vec<Prompt>, Answer> {
    let prompts: Vec<_> = match prompt {
        Some(Value::String(text)) if !text.is_empty() => vec![Prompt::of(text.clone())],
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_number) => {
            vec![Prompt::of_ids(items)]
        }
        Some(Value::Array(items)) => items
            .iter()
            .filter_map(|item| match item.as_str() {
                Some(text) => Some(Prompt::of(text.to_owned())),
                None => item.as_array().map(|ids| Prompt::of_ids(ids)),
            })
            .collect(),
        Some(_) | None => Vec::new(),
    };
    if prompts.is_empty() {
        let message = "Either prompt or prompt_embeds must be provided and non-empty. \
                       (parameter=prompt)";
        return Err(Answer::refused(message, Some("prompt")));
    }
    Ok(prompts)
}

/// What the chat template puts where the model is to speak.
pub(super) const ANSWER: &str = "<|im_start|>assistant\n";

/// Adds what someone said.
pub(super) fn turn(text: &mut String, role: &str, content: &str) {
    text.extend(["<|im_start|>", role, "\n", content, "<|im_end|>\n"]);
}

/// A conversation as the chat template (ChatML) renders it, tools first.
pub(super) fn conversation(
    fields: &Fields<'_>,
    system: Option<&Value>,
    messages: &[Value],
) -> Result<Prompt, Answer> {
    if messages.is_empty() {
        let message = "Cannot apply chat template to an empty conversation. \
                       Provide at least one message.";
        return Err(Answer::refused(message, None));
    }
    let mut text = String::new();
    if let Some(tools) = fields.value("tools") {
        turn(&mut text, "system", &tools.to_string());
    }
    if let Some(system) = system {
        turn(&mut text, "system", &content(system));
    }
    text.push_str(&conversation_text(messages));
    text.push_str(ANSWER);
    Ok(Prompt::of(text))
}

/// Messages one after another.
pub(super) fn conversation_text(messages: &[Value]) -> String {
    let mut text = String::new();
    for message in messages {
        turn(&mut text, message["role"].as_str().unwrap_or("user"), &content(&message["content"]));
    }
    text
}

/// The text of a `content`: a string, or parts of which those with text count.
fn content(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use vllm_proxy_sim::reply::Bounds;

    /// Of a prompt with an answer of that many tokens.
    fn sequence(prompt: &Prompt, answer: u32, whose: u64) -> (Sequence, String) {
        let bounds = Bounds { natural: answer, min: 0, max: answer, stops: true };
        let reply = Reply::new(&prompt.text, 0, bounds);
        let sequence = prompt.sequences(once(reply), whose).next();
        (sequence.expect("there is one"), reply.text())
    }

    #[test]
    fn blocks_are_full_and_know_all_before_them() {
        let blocks = |text: &str| sequence(&Prompt::of(text.to_owned()), 1, 0).0.blocks.to_vec();
        let text = "x".repeat(200);
        let all = blocks(&text);
        assert_eq!((all.len(), blocks(&text[..188]).len()), (3, 2));
        assert_eq!(blocks(&text[..128]), all[..2]);
        let other = blocks(&text.replacen('x', "y", 1));
        assert!(all.iter().all(|block| !other.contains(block)));
        assert_ne!(all[0], all[1]);
        let late = blocks(&format!("{}y{}", &text[..100], &text[101..]));
        assert_eq!((late[0] == all[0], late[1] == all[1], late[2] == all[2]), (true, false, false));
    }

    #[test]
    fn texts_and_their_tokens_are_the_same() {
        let text = "the same prompt, whether it comes as text or as ids ".repeat(4);
        let ids: Vec<_> = tokenize(&text).map(Value::from).collect();
        let (ids, text) = (Prompt::of_ids(&ids), Prompt::of(text));
        assert_eq!((ids.tokens, &ids.blocks), (text.tokens, &text.blocks));
    }

    /// 64 tokens are 63 words of four bytes and one of three.
    #[rstest]
    #[case::in_a_block(150, 2, 6, 2)]
    #[case::at_its_end(128, 2, 5, 2)]
    #[case::in_its_last_token(127, 2, 5, 1)]
    #[case::short(10, 0, 4, 0)]
    fn a_prompt_that_goes_on_from_an_answer_finds_it(
        #[case] bytes: usize,
        #[case] full: usize,
        #[case] all: usize,
        #[case] shared: usize,
    ) {
        let prompt = Prompt::of("x".repeat(bytes));
        let (first, answer) = sequence(&prompt, 64, 7);
        assert_eq!((first.blocks.len(), first.blocks.len() + first.answer.len()), (full, all));
        let next = Prompt::of(format!("{}{answer} and what now?{}", prompt.text, "y".repeat(99)));
        let (next, _) = sequence(&next, 1, 7);
        assert_eq!(next.blocks[..shared], first.blocks[..shared]);
        assert_eq!(next.blocks[full..all], first.answer);
    }

    #[test]
    fn who_is_kept_apart_finds_nothing() {
        let prompt = Prompt::of("x".repeat(64));
        let of = |names: &[&str]| sequence(&prompt, 1, whose(names)).0.blocks[0];
        assert_eq!(of(&["a", "b"]), of(&["a", "b"]));
        assert_ne!(of(&["a", "b"]), of(&["ab", ""]));
        assert_ne!(of(&["a", "b"]), of(&["a", "c"]));
    }
}
