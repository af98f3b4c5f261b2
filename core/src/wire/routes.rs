//! vLLM's routes as one table: where the model is, who answers, whether it may be tried elsewhere.
//!
//! Knows paths and methods; knows nothing of backends. What is not in the table goes to a backend
//! as it is, by the model that its JSON body names, else to the default model's.

use crate::route::{Retry, Who};
use crate::wire::answers::Shape;
use alloc::borrow::Cow;
use alloc::vec::Vec;

/// What is known of a request from its method and path alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Who answers.
    pub who: Who,
    /// When it may be tried elsewhere.
    pub retry: Retry,
    /// How our own errors look on this route.
    pub shape: Shape,
    /// `Some` if the proxy has to refuse the method: it answers 405 with this `allow`, and asks
    /// nobody. `None` otherwise: [`who`](Self::who) answers, and judges the method.
    pub allow: Option<&'static str>,
}

impl Rule {
    /// The same for a request that would switch to a websocket. vLLM looks for it in a table of its
    /// own, and says 403 of every path that is not there. It has effects that nobody knows.
    pub const fn of_websocket(self) -> Self {
        Self { who: Who::Backend, retry: Retry::Never, shape: self.shape, allow: None }
    }
}

/// Inference with OpenAI's errors; tokenizing and rendering, too.
const OPENAI: Rule = infer(Shape::OpenAi);
const POOLING: Rule = infer(Shape::Pooling);
const ANTHROPIC: Rule = infer(Shape::Anthropic);
/// A request that is not in the table, or a session: one try, unless nothing of it was sent.
const ONCE: Rule = Rule { retry: Retry::Never, ..OPENAI };
const HEALTH: Rule = own(Who::Health);
const MODELS: Rule = own(Who::Models);
const VERSION: Rule = own(Who::Version);

/// Every route that is not treated as its method says, see [`find`]. The model is in the body of
/// all that go to a backend, the realtime websocket and audio forms excepted.
///
/// Routes that change a server (`/sleep`, `/v1/load_lora_adapter`, `/collective_rpc` and so on) are
/// not here: any POST may be one, plugins add more.
#[rustfmt::skip]
const TABLE: &[(&str, &str, Rule)] = &[
    // Text generation
    ("POST", "/v1/chat/completions",          OPENAI),
    ("POST", "/v1/chat/completions/batch",    OPENAI),
    ("POST", "/v1/completions",               OPENAI),
    ("POST", "/v1/responses",                 OPENAI),
    ("POST", "/v1/messages",                  ANTHROPIC),
    ("POST", "/v1/messages/count_tokens",     ANTHROPIC),
    ("POST", "/cohere/v2/chat",               OPENAI),
    ("POST", "/cohere/v2/chat/render",        OPENAI),
    ("POST", "/generative_scoring",           OPENAI),
    ("POST", "/v1/decisions",                 OPENAI),
    ("POST", "/v1/systemone",                 OPENAI),
    ("POST", "/invocations",                  OPENAI),
    // Pooling
    ("POST", "/v1/embeddings",                POOLING),
    ("POST", "/v2/embed",                     POOLING),
    ("POST", "/pooling",                      POOLING),
    ("POST", "/classify",                     POOLING),
    ("POST", "/score",                        POOLING),
    ("POST", "/v1/score",                     POOLING),
    ("POST", "/rerank",                       POOLING),
    ("POST", "/v1/rerank",                    POOLING),
    ("POST", "/v2/rerank",                    POOLING),
    // Audio
    ("POST", "/v1/audio/transcriptions",      OPENAI),
    ("POST", "/v1/audio/translations",        OPENAI),
    ("GET",  "/v1/realtime",                  ONCE),
    // Tokenizer, tokens in and out, rendering
    ("POST", "/tokenize",                     OPENAI),
    ("POST", "/detokenize",                   OPENAI),
    ("POST", "/inference/v1/generate",        OPENAI),
    ("POST", "/inference/v1/abort_requests",  OPENAI),
    ("POST", "/v1/chat/completions/render",   OPENAI),
    ("POST", "/v1/completions/render",        OPENAI),
    ("POST", "/v1/messages/render",           OPENAI),
    ("POST", "/v1/responses/render",          OPENAI),
    ("POST", "/v1/chat/completions/derender", OPENAI),
    ("POST", "/v1/completions/derender",      OPENAI),
    // What the proxy answers itself. Where a path has two methods, vLLM's 405 names only the first.
    ("GET",  "/health",                       HEALTH),
    ("GET",  "/ping",                         HEALTH),
    ("POST", "/ping",                         HEALTH),
    ("GET",  "/version",                      VERSION),
    ("GET",  "/v1/models",                    MODELS),
];

const fn infer(shape: Shape) -> Rule {
    Rule { who: Who::Backend, retry: Retry::BeforeFirstByte, shape, allow: None }
}

const fn own(who: Who) -> Rule {
    Rule { who, ..OPENAI }
}

/// The rule for a method and a request target in origin form, as it was sent.
///
/// uvicorn decodes the path before it is matched, `%2F` too, but nothing is made of double or
/// trailing slashes: vLLM itself answers these, by 404 or a redirect.
pub fn find(method: &str, target: &[u8]) -> Rule {
    let end = target.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(target.len());
    let path = decode(target.get(..end).unwrap_or_default());
    let mut refusal = None;
    for (allowed, known, rule) in TABLE {
        if known.as_bytes() != &*path {
            continue;
        }
        if *allowed == method {
            return *rule;
        }
        // An OPTIONS may be a preflight, which a backend judges by its `--allowed-origins`.
        if rule.who != Who::Backend && refusal.is_none() && method != "OPTIONS" {
            refusal = Some(Rule { allow: Some(allowed), ..*rule });
        }
    }
    refusal.unwrap_or(match method {
        "GET" | "HEAD" | "OPTIONS" => OPENAI,
        // It may change the server.
        _ => ONCE,
    })
}

/// As Python's `unquote`: what is no escape stays as it is.
fn decode(path: &[u8]) -> Cow<'_, [u8]> {
    if !path.contains(&b'%') {
        return Cow::Borrowed(path);
    }
    let digit = |at: usize| path.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        let escaped = if byte == b'%' { digit(at + 1).zip(digit(at + 2)) } else { None };
        if let Some((high, low)) = escaped {
            decoded.push((high * 16 + low) as u8);
            at += 3;
        } else {
            decoded.push(byte);
            at += 1;
        }
    }
    Cow::Owned(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// What [`find`] says of any GET that it does not know.
    const READ: Rule = OPENAI;

    /// Every route of vLLM 0.33, one line for those that are alike.
    #[rstest]
    #[case::chat("POST /v1/chat/completions", OPENAI)]
    #[case::chat_batch("POST /v1/chat/completions/batch", OPENAI)]
    #[case::completions("POST /v1/completions", OPENAI)]
    #[case::responses("POST /v1/responses", OPENAI)]
    #[case::response("GET /v1/responses/resp_1?stream=true", READ)]
    #[case::response_cancel("POST /v1/responses/resp_1/cancel", ONCE)]
    #[case::messages("POST /v1/messages", ANTHROPIC)]
    #[case::count_tokens("POST /v1/messages/count_tokens", ANTHROPIC)]
    #[case::cohere("POST /cohere/v2/chat", OPENAI)]
    #[case::cohere_render("POST /cohere/v2/chat/render", OPENAI)]
    #[case::generative_scoring("POST /generative_scoring", OPENAI)]
    #[case::decisions("POST /v1/decisions", OPENAI)]
    #[case::systemone("POST /v1/systemone", OPENAI)]
    #[case::embeddings("POST /v1/embeddings", POOLING)]
    #[case::embed("POST /v2/embed", POOLING)]
    #[case::pooling("POST /pooling", POOLING)]
    #[case::classify("POST /classify", POOLING)]
    #[case::score("POST /score", POOLING)]
    #[case::score_v1("POST /v1/score", POOLING)]
    #[case::rerank("POST /rerank", POOLING)]
    #[case::rerank_v1("POST /v1/rerank", POOLING)]
    #[case::rerank_v2("POST /v2/rerank", POOLING)]
    #[case::transcriptions("POST /v1/audio/transcriptions", OPENAI)]
    #[case::translations("POST /v1/audio/translations", OPENAI)]
    #[case::realtime("GET /v1/realtime", ONCE)]
    #[case::tokenize("POST /tokenize", OPENAI)]
    #[case::detokenize("POST /detokenize", OPENAI)]
    #[case::tokenizer_info("GET /tokenizer_info", READ)]
    #[case::models("GET /v1/models", MODELS)]
    #[case::model("GET /v1/models/some", READ)]
    #[case::load_lora("POST /v1/load_lora_adapter", ONCE)]
    #[case::unload_lora("POST /v1/unload_lora_adapter", ONCE)]
    #[case::adapters("POST /adapters", ONCE)]
    #[case::adapter("DELETE /adapters/some", ONCE)]
    #[case::generate("POST /inference/v1/generate", OPENAI)]
    #[case::abort("POST /inference/v1/abort_requests", OPENAI)]
    #[case::chat_render("POST /v1/chat/completions/render", OPENAI)]
    #[case::completions_render("POST /v1/completions/render", OPENAI)]
    #[case::messages_render("POST /v1/messages/render", OPENAI)]
    #[case::responses_render("POST /v1/responses/render", OPENAI)]
    #[case::chat_derender("POST /v1/chat/completions/derender", OPENAI)]
    #[case::completions_derender("POST /v1/completions/derender", OPENAI)]
    #[case::ping("GET /ping", HEALTH)]
    #[case::ping_post("POST /ping", HEALTH)]
    #[case::invocations("POST /invocations", OPENAI)]
    #[case::health("GET /health", HEALTH)]
    #[case::metrics("GET /metrics", READ)]
    #[case::metrics_below("GET /metrics/anything", READ)]
    #[case::load("GET /load", READ)]
    #[case::version("GET /version", VERSION)]
    #[case::kv_event_sources("GET /kv_event_sources", READ)]
    #[case::openapi("GET /openapi.json", READ)]
    #[case::openapi_head("HEAD /openapi.json", READ)]
    #[case::docs("GET /docs", READ)]
    #[case::redoc("GET /redoc", READ)]
    #[case::docs_redirect("GET /docs/oauth2-redirect", READ)]
    #[case::start_profile("POST /start_profile", ONCE)]
    #[case::stop_profile("POST /stop_profile", ONCE)]
    #[case::scale("POST /scale_elastic_ep", ONCE)]
    #[case::is_scaling("POST /is_scaling_elastic_ep", ONCE)]
    #[case::fault_apply("POST /fault_tolerance/apply", ONCE)]
    #[case::fault_status("GET /fault_tolerance/status", READ)]
    #[case::abort_all("POST /abort_requests", ONCE)]
    #[case::server_info("GET /server_info?config_format=json", READ)]
    #[case::reset_prefix_cache("POST /reset_prefix_cache", ONCE)]
    #[case::reset_mm_cache("POST /reset_mm_cache", ONCE)]
    #[case::reset_encoder_cache("POST /reset_encoder_cache", ONCE)]
    #[case::sleep("POST /sleep?level=1", ONCE)]
    #[case::wake_up("POST /wake_up", ONCE)]
    #[case::is_sleeping("GET /is_sleeping", READ)]
    #[case::release_kv("POST /release_kv_cache_memory", ONCE)]
    #[case::pause("POST /pause", ONCE)]
    #[case::resume("POST /resume", ONCE)]
    #[case::is_paused("GET /is_paused", READ)]
    #[case::collective_rpc("POST /collective_rpc", ONCE)]
    #[case::start_weights("POST /start_weight_update", ONCE)]
    #[case::start_draft_weights("POST /start_draft_weight_update", ONCE)]
    #[case::finish_weights("POST /finish_weight_update", ONCE)]
    #[case::weight_version("POST /update_weight_version", ONCE)]
    #[case::shutdown_weights("POST /shutdown_weight_transfer_engine", ONCE)]
    #[case::init_weights("POST /init_weight_transfer_engine", ONCE)]
    #[case::update_weights("POST /update_weights", ONCE)]
    #[case::weight_info("GET /weight_info", READ)]
    #[case::weight_checker("POST /weight_checker", ONCE)]
    #[case::world_size("GET /get_world_size", READ)]
    fn vllm_route(#[case] request: &str, #[case] rule: Rule) {
        check(request, rule);
    }

    #[rstest]
    #[case::query("GET /v1/models?a=/health", MODELS)]
    #[case::empty_query("GET /health?", HEALTH)]
    #[case::fragment("GET /health#x?y", HEALTH)]
    #[case::encoded("POST /v1/ch%61t/completions", OPENAI)]
    #[case::encoded_slash("GET /v1%2fmodels", MODELS)]
    #[case::all_encoded("GET %2F%76%65rsion", VERSION)]
    #[case::encoded_twice("GET /v1%252Fmodels", READ)]
    #[case::encoded_query("GET /health%3Fx", READ)]
    #[case::encoded_nul("GET /health%00", READ)]
    #[case::no_escape("GET /health%", READ)]
    #[case::half_an_escape("GET /health%6", READ)]
    #[case::wrong_digits("GET /%G8ealth", READ)]
    #[case::signed_digits("GET /%+68ealth", READ)]
    #[case::slash_behind("GET /v1/models/", READ)]
    #[case::slash_doubled("GET //v1/models", READ)]
    #[case::slash_doubled_inside("POST /v1//chat/completions", ONCE)]
    #[case::upper_case("GET /Health", READ)]
    #[case::parameters("GET /health;x", READ)]
    #[case::dots("GET /v1/../health", READ)]
    #[case::shorter("GET /v1/model", READ)]
    #[case::root("GET /", READ)]
    #[case::nothing("GET ", READ)]
    #[case::query_only("POST ?x", ONCE)]
    #[case::asterisk("OPTIONS *", READ)]
    #[case::preflight("OPTIONS /v1/chat/completions", READ)]
    #[case::preflight_of_ours("OPTIONS /v1/models", READ)]
    #[case::unknown_get("GET /plugin", READ)]
    #[case::unknown_head("HEAD /plugin", READ)]
    #[case::unknown_post("POST /plugin", ONCE)]
    #[case::unknown_put("PUT /plugin", ONCE)]
    #[case::unknown_method("BREW /v1/chat/completions", ONCE)]
    #[case::lower_case_method("post /v1/chat/completions", ONCE)]
    #[case::other_method("GET /v1/chat/completions", READ)]
    fn path_as_sent(#[case] request: &str, #[case] rule: Rule) {
        check(request, rule);
    }

    /// vLLM 0.32, asked: its 405 for /ping names GET only, although it takes POST as well.
    #[rstest]
    fn method_refused(
        #[values("/health", "/ping", "/version", "/v1/models", "/v1%2Fmodels?x")] target: &str,
        #[values("HEAD", "PUT", "DELETE", "PATCH", "get", "")] method: &str,
    ) {
        assert_eq!(find(method, target.as_bytes()).allow, Some("GET"));
    }

    #[test]
    fn post_is_refused_except_for_ping() {
        assert_eq!(find("POST", b"/health").allow, Some("GET"));
        assert_eq!(find("POST", b"/v1/models").allow, Some("GET"));
        assert_eq!(find("POST", b"/ping").allow, None);
    }

    #[test]
    fn bytes_that_are_no_text() {
        assert_eq!(find("GET", b"/\xff%ff"), READ);
    }

    #[track_caller]
    fn check(request: &str, rule: Rule) {
        let (method, target) = request.split_once(' ').expect("a space is in every case");
        assert_eq!(find(method, target.as_bytes()), rule);
    }
}
