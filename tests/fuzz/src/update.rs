//! Updates: whatever other proxies publish, it is read without harm, and hearing it leaves the
//! engine able to choose.

use std::cell::RefCell;
use vllm_proxy_core::config::{Config, Policy};
use vllm_proxy_core::engine::{Engine, Input, Page};
use vllm_proxy_core::fleet::{Address, BackendId, BackendName, BackendSpec, Labels, Word};
use vllm_proxy_core::route::{Decision, Fingerprint, Outcome, Refusal, RequestMeta};
use vllm_proxy_core::time::{Duration, Instant};
use vllm_proxy_core::wire::probe::{ModelCard, Probe};

const BACKENDS: u16 = 3;

fn spec(port: u16) -> BackendSpec {
    BackendSpec {
        upstream: 0,
        address: Address::Tcp(([127, 0, 0, 1], port).into()),
        authority: String::from("h"),
        prefix: String::new(),
        labels: Labels::default(),
    }
}

fn engine() -> (Engine, Instant) {
    let now = Instant::from_millis(10_000);
    let config = Config {
        policy: Policy::CacheAware,
        upstreams: 1,
        index_memory: 1 << 18,
        proxy: Some(1),
        ..Config::default()
    };
    let mut engine = Engine::new(config, 1, now);
    let specs: Vec<_> = (0..BACKENDS).map(spec).collect();
    engine.handle(Input::Discovered(&specs), now);
    for id in 0..BACKENDS {
        let card = ModelCard { id: String::from("m"), ..ModelCard::default() };
        let probe = Probe { health: 200, models: Some(vec![card]), ..Probe::default() };
        engine.handle(Input::Probed(BackendId(id.into()), Ok(probe)), now);
    }
    (engine, now)
}

fn request(engine: &mut Engine, now: Instant) {
    let prompt = Fingerprint::of_chunks(vec![1, 2, 3], 2_000);
    let request = RequestMeta { model: Some("m"), ..RequestMeta::of_prompt(&prompt, now) };
    let route = match engine.route(&request, now) {
        Decision::Forward(route) => route,
        // An operator at another proxy may say that of all.
        Decision::Refuse(Refusal::Drained { .. }) => return,
        _ => panic!("three backends are up"),
    };
    engine.first_byte(&route.ticket, now);
    engine.finish(route.ticket, Outcome::done(200), now);
}

/// Nothing panics, what is read is told again in the same words, and an engine that hears it goes
/// on choosing and telling. An engine hears many inputs, one after another, as it would.
pub fn update(data: &[u8]) {
    thread_local! {
        static ENGINE: RefCell<(Engine, Instant)> = RefCell::new(engine());
    }
    let Ok(word) = Word::decode(data) else { return };
    let mut bytes = Vec::new();
    word.encode(&mut bytes);
    assert_eq!(Word::decode(&bytes).as_ref(), Ok(&word));
    let Word::Update(mut update) = word else { return };
    for about in &mut update.about {
        // Of others it hears nothing.
        let port = u16::try_from(about.backend.0 % u64::from(BACKENDS)).expect("it is below 3");
        about.backend = BackendName::of(&spec(port).address);
    }
    ENGINE.with_borrow_mut(|(engine, now)| {
        engine.handle(Input::Heard(&update), *now);
        request(engine, *now);
        while let Some(told) = engine.poll_update() {
            let mut bytes = Vec::new();
            Word::Update(told.clone()).encode(&mut bytes);
            assert_eq!(Word::decode(&bytes), Ok(Word::Update(told)));
        }
        let (page, _) = engine.snapshot(Page::FIRST).expect("it shares");
        let mut bytes = Vec::new();
        Word::Update(page.clone()).encode(&mut bytes);
        assert_eq!(Word::decode(&bytes), Ok(Word::Update(page)));
        *now = *now + Duration::from_millis(300);
        engine.handle(Input::Timeout, *now);
    });
}
