//! The thread that is subscribed: gives the engine what other proxies publish.
//!
//! Also looks at the way, as its read ends twice a second whatever comes.

use super::connect::{During, Pauses, Trouble, connect, is_silence, reason};
use super::way::{Part, Way};
use redis::PubSub;
use std::thread;
use std::time::{Duration, Instant};
use vllm_proxy_core::engine::Input;
use vllm_proxy_core::fleet::{About, Placed, Update, Word};

/// How long a read waits at most.
const LOOK: Duration = Duration::from_millis(500);

const DOING: &str = "SUBSCRIBE";

/// Listens for as long as the process runs.
pub(super) fn run(way: &Way) {
    let mut pauses = Pauses::default();
    loop {
        let heard = connect(&way.url).and_then(|mut connection| {
            // Not by the crate's own subscribe, which takes a refusal for consent.
            redis::cmd(DOING).arg(&way.channel).exec(&mut connection).during(DOING)?;
            let mut subscription = connection.as_pubsub();
            subscription.set_read_timeout(Some(LOOK)).during(DOING)?;
            way.subscribed(Instant::now());
            listen(way, &mut subscription)
        });
        let now = Instant::now();
        if let Err(trouble) = heard {
            way.trouble(Part::Hear, reason(&way.url, &trouble), now);
        }
        way.look(now);
        thread::sleep(pauses.next(now));
    }
}

/// Until the connection fails, or own words do not come back.
fn listen(way: &Way, subscription: &mut PubSub<'_>) -> Result<(), Trouble> {
    let mut looked = Instant::now();
    loop {
        match subscription.get_message() {
            Ok(message) => heard(way, message.get_payload_bytes()),
            Err(error) if is_silence(&error) => {}
            Err(error) => return Err(error).during(DOING),
        }
        // At once if it is the first word to come back, else now and then.
        let now = Instant::now();
        if (now - looked >= LOOK || way.is_unknown()) && !way.look(now) {
            return Ok(());
        }
        if now - looked >= LOOK {
            looked = now;
        }
    }
}

/// Chunks that the engine is told of at a time: with an index that is full, one to be dropped for
/// each, 512 take it 0.33 ms, for which requests would wait.
const CHUNKS: usize = 128;

/// An update, and what of its chunks is too much for one call, as pages of a snapshot.
pub(super) fn in_parts(mut update: Update, mut tell: impl FnMut(&Update)) {
    let (proxy, mut room, mut rest) = (update.proxy, CHUNKS, Vec::new());
    for about in &mut update.about {
        for Placed { stamp, chunks } in &mut about.placed {
            let more = chunks.split_off(chunks.len().min(room));
            room -= chunks.len();
            rest.extend(more.chunks(CHUNKS).map(|chunks| {
                let placed = Vec::from([Placed { stamp: *stamp, chunks: chunks.to_vec() }]);
                About { placed, ..About::of(about.backend, about.generation) }
            }));
        }
    }
    // What else it says comes first: where the clock stands, and in which generation.
    tell(&update);
    let (mut about, mut room) = (Vec::new(), CHUNKS);
    let mut page = |about| tell(&Update { proxy, number: 0, about, lengths: Vec::new() });
    for one in rest {
        let chunks = one.placed[0].chunks.len();
        if chunks > room {
            page(std::mem::take(&mut about));
            room = CHUNKS;
        }
        room -= chunks;
        about.push(one);
    }
    if !about.is_empty() {
        page(about);
    }
}

fn heard(way: &Way, payload: &[u8]) {
    match Word::decode(payload) {
        Ok(Word::Update(update)) if update.proxy == way.own => {
            way.echo(update.number, Instant::now());
        }
        Ok(Word::Update(update)) => {
            if update.number == 0 {
                way.answers(update.proxy);
            }
            in_parts(update, |part| way.shared.tell(Input::Heard(part)));
        }
        Ok(Word::Ask { from, to }) if to == way.own && from != way.own => way.asked(),
        Ok(Word::Ask { .. }) => {}
        Err(_) => way.unreadable(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use vllm_proxy_core::fleet::{BackendName, ProxyId};

    #[rstest]
    #[case::nothing(&[], &[0])]
    #[case::few(&[&[1, 100][..], &[27]], &[128])]
    #[case::one_too_many(&[&[1, 100][..], &[28]], &[128, 1])]
    #[case::many(&[&[300][..], &[], &[5, 512]], &[128, 128, 49, 128, 128, 128, 128])]
    #[case::many_small_ones(&[&[100; 5][..]], &[128, 72, 100, 100, 100])]
    fn all_is_told_in_order(#[case] placed: &[&[usize]], #[case] parts: &[usize]) {
        let mut all = 0;
        let mut about = Vec::new();
        for (backend, counts) in (0..).zip(placed) {
            let mut one = About::of(BackendName(backend), 7);
            for &count in *counts {
                let chunks = (all..all + count).map(|chunk| chunk as u64).collect();
                one.placed.push(Placed { stamp: backend as u32, chunks });
                all += count;
            }
            about.push(one);
        }
        let update = Update { proxy: ProxyId(3), number: 9, about, lengths: Vec::new() };
        let (mut told, mut numbers, mut chunks) = (Vec::new(), Vec::new(), Vec::new());
        in_parts(update, |part| {
            let before = chunks.len();
            for about in &part.about {
                assert_eq!(about.generation, 7);
                for placed in &about.placed {
                    assert_eq!(u64::from(placed.stamp), about.backend.0);
                    chunks.extend(placed.chunks.iter().copied());
                }
            }
            told.push(chunks.len() - before);
            numbers.push(part.number);
        });
        assert_eq!(chunks, (0..all as u64).collect::<Vec<_>>());
        assert!(numbers[0] == 9 && numbers[1..].iter().all(|number| *number == 0));
        assert_eq!(told, parts);
    }
}
