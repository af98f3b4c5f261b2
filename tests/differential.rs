//! Is the proxy a drop-in? Sends each request of a long list to a bare server and through the
//! proxy before it, and compares the complete raw answers.
//!
//! With `VLLM_PXY_TEST_BARE=host:port` (and `VLLM_PXY_TEST_MODEL`, the model it serves) the bare
//! server is a real vLLM; `VLLM_PXY_TEST_OTHER` and `VLLM_PXY_TEST_OTHER_MODEL` name a second one
//! with another model. Without them the product's mock stands in: then it is the relaying that
//! is judged, not the mock's likeness to vLLM. `VLLM_PXY_TEST_PROXY=host:port` uses a proxy that
//! runs already before the bare server; `VLLM_PXY_TEST_LORA` is the path of an adapter, and
//! `VLLM_PXY_TEST_KEY` what the proxy's probes present to a bare server that wants a key.
//! `VLLM_PXY_TEST_ONLY=text` runs the cases whose name contains the text;
//! `VLLM_PXY_TEST_SHOW=1` shows what the bare server answers.
//!
//! `cargo test -p vllm-proxy --test differential`; see `tests/real/README.md` for the servers.

#[path = "differential/answer.rs"]
mod answer;
#[path = "differential/cases.rs"]
mod cases;
#[path = "differential/cases_admin.rs"]
mod cases_admin;
#[path = "differential/cases_api.rs"]
mod cases_api;
#[path = "differential/cases_audio.rs"]
mod cases_audio;
#[path = "differential/cases_http.rs"]
mod cases_http;
#[path = "differential/cases_lora.rs"]
mod cases_lora;
#[path = "differential/cases_pooling.rs"]
mod cases_pooling;
#[path = "differential/cases_reach.rs"]
mod cases_reach;
#[path = "differential/cases_refused.rs"]
mod cases_refused;
#[path = "differential/cases_routes.rs"]
mod cases_routes;
#[path = "differential/cases_scale_out.rs"]
mod cases_scale_out;
#[path = "differential/cases_store.rs"]
mod cases_store;
#[path = "differential/compare.rs"]
mod compare;
#[path = "patience.rs"]
mod patience;
#[path = "differential/servers.rs"]
mod servers;
#[path = "differential/stream.rs"]
mod stream;

use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use answer::Transcript;
use cases::{Case, Expected, Rewrite};
use patience::PATIENCE;
use rstest::rstest;
use servers::{Address, Program};

/// From when on a case's line says how long it took.
const SLOW: Duration = Duration::from_secs(3);
/// How often the bare server is asked for a stream that matches: it merges tokens into one event
/// when its reader is slow, so equal requests give streams that are cut differently.
const BARE_RUNS_MAX: usize = 5;

/// One test at a time: answers of a server that is busy with others are cut differently.
static TURN: Mutex<()> = Mutex::new(());

/// A server without a proxy and the model that it serves.
struct Bare {
    addr: Address,
    model: String,
    /// Stands in for a real one, and lives as long as this.
    mock: Option<Program>,
}

impl Bare {
    fn find(address: &str, model: &str, stand_in: &str) -> Self {
        if let Some(addr) = servers::address_from(address) {
            let model = std::env::var(model)
                .unwrap_or_else(|_| panic!("{address} is set: expected {model} too"));
            return Self { addr, model, mock: None };
        }
        say(&format!("skipped: a real vLLM (no {address}); the mock stands in as `{stand_in}`"));
        let mock = Program::mock(stand_in);
        Self { addr: mock.addr.clone(), model: stand_in.to_owned(), mock: Some(mock) }
    }

    fn first() -> Self {
        Self::find("VLLM_PXY_TEST_BARE", "VLLM_PXY_TEST_MODEL", "mock-a")
    }

    fn second() -> Self {
        Self::find("VLLM_PXY_TEST_OTHER", "VLLM_PXY_TEST_OTHER_MODEL", "mock-b")
    }
}

/// Shown even when the test passes, unlike what `println` writes.
fn say(line: &str) {
    // A closed standard output is no reason to fail.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// What these bring fits one server only, and of several one must be named.
const FOR_ONE: [&str; 5] = [
    "/init_weight_transfer_engine",
    "/update_weights",
    "/scale_elastic_ep",
    "/fault_tolerance/apply",
    "/fault_tolerance/status",
];

/// What tells of all servers together.
const OF_ALL: [&str; 4] =
    ["/get_world_size", "/collective_rpc", "/abort_requests", "/weight_checker"];
/// What loads adapters, of the default model unless another is named.
const ADAPTERS: [&str; 2] = ["/v1/load_lora_adapter", "/adapters"];

/// The list, names being unique.
fn all_cases(model: &str) -> Vec<Case> {
    let mut cases = cases_api::cases(model);
    cases.extend(cases_http::cases(model));
    cases.extend(cases_routes::cases(model));
    cases.extend(cases_admin::cases(model));
    cases.extend(cases_store::cases(model));
    cases.extend(cases_scale_out::cases(model));
    let mut lacking = cases_pooling::cases(model);
    lacking.extend(cases_audio::cases(model));
    lacking.extend(cases_reach::cases(model));
    for case in lacking.iter_mut().filter(|case| case.is_longer_than(4096)) {
        case.beyond_mock = Some("leaves a long body of a route that it lacks unread");
    }
    cases.extend(lacking);
    if let Ok(adapter) = std::env::var("VLLM_PXY_TEST_LORA") {
        cases.extend(cases_lora::cases(model, &adapter));
    } else {
        say("skipped: a real adapter (no VLLM_PXY_TEST_LORA); loading one is refused");
        let refused = cases_lora::cases(model, "/nowhere/adapter");
        let why = "the adapter is unknown, and the answer lists all models";
        cases.extend(refused.into_iter().map(|case| case.fleet(why)));
    }
    for case in &mut cases {
        let asked = case.asked();
        let asks = |paths: &[&str]| asked.iter().any(|(_, path)| paths.contains(&path.as_str()));
        if asks(&FOR_ONE) {
            case.fleet = Some("of several servers one must be named");
        } else if asks(&OF_ALL) {
            case.fleet = Some("numbers of several are added up or compared");
        } else if asks(&ADAPTERS) {
            case.fleet = Some("adapters are the default model's");
        }
    }
    if let Ok(only) = std::env::var("VLLM_PXY_TEST_ONLY") {
        cases.retain(|case| case.name.contains(&only));
    }
    for (n, case) in cases.iter().enumerate() {
        assert!(
            cases[..n].iter().all(|other| other.name != case.name),
            "two cases named {}",
            case.name
        );
    }
    cases
}

/// Runs the cases and reports one line each; the text of all that differ comes back.
fn compare_all(bare: &Bare, proxy: &Address, cases: &[Case]) -> Vec<String> {
    let mut failures = Vec::new();
    for case in cases {
        if let (Some(_), Some(why)) = (&bare.mock, case.beyond_mock) {
            say(&format!("{:<40} skipped, beyond the mock: {why}", case.name));
            continue;
        }
        let begun = Instant::now();
        let result = compare_one(bare, proxy, case);
        let time = begun.elapsed();
        let slow = if time > SLOW { format!(" ({} s)", time.as_secs()) } else { String::new() };
        match result {
            Ok(verdict) => say(&format!("{:<40} {verdict}{slow}", case.name)),
            Err(diff) => {
                say(&format!("{:<40} differs\n{diff}", case.name));
                failures.push(format!("{}:\n{diff}", case.name));
            }
        }
    }
    failures
}

/// What to say of the case, or how its answers differ.
fn compare_one(bare: &Bare, proxy: &Address, case: &Case) -> Result<String, String> {
    let ask = |addr: &Address| answer::run(addr, &case.steps, &case.answers, PATIENCE);
    let text = |seen: &Transcript| {
        let mut lines = seen.lines(compare::normalise);
        if let Some(view) = case.view {
            view(&mut lines);
        }
        lines
    };
    let (why, rewrite): (_, Option<Rewrite>) = match case.expected {
        Expected::Same => ("", None),
        Expected::ByDesign { why, check } => {
            let (one, seen) = (text(&ask(&bare.addr)), ask(proxy));
            let lines = text(&seen);
            show(case, &one);
            return match check(&seen) {
                _ if one == lines => Ok("same".to_owned()),
                Ok(()) => Ok(format!("differs by design: {why}")),
                Err(error) => Err(format!(
                    "    {error}\n    expected, by design: {why}\n{}",
                    compare::diff(&one, &lines)
                )),
            };
        }
        Expected::Rewritten { why, rewrite } => (why, Some(rewrite)),
    };
    let ask_bare = || {
        let plain = text(&ask(&bare.addr));
        let mut lines = plain.clone();
        if let Some(rewrite) = rewrite {
            rewrite(&mut lines);
        }
        let rewritten = lines != plain;
        (lines, rewritten)
    };
    // Whatever the first run leaves in the server's caches is there for all others.
    let (warm, rewritten) = ask_bare();
    show(case, &warm);
    let verdict = if rewritten { format!("differs by design: {why}") } else { "same".to_owned() };
    let mut known = vec![ask_bare().0];
    let seen = ask(proxy);
    let lines = text(&seen);
    let streams = seen.answers.iter().any(answer::Answer::is_event_stream);
    while !compare::matches(&lines, &known) {
        if bare.mock.is_some() {
            let (ordered, own): (Vec<_>, Vec<_>) =
                known.iter().map(|one| compare::order_own_heads(one, &lines)).unzip();
            if compare::matches(&own[0], &ordered) {
                return Ok(format!(
                    "{verdict} (but for the order of headers, which the mock sorts)"
                ));
            }
        }
        let varies = streams || known.iter().any(|one| *one != known[0]);
        if known.len() >= BARE_RUNS_MAX || (known.len() > 1 && !varies) {
            let joined = stream::joined(&lines);
            return match known.iter().any(|one| stream::joined(one) == joined) {
                true => Ok(format!("{verdict} (a stream cut differently, the same when joined)")),
                false => Err(compare::diff(&known[0], &lines)),
            };
        }
        known.push(ask_bare().0);
    }
    Ok(match known.iter().any(|one| *one != known[0]) {
        false => verdict,
        true => format!("{verdict} (the bare server's own answers vary, {} runs)", known.len()),
    })
}

fn show(case: &Case, lines: &[String]) {
    if std::env::var_os("VLLM_PXY_TEST_SHOW").is_some() {
        say(&format!("{}:\n    {}", case.name, lines.join("\n    ")));
    }
}

fn verdict(failures: &[String], total: usize) {
    say(&format!("{} of {total} differ", failures.len()));
    assert!(
        failures.is_empty(),
        "{} of {total} differ:\n\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// One server behind the proxy: nothing at all may differ.
#[rstest]
#[cfg_attr(not(feature = "smol"), ignore = "built without smol")]
#[case::smol("smol")]
#[cfg_attr(not(feature = "glommio"), ignore = "built without glommio")]
#[cfg_attr(
    all(feature = "glommio", io_uring_refused),
    ignore = "io_uring was refused as this was built"
)]
#[case::glommio("glommio")]
fn one_model_answers_as_its_bare_server(#[case] runtime: &str) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let bare = Bare::first();
    assert!(servers::healthy(&bare.addr), "{} is not healthy", bare.addr);
    let cases = all_cases(&bare.model);
    let running = servers::address_from("VLLM_PXY_TEST_PROXY");
    let started = running.is_none().then(|| Program::proxy(runtime, &[&bare.addr]));
    let proxy =
        running.or(started.as_ref().map(|p| p.addr.clone())).expect("one of the two is there");
    let failures = compare_all(&bare, &proxy, &cases);
    verdict(&failures, cases.len());
}

/// The list is complete: what the bare server says that it registers is asked at least once.
#[test]
fn every_registered_route_has_a_case() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let bare = Bare::first();
    let asked: Vec<(String, String)> =
        all_cases(&bare.model).iter().flat_map(|case| case.asked()).collect();
    let ask = answer::Step::Send(cases::Request::get("/openapi.json").bytes());
    let seen = answer::run(&bare.addr, &[ask], &[false], PATIENCE);
    let schema = seen.answers.first().map(|answer| answer.body.as_slice()).unwrap_or_default();
    let schema: serde_json::Value = serde_json::from_slice(schema).expect("the answer is JSON");
    let Some(paths) = schema["paths"].as_object() else {
        assert!(bare.mock.is_some(), "a schema without paths");
        return say("skipped: every registered route has a case (the mock has no schema)");
    };
    let mut missing = Vec::new();
    for (path, methods) in paths {
        for method in methods.as_object().expect("a path has methods").keys() {
            let asks = |(m, p): &(String, String)| {
                m.eq_ignore_ascii_case(method) && cases::is_path_of(path, p)
            };
            if !asked.iter().any(asks) {
                missing.push(format!("{method} {path}"));
            }
        }
    }
    assert!(missing.is_empty(), "registered and never asked: {missing:?}");
}

/// Two models behind the proxy: each answers as its own bare server, and a request that names
/// none as the first.
#[rstest]
#[cfg_attr(not(feature = "smol"), ignore = "built without smol")]
#[case::smol("smol")]
#[cfg_attr(not(feature = "glommio"), ignore = "built without glommio")]
#[cfg_attr(
    all(feature = "glommio", io_uring_refused),
    ignore = "io_uring was refused as this was built"
)]
#[case::glommio("glommio")]
fn two_models_answer_as_their_bare_servers(#[case] runtime: &str) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (first, second) = (Bare::first(), Bare::second());
    let proxy = Program::proxy(runtime, &[&first.addr, &second.addr]);
    let mut failures =
        lists_both(&first, &second, &proxy.addr).err().into_iter().collect::<Vec<_>>();
    let mut total = 1;
    for bare in [&first, &second] {
        assert!(servers::healthy(&bare.addr), "{} is not healthy", bare.addr);
        let default = bare.model == first.model;
        let mut cases = all_cases(&bare.model);
        cases.retain(|case| case.fleet.is_none() && (default || names(case, &bare.model)));
        say(&format!("-- {} of two models, {} cases", bare.model, cases.len()));
        failures.extend(compare_all(bare, &proxy.addr, &cases));
        total += cases.len();
    }
    verdict(&failures, total);
}

/// What a fleet says otherwise than one server: it lists the models of all.
fn lists_both(first: &Bare, second: &Bare, proxy: &Address) -> Result<(), String> {
    let body = |addr: &Address, request: &cases::Request| -> Result<serde_json::Value, String> {
        let seen = answer::run(addr, &[answer::Step::Send(request.bytes())], &[false], PATIENCE);
        let answer =
            seen.answers.first().ok_or_else(|| format!("no answer: {:?}", seen.trouble))?;
        serde_json::from_slice(&answer.body).map_err(|e| format!("a body that is not JSON: {e}"))
    };
    let names = |addr: &Address| -> Result<Vec<String>, String> {
        let list = body(addr, &cases::Request::new("GET", "/v1/models"))?;
        let cards = list["data"].as_array().ok_or("a list without data")?;
        Ok(cards.iter().map(|card| card["id"].as_str().unwrap_or_default().to_owned()).collect())
    };
    let all = [names(&first.addr)?, names(&second.addr)?].concat();
    let listed = names(proxy)?;
    if listed != all {
        return Err(format!("models of a fleet: expected {all:?}, got {listed:?}\n"));
    }
    let chat = r#"{"model":"nope","messages":[{"role":"user","content":"a"}]}"#;
    let error = body(proxy, &cases::Request::new("POST", "/v1/chat/completions").json(chat))?;
    let expected = format!("The model `nope` does not exist. Valid aliases: {}.", all.join(", "));
    if error["error"]["message"] != expected {
        return Err(format!("unknown model of a fleet: expected `{expected}`, got {error}\n"));
    }
    say(&format!("{:<40} same, of both", "lists of a fleet"));
    Ok(())
}

/// Whether the first model that the request's body names is this one.
fn names(case: &Case, model: &str) -> bool {
    let quoted = format!("\"model\":\"{model}\"");
    case.steps.iter().any(|step| match step {
        answer::Step::Send(bytes) => bytes.windows(quoted.len()).any(|w| w == quoted.as_bytes()),
        answer::Step::Until(..)
        | answer::Step::Pause(_)
        | answer::Step::Await
        | answer::Step::AwaitInterim => false,
    })
}
