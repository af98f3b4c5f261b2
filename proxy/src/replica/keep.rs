//! The thread that keeps in Redis what must outlive the proxies that know it.
//!
//! For each backend there is a log: a string to which every proxy appends what it placed there,
//! with the backend's clock, and which responses it stores, and whether operators had it drained;
//! five times a second, if there is any.
//! Who starts reads the logs of the backends it was given, and no others: Redis never introduces a
//! backend.
//!
//! **Bounded.** Whoever's APPEND carries a log over its limit renames it to `..:old`, and so drops
//! the one before. What a cache holds is told again by its next use after an eighth of a cache, so
//! that two logs of at least twice a cache hold all that matters. The limit is 16 bytes for each
//! chunk that the backend's cache is believed to hold, and 32 KiB at least. Logs that nobody
//! appends to vanish after a day.
//!
//! **Mended.** A mark beside the logs tells whether all of them were lost (FLUSHALL, another
//! server): whoever sets it anew appends all it knows. One log that was lost (evicted) is noticed
//! by the length that APPEND returns. Proxies mend one after another: what several append in turns
//! fills the logs with the same parts, and pushes out the others.

mod drains;
mod waiting;

pub(super) use waiting::Kept;

use super::connect::{During, Pauses, Trouble, connect, reason};
use super::hear::in_parts;
use super::way::{Part, Way};
use redis::{Cmd, Connection, RedisError, RedisResult, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::thread;
use std::time::{Duration, Instant};
use vllm_proxy_core::engine::{Engine, Input, Lend, Page};
use vllm_proxy_core::fleet::{About, BackendName, Update, UpdateError};
use waiting::{Waiting, size};

/// Between two looks at what there is to append.
const TICK: Duration = Duration::from_millis(200);

/// Between two looks at the mark.
const MARK_GAP: Duration = Duration::from_secs(10);

/// Between two renewals of the time that logs have.
const RENEWAL: Duration = Duration::from_secs(600);

/// How long Redis keeps what nobody renews, in seconds.
const LIFE: u32 = 86_400;

/// How long whoever mends and is heard of no more keeps others from it, in seconds.
const TURN: u32 = 10;

/// No log has a lower limit, in bytes: one of few chunks would be renamed all the time.
const LIMIT_MIN: u64 = 32 << 10;

/// No log has a higher limit, whatever a backend says of its cache: Redis takes no string of more
/// than 512 MiB, and whoever starts reads 32 logs at once.
const LIMIT_MAX: u64 = 16 << 20;

/// Bytes of a log for each chunk of a cache: twice as many as its hash has.
const CHUNK_BYTES: u64 = 16;

/// Chunks in a frame, so that nobody who hears it is busy with it for long.
const FRAME_CHUNKS: usize = 512;

/// Pages of a snapshot that are appended in one go.
const PAGES: usize = 64;

/// Logs read in one go.
const LOGS: usize = 16;

/// Keeps for as long as the process runs.
pub(super) fn run(way: &Way) {
    let mut pauses = Pauses::default();
    let mut keeping = Keeping::new(way);
    loop {
        let begun = Instant::now();
        let Err(trouble) = keeping.go_on();
        let now = Instant::now();
        // A connection that ends is made anew, and where there is none at all, others say so.
        if !trouble.error.is_io_error() || (pauses.are_long(now) && way.is_whole()) {
            way.keeps_nothing(reason(&way.url, &trouble), begun, now);
        }
        // What was on its way may be lost.
        keeping.lose_all();
        thread::sleep(pauses.next(now));
    }
}

struct Keeping<'a> {
    way: &'a Way,
    /// Backends whose logs were read.
    read: BTreeSet<BackendName>,
    /// What operators ordered of backends, as the logs have it, and when it was put there.
    drains: BTreeMap<BackendName, (u64, Instant)>,
    /// When logs were given their time.
    renewed: BTreeMap<BackendName, Instant>,
    marked: Option<Instant>,
    /// Backends whose logs lack something, and those to whose logs all is being appended, with the
    /// page of the index that comes next.
    lost: BTreeSet<BackendName>,
    mending: BTreeSet<BackendName>,
    page: Option<Page>,
}

impl<'a> Keeping<'a> {
    const fn new(way: &'a Way) -> Self {
        Self {
            way,
            read: BTreeSet::new(),
            drains: BTreeMap::new(),
            renewed: BTreeMap::new(),
            marked: None,
            lost: BTreeSet::new(),
            mending: BTreeSet::new(),
            page: None,
        }
    }

    /// Until the connection fails.
    fn go_on(&mut self) -> Result<Infallible, Trouble> {
        let mut connection = connect(&self.way.url)?;
        self.look_at_permissions(&mut connection)?;
        self.marked = None;
        // What it was about to append may be lost: all of it again, when its turn comes.
        if self.page.take().is_some() {
            self.lose_all();
        }
        loop {
            self.read_new(&mut connection)?;
            self.look_at_mark(&mut connection)?;
            self.append_new(&mut connection)?;
            self.append_drains(&mut connection)?;
            self.mend(&mut connection)?;
            self.way.works(Part::Keep);
            thread::sleep(TICK);
        }
    }

    /// Says which commands the user may not use, all at once, rather than one after another in the
    /// middle of things.
    fn look_at_permissions(&self, connection: &mut Connection) -> Result<(), Trouble> {
        let key = format!("vllm-proxy:1:probe:{:016x}", self.way.own.0);
        let key = key.as_str();
        let commands = [
            command("SET").arg(key).arg("").arg("NX").arg("EX").arg(60).take(),
            command("APPEND").arg(key).arg("").take(),
            command("GET").arg(key).take(),
            command("EXPIRE").arg(key).arg(60).take(),
            command("RENAME").arg(key).arg(key).take(),
            command("DEL").arg(key).take(),
        ];
        let names = ["SET", "APPEND", "GET", "EXPIRE", "RENAME", "DEL"];
        let replies = ask(connection, &commands)?;
        let refusals: Vec<_> = names
            .into_iter()
            .zip(replies)
            .filter_map(|(name, reply)| Some((name, reply.err().filter(is_forbidden)?)))
            .collect();
        let names: Vec<_> = refusals.iter().map(|(name, _)| *name).collect();
        match refusals.into_iter().next() {
            Some((_, error)) => Err(Trouble { doing: names.join(", "), error }),
            None => Ok(()),
        }
    }

    /// Reads the logs of backends that are new here.
    fn read_new(&mut self, connection: &mut Connection) -> Result<(), Trouble> {
        // One that left and came back is likely to be another server: its log is not read again.
        let known: BTreeSet<_> = self.engine(|engine| engine.names().collect());
        let new: Vec<_> = known.difference(&self.read).copied().collect();
        let start = Instant::now();
        let mut words = 0;
        for names in new.chunks(LOGS) {
            let keys: Vec<_> = names.iter().flat_map(|name| [old_key(*name), key(*name)]).collect();
            let commands: Vec<_> = keys.iter().map(|key| command("GET").arg(key).take()).collect();
            for (key, reply) in keys.iter().zip(ask(connection, &commands)?) {
                let log = match reply {
                    Ok(Value::BulkString(log)) => log,
                    Ok(Value::Nil) => continue,
                    Ok(_) => Vec::from([0]),
                    Err(error) if error.code() == Some("WRONGTYPE") => Vec::from([0]),
                    Err(error) => return Err(error).during("GET"),
                };
                let (heard, whole) = self.hear(&log);
                words += heard;
                if !whole {
                    // Whatever it is, nobody could read what is appended to it.
                    self.way.unreadable();
                    let deleted = ask(connection, &[command("DEL").arg(key).take()])?;
                    deleted.into_iter().collect::<RedisResult<Vec<_>>>().during("DEL")?;
                }
            }
            self.read.extend(names);
        }
        if words > 0 {
            let millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            log::info!(backends = new.len(), words, millis; "read what was kept in Redis");
        }
        Ok(())
    }

    /// Gives the engine what a log holds. Says how many words it had, and whether it has nothing
    /// else.
    fn hear(&self, log: &[u8]) -> (usize, bool) {
        let mut words = 0;
        for frame in frames(log) {
            match frame.map(Update::decode) {
                Some(Ok(update)) if update.number == 0 && update.proxy != self.way.own => {
                    in_parts(update, |part| self.way.shared.tell(Input::Heard(part)));
                    words += 1;
                }
                // What a proxy of another version kept is for others of its kind.
                Some(Ok(_) | Err(UpdateError::UnknownVersion { .. })) => {}
                Some(Err(UpdateError::UnknownKind { .. } | UpdateError::Malformed { .. }))
                | None => {
                    return (words, false);
                }
            }
        }
        (words, true)
    }

    /// Looks whether the logs are those that were left.
    fn look_at_mark(&mut self, connection: &mut Connection) -> Result<(), Trouble> {
        if self.marked.is_some_and(|last| last.elapsed() < MARK_GAP) {
            return Ok(());
        }
        self.marked = Some(Instant::now());
        let renewed = command("EXPIRE").arg(MARK).arg(LIFE).query(connection).during("EXPIRE")?;
        if renewed {
            return Ok(());
        }
        let own = format!("{:016x}", self.way.own.0);
        let set = command("SET").arg(MARK).arg(own).arg("NX").arg("EX").arg(LIFE).take();
        if set.query::<Value>(connection).during("SET")? == Value::Okay {
            self.lose_all();
        }
        Ok(())
    }

    /// Appends what was told since the last time.
    fn append_new(&mut self, connection: &mut Connection) -> Result<(), Trouble> {
        let Waiting { abouts, dropped, .. } = self.way.kept.take();
        let appended = self.append(connection, abouts.into());
        if dropped || appended.is_err() {
            self.lose_all();
        }
        appended
    }

    /// Appends all that is known of backends whose logs lack something, a part of it each time.
    fn mend(&mut self, connection: &mut Connection) -> Result<(), Trouble> {
        if self.page.is_none() && self.lost.is_empty() {
            return Ok(());
        }
        if self.page.is_some() {
            command("EXPIRE").arg(MENDING).arg(TURN).exec(connection).during("EXPIRE")?;
        } else {
            let own = format!("{:016x}", self.way.own.0);
            let set = command("SET").arg(MENDING).arg(own).arg("NX").arg("EX").arg(TURN).take();
            if set.query::<Value>(connection).during("SET")? != Value::Okay {
                return self.wait_for_turn(connection);
            }
            self.mending = std::mem::take(&mut self.lost);
            self.page = Some(Page::FIRST);
        }
        let mut abouts = Vec::new();
        for _ in 0..PAGES {
            let Some(page) = self.page else { break };
            let told = self.engine(|engine| engine.snapshot(page));
            let (update, next) = told.unzip();
            self.page = next.flatten();
            let told = update.map(|update| update.about).unwrap_or_default();
            let of_these = |about: &About| self.mending.contains(&about.backend);
            abouts.extend(told.into_iter().filter(|about| size(about) > 0 && of_these(about)));
        }
        self.append(connection, abouts)?;
        if self.page.is_none() {
            command("DEL").arg(MENDING).exec(connection).during("DEL")?;
        }
        Ok(())
    }

    /// Another one mends, unless what is there is nobody's name, and would be there for ever.
    fn wait_for_turn(&self, connection: &mut Connection) -> Result<(), Trouble> {
        let who = match command("GET").arg(MENDING).query::<Option<Vec<u8>>>(connection) {
            Ok(who) => who,
            Err(error) if error.code() == Some("WRONGTYPE") => Some(Vec::new()),
            Err(error) => return Err(error).during("GET"),
        };
        let is_name = |who: Vec<u8>| who.len() == 16 && who.iter().all(u8::is_ascii_hexdigit);
        if who.is_some_and(|who| !is_name(who)) {
            self.way.unreadable();
            command("DEL").arg(MENDING).exec(connection).during("DEL")?;
        }
        Ok(())
    }

    fn append(
        &mut self,
        connection: &mut Connection,
        mut abouts: Vec<About>,
    ) -> Result<(), Trouble> {
        abouts.sort_by_key(|about| about.backend);
        let mut frames: Vec<(BackendName, Vec<u8>)> = Vec::new();
        for abouts in abouts.chunk_by(|one, other| one.backend == other.backend) {
            let name = abouts[0].backend;
            // One that left is kept no longer.
            let Some(stand) = self.engine(|engine| engine.stand(name)) else { continue };
            frames.extend(self.framed(&stand, abouts).map(|frame| (name, frame)));
        }
        if frames.is_empty() {
            return Ok(());
        }
        let of_one = |one: &(BackendName, _), other: &(BackendName, _)| one.0 == other.0;
        let mut commands = Vec::new();
        for frames in frames.chunk_by(of_one) {
            let key = key(frames[0].0);
            let append = |(_, frame): &(_, Vec<u8>)| command("APPEND").arg(&key).arg(frame).take();
            commands.extend(frames.iter().map(append));
            // At once: it may be new, and nobody else may ever look after it.
            commands.push(command("EXPIRE").arg(&key).arg(LIFE).take());
        }
        let mut replies = ask(connection, &commands)?.into_iter();
        for frames in frames.chunk_by(of_one) {
            let name = frames[0].0;
            let limit = self.limit(name);
            let (mut is_full, mut begins) = (false, false);
            for ((_, frame), reply) in frames.iter().zip(replies.by_ref()) {
                match reply {
                    Ok(Value::Int(after)) => {
                        let after = after.unsigned_abs();
                        let before = after.saturating_sub(frame.len() as u64);
                        // Of all who append, one carries it over.
                        is_full |= after / limit > before / limit;
                        begins |= before == 0;
                    }
                    Ok(_) => {}
                    Err(error) if error.code() == Some("WRONGTYPE") => {
                        self.lost.insert(name);
                        self.drains.remove(&name);
                        command("DEL").arg(key(name)).exec(connection).during("DEL")?;
                    }
                    Err(error) => return Err(error).during("APPEND"),
                }
            }
            replies.next().transpose().during("EXPIRE")?;
            self.appended(connection, name, is_full, begins)?;
        }
        Ok(())
    }

    /// Bytes after which a log is full.
    fn limit(&self, name: BackendName) -> u64 {
        let chunks = self.engine(|engine| engine.kept_chunks(name)).unwrap_or(0);
        chunks.saturating_mul(CHUNK_BYTES).clamp(LIMIT_MIN, LIMIT_MAX)
    }

    /// A log got longer. It is renamed once, whatever was appended together: what another has begun
    /// since must not replace what was just put aside.
    fn appended(
        &mut self,
        connection: &mut Connection,
        name: BackendName,
        is_full: bool,
        begins: bool,
    ) -> Result<(), Trouble> {
        if is_full {
            let rename = command("RENAME").arg(key(name)).arg(old_key(name)).take();
            // If it is not there, another did, whose limit is lower.
            match ask(connection, &[rename])?.pop() {
                Some(Err(error)) if !is_missing(&error) => return Err(error).during("RENAME"),
                _ => {}
            }
        }
        let renewed = self.renewed.get(&name).is_some_and(|last| last.elapsed() < RENEWAL);
        if !begins && !is_full && renewed {
            return Ok(());
        }
        self.renewed.insert(name, Instant::now());
        let expire = command("EXPIRE").arg(old_key(name)).arg(LIFE).take();
        let is_there: bool = expire.query(connection).during("EXPIRE")?;
        // It begins here, and none was renamed: it is new, or it was lost.
        if begins && !is_full && !is_there {
            self.lost.insert(name);
        }
        Ok(())
    }

    /// Frames of no more chunks than one may have, each with where the backend stands.
    fn framed(&self, stand: &About, abouts: &[About]) -> impl Iterator<Item = Vec<u8>> {
        let mut frames = Vec::new();
        let mut frame = stand.clone();
        for about in abouts.iter().filter(|about| about.generation == stand.generation) {
            if size(&frame) + size(about) > FRAME_CHUNKS && size(&frame) > 0 {
                frames.push(std::mem::replace(&mut frame, stand.clone()));
            }
            frame.placed.extend(about.placed.iter().cloned());
            frame.owned.extend(about.owned.iter().cloned());
        }
        // Where there is nothing else, how it stands is what is to be kept.
        if size(&frame) > 0 || frames.is_empty() {
            frames.push(frame);
        }
        let own = self.way.own;
        frames.into_iter().map(move |about| {
            let about = Vec::from([about]);
            let update = Update { proxy: own, number: 0, about, lengths: Vec::new() };
            let mut bytes = Vec::from([0; FRAME_HEAD]);
            update.encode(&mut bytes);
            let length = u32::try_from(bytes.len() - FRAME_HEAD).unwrap_or(u32::MAX);
            bytes[..FRAME_HEAD].copy_from_slice(&length.to_le_bytes());
            bytes
        })
    }

    fn lose_all(&mut self) {
        self.lost = self.engine(|engine| engine.names().collect());
        self.drains.clear();
    }

    fn engine<T>(&self, visit: impl FnOnce(&mut Engine) -> T) -> T {
        (&*self.way.shared as &dyn Lend).with(visit)
    }
}

/// Bytes before a frame that say how long it is.
const FRAME_HEAD: usize = 4;

/// The frames of a log; `None` for what is none, and then nothing more.
fn frames(log: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    let mut rest = Some(log);
    std::iter::from_fn(move || {
        let log = rest.take().filter(|log| !log.is_empty())?;
        let frame = log.split_first_chunk::<FRAME_HEAD>().and_then(|(length, behind)| {
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            behind.split_at_checked(length)
        });
        Some(frame.map(|(frame, behind)| {
            rest = Some(behind);
            frame
        }))
    })
}

const MARK: &str = "vllm-proxy:1:kept";

/// Who mends.
const MENDING: &str = "vllm-proxy:1:kept:mending";

/// Where a backend's log is.
pub(super) fn key(name: BackendName) -> String {
    format!("{MARK}:{:016x}", name.0)
}

fn old_key(name: BackendName) -> String {
    format!("{MARK}:{:016x}:old", name.0)
}

fn command(name: &str) -> Cmd {
    redis::cmd(name)
}

/// All in one write; a reply each, or the connection is broken.
fn ask(connection: &mut Connection, commands: &[Cmd]) -> Result<Vec<RedisResult<Value>>, Trouble> {
    let mut bytes = Vec::new();
    commands.iter().for_each(|command| command.write_packed_command(&mut bytes));
    connection.send_packed_command(&bytes).during("a command")?;
    let mut replies = Vec::with_capacity(commands.len());
    for _ in commands {
        replies.push(match connection.recv_response() {
            Ok(Value::ServerError(error)) => Err(error.into()),
            Err(error) if error.is_io_error() => return Err(error).during("a command"),
            reply => reply,
        });
    }
    Ok(replies)
}

fn is_forbidden(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
}

/// RENAME of what is not there.
fn is_missing(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("no such key"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::nothing(&[], &[])]
    #[case::one(&[2, 0, 0, 0, 7, 8], &[Some(&[7, 8][..])])]
    #[case::two(&[1, 0, 0, 0, 7, 0, 0, 0, 0], &[Some(&[7][..]), Some(&[])])]
    #[case::cut_short(&[1, 0, 0, 0, 7, 2, 0, 0, 0, 8], &[Some(&[7][..]), None])]
    #[case::half_a_head(&[1, 0, 0], &[None])]
    #[case::text(b"hello, what is this", &[None])]
    fn logs_are_frames(#[case] log: &[u8], #[case] expected: &[Option<&[u8]>]) {
        assert_eq!(frames(log).collect::<Vec<_>>(), expected);
    }
}
