//! The thread that is subscribed: gives the engine what other proxies publish.
//!
//! Also looks at the way, as its read ends twice a second whatever comes.

use super::connect::{During, Pauses, Trouble, connect, is_silence, reason};
use super::way::{Part, Way};
use redis::PubSub;
use std::thread;
use std::time::{Duration, Instant};
use vllm_proxy_core::engine::Input;
use vllm_proxy_core::fleet::Word;

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

fn heard(way: &Way, payload: &[u8]) {
    match Word::decode(payload) {
        Ok(Word::Update(update)) if update.proxy == way.own => {
            way.echo(update.number, Instant::now());
        }
        Ok(Word::Update(update)) => {
            if update.number == 0 {
                way.answers(update.proxy);
            }
            way.shared.tell(Input::Heard(&update));
        }
        Ok(Word::Ask { from, to }) if to == way.own && from != way.own => way.asked(),
        Ok(Word::Ask { .. }) => {}
        Err(_) => way.unreadable(),
    }
}
