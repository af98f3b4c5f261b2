//! What a request would come to, as JSON for operators.
//!
//! Owns the names of the fields, and how costs are ranked and summed for people. Does not choose.

use crate::config::Policy;
use crate::fleet::BackendId;
use crate::route::{Explained, Known, Outlook, Refusal, Terms};
use crate::wire::answers::{Answer, Shape};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use serde::Serialize;
use serde_json::Value;

impl Explained {
    /// The whole answer, about a request of this method and path, on a route of that shape.
    pub(super) fn answer(&self, asked: &str, shape: Shape) -> Answer {
        let (method, path) = asked.split_once(' ').unwrap_or_default();
        let ranks = self.ranks();
        let address = |id: BackendId| {
            let known = self.backends.iter().find(|known| known.backend == id);
            known.map(|known| known.spec.address.to_string())
        };
        let refused = |refusal: &Refusal| RefusalJson::of(refusal, shape);
        let none = OutlookJson::default();
        let outlook = match &self.outlook {
            Outlook::Forward { backend, reason, predicted_tokens, judges } => OutlookJson {
                outcome: if judges.is_some() { "judge" } else { "forward" },
                backend: address(*backend),
                reason: Some(reason.as_str()),
                predicted_cached_tokens: Some(*predicted_tokens),
                refusal: judges.as_ref().map(refused),
                ..none
            },
            Outlook::Gather(asked) => OutlookJson {
                outcome: "gather",
                asked: Some(asked.iter().filter_map(|id| address(*id)).collect()),
                ..none
            },
            Outlook::Answer(status) => OutlookJson { outcome: "answer", status: *status, ..none },
            Outlook::Refuse(refusal) => {
                OutlookJson { outcome: "refuse", refusal: Some(refused(refusal)), ..none }
            }
        };
        let json = Json {
            request: RequestJson { method, path },
            model: ModelJson {
                asked: self.asked.as_deref(),
                name: self.model.as_deref(),
                is_default: self.asked.is_none(),
            },
            prompt: PromptJson {
                bytes: self.prompt_bytes,
                tokens: self.prompt_tokens,
                chunks: self.chunks,
            },
            policy: policy_name(self.policy),
            alone: self.alone,
            waits_for: self.waits_for,
            outlook,
            backends: self.backends.iter().map(|known| self.backend(known, &ranks)).collect(),
        };
        let body = serde_json::to_vec(&json).expect("text and finite numbers have a JSON form");
        Answer::json(200, body)
    }

    /// Those that were chosen among by what they cost or whose turn it is, the best first.
    fn ranks(&self) -> Vec<BackendId> {
        let Some(question) = self.question else { return Vec::new() };
        let mut ranked: Vec<_> = self.candidates.iter().map(|(candidate, _)| candidate).collect();
        ranked.sort_unstable_by(|one, other| question.compare(one, other));
        ranked.into_iter().map(|candidate| candidate.backend).collect()
    }

    fn backend(&self, known: &Known, ranks: &[BackendId]) -> BackendJson<'_> {
        let seen = self.candidates.iter().find(|(one, _)| one.backend == known.backend);
        let costs = self.question.filter(|question| question.policy != Policy::RoundRobin);
        BackendJson {
            address: known.spec.address.to_string(),
            state: known.state,
            rests: known.rests,
            draining: known.draining,
            weight: f64::from(known.spec.labels.weight) / 100.0,
            candidate: known.excluded.is_none(),
            excluded: known.excluded,
            rank: ranks.iter().position(|id| *id == known.backend).map(|place| place + 1),
            in_flight: known.in_flight,
            in_flight_elsewhere: known.in_flight_elsewhere,
            predicted_cached_tokens: seen.map(|(_, tokens)| *tokens),
            trust: milli(known.trust),
            pace_us: seen.map(|(candidate, _)| milli(candidate.pace)),
            cost: seen.zip(costs).map(|((candidate, _), question)| {
                CostJson::of(&Terms::of(question.work, question.fastest, candidate))
            }),
        }
    }
}

/// As the command line names it.
const fn policy_name(policy: Policy) -> &'static str {
    match policy {
        Policy::CacheAware => "cache-aware",
        Policy::LeastLoad => "least-load",
        Policy::RoundRobin => "round-robin",
    }
}

/// Thousandths as JSON has them: no sum is so great that a float cannot hold its thousandths, but
/// for absurd ones.
fn milli(thousandths: i64) -> f64 {
    thousandths as f64 / 1_000.0
}

#[derive(Serialize)]
struct Json<'a> {
    request: RequestJson<'a>,
    model: ModelJson<'a>,
    prompt: PromptJson,
    policy: &'a str,
    alone: bool,
    waits_for: Option<&'a str>,
    #[serde(flatten)]
    outlook: OutlookJson,
    backends: Vec<BackendJson<'a>>,
}

#[derive(Serialize)]
struct RequestJson<'a> {
    method: &'a str,
    path: &'a str,
}

#[derive(Serialize)]
struct ModelJson<'a> {
    asked: Option<&'a str>,
    name: Option<&'a str>,
    is_default: bool,
}

#[derive(Serialize)]
struct PromptJson {
    bytes: u64,
    tokens: u64,
    chunks: usize,
}

#[derive(Default, Serialize)]
struct OutlookJson {
    outcome: &'static str,
    backend: Option<String>,
    reason: Option<&'static str>,
    predicted_cached_tokens: Option<u64>,
    asked: Option<Vec<String>>,
    status: Option<u16>,
    refusal: Option<RefusalJson>,
}

#[derive(Serialize)]
struct RefusalJson {
    status: u16,
    reason: &'static str,
    body: Value,
}

impl RefusalJson {
    fn of(refusal: &Refusal, shape: Shape) -> Self {
        let answer = refusal.answer(shape);
        let body = serde_json::from_slice(&answer.body).unwrap_or_default();
        Self { status: answer.status, reason: refusal.as_str(), body }
    }
}

#[derive(Serialize)]
struct BackendJson<'a> {
    address: String,
    state: &'a str,
    rests: bool,
    draining: bool,
    weight: f64,
    candidate: bool,
    excluded: Option<&'a str>,
    rank: Option<usize>,
    in_flight: u32,
    in_flight_elsewhere: u32,
    predicted_cached_tokens: Option<u64>,
    trust: f64,
    pace_us: Option<f64>,
    cost: Option<CostJson>,
}

/// All in tokens.
#[derive(Serialize)]
struct CostJson {
    total: f64,
    queued: f64,
    uncached: f64,
    delay: f64,
    resident: f64,
    requests: f64,
    slower: f64,
    fresh: f64,
    surcharge: f64,
    favour: f64,
    weight: f64,
}

impl CostJson {
    fn of(terms: &Terms) -> Self {
        let &Terms { queued, uncached, delay, resident, requests, .. } = terms;
        let &Terms { slower, fresh, surcharge, favour, weight, .. } = terms;
        Self {
            total: milli(terms.sum()),
            queued: milli(queued),
            uncached: milli(uncached),
            delay: milli(delay),
            resident: milli(resident),
            requests: milli(requests),
            slower: milli(slower),
            fresh: milli(fresh),
            surcharge: milli(surcharge),
            // As all others it is added.
            favour: milli(favour.saturating_neg()),
            weight: milli(weight),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Address, BackendName, BackendSpec, Labels, Standing};
    use crate::route::{Candidate, Question, Reason, Work};
    use alloc::sync::Arc;
    use alloc::vec;
    use rstest::rstest;
    use serde_json::json;

    fn known(id: u32, excluded: Option<&'static str>) -> Known {
        Known {
            backend: BackendId(id),
            spec: Arc::new(BackendSpec {
                upstream: 0,
                address: Address::Tcp(([10, 0, 0, id as u8], 80).into()),
                authority: "a".to_string(),
                prefix: String::new(),
                labels: Labels { weight: 50, drain: excluded == Some("draining") },
            }),
            state: "up",
            rests: false,
            draining: excluded == Some("draining"),
            excluded,
            in_flight: 2,
            in_flight_elsewhere: 1,
            trust: 500,
        }
    }

    fn candidate(id: u32, queued: i64) -> (Candidate, u64) {
        let candidate = Candidate {
            backend: BackendId(id),
            reluctance: 0,
            in_hand: Standing { queued, resident: 9_000_000, in_flight: 3 },
            cached: 512_000,
            fresh: 1_000,
            pace: 250_000,
            weight: 100,
            due: 0,
            name: BackendName(id.into()),
            favoured: true,
            surcharge: 500,
        };
        (candidate, 1_024)
    }

    fn explained(policy: Policy, outlook: Outlook) -> Explained {
        let work = Work::of_prompt(2_000_000);
        let last = Some(BackendId(1));
        let question = Question { policy, work, request: 7, last, fastest: Some(125_000) };
        Explained {
            policy,
            asked: None,
            model: Some(Arc::from("m")),
            prompt_bytes: 8_000,
            prompt_tokens: 2_000,
            chunks: 15,
            waits_for: None,
            alone: true,
            outlook,
            question: Some(question),
            candidates: vec![candidate(1, 5_000_000), candidate(3, 1_000_000)],
            backends: vec![known(1, None), known(2, Some("draining")), known(3, None)],
        }
    }

    fn text(explained: &Explained) -> Value {
        let answer = explained.answer("POST /v1/embeddings", Shape::Pooling);
        assert_eq!((answer.status, answer.content_type), (200, Some("application/json")));
        serde_json::from_slice(&answer.body).expect("it is JSON")
    }

    const FORWARD: Outlook = Outlook::Forward {
        backend: BackendId(3),
        reason: Reason::Cached,
        predicted_tokens: 1_024,
        judges: None,
    };

    #[test]
    fn all_is_told() {
        let said = text(&explained(Policy::CacheAware, FORWARD));
        assert_eq!(said["request"], json!({"method": "POST", "path": "/v1/embeddings"}));
        assert_eq!(said["model"], json!({"asked": null, "name": "m", "is_default": true}));
        assert_eq!(said["prompt"], json!({"bytes": 8_000, "tokens": 2_000, "chunks": 15}));
        assert_eq!((&said["policy"], &said["alone"]), (&json!("cache-aware"), &json!(true)));
        assert_eq!((&said["outcome"], &said["reason"]), (&json!("forward"), &json!("cached")));
        assert_eq!(said["backend"], "10.0.0.3:80");
        let cost = json!({
            "total": 1_000.0 + 1_488.0 + 446.4 + 180.0 + 300.0 + 3_414.4 + 3.0 + 744.0 - 892.8,
            "queued": 1_000.0, "uncached": 1_488.0, "delay": 446.4, "resident": 180.0,
            "requests": 300.0, "slower": 3_414.4, "fresh": 3.0, "surcharge": 744.0,
            "favour": -892.8, "weight": 0.0,
        });
        let expected = json!({
            "address": "10.0.0.3:80", "state": "up", "rests": false, "draining": false,
            "weight": 0.5, "candidate": true, "excluded": null, "rank": 1, "in_flight": 2,
            "in_flight_elsewhere": 1, "predicted_cached_tokens": 1_024, "trust": 0.5,
            "pace_us": 250.0, "cost": cost,
        });
        assert_eq!(said["backends"][2], expected);
        assert_eq!(said["backends"][0]["rank"], 2);
        let other = &said["backends"][1];
        assert_eq!((&other["excluded"], &other["draining"]), (&json!("draining"), &json!(true)));
        assert_eq!((&other["rank"], &other["cost"]), (&Value::Null, &Value::Null));
    }

    #[test]
    fn turns_have_an_order_and_no_cost() {
        let said = text(&explained(Policy::RoundRobin, FORWARD));
        let of = |at: usize| (&said["backends"][at]["rank"], &said["backends"][at]["cost"]);
        assert_eq!([of(0), of(2)], [(&json!(2), &Value::Null), (&json!(1), &Value::Null)]);
    }

    fn unknown() -> Refusal {
        Refusal::UnknownModel { model: "x".to_string(), bases: vec!["m".to_string()] }
    }

    #[rstest]
    #[case::refused(Outlook::Refuse(unknown()), "refuse", "/refusal/reason", json!("unknown-model"))]
    #[case::in_its_shape(
        Outlook::Refuse(unknown()),
        "refuse",
        "/refusal/body/error/message",
        json!("The model `x` does not exist.")
    )]
    #[case::judged(
        Outlook::Forward {
            backend: BackendId(1),
            reason: Reason::Only,
            predicted_tokens: 0,
            judges: Some(unknown()),
        },
        "judge",
        "/refusal/status",
        json!(404)
    )]
    #[case::gathered(
        Outlook::Gather(vec![BackendId(1), BackendId(2)]),
        "gather",
        "/asked",
        json!(["10.0.0.1:80", "10.0.0.2:80"])
    )]
    #[case::answered(Outlook::Answer(Some(405)), "answer", "/status", json!(405))]
    fn outcomes(
        #[case] outlook: Outlook,
        #[case] outcome: &str,
        #[case] pointer: &str,
        #[case] expected: Value,
    ) {
        let said = text(&explained(Policy::LeastLoad, outlook));
        assert_eq!((&said["outcome"], said.pointer(pointer)), (&json!(outcome), Some(&expected)));
    }
}
