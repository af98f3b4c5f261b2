//! Answers that are not generated: errors, lists, versions, as vLLM words them.
//!
//! Knows what an answer holds and which headers vLLM's web server adds, not when it is due.

use super::anthropic;
use http_types::{Body, Response, StatusCode};
use serde_json::Value;
use std::time::{SystemTime, UNIX_EPOCH};

/// A complete answer.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    content_type: Option<&'static str>,
    /// Beyond those that every answer has.
    headers: Vec<(&'static str, String)>,
    body: String,
    /// Whether it passed vLLM's CORS layer, which marks it.
    vary: bool,
}

/// `text` as a JSON string.
pub(super) fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

/// Seconds since 1970.
pub(super) fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Whole seconds since 1970, as `created` fields hold them.
pub(super) fn created() -> u64 {
    unix_time() as u64
}

impl Answer {
    pub(super) const fn empty() -> Self {
        Self {
            status: 200,
            content_type: None,
            headers: Vec::new(),
            body: String::new(),
            vary: true,
        }
    }

    pub(super) fn text(content_type: &'static str, body: String) -> Self {
        Self { content_type: Some(content_type), body, ..Self::empty() }
    }

    pub(super) fn json(body: String) -> Self {
        Self::text("application/json", body)
    }

    /// Text of no type, as starlette sends bare strings.
    pub(super) fn plain(body: String) -> Self {
        Self { body, ..Self::empty() }
    }

    /// What the web framework says by itself.
    pub(super) fn detail(status: u16, detail: &str) -> Self {
        Self::json(format!(r#"{{"detail":{}}}"#, quote(detail))).with_status(status)
    }

    fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// vLLM's error object.
    pub(super) fn error(status: u16, kind: &str, message: &str, param: Option<&str>) -> Self {
        Self::json(error_object(status, kind, message, param)).with_status(status)
    }

    /// What vLLM's own checks say (pydantic's have another `type`).
    pub(super) fn refused(message: &str, param: Option<&str>) -> Self {
        Self::error(400, "BadRequestError", message, param)
    }

    pub(super) fn unknown_model(model: &str, aliases: &[String]) -> Self {
        let aliases = aliases.join(", ");
        let message = format!("The model `{model}` does not exist. Valid aliases: {aliases}.");
        Self::error(404, "NotFoundError", &message, Some("model"))
    }

    pub(super) fn unknown_response(id: &str) -> Self {
        let message = format!("Response with id '{id}' not found.");
        Self::error(404, "invalid_request_error", &message, Some("response_id"))
    }

    /// The error that stands for `status` where one is ordered.
    pub(super) fn failure(status: u16) -> Self {
        let reason = StatusCode::try_from(status).map_or("Error", |code| code.canonical_reason());
        match status {
            500 => Self::error(500, "InternalServerError", "Internal server error", None),
            503 => Self::error(
                503,
                "Service Unavailable",
                "The engine is currently busy and cannot accept new requests. \
                 Please try again later or on a different instance.",
                None,
            ),
            _ => Self::error(status, reason, "failed, as ordered", None),
        }
    }

    pub(super) fn not_found() -> Self {
        Self::detail(404, "Not Found")
    }

    pub(super) fn wrong_method(allow: &'static str) -> Self {
        Self::detail(405, "Method Not Allowed").with_header("allow", allow)
    }

    pub(super) fn unauthorized() -> Self {
        let answer = Self::json(r#"{"error":"Unauthorized"}"#.to_owned()).with_status(401);
        Self { vary: false, ..answer }
    }

    /// Trailing slashes are redirected away.
    pub(super) fn moved(location: String) -> Self {
        Self::empty().with_status(307).with_header("location", location)
    }

    /// No origin is allowed by default.
    pub(super) fn preflight() -> Self {
        let answer = Self::text("text/plain; charset=utf-8", "Disallowed CORS origin".to_owned())
            .with_status(400)
            .with_header(
                "vary",
                "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, \
                     Access-Control-Request-Private-Network",
            )
            .with_header(
                "access-control-allow-methods",
                "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY",
            )
            .with_header("access-control-max-age", "600");
        Self { vary: false, ..answer }
    }

    /// The same error in the words of /v1/messages.
    pub(super) fn anthropic(self) -> Self {
        let kind = anthropic::kind(self.status);
        let body = serde_json::from_str::<Value>(&self.body).unwrap_or_default();
        let message = body["error"]["message"].as_str().unwrap_or_default();
        let body = format!(
            r#"{{"type":"error","error":{{"type":"{kind}","message":{}}}}}"#,
            quote(message)
        );
        Self { body, ..self }
    }

    /// The same head with only the first half of the promised body: `body` makes it from the bytes.
    pub(super) fn half<B>(self, body: impl FnOnce(Vec<u8>) -> B) -> Response
    where
        B: smol::io::AsyncBufRead + Unpin + Send + Sync + 'static,
    {
        let length = self.body.len();
        let mut half = self.body.clone().into_bytes();
        half.truncate(length / 2);
        let mut response = self.into_response();
        response.replace_body(Body::from_reader(body(half), Some(length)));
        response
    }

    pub(super) fn into_response(self) -> Response {
        let mut response = head(self.status, self.vary);
        if !self.body.is_empty() {
            response.set_body(Body::from_bytes(self.body.into_bytes()));
            // http-types takes any bytes for a stream of octets.
            response.remove_header("content-type");
        }
        if let Some(content_type) = self.content_type {
            response.insert_header("content-type", content_type);
        }
        for (name, value) in self.headers {
            response.insert_header(name, value);
        }
        response
    }
}

/// The error object by itself, compact as in answers.
pub(super) fn error_object(status: u16, kind: &str, message: &str, param: Option<&str>) -> String {
    let param = param.map_or("null".to_owned(), quote);
    format!(
        r#"{{"error":{{"message":{},"type":"{kind}","param":{param},"code":{status}}}}}"#,
        quote(message)
    )
}

/// A streamed answer, whose head leaves before its body has begun.
pub(super) fn stream(
    body: impl smol::io::AsyncBufRead + Unpin + Send + Sync + 'static,
) -> Response {
    let mut response = head(200, true);
    response.set_body(Body::from_reader(body, None));
    response.insert_header("content-type", "text/event-stream; charset=utf-8");
    response
}

fn head(status: u16, vary: bool) -> Response {
    // Only statuses that http-types knows get here: options and orders are checked against it.
    let status = StatusCode::try_from(status).unwrap_or(StatusCode::InternalServerError);
    let mut response = Response::new(status);
    // async-h1 would put it in as well, but not in every version without breaking the head.
    http_types::other::Date::now().apply(&mut response);
    response.insert_header("server", "uvicorn");
    if vary {
        response.insert_header("vary", "Origin");
    }
    response
}
