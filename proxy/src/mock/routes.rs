//! vLLM's routes, as far as the mock has them: who answers a path, and what comes before that
//! (keys, CORS, trailing slashes, methods).

use super::adapters;
use super::answers::{Answer, quote};
use super::audio::{self, Task};
use super::check::{Fields, object};
use super::connection::Connection;
use super::dev::{self, Dev};
use super::generate::generate;
use super::state::Mock;
use super::{Args, form, metrics, request, store, tokens};
use http_types::{Method, Request, Response};
use serde_json::{Map, Value};

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Health,
    Ping,
    Load,
    Version,
    KvEventSources,
    Models,
    Metrics,
    /// Reads a JSON body first.
    Reads(Reader),
    Response,
    CancelResponse,
    ScaleOut,
    RegisterAdapter,
    UnregisterAdapter,
    Audio(Task),
    Dev(Dev),
}

/// The routes that read a JSON body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Tokenize,
    Detokenize,
    Chat,
    Completions,
    Messages,
    CountTokens,
    Responses,
    LoadAdapter,
    UnloadAdapter,
}

impl Route {
    /// Whether a server with these options has it.
    const fn is_there(self, args: &Args) -> bool {
        match self {
            Self::Reads(Reader::LoadAdapter | Reader::UnloadAdapter)
            | Self::RegisterAdapter
            | Self::UnregisterAdapter => args.runtime_lora,
            Self::Audio(_) => args.transcription,
            Self::Dev(_) => args.dev_mode,
            Self::Health
            | Self::Ping
            | Self::Load
            | Self::Version
            | Self::KvEventSources
            | Self::Models
            | Self::Metrics
            | Self::Reads(_)
            | Self::Response
            | Self::CancelResponse
            | Self::ScaleOut => true,
        }
    }

    /// Whether `/load` counts its requests.
    const fn is_load(self) -> bool {
        matches!(
            self,
            Self::Reads(Reader::Chat | Reader::Completions | Reader::Messages | Reader::Responses)
                | Self::Response
                | Self::CancelResponse
                | Self::Audio(_)
        )
    }
}

/// Path, method, and who answers. `{id}` stands for one segment.
const ROUTES: &[(&str, Method, Route)] = &[
    ("/health", Method::Get, Route::Health),
    ("/ping", Method::Get, Route::Ping),
    ("/load", Method::Get, Route::Load),
    ("/version", Method::Get, Route::Version),
    ("/kv_event_sources", Method::Get, Route::KvEventSources),
    ("/v1/models", Method::Get, Route::Models),
    ("/tokenize", Method::Post, Route::Reads(Reader::Tokenize)),
    ("/detokenize", Method::Post, Route::Reads(Reader::Detokenize)),
    ("/v1/chat/completions", Method::Post, Route::Reads(Reader::Chat)),
    ("/v1/completions", Method::Post, Route::Reads(Reader::Completions)),
    ("/v1/messages", Method::Post, Route::Reads(Reader::Messages)),
    ("/v1/messages/count_tokens", Method::Post, Route::Reads(Reader::CountTokens)),
    ("/v1/responses", Method::Post, Route::Reads(Reader::Responses)),
    ("/v1/responses/{id}", Method::Get, Route::Response),
    ("/v1/responses/{id}/cancel", Method::Post, Route::CancelResponse),
    ("/v1/chat/completions/render", Method::Post, Route::ScaleOut),
    ("/v1/completions/render", Method::Post, Route::ScaleOut),
    ("/v1/messages/render", Method::Post, Route::ScaleOut),
    ("/v1/responses/render", Method::Post, Route::ScaleOut),
    ("/inference/v1/generate", Method::Post, Route::ScaleOut),
    ("/v1/load_lora_adapter", Method::Post, Route::Reads(Reader::LoadAdapter)),
    ("/v1/unload_lora_adapter", Method::Post, Route::Reads(Reader::UnloadAdapter)),
    ("/adapters", Method::Post, Route::RegisterAdapter),
    ("/adapters/{id}", Method::Delete, Route::UnregisterAdapter),
    ("/v1/audio/transcriptions", Method::Post, Route::Audio(Task::Transcribe)),
    ("/v1/audio/translations", Method::Post, Route::Audio(Task::Translate)),
    ("/sleep", Method::Post, Route::Dev(Dev::Sleep)),
    ("/wake_up", Method::Post, Route::Dev(Dev::WakeUp)),
    ("/is_sleeping", Method::Get, Route::Dev(Dev::IsSleeping)),
    ("/release_kv_cache_memory", Method::Post, Route::Dev(Dev::ReleaseKvCache)),
    ("/pause", Method::Post, Route::Dev(Dev::Pause)),
    ("/resume", Method::Post, Route::Dev(Dev::Resume)),
    ("/is_paused", Method::Get, Route::Dev(Dev::IsPaused)),
    ("/abort_requests", Method::Post, Route::Dev(Dev::AbortRequests)),
    ("/reset_prefix_cache", Method::Post, Route::Dev(Dev::ResetPrefixCache)),
    ("/reset_mm_cache", Method::Post, Route::Dev(Dev::ResetOther)),
    ("/reset_encoder_cache", Method::Post, Route::Dev(Dev::ResetOther)),
    ("/server_info", Method::Get, Route::Dev(Dev::ServerInfo)),
    ("/collective_rpc", Method::Post, Route::Dev(Dev::CollectiveRpc)),
    ("/get_world_size", Method::Get, Route::Dev(Dev::WorldSize)),
    ("/weight_info", Method::Get, Route::Dev(Dev::WeightInfo)),
    ("/weight_checker", Method::Post, Route::Dev(Dev::WeightChecker)),
    ("/update_weight_version", Method::Post, Route::Dev(Dev::UpdateWeightVersion)),
    ("/start_weight_update", Method::Post, Route::Dev(Dev::Weights("Weight update started"))),
    (
        "/start_draft_weight_update",
        Method::Post,
        Route::Dev(Dev::Weights("Draft weight update started")),
    ),
    ("/finish_weight_update", Method::Post, Route::Dev(Dev::FinishWeightUpdate)),
    (
        "/init_weight_transfer_engine",
        Method::Post,
        Route::Dev(Dev::WeightsOf("init_info", "Weight transfer initialized")),
    ),
    (
        "/shutdown_weight_transfer_engine",
        Method::Post,
        Route::Dev(Dev::Weights("Weight transfer shut down")),
    ),
    ("/update_weights", Method::Post, Route::Dev(Dev::WeightsOf("update_info", "Weights updated"))),
];

/// Paths below which --api-key is asked for.
const GUARDED: [&str; 4] = ["/v1", "/v2", "/inference", "/cohere"];

/// A route found, with its path as metrics name it and the `{id}` of the request.
#[derive(Clone, Debug)]
struct Found {
    route: Route,
    path: &'static str,
    method: Method,
    id: String,
}

fn find(args: &Args, path: &str) -> Option<Found> {
    if path == "/metrics" || path.starts_with("/metrics/") {
        let (route, method) = (Route::Metrics, Method::Get);
        return Some(Found { route, path: "/metrics", method, id: String::new() });
    }
    // Static paths come before those with an id in vLLM as well.
    let matches = |pattern: &str| {
        let mut id = String::new();
        let mut segments = path.split('/');
        let same = pattern.split('/').all(|wanted| match segments.next() {
            Some(segment) if wanted == "{id}" && !segment.is_empty() => {
                segment.clone_into(&mut id);
                true
            }
            segment => segment == Some(wanted),
        });
        (same && segments.next().is_none()).then_some(id)
    };
    let there = ROUTES.iter().filter(|(_, _, route)| route.is_there(args));
    there.into_iter().find_map(|(pattern, method, route)| {
        let id = matches(pattern)?;
        Some(Found { route: *route, path: pattern, method: *method, id })
    })
}

/// Answers one request. An error makes the connection close without an answer.
pub(super) async fn respond(
    connection: &Connection,
    mut request: Request,
) -> http_types::Result<Response> {
    let method = request.method();
    let path = plain(&connection.mock, request.url().path());
    let args = &connection.mock.args;
    let found = find(args, &path);
    let allowed = found.as_ref().is_some_and(|found| {
        let post_too = found.route == Route::Ping && method == Method::Post;
        found.method == method || post_too || found.route == Route::Metrics
    });
    let response = match (before(&connection.mock, &request, &path), &found) {
        (Some(answer), _) => answer.into_response(),
        (None, Some(found)) if allowed => handle(connection, &mut request, found).await?,
        (None, Some(found)) => Answer::wrong_method(name(found.method)).into_response(),
        (None, None) => elsewhere(args, &request, &path).into_response(),
    };
    let status = u16::from(response.status());
    let handler = found.filter(|_| allowed).map_or("none", |found| found.path);
    connection.mock.count(handler, method, status);
    log::debug!(method:% = method, path = path.as_str(), status; "mock answers");
    Ok(response)
}

/// What comes before any route: CORS and keys.
fn before(mock: &Mock, request: &Request, path: &str) -> Option<Answer> {
    let has = |name: &str| request.header(name).is_some();
    if request.method() == Method::Options {
        let preflight = has("origin") && has("access-control-request-method");
        return preflight.then(Answer::preflight);
    }
    let shown = request.header("authorization").map(|value| value.as_str());
    (!lets_in(mock, path, shown)).then(Answer::unauthorized)
}

/// Whether this value of `Authorization` opens the path.
pub(super) fn lets_in(mock: &Mock, path: &str, shown: Option<&str>) -> bool {
    let Some(key) = mock.args.api_key.as_deref() else { return true };
    let shown = shown.and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key)
    });
    !GUARDED.iter().any(|prefix| path.starts_with(prefix)) || shown == Some(key)
}

/// A path without escapes and without --root-path, as routes are compared to it.
pub(super) fn plain(mock: &Mock, path: &str) -> String {
    let path = percent_decoded(path);
    let root = mock.args.root_path.as_deref().unwrap_or_default();
    match path.strip_prefix(root) {
        Some(below) if below.starts_with('/') => below.to_owned(),
        Some(_) | None => path,
    }
}

/// A path that no route has: a slash too many, or nothing at all.
fn elsewhere(args: &Args, request: &Request, path: &str) -> Answer {
    match path.strip_suffix('/') {
        Some(shorter) if find(args, shorter).is_some() => {
            let url = request.url();
            let host = request.host().unwrap_or_default();
            let query = url.query().map_or(String::new(), |query| format!("?{query}"));
            let raw = url.path().strip_suffix('/').unwrap_or(shorter);
            Answer::moved(format!("http://{host}{raw}{query}"))
        }
        Some(_) | None => Answer::not_found(),
    }
}

const fn name(method: Method) -> &'static str {
    if matches!(method, Method::Post) {
        "POST"
    } else if matches!(method, Method::Delete) {
        "DELETE"
    } else {
        "GET"
    }
}

async fn handle(
    connection: &Connection,
    request: &mut Request,
    found: &Found,
) -> http_types::Result<Response> {
    let mock = &connection.mock;
    if found.route.is_load() {
        connection.carry();
    }
    let alias = |request: &Request| {
        let alias = request.header("x-amzn-sagemaker-adapter-alias");
        alias.map(|alias| alias.as_str().to_owned())
    };
    let answer = match found.route {
        Route::Health | Route::Ping => Answer::empty(),
        Route::Load => Answer::json(format!(r#"{{"server_load":{}}}"#, mock.load())),
        Route::Version => Answer::json(format!(r#"{{"version":{}}}"#, quote(&mock.args.version))),
        Route::KvEventSources => Answer::json(event_sources(&mock.args)),
        Route::Models => Answer::json(adapters::models(mock)),
        Route::Metrics => {
            let text = "text/plain; version=1.0.0; charset=utf-8";
            Answer::text(text, metrics::page(mock))
        }
        Route::Response => {
            let query = query(request);
            let answer = store::read(connection, &found.id, &query);
            return Ok(answer.unwrap_or_else(Answer::into_response));
        }
        Route::CancelResponse => mock.responses.borrow_mut().cancel(&found.id),
        Route::RegisterAdapter => {
            let (alias, query) = (alias(request), query(request));
            let body = request.body_bytes().await?;
            either(adapters::registered(mock, alias.as_deref(), query, &body))
        }
        Route::UnregisterAdapter => {
            either(adapters::unregistered(mock, alias(request).as_deref(), &found.id))
        }
        Route::Audio(task) => return hear(connection, request, task).await,
        Route::Dev(dev) => {
            let body = request.body_bytes().await?;
            let tags: Vec<_> = request
                .url()
                .query_pairs()
                .filter_map(|(name, value)| (name == "tags").then(|| value.into_owned()))
                .collect();
            let asked = dev::Asked {
                query: &query(request),
                tags: &tags,
                content_type: request.header("content-type").map(|value| value.as_str()),
                body: &body,
            };
            dev::answer(connection, dev, asked).await
        }
        Route::ScaleOut => Answer::error(
            403,
            "PermissionDeniedError",
            "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to \
             enable them.",
            None,
        ),
        Route::Reads(reader) => return read(connection, request, reader).await,
    };
    Ok(answer.into_response())
}

/// Reads the body, and answers what it asks.
async fn read(
    connection: &Connection,
    request: &mut Request,
    reader: Reader,
) -> http_types::Result<Response> {
    let mock = &connection.mock;
    let header = |name| request.header(name).map(|value| value.as_str().to_owned());
    let (content_type, given_id) = (header("content-type"), header("x-request-id"));
    let body = request.body_bytes().await?;
    let body = match object(content_type.as_deref(), &body) {
        Ok(body) => body,
        Err(answer) => return Ok(answer.into_response()),
    };
    let fields = Fields::new(&body);
    let id = given_id
        .or_else(|| fields.value("request_id")?.as_str().map(str::to_owned))
        .unwrap_or_else(|| mock.hex());
    let (ask, in_words): (_, fn(Answer) -> Answer) = match reader {
        Reader::Chat => (request::chat(mock, fields, id), |answer| answer),
        Reader::Completions => (request::completions(mock, fields, id), |answer| answer),
        Reader::Responses => (request::responses(mock, fields), |answer| answer),
        Reader::Messages => (request::messages(mock, fields, id), Answer::anthropic),
        Reader::Tokenize => return Ok(either(tokens::tokenized(mock, fields)).into_response()),
        Reader::Detokenize => return Ok(either(tokens::detokenized(mock, fields)).into_response()),
        Reader::CountTokens => return Ok(either(tokens::counted(mock, fields)).into_response()),
        Reader::LoadAdapter => return Ok(either(adapters::loaded(mock, fields)).into_response()),
        Reader::UnloadAdapter => {
            return Ok(either(adapters::unloaded(mock, fields)).into_response());
        }
    };
    match ask {
        Ok(ask) => generate(connection, ask, in_words).await,
        Err(answer) => Ok(answer.into_response()),
    }
}

/// Reads a form with sound in it, and answers what it asks.
async fn hear(
    connection: &Connection,
    request: &mut Request,
    task: Task,
) -> http_types::Result<Response> {
    let mock = &connection.mock;
    let header = |name| request.header(name).map(|value| value.as_str().to_owned());
    let (content_type, given_id) = (header("content-type"), header("x-request-id"));
    let id = given_id.unwrap_or_else(|| mock.hex());
    let body = request.body_bytes().await?;
    let form = form::read(content_type.as_deref().unwrap_or_default(), &body);
    match form.and_then(|form| audio::ask(mock, task, form, &id)) {
        Ok(ask) => generate(connection, ask, |answer| answer).await,
        Err(answer) => Ok(answer.into_response()),
    }
}

/// Good or bad, it is an answer.
fn either(answer: Result<Answer, Answer>) -> Answer {
    answer.unwrap_or_else(|refused| refused)
}

/// The parameters of the query; of equal ones the last.
fn query(request: &Request) -> Map<String, Value> {
    let pairs = request.url().query_pairs();
    pairs.map(|(name, value)| (name.into_owned(), Value::from(&*value))).collect()
}

/// `GET /kv_event_sources`: one rank, if it publishes.
fn event_sources(args: &Args) -> String {
    args.kv_events.as_ref().map_or("{}".to_owned(), |endpoint| {
        let endpoint = quote(endpoint);
        format!(
            r#"{{"0":{{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":{endpoint},"replay_endpoint":null,"buffer_steps":10000,"hwm":100000,"max_queue_size":100000,"topic":""}}}}"#
        )
    })
}

/// `%41` to `A`; what is not an escape stays.
fn percent_decoded(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let escape = tail.get(..2).filter(|_| byte == b'%');
        let decoded = escape
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(decoded.unwrap_or(byte));
        rest = if decoded.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
