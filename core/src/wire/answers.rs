//! What the proxy says itself: errors, model lists, health, worded and shaped as vLLM does.
//!
//! Knows how an answer looks; does not know when it is due. Sources: vLLM 0.33,
//! `entrypoints/serve/exception_handling` and `entrypoints/openai/models/serving.py`. JSON is
//! rendered as FastAPI's `JSONResponse` does: compact, and text beyond ASCII as it is.

use crate::route::Refusal;
use alloc::borrow::Cow;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use serde::Serialize;

/// Seconds until a client may find that a round of probes has changed something.
const RETRY_SOON: u32 = 1;
/// Seconds within which a backend that is down is probed again, and up if its engine is.
const RETRY_DOWN: u32 = 5;

/// Which JSON an error of the proxy's own wears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// `{"error":{"message":..,"type":..,"param":..,"code":..}}`, with `param` "model" and the
    /// valid aliases where a model is unknown: chat, completions, responses, tokenize, generate.
    #[default]
    OpenAi,
    /// The same, but an unknown model has `param` null and no aliases: embeddings, pooling,
    /// classify, score, rerank.
    Pooling,
    /// `{"type":"error","error":{"type":..,"message":..}}`: the handlers of /v1/messages.
    Anthropic,
    /// `{"message":..}`: everything below /cohere. vLLM adds an `id` once a request has one.
    Cohere,
}

/// A complete answer of our own, without the headers that every answer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Three digits.
    pub status: u16,
    /// `content-type`, where there is a body.
    pub content_type: Option<&'static str>,
    /// Seconds for `Retry-After`.
    pub retry_after: Option<u32>,
    /// `allow`, for 405.
    pub allow: Option<&'static str>,
    /// Other headers.
    pub headers: &'static [(&'static str, &'static str)],
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// An answer without a body.
    pub const fn empty(status: u16) -> Self {
        Self {
            status,
            content_type: None,
            retry_after: None,
            allow: None,
            headers: &[],
            body: Vec::new(),
        }
    }

    /// A JSON answer.
    pub fn json(status: u16, body: Vec<u8>) -> Self {
        Self { content_type: Some("application/json"), body, ..Self::empty(status) }
    }

    /// An error in the shape of a route. Its `type` follows from the status: vLLM's own name
    /// where it has one, else the reason phrase.
    pub fn error(status: u16, message: &str, param: Option<&str>, shape: Shape) -> Self {
        let body = match shape {
            Shape::OpenAi | Shape::Pooling => {
                let kind = openai_type(status);
                render(&OpenAi { error: OpenAiError { message, kind, param, code: status } })
            }
            Shape::Anthropic => {
                let error = AnthropicError { kind: anthropic_type(status), message };
                render(&Anthropic { kind: "error", error })
            }
            Shape::Cohere => render(&Cohere { message }),
        };
        Self::json(status, body)
    }

    /// 400: the request is not HTTP/1.1, or ambiguous.
    pub fn bad_request(message: &str, shape: Shape) -> Self {
        Self::error(400, message, None, shape)
    }

    /// 408: the client stalled within its request.
    pub fn request_timeout(shape: Shape) -> Self {
        Self::error(408, "The request did not arrive in time.", None, shape)
    }

    /// 403: a page of elsewhere has a browser ask what only operators may.
    pub fn foreign(shape: Shape) -> Self {
        let message = "A page of another origin may not have this done. Who acts from a page of \
                       the proxy's own uses its IP address, a private name, or TLS.";
        Self::error(403, message, None, shape)
    }

    /// 413: the body is larger than the operator allows.
    pub fn body_too_large(bytes_max: u64, shape: Shape) -> Self {
        let message = format!("The request body is larger than {bytes_max} bytes.");
        Self::error(413, &message, None, shape)
    }

    /// 414: the request target is too long.
    pub fn target_too_long(shape: Shape) -> Self {
        Self::error(414, "The request target is too long.", None, shape)
    }

    /// 431: the request head is too large.
    pub fn head_too_large(shape: Shape) -> Self {
        Self::error(431, "The request head is too large.", None, shape)
    }

    /// 404 for a path that nobody serves, as Starlette says it on every route.
    pub fn not_found() -> Self {
        Self::json(404, br#"{"detail":"Not Found"}"#.to_vec())
    }

    /// 405, as Starlette says it on every route.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let body = br#"{"detail":"Method Not Allowed"}"#.to_vec();
        Self { allow: Some(allow), ..Self::json(405, body) }
    }

    /// `/v1/models`, of cards that are compact JSON already.
    pub fn models(cards: impl Iterator<Item = impl AsRef<str>>) -> Self {
        let mut body = br#"{"object":"list","data":["#.to_vec();
        for (at, card) in cards.enumerate() {
            if at > 0 {
                body.push(b',');
            }
            body.extend_from_slice(card.as_ref().as_bytes());
        }
        body.extend_from_slice(b"]}");
        Self::json(200, body)
    }

    /// `/version`.
    pub fn version(version: &str) -> Self {
        Self::json(200, render(&Version { version }))
    }

    pub(crate) fn refusal(refusal: &Refusal, shape: Shape) -> Self {
        let (message, retry_after): (Cow<'_, str>, _) = match refusal {
            Refusal::UnknownModel { model, bases } => return unknown_model(model, bases, shape),
            Refusal::UnknownBackend { backend, backends } => {
                let known = backends.join(", ");
                (format!("There is no backend `{backend}`. Backends: {known}.").into(), None)
            }
            Refusal::Ambiguous { backends } => (
                format!(
                    "This request is for one backend only. Name it by the query parameter \
                     `vllm_proxy_backend` or the header `x-vllm-proxy-backend`. Backends: {}.",
                    backends.join(", ")
                )
                .into(),
                None,
            ),
            Refusal::ModelDown { model } => (
                format!("No backend of the model `{model}` is up. Please try again later.").into(),
                Some(RETRY_DOWN),
            ),
            Refusal::Drained { model } => {
                let which = model.as_ref().map(|model| format!(" of the model `{model}`"));
                let which = which.unwrap_or_default();
                let message = format!(
                    "Every backend{which} that is up is drained for maintenance. Please try again \
                     later."
                );
                (message.into(), Some(RETRY_DOWN))
            }
            Refusal::Starting => {
                ("The service is not ready yet. Please try again later.".into(), Some(RETRY_SOON))
            }
            Refusal::Busy => {
                ("The service is currently busy. Please try again later.".into(), Some(RETRY_SOON))
            }
            Refusal::Unasked => (
                "A backend that may keep the response cannot be asked. Please try again later."
                    .into(),
                Some(RETRY_SOON),
            ),
            Refusal::NoAnswer => ("No backend answered the request.".into(), None),
            Refusal::TimedOut => ("The backend did not answer in time.".into(), None),
        };
        Self { retry_after, ..Self::error(refusal.status(), &message, None, shape) }
    }
}

/// vLLM's words for a model that nobody serves. Adapters are never among the aliases.
fn unknown_model(model: &str, bases: &[String], shape: Shape) -> Answer {
    let mut message = format!("The model `{model}` does not exist.");
    if !matches!(shape, Shape::Pooling) && !bases.is_empty() {
        message.push_str(" Valid aliases: ");
        message.push_str(&bases.join(", "));
        message.push('.');
    }
    let param = matches!(shape, Shape::OpenAi).then_some("model");
    Answer::error(404, &message, param, shape)
}

/// The `type` of an OpenAI-style error. vLLM names the classes of its own checks; what fails
/// around them, as everything of ours does, carries the reason phrase.
const fn openai_type(status: u16) -> &'static str {
    match status {
        403 => "PermissionDeniedError",
        404 => "NotFoundError",
        500 => "InternalServerError",
        501 => "NotImplementedError",
        _ => reason(status),
    }
}

/// The `type` of an Anthropic error; what Anthropic has no name for is the request's fault or the
/// server's.
const fn anthropic_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        500..=599 => "api_error",
        _ => "invalid_request_error",
    }
}

#[derive(Serialize)]
struct OpenAi<'a> {
    error: OpenAiError<'a>,
}

#[derive(Serialize)]
struct OpenAiError<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: u16,
}

#[derive(Serialize)]
struct Cohere<'a> {
    message: &'a str,
}

#[derive(Serialize)]
struct Anthropic<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    error: AnthropicError<'a>,
}

#[derive(Serialize)]
struct AnthropicError<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    message: &'a str,
}

#[derive(Serialize)]
struct Version<'a> {
    version: &'a str,
}

fn render(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("structs of text and numbers always have a JSON form")
}

/// Whether an answer is vLLM's word that it does not know the model, and not a 404 of another kind.
pub fn is_unknown_model(answer: &[u8]) -> bool {
    let holds = |text: &[u8]| memchr::memmem::find(answer, text).is_some();
    holds(b"The model `") && holds(b"` does not exist.")
}

/// A status's reason phrase, as Python 3.12's `http.HTTPStatus` has it (vLLM's images run 3.12),
/// which is what uvicorn sends; empty where Python knows none.
pub const fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Request Entity Too Large",
        414 => "Request-URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Requested Range Not Satisfiable",
        417 => "Expectation Failed",
        418 => "I'm a Teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Entity",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Shape::{Anthropic as A, OpenAi as O, Pooling as P};
    use alloc::string::ToString;
    use alloc::vec;
    use rstest::rstest;

    fn text(answer: &Answer) -> &str {
        core::str::from_utf8(&answer.body).expect("our own JSON is UTF-8")
    }

    fn unknown(model: &str, bases: &[&str]) -> Refusal {
        let bases = bases.iter().map(ToString::to_string).collect();
        Refusal::UnknownModel { model: model.to_string(), bases }
    }

    #[rstest]
    #[case::openai(O, r#"{"error":{"message":"The model `x` does not exist. Valid aliases: a, b/c.","type":"NotFoundError","param":"model","code":404}}"#)]
    #[case::pooling(P, r#"{"error":{"message":"The model `x` does not exist.","type":"NotFoundError","param":null,"code":404}}"#)]
    #[case::anthropic(A, r#"{"type":"error","error":{"type":"not_found_error","message":"The model `x` does not exist. Valid aliases: a, b/c."}}"#)]
    #[case::cohere(
        Shape::Cohere,
        r#"{"message":"The model `x` does not exist. Valid aliases: a, b/c."}"#
    )]
    fn an_unknown_model(#[case] shape: Shape, #[case] expected: &str) {
        let answer = unknown("x", &["a", "b/c"]).answer(shape);
        assert_eq!((answer.status, answer.retry_after), (404, None));
        assert_eq!(answer.content_type, Some("application/json"));
        assert_eq!(text(&answer), expected);
    }

    #[test]
    fn no_aliases_where_nothing_is_served() {
        let answer = unknown("x", &[]).answer(O);
        assert!(text(&answer).contains(r#""The model `x` does not exist.""#));
    }

    #[rstest]
    #[case::quote("a\"b\\c", r#"a\"b\\c"#)]
    #[case::newlines("a\r\nb\tc", r"a\r\nb\tc")]
    #[case::form_feed_and_backspace("\u{c}\u{8}", r"\f\b")]
    #[case::control("\u{0}\u{1f}", r"\u0000\u001f")]
    #[case::delete_and_c1_as_they_are("\u{7f}\u{85}", "\u{7f}\u{85}")]
    #[case::beyond_ascii("模型/é🦀\u{2028}", "模型/é🦀\u{2028}")]
    #[case::markup("</script>", "</script>")]
    fn hostile_names_are_escaped_as_python_does(#[case] name: &str, #[case] expected: &str) {
        for shape in [O, P, A] {
            let answer = unknown(name, &[name]).answer(shape);
            let start = alloc::format!("\"message\":\"The model `{expected}` does not");
            assert!(text(&answer).contains(&start), "{}", text(&answer));
            assert!(serde_json::from_slice::<serde_json::Value>(&answer.body).is_ok());
        }
    }

    #[rstest]
    #[case::down(Refusal::ModelDown { model: "m".to_string() }, 503, Some(5), "Service Unavailable", "overloaded_error")]
    #[case::drained(Refusal::Drained { model: Some("m".to_string()) }, 503, Some(5), "Service Unavailable", "overloaded_error")]
    #[case::starting(Refusal::Starting, 503, Some(1), "Service Unavailable", "overloaded_error")]
    #[case::no_memory(Refusal::Busy, 503, Some(1), "Service Unavailable", "overloaded_error")]
    #[case::no_answer(Refusal::NoAnswer, 502, None, "Bad Gateway", "api_error")]
    #[case::timed_out(Refusal::TimedOut, 504, None, "Gateway Timeout", "api_error")]
    fn refusals(
        #[case] refusal: Refusal,
        #[case] status: u16,
        #[case] retry_after: Option<u32>,
        #[case] openai: &str,
        #[case] anthropic: &str,
    ) {
        for shape in [O, P, A] {
            let answer = refusal.answer(shape);
            assert_eq!((answer.status, answer.retry_after), (status, retry_after));
            let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            let kind = if shape == A { anthropic } else { openai };
            assert_eq!(body["error"]["type"], kind);
            assert!(body["error"]["message"].is_string());
            assert_eq!(body.get("type").is_some(), shape == A);
            assert_eq!(body["error"].get("param").is_some(), shape != A);
            assert_eq!(body["error"].get("code").is_some(), shape != A);
        }
    }

    #[rstest]
    #[case::bad_request(
        Answer::bad_request("no \"Host\"", O),
        r#"{"error":{"message":"no \"Host\"","type":"Bad Request","param":null,"code":400}}"#
    )]
    #[case::bad_request_anthropic(
        Answer::bad_request("no", A),
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"no"}}"#
    )]
    #[case::too_large_anthropic(Answer::body_too_large(10, A), r#"{"type":"error","error":{"type":"request_too_large","message":"The request body is larger than 10 bytes."}}"#)]
    #[case::with_param(
        Answer::error(501, "m", Some("p"), P),
        r#"{"error":{"message":"m","type":"NotImplementedError","param":"p","code":501}}"#
    )]
    #[case::not_found(Answer::not_found(), r#"{"detail":"Not Found"}"#)]
    #[case::method(Answer::method_not_allowed("GET"), r#"{"detail":"Method Not Allowed"}"#)]
    #[case::version(Answer::version("0.33.0+\"x\""), r#"{"version":"0.33.0+\"x\""}"#)]
    #[case::models(Answer::models([r#"{"id":"a"}"#, r#"{"id":"b"}"#].into_iter()), r#"{"object":"list","data":[{"id":"a"},{"id":"b"}]}"#)]
    #[case::no_models(Answer::models(core::iter::empty::<&str>()), r#"{"object":"list","data":[]}"#)]
    fn bodies(#[case] answer: Answer, #[case] expected: &str) {
        assert_eq!(text(&answer), expected);
        assert_eq!(answer.content_type, Some("application/json"));
    }

    #[rstest]
    #[case(Answer::request_timeout(O), 408, "Request Timeout")]
    #[case(Answer::body_too_large(1, O), 413, "Request Entity Too Large")]
    #[case(Answer::target_too_long(O), 414, "Request-URI Too Long")]
    #[case(Answer::head_too_large(O), 431, "Request Header Fields Too Large")]
    fn client_faults_carry_the_reason_phrase(
        #[case] answer: Answer,
        #[case] status: u16,
        #[case] kind: &str,
    ) {
        assert_eq!(answer.status, status);
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["error"]["type"], kind);
        assert_eq!(body["error"]["code"], status);
    }

    #[test]
    fn answers_without_a_body_have_no_type_either() {
        let expected = Answer {
            status: 503,
            content_type: None,
            retry_after: None,
            headers: &[],
            allow: None,
            body: vec![],
        };
        assert_eq!(Answer::empty(503), expected);
        assert_eq!(Answer::method_not_allowed("GET").allow, Some("GET"));
    }

    #[rstest]
    #[case(200, "OK")]
    #[case(418, "I'm a Teapot")]
    #[case(499, "")]
    #[case(0, "")]
    #[case(u16::MAX, "")]
    fn reasons(#[case] status: u16, #[case] expected: &str) {
        assert_eq!(reason(status), expected);
    }
}
