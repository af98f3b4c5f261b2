//! vLLM's routes, as far as the mock has them: who answers a path, and what comes before that
//! (keys, CORS, trailing slashes, methods).

use super::answers::{Answer, quote};
use super::check::{Fields, object};
use super::connection::{Connection, Mock};
use super::generate::generate;
use super::prompt::token_ids;
use super::request;
use super::{answers, metrics};
use http_types::{Method, Request, Response};
use std::fmt::Write;
use vllm_proxy_sim::reply::{detokenize, tokenize};

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

fn find(path: &str) -> Option<Found> {
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
    ROUTES.iter().find_map(|(pattern, method, route)| {
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
    let path = percent_decoded(request.url().path());
    let found = find(&path);
    let allowed = found.as_ref().is_some_and(|found| {
        let post_too = found.route == Route::Ping && method == Method::Post;
        found.method == method || post_too || found.route == Route::Metrics
    });
    let response = match (before(&connection.mock, &request, &path), &found) {
        (Some(answer), _) => answer.into_response(),
        (None, Some(found)) if allowed => handle(connection, &mut request, found).await?,
        (None, Some(found)) => Answer::wrong_method(name(found.method)).into_response(),
        (None, None) => elsewhere(&request, &path).into_response(),
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
    let key = mock.args.api_key.as_deref()?;
    let shown = request.header("authorization").and_then(|value| {
        let (scheme, key) = value.as_str().split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.to_owned())
    });
    let guarded = GUARDED.iter().any(|prefix| path.starts_with(prefix));
    (guarded && shown.as_deref() != Some(key)).then(Answer::unauthorized)
}

/// A path that no route has: a slash too many, or nothing at all.
fn elsewhere(request: &Request, path: &str) -> Answer {
    match path.strip_suffix('/') {
        Some(shorter) if find(shorter).is_some() => {
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
    if matches!(method, Method::Post) { "POST" } else { "GET" }
}

async fn handle(
    connection: &Connection,
    request: &mut Request,
    found: &Found,
) -> http_types::Result<Response> {
    let mock = &connection.mock;
    let answer = match found.route {
        Route::Health | Route::Ping => Answer::empty(),
        Route::Load => Answer::json(r#"{"server_load":0}"#.to_owned()),
        Route::Version => Answer::json(format!(r#"{{"version":{}}}"#, quote(&mock.args.version))),
        Route::KvEventSources => Answer::json("{}".to_owned()),
        Route::Models => Answer::json(models(mock)),
        Route::Metrics => {
            let text = "text/plain; version=1.0.0; charset=utf-8";
            Answer::text(text, metrics::page(mock))
        }
        Route::Response => response(mock, &found.id),
        Route::CancelResponse => match response(mock, &found.id) {
            found if found.is_success() => {
                Answer::refused("Cannot cancel a synchronous response.", Some("response_id"))
            }
            unknown => unknown,
        },
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
        Reader::Tokenize => return Ok(either(tokenized(mock, fields))),
        Reader::Detokenize => return Ok(either(detokenized(mock, fields))),
        Reader::CountTokens => return Ok(either(counted(mock, fields))),
    };
    match ask {
        Ok(ask) => generate(connection, ask, in_words).await,
        Err(answer) => Ok(answer.into_response()),
    }
}

/// Good or bad, it is an answer.
fn either(answer: Result<Answer, Answer>) -> Response {
    answer.unwrap_or_else(|refused| refused).into_response()
}

fn counted(mock: &Mock, fields: Fields<'_>) -> Result<Answer, Answer> {
    let count = request::counted(mock, fields)?.tokens;
    Ok(Answer::json(format!(
        r#"{{"input_tokens":{count},"context_management":{{"original_input_tokens":{count}}}}}"#
    )))
}

fn tokenized(mock: &Mock, mut fields: Fields<'_>) -> Result<Answer, Answer> {
    let names = fields.flag("return_token_strs");
    let prompt = request::tokenized(mock, fields)?;
    let text = prompt.text.as_str();
    let ids: Vec<_> = tokenize(text).map(|id| id.to_string()).collect();
    let names = if names {
        let names: Vec<_> = tokenize(text).map(|id| quote(&detokenize([id]))).collect();
        format!("[{}]", names.join(","))
    } else {
        "null".to_owned()
    };
    let (count, room) = (ids.len(), mock.args.max_model_len);
    Ok(Answer::json(format!(
        r#"{{"count":{count},"max_model_len":{room},"tokens":[{}],"token_strs":{names}}}"#,
        ids.join(",")
    )))
}

fn detokenized(mock: &Mock, mut fields: Fields<'_>) -> Result<Answer, Answer> {
    let model = fields.string("model");
    fields.require("tokens");
    let ids = fields.list("tokens").unwrap_or_default();
    fields.done()?;
    mock.serves(model)?;
    let text = quote(&detokenize(token_ids(ids)));
    Ok(Answer::json(format!(r#"{{"prompt":{text}}}"#)))
}

fn response(mock: &Mock, id: &str) -> Answer {
    let store = mock.responses.borrow();
    store
        .iter()
        .find(|stored| stored.id == id)
        .map_or_else(|| Answer::unknown_response(id), |stored| Answer::json(stored.json.clone()))
}

/// `GET /v1/models`: times and permission ids are made at each call, as vLLM does.
fn models(mock: &Mock) -> String {
    let created = answers::created();
    let root = quote(mock.args.canonical());
    let room = mock.args.max_model_len.to_string();
    let mut cards = String::new();
    let mut card = |id: &str, root: &str, parent: &str, room: &str| {
        let comma = if cards.is_empty() { "" } else { "," };
        let (id, permission) = (quote(id), mock.hex());
        let _ = write!(
            cards,
            r#"{comma}{{"id":{id},"object":"model","created":{created},"owned_by":"vllm","root":{root},"parent":{parent},"max_model_len":{room},"permission":[{{"id":"modelperm-{permission}","object":"model_permission","created":{created},"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}}]}}"#
        );
    };
    for model in &mock.args.models {
        card(model, &root, "null", &room);
    }
    for lora in &mock.args.loras {
        card(lora, &quote(&format!("/adapters/{lora}")), &root, "null");
    }
    format!(r#"{{"object":"list","data":[{cards}]}}"#)
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
