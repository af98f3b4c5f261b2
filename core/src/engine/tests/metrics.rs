//! When backends are asked for their metrics.

use super::*;

/// One backend, not asked yet.
fn rig(policy: Policy) -> Rig {
    let mut rig =
        Rig::new(Config { policy, upstreams: 1, index_memory: 1 << 20, ..Config::default() });
    assert_eq!(rig.discover(&[0]), [Output::Probe(BackendId(0))]);
    rig
}

impl Rig {
    /// Whether the probe that is due now asks for metrics; it brings this.
    fn probe_asks(&mut self, result: Result<Probe, ProbeError>) -> bool {
        let asks = self.engine.asks_cache(BackendId(0));
        self.probed(0, result);
        assert!(!self.engine.asks_cache(BackendId(0)), "none is due");
        asks
    }

    /// Waits for the next probe.
    fn wait(&mut self) {
        self.now = self.engine.poll_timeout().expect("a probe will be due").at;
        assert_eq!(self.handle(Input::Timeout), [Output::Probe(BackendId(0))]);
    }
}

#[test]
fn metrics_are_asked_for_at_first_and_then_twice_a_minute() {
    let mut rig = rig(Policy::CacheAware);
    let start = rig.now;
    assert!(rig.probe_asks(Ok(healthy(&["m"]))));
    let mut asked = 0;
    while rig.now < start + Duration::from_secs(600) {
        rig.wait();
        let last = rig.now;
        if rig.probe_asks(Ok(healthy(&["m"]))) {
            asked += 1;
            assert!(last >= start + Duration::from_secs(30) * asked, "{asked} by {last:?}");
        }
    }
    assert!((16..=20).contains(&asked), "{asked}");
}

#[rstest]
#[case::refused(Err(ProbeError::Connect))]
#[case::silent(Err(ProbeError::Timeout))]
#[case::dead(Ok(Probe { health: 503, ..Probe::default() }))]
fn who_comes_back_is_asked_at_once(#[case] result: Result<Probe, ProbeError>) {
    let mut rig = rig(Policy::CacheAware);
    assert!(rig.probe_asks(result.clone()), "it may be up");
    rig.wait();
    assert!(rig.probe_asks(Ok(healthy(&["m"]))));
    rig.wait();
    assert!(!rig.probe_asks(result));
    rig.wait();
    assert!(rig.probe_asks(Ok(healthy(&["m"]))));
    rig.wait();
    assert!(!rig.probe_asks(Ok(healthy(&["m"]))));
}

#[rstest]
fn nobody_asks_whose_policy_does_not(
    #[values(Policy::LeastLoad, Policy::RoundRobin)] policy: Policy,
) {
    let mut rig = rig(policy);
    assert!(!rig.probe_asks(Ok(healthy(&["m"]))));
    for _ in 0..20 {
        rig.wait();
        assert!(!rig.probe_asks(Ok(healthy(&["m"]))));
    }
}

#[test]
fn a_backend_that_is_forgotten_is_not_asked() {
    let mut rig = rig(Policy::CacheAware);
    rig.discover(&[]);
    assert!(!rig.engine.asks_cache(BackendId(0)));
}
