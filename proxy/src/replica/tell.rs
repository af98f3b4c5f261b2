//! The thread that publishes: what the engine gathered, snapshots, and questions for them.
//!
//! Nothing awaits a reply: the connection is told to give none, so that a Redis far away delays no
//! word by more than its way there. That words arrive is seen by their coming back to
//! [`hear`](super::hear).

use super::connect::{During, Pauses, Trouble, connect, reason};
use super::way::{Part, Way};
use redis::{Cmd, Connection, RedisResult};
use std::thread;
use std::time::{Duration, Instant};
use vllm_proxy_core::engine::{Engine, Lend, Page};
use vllm_proxy_core::fleet::Word;

/// Between two batches. What happens meanwhile is one word a backend.
const GAP: Duration = Duration::from_millis(4);

/// How long to wait for something to tell before looking at the connection.
const LOOK: Duration = Duration::from_millis(500);

/// Pages of a snapshot in a batch: 2,048 chunks. A full index of 64 MiB takes 6 s, in which who
/// hears it is busy with it for a tenth of a core. Where there are others, each takes as many times
/// longer, as all may tell at the same time, and Redis carries it to all.
const PAGES: usize = 8;

/// Pages looked at for a batch, empty ones among them. Each takes some microseconds of the engine.
const LOOKS: usize = 32;

const DOING: &str = "PUBLISH";

/// Publishes for as long as the process runs.
pub(super) fn run(way: &Way) {
    let mut pauses = Pauses::default();
    way.shared.bell().answered_here();
    loop {
        let told = Telling::start(way).and_then(|mut telling| {
            way.publishes();
            telling.go_on().during(DOING)
        });
        let now = Instant::now();
        if let Err(trouble) = told {
            way.trouble(Part::Tell, reason(&way.url, &trouble), now);
        }
        thread::sleep(pauses.next(now));
    }
}

struct Telling<'a> {
    way: &'a Way,
    connection: Connection,
    /// Where the user may not have replies left out.
    replies: bool,
    silences: u64,
    /// The next page of the snapshot that is being told, and whether another is to follow.
    page: Option<Page>,
    again: bool,
    /// When the next pages may be told.
    pages_from: Instant,
    /// Room for a batch.
    batch: Vec<u8>,
    word: Vec<u8>,
}

impl<'a> Telling<'a> {
    fn start(way: &'a Way) -> Result<Self, Trouble> {
        let silences = way.silences();
        let mut connection = connect(&way.url)?;
        // A word that changes nothing says whether this user may publish at all.
        let mut word = Vec::new();
        Word::Ask { from: way.own, to: way.own }.encode(&mut word);
        publish(&way.channel, &word).exec(&mut connection).during(DOING)?;
        let reply = |mode: &str| redis::cmd("CLIENT").arg("REPLY").arg(mode).take();
        let replies = reply("ON").exec(&mut connection).is_err();
        if !replies {
            let off = reply("OFF").get_packed_command();
            connection.send_packed_command(&off).during("CLIENT REPLY")?;
        }
        let (page, again, batch) = (None, false, Vec::new());
        let pages_from = Instant::now();
        Ok(Self { way, connection, replies, silences, page, again, pages_from, batch, word })
    }

    /// Until the connection fails, or falls silent.
    fn go_on(&mut self) -> RedisResult<()> {
        let mut last = Instant::now();
        while self.way.silences() == self.silences {
            if self.page.is_none() {
                self.way.shared.bell().wait(LOOK);
            }
            thread::sleep((last + GAP).saturating_duration_since(Instant::now()));
            // Before the engine is asked: what it gathers from now on rings again.
            self.way.shared.bell().hush();
            last = Instant::now();
            let words = self.gather();
            self.send(words)?;
        }
        Ok(())
    }

    /// Puts a batch together and says how many words it has.
    fn gather(&mut self) -> usize {
        let mut words = 0;
        let orders = self.way.take_orders();
        // One word each time, so that nobody waits long for the engine.
        while let Some(update) = self.engine(Engine::poll_update) {
            self.way.sent(update.number, Instant::now());
            self.way.kept.note(&update);
            words += self.add(&Word::Update(update));
        }
        if orders.ask {
            match self.engine(|engine| engine.peer()) {
                Some(to) => {
                    self.way.asks(to, Instant::now());
                    words += self.add(&Word::Ask { from: self.way.own, to });
                }
                None => self.way.unasked(),
            }
        }
        // One that is under way may have passed what is asked for.
        self.again |= orders.snapshot;
        let now = Instant::now();
        if self.page.is_none() && self.again && self.way.tells_all(now) {
            (self.page, self.again) = (Some(Page::FIRST), false);
        }
        words + if self.page.is_some() && now >= self.pages_from { self.tell_pages(now) } else { 0 }
    }

    /// Puts some pages of the snapshot into the batch and says how many.
    fn tell_pages(&mut self, now: Instant) -> usize {
        let others = self.engine(|engine| engine.company()).alive;
        self.pages_from = now + GAP * u32::try_from(others).unwrap_or(0);
        let mut pages = 0;
        for _ in 0..LOOKS {
            let Some(page) = self.page.filter(|_| pages < PAGES) else { break };
            let told = self.engine(|engine| engine.snapshot(page));
            let (update, next) = told.unzip();
            self.page = next.flatten();
            // A large part of an index may be empty.
            let full = update.filter(|update| !update.about.is_empty());
            pages += full.map_or(0, |update| self.add(&Word::Update(update)));
        }
        pages
    }

    fn engine<T>(&self, visit: impl FnOnce(&mut Engine) -> T) -> T {
        (&*self.way.shared as &dyn Lend).with(visit)
    }

    fn add(&mut self, word: &Word) -> usize {
        self.word.clear();
        word.encode(&mut self.word);
        publish(&self.way.channel, &self.word).write_packed_command(&mut self.batch);
        1
    }

    /// All in one write.
    fn send(&mut self, words: usize) -> RedisResult<()> {
        if words > 0 {
            let sent = self.connection.send_packed_command(&self.batch);
            sent.inspect_err(|_| self.way.lost_batch())?;
            self.batch.clear();
        }
        if self.replies {
            for _ in 0..words {
                self.connection.recv_response()?;
            }
        }
        Ok(())
    }
}

fn publish(channel: &str, word: &[u8]) -> Cmd {
    redis::cmd("PUBLISH").arg(channel).arg(word).take()
}
