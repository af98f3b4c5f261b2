//! One request's time in the engine: which of its sequences says a token, and when.
//!
//! Dropping a [`Run`] early is the abort. Tokens are due when the machine has made them, unless the
//! request orders a pace of its own.

use super::engine::Engine;
use super::machine::{BLOCK_TOKENS, Course};
use event_listener::Event;
use smol::future::yield_now;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use vllm_proxy_core::time::Instant;
use vllm_proxy_sim::reply::{Finish, Reply};

/// What comes on top of the machine's time, and in its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pace {
    /// All tokens are so much later than the machine makes them.
    pub(super) later: Duration,
    /// From the admission to the first token.
    pub(super) first: Option<Duration>,
    /// Between one token and the next of the same answer.
    pub(super) between: Option<Duration>,
}

/// One token of one sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    /// Which sequence.
    pub(super) choice: usize,
    /// How many it has now.
    pub(super) count: u32,
    pub(super) text: &'static str,
    /// With its last token: why it ends.
    pub(super) finish: Option<Finish>,
}

impl Token {
    /// How many it counts as: the end of what was aborted is none.
    pub(super) const fn tokens(self) -> u32 {
        if matches!(self.finish, Some(Finish::Abort)) { 0 } else { 1 }
    }
}

/// What a prompt cost the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cached {
    /// Tokens that were found there.
    pub(super) read: u32,
    /// Tokens that were put there.
    pub(super) written: u32,
}

/// One sequence of a request.
#[derive(Debug)]
struct Speaker {
    reply: Reply,
    course: Rc<Course>,
    /// Tokens said so far.
    said: u32,
}

impl Speaker {
    const fn has_ended(&self) -> bool {
        self.said >= self.reply.tokens()
    }

    /// When its next token is due, as far as that is known.
    fn due(&self, pace: Pace, admitted: Instant) -> Option<Instant> {
        let entered = self.course.entered()?;
        let first = match pace.first {
            Some(after) => entered.at.max(admitted + after),
            None => self.course.made(0)? + pace.later,
        };
        match pace.between {
            _ if self.said == 0 => Some(first),
            Some(between) => Some(first + between.saturating_mul(self.said)),
            None => {
                let late = first.since(self.course.made(0)?);
                Some(self.course.made(self.said)? + late)
            }
        }
    }
}

/// What a request is to do.
enum Turn {
    /// All is said.
    Over,
    /// This sequence speaks.
    Speak(usize),
    /// None has anything to say before that moment, if it is known.
    Wait(Option<Instant>),
}

/// One request in the engine.
#[derive(Debug)]
pub(super) struct Run {
    engine: Rc<Engine>,
    number: u64,
    aborted: Rc<Cell<bool>>,
    /// Told of all that is new of its sequences, and of its end.
    news: Rc<Event>,
    prompt_tokens: u32,
    speakers: Vec<Speaker>,
    pace: Pace,
    /// By the machine's clock, and by the system's.
    admitted: (Instant, std::time::Instant),
    /// The sequence whose turn it is, if it has anything to say.
    next: usize,
    finished: u64,
    /// Sequences that have been told of their abort.
    left: usize,
}

impl Run {
    pub(super) fn new(
        engine: Rc<Engine>,
        number: u64,
        (aborted, news): (Rc<Cell<bool>>, Rc<Event>),
        prompt_tokens: u32,
        sequences: Vec<(Reply, Rc<Course>)>,
        pace: Pace,
    ) -> Self {
        let speaker = |(reply, course)| Speaker { reply, course, said: 0 };
        Self {
            admitted: (engine.machine.now(), std::time::Instant::now()),
            engine,
            number,
            aborted,
            news,
            prompt_tokens,
            speakers: sequences.into_iter().map(speaker).collect(),
            pace,
            next: 0,
            finished: 0,
            left: 0,
        }
    }

    /// How many sequences it has.
    pub(super) const fn sequences(&self) -> usize {
        self.speakers.len()
    }

    pub(super) const fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// What the prompt of a sequence cost the cache, once it is in the batch.
    pub(super) fn cached(&self, choice: usize) -> Cached {
        let course = self.speakers.get(choice).map(|speaker| &speaker.course);
        let Some((course, entered)) = course.and_then(|course| Some((course, course.entered()?)))
        else {
            return Cached::default();
        };
        let full = course.prompt() / BLOCK_TOKENS * BLOCK_TOKENS;
        let written = if self.engine.machine.options().prefix_caching { full } else { 0 };
        Cached { read: entered.cached, written: written.saturating_sub(entered.cached) }
    }

    /// The next token when it is due; `None` after the last. If it is aborted, each sequence that
    /// has not ended ends with an empty one.
    pub(super) async fn next(&mut self) -> Option<Token> {
        // Whether others got their turn since the last token.
        let mut waited = false;
        loop {
            if self.aborted.get() {
                return self.leave();
            }
            let news = self.news.listen();
            match self.turn() {
                Turn::Over => return None,
                Turn::Speak(choice) if waited || choice >= self.next => {
                    self.next = choice + 1;
                    return Some(self.say(choice));
                }
                // A burst, or late steps.
                Turn::Speak(_) => yield_now().await,
                Turn::Wait(until) => self.engine.machine.until(until, news).await,
            }
            waited = true;
        }
    }

    fn turn(&self) -> Turn {
        let count = self.speakers.len();
        let now = self.engine.machine.now();
        let frozen = self.engine.machine.is_frozen();
        let (mut over, mut earliest) = (true, None);
        for index in (self.next..count).chain(0..self.next.min(count)) {
            let speaker = &self.speakers[index];
            if speaker.has_ended() {
                continue;
            }
            over = false;
            if let Some(due) = speaker.due(self.pace, self.admitted.0) {
                if due <= now && !frozen {
                    return Turn::Speak(index);
                }
                earliest = Some(earliest.map_or(due, |earliest| due.min(earliest)));
            }
        }
        if over { Turn::Over } else { Turn::Wait(earliest) }
    }

    fn say(&mut self, choice: usize) -> Token {
        let after = self.admitted.1.elapsed().as_secs_f64();
        let speaker = &mut self.speakers[choice];
        let (index, reply) = (speaker.said, speaker.reply);
        if index == 0 {
            self.engine.begun(&speaker.course, after);
        }
        speaker.said += 1;
        let finish = speaker.has_ended().then(|| reply.finish());
        self.finished += u64::from(finish.is_some());
        self.engine.said(finish, after);
        Token { choice, count: index + 1, text: reply.token(index), finish }
    }

    /// The end of the next sequence that was cut off.
    fn leave(&mut self) -> Option<Token> {
        while let Some(speaker) = self.speakers.get(self.left) {
            let choice = self.left;
            self.left += 1;
            if !speaker.has_ended() {
                let finish = Some(Finish::Abort);
                return Some(Token { choice, count: speaker.said, text: "", finish });
            }
        }
        None
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.engine.leave(self.number, self.speakers.len() as u64 - self.finished);
    }
}
