//! vLLM's routes as one table: where the model is, who answers, whether it may be tried elsewhere.
//!
//! Knows paths and methods; knows nothing of backends. What is not in the table goes to a backend
//! as it is, by the model that its JSON body names, else to the default model's.

use crate::config::Access;
use crate::route::{Act, Change, Retry, Who};
use crate::wire::answers::Shape;
use crate::wire::merge::Failures::{Fail, LeaveOut};
use crate::wire::merge::Merge;
use crate::wire::target::path;
use crate::wire::usage::UsageAt;
use alloc::borrow::ToOwned;
use alloc::string::String;

/// What is known of a request from its method and path alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where the model is.
    pub model: ModelAt,
    /// Who answers.
    pub who: Who,
    /// How several answers become one, where several are asked.
    pub merge: Merge,
    /// What it changes in a backend that answers it with success.
    pub change: Option<Change>,
    /// When it may be tried elsewhere.
    pub retry: Retry,
    /// How our own errors look on this route.
    pub shape: Shape,
    /// What it is about, besides a model.
    pub about: About,
    /// Where an answer of 200 says what it cost.
    pub usage: UsageAt,
    /// `Some` if the method is wrong for a route that the proxy answers itself: the `allow` of its
    /// 405. `None` otherwise: [`who`](Self::who) answers, and judges the method.
    pub allow: Option<&'static str>,
}

impl Rule {
    /// The same for a request that would switch to a websocket. vLLM looks for it in a table of its
    /// own, and says 403 of every path that is not there. It has effects that nobody knows.
    pub const fn of_websocket(self, who: Who) -> Self {
        Self { who, shape: self.shape, model: self.model, ..ONCE }
    }
}

/// Where a request names its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelAt {
    /// In the field `model` of its JSON body, if it has one.
    Json,
    /// The same, unless the header `X-Amzn-SageMaker-Adapter-Identifier` names it: vLLM writes
    /// that into the body.
    JsonOrHeader,
    /// In the field `model` of its form, which may stand behind a file.
    Form,
    /// In an event of its websocket.
    Event,
    /// Nowhere.
    Nowhere,
}

/// What a request is about, besides a model. It is named in the place of `{}` in the path if there
/// is one, else by a field of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// Nothing.
    Nothing,
    /// A stored response, or the one that it goes on from: field `previous_response_id`.
    Response,
    /// An adapter: field `lora_name`.
    Adapter,
}

const BASE: Rule = Rule {
    model: ModelAt::Json,
    who: Who::Backend,
    merge: Merge::Same,
    change: None,
    retry: Retry::BeforeFirstByte,
    shape: Shape::OpenAi,
    about: About::Nothing,
    usage: UsageAt::Nowhere,
    allow: None,
};
/// Tokenizing and rendering, with OpenAI's errors.
const OPENAI: Rule = BASE;
/// Inference with OpenAI's errors.
const INFERENCE: Rule = Rule { usage: UsageAt::End, ..OPENAI };
/// Plain answers put the tokens last.
const TOKENS: Rule = Rule { usage: UsageAt::Start, ..INFERENCE };
const POOLING: Rule = Rule { shape: Shape::Pooling, ..INFERENCE };
/// The documents come last.
const RERANK: Rule = Rule { usage: UsageAt::Start, ..POOLING };
/// It counts by units that are billed.
const EMBED: Rule = Rule { usage: UsageAt::Nowhere, ..POOLING };
const ANTHROPIC: Rule = Rule { shape: Shape::Anthropic, ..BASE };
const MESSAGES: Rule = Rule { usage: UsageAt::End, ..ANTHROPIC };
/// It counts in fractions, by units that are billed.
const COHERE: Rule = Rule { shape: Shape::Cohere, ..BASE };
/// It counts seconds, and in a stream the tokens of a sound.
const AUDIO: Rule = Rule { model: ModelAt::Form, ..BASE };
const SAGEMAKER: Rule = Rule { model: ModelAt::JsonOrHeader, ..INFERENCE };
/// A request that is not in the table, or a session: one try, unless nothing of it was sent.
const ONCE: Rule = Rule { retry: Retry::Never, ..BASE };
const REALTIME: Rule = Rule { model: ModelAt::Event, ..ONCE };
const RESPONSES: Rule = Rule { about: About::Response, ..INFERENCE };
/// What it says was the cost of another request.
const STORED: Rule =
    Rule { model: ModelAt::Nowhere, who: Who::Owner, usage: UsageAt::Nowhere, ..RESPONSES };
const CANCEL: Rule = Rule { retry: Retry::Never, ..STORED };
const HEALTH: Rule = own(Who::Health);
const MODELS: Rule = own(Who::Models);
const VERSION: Rule = own(Who::Version);
const LIVE: Rule = own(Who::Live);
const STATUS: Rule = own(Who::Status);
const EVENTS: Rule = own(Who::Events);
const PAGE: Rule = own(Who::Page);
const EXPLAIN: Rule = own(Who::Explain);
const DRAIN: Rule = own(Who::Acts(Act::Drain));
const UNDRAIN: Rule = own(Who::Acts(Act::Undrain));
const LOADS: Rule =
    Rule { about: About::Adapter, ..every(Merge::LoadLora, Some(Change::Adapters)) };
const UNLOADS: Rule =
    Rule { about: About::Adapter, ..every(Merge::UnloadLora, Some(Change::Adapters)) };
/// Whose payload fits one backend only: ranks, ports, offsets.
const ONE_NAMED: Rule = Rule { who: Who::Named, ..every(Merge::Same, None) };

/// Every route that is not treated as its method says, see [`find`]. `{}` stands for one segment
/// of a path, `*` for the rest of it.
///
/// Who answers: **a backend** of the model that the body names (or the form, or a header), else of
/// the default model; the **owner** of a stored response; **each** backend that is up, merged;
/// **every** backend, merged, a failure of one failing the whole; **one named** by the request;
/// the **proxy** by itself.
#[rustfmt::skip]
const TABLE: &[(&str, &str, Rule)] = &[
    // Text generation: a backend
    ("POST", "/v1/chat/completions",             INFERENCE),
    ("POST", "/v1/chat/completions/batch",       INFERENCE),
    ("POST", "/v1/completions",                  INFERENCE),
    ("POST", "/v1/messages",                     MESSAGES),
    ("POST", "/v1/messages/count_tokens",        ANTHROPIC),
    ("POST", "/cohere/v2/chat",                  COHERE),
    ("POST", "/cohere/v2/chat/render",           COHERE),
    ("POST", "/generative_scoring",              INFERENCE),
    ("POST", "/v1/decisions",                    INFERENCE),
    ("POST", "/v1/systemone",                    INFERENCE),
    ("POST", "/invocations",                     SAGEMAKER),
    // Responses: a backend, or the owner of the one that it goes on from
    ("POST", "/v1/responses",                    RESPONSES),
    ("GET",  "/v1/responses/{}",                 STORED),
    ("POST", "/v1/responses/{}/cancel",          CANCEL),
    // Pooling: a backend
    ("POST", "/v1/embeddings",                   POOLING),
    ("POST", "/v2/embed",                        EMBED),
    ("POST", "/pooling",                         POOLING),
    ("POST", "/classify",                        POOLING),
    ("POST", "/score",                           POOLING),
    ("POST", "/v1/score",                        POOLING),
    ("POST", "/rerank",                          RERANK),
    ("POST", "/v1/rerank",                       RERANK),
    ("POST", "/v2/rerank",                       RERANK),
    // Audio: a backend
    ("POST", "/v1/audio/transcriptions",         AUDIO),
    ("POST", "/v1/audio/translations",           AUDIO),
    ("GET",  "/v1/realtime",                     REALTIME),
    // Tokenizer, tokens in and out, rendering: a backend
    ("POST", "/tokenize",                        OPENAI),
    ("POST", "/detokenize",                      OPENAI),
    ("POST", "/inference/v1/generate",           TOKENS),
    ("POST", "/v1/chat/completions/render",      OPENAI),
    ("POST", "/v1/completions/render",           OPENAI),
    ("POST", "/v1/messages/render",              OPENAI),
    ("POST", "/v1/responses/render",             OPENAI),
    ("POST", "/v1/chat/completions/derender",    OPENAI),
    ("POST", "/v1/completions/derender",         OPENAI),
    // The proxy. Where a path has two methods, vLLM's 405 names only the first.
    ("GET",  "/health",                          HEALTH),
    ("GET",  "/ping",                            HEALTH),
    ("POST", "/ping",                            HEALTH),
    ("GET",  "/version",                         VERSION),
    ("GET",  "/v1/models",                       MODELS),
    // The proxy, of itself: vLLM has nothing below this path
    ("GET",  "/proxy/live",                      LIVE),
    ("GET",  "/proxy/status",                    STATUS),
    ("GET",  "/proxy/events",                    EVENTS),
    ("GET",  "/proxy/",                          PAGE),
    ("GET",  "/proxy",                           PAGE),
    ("POST", "/proxy/explain",                   EXPLAIN),
    ("POST", "/proxy/drain",                     DRAIN),
    ("POST", "/proxy/undrain",                   UNDRAIN),
    // Numbers and states: each
    ("GET",  "/metrics",                         each(Merge::Metrics)),
    ("GET",  "/metrics/*",                       each(Merge::Metrics)),
    ("HEAD", "/metrics",                         each(Merge::Metrics)),
    ("HEAD", "/metrics/*",                       each(Merge::Metrics)),
    ("GET",  "/load",                            each(Merge::Sum("server_load", LeaveOut))),
    ("GET",  "/kv_event_sources",                each(Merge::Ranks)),
    ("GET",  "/is_sleeping",                     each(Merge::Or("is_sleeping"))),
    ("GET",  "/is_paused",                       each(Merge::Or("is_paused"))),
    ("POST", "/is_scaling_elastic_ep",           each(Merge::Or("is_scaling_elastic_ep"))),
    ("GET",  "/get_world_size",                  each(Merge::Sum("world_size", Fail))),
    ("GET",  "/weight_info",                     each(Merge::Compare)),
    // Adapters: every
    ("POST", "/v1/load_lora_adapter",            LOADS),
    ("POST", "/v1/unload_lora_adapter",          UNLOADS),
    ("POST", "/adapters",                        LOADS),
    ("DELETE", "/adapters/{}",                   UNLOADS),
    // Administration: every
    ("POST", "/inference/v1/abort_requests",     every(Merge::Same, None)),
    ("POST", "/abort_requests",                  every(Merge::Sum("aborted", Fail), None)),
    ("POST", "/start_profile",                   every(Merge::Same, None)),
    ("POST", "/stop_profile",                    every(Merge::Same, None)),
    ("POST", "/sleep",                           every(Merge::Same, Some(Change::Rest))),
    ("POST", "/wake_up",                         every(Merge::Awake, Some(Change::Rest))),
    ("POST", "/pause",                           every(Merge::Same, Some(Change::Rest))),
    ("POST", "/resume",                          every(Merge::Same, Some(Change::Rest))),
    ("POST", "/reset_prefix_cache",              every(Merge::And("success"), Some(Change::Cache))),
    ("POST", "/reset_mm_cache",                  every(Merge::Same, None)),
    ("POST", "/reset_encoder_cache",             every(Merge::Same, None)),
    ("POST", "/release_kv_cache_memory",         every(Merge::Same, Some(Change::Cache))),
    ("POST", "/collective_rpc",                  every(Merge::Concat("results"), None)),
    ("POST", "/start_weight_update",             every(Merge::Same, Some(Change::Weights))),
    ("POST", "/start_draft_weight_update",       every(Merge::Same, Some(Change::Weights))),
    ("POST", "/finish_weight_update",            every(Merge::Same, Some(Change::Weights))),
    ("POST", "/update_weight_version",           every(Merge::Same, Some(Change::Weights))),
    ("POST", "/shutdown_weight_transfer_engine", every(Merge::Same, None)),
    ("POST", "/weight_checker",                  every(Merge::Compare, None)),
    // Administration: one named
    ("POST", "/init_weight_transfer_engine",     ONE_NAMED),
    ("POST", "/update_weights",                  Rule { change: Some(Change::Weights), ..ONE_NAMED }),
    ("POST", "/scale_elastic_ep",                ONE_NAMED),
    ("POST", "/fault_tolerance/apply",           ONE_NAMED),
    ("GET",  "/fault_tolerance/status",          ONE_NAMED),
];

const fn own(who: Who) -> Rule {
    Rule { model: ModelAt::Nowhere, who, ..BASE }
}

const fn each(merge: Merge) -> Rule {
    Rule { merge, ..own(Who::Each) }
}

const fn every(merge: Merge, change: Option<Change>) -> Rule {
    Rule { merge, change, retry: Retry::Never, ..own(Who::Every) }
}

/// A rule, and what the variable part of its path says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// How the request is treated.
    pub rule: Rule,
    /// What stands in the place of `{}`, decoded; `None` if that is no text.
    pub name: Option<String>,
}

/// The rule for a method and a request target in origin form, as it was sent.
///
/// uvicorn decodes the path before it is matched, `%2F` too, but nothing is made of double or
/// trailing slashes: vLLM itself answers these, by 404 or a redirect.
pub fn find(method: &str, target: &[u8], access: Access) -> Found {
    let path = path(target);
    let mut refusal = None;
    for (allowed, pattern, rule) in TABLE.iter().filter(|(.., rule)| is_shown(rule.who, access)) {
        let Some(name) = matches(pattern.as_bytes(), &path) else { continue };
        if *allowed == method {
            let name = core::str::from_utf8(name).ok().filter(|name| !name.is_empty());
            let name = name.filter(|_| rule.about != About::Nothing).map(ToOwned::to_owned);
            return Found { rule: *rule, name };
        }
        // An OPTIONS may be a preflight, which a backend judges by its `--allowed-origins`; but
        // what is the proxy's to do is not a backend's to allow.
        let judged = method != "OPTIONS" || rule.who.is_act();
        if rule.who.is_own() && refusal.is_none() && judged {
            refusal = Some(Rule { allow: Some(allowed), ..*rule });
        }
    }
    let rule = refusal.unwrap_or(match method {
        "GET" | "HEAD" | "OPTIONS" => OPENAI,
        // It may change the server.
        _ => ONCE,
    });
    Found { rule, name: None }
}

/// The rule for what a dry run is about: a request of this method and target, of a client who is
/// shown nothing of the proxy itself.
pub fn find_dry(method: &str, target: &[u8]) -> Found {
    find(method, target, Access { reads: false, acts: false, explains: false })
}

/// Whether a listener has a route.
const fn is_shown(who: Who, access: Access) -> bool {
    match who {
        Who::Live | Who::Status | Who::Events | Who::Page => access.reads,
        // Whoever may act may know everything.
        Who::Acts(_) | Who::Explain => access.acts,
        Who::Backend
        | Who::Owner
        | Who::Each
        | Who::Every
        | Who::Named
        | Who::Health
        | Who::Models
        | Who::Version
        | Who::Realtime => true,
    }
}

/// Whether a path is as the pattern says, and what stands in its variable place.
fn matches<'a>(pattern: &[u8], path: &'a [u8]) -> Option<&'a [u8]> {
    if pattern == path {
        return Some(&[]);
    }
    let place = pattern.iter().position(|byte| matches!(byte, b'{' | b'*'))?;
    let (before, rest) = pattern.split_at(place);
    let found = path.strip_prefix(before)?;
    let Some(behind) = rest.strip_prefix(b"{}") else { return Some(found) };
    let segment = found.iter().position(|&byte| byte == b'/').unwrap_or(found.len());
    let (segment, more) = found.split_at(segment);
    (!segment.is_empty() && more == behind).then_some(segment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// What [`find`] says of any GET that it does not know.
    const READ: Rule = OPENAI;

    /// Every route of vLLM 0.33, one line for those that are alike.
    #[rstest]
    #[case::chat("POST /v1/chat/completions", INFERENCE)]
    #[case::chat_batch("POST /v1/chat/completions/batch", INFERENCE)]
    #[case::completions("POST /v1/completions", INFERENCE)]
    #[case::responses("POST /v1/responses", RESPONSES)]
    #[case::response("GET /v1/responses/resp_1?stream=true", STORED)]
    #[case::response_cancel("POST /v1/responses/resp_1/cancel", CANCEL)]
    #[case::messages("POST /v1/messages", MESSAGES)]
    #[case::count_tokens("POST /v1/messages/count_tokens", ANTHROPIC)]
    #[case::cohere("POST /cohere/v2/chat", COHERE)]
    #[case::cohere_render("POST /cohere/v2/chat/render", COHERE)]
    #[case::generative_scoring("POST /generative_scoring", INFERENCE)]
    #[case::decisions("POST /v1/decisions", INFERENCE)]
    #[case::systemone("POST /v1/systemone", INFERENCE)]
    #[case::embeddings("POST /v1/embeddings", POOLING)]
    #[case::embed("POST /v2/embed", EMBED)]
    #[case::pooling("POST /pooling", POOLING)]
    #[case::classify("POST /classify", POOLING)]
    #[case::score("POST /score", POOLING)]
    #[case::score_v1("POST /v1/score", POOLING)]
    #[case::rerank("POST /rerank", RERANK)]
    #[case::rerank_v1("POST /v1/rerank", RERANK)]
    #[case::rerank_v2("POST /v2/rerank", RERANK)]
    #[case::transcriptions("POST /v1/audio/transcriptions", AUDIO)]
    #[case::translations("POST /v1/audio/translations", AUDIO)]
    #[case::realtime("GET /v1/realtime", REALTIME)]
    #[case::tokenize("POST /tokenize", OPENAI)]
    #[case::detokenize("POST /detokenize", OPENAI)]
    #[case::tokenizer_info("GET /tokenizer_info", READ)]
    #[case::models("GET /v1/models", MODELS)]
    #[case::model("GET /v1/models/some", READ)]
    #[case::load_lora("POST /v1/load_lora_adapter", LOADS)]
    #[case::unload_lora("POST /v1/unload_lora_adapter", UNLOADS)]
    #[case::adapters("POST /adapters", LOADS)]
    #[case::adapter("DELETE /adapters/some", UNLOADS)]
    #[case::generate("POST /inference/v1/generate", TOKENS)]
    #[case::abort("POST /inference/v1/abort_requests", every(Merge::Same, None))]
    #[case::chat_render("POST /v1/chat/completions/render", OPENAI)]
    #[case::completions_render("POST /v1/completions/render", OPENAI)]
    #[case::messages_render("POST /v1/messages/render", OPENAI)]
    #[case::responses_render("POST /v1/responses/render", OPENAI)]
    #[case::chat_derender("POST /v1/chat/completions/derender", OPENAI)]
    #[case::completions_derender("POST /v1/completions/derender", OPENAI)]
    #[case::ping("GET /ping", HEALTH)]
    #[case::ping_post("POST /ping", HEALTH)]
    #[case::invocations("POST /invocations", SAGEMAKER)]
    #[case::health("GET /health", HEALTH)]
    #[case::metrics("GET /metrics", each(Merge::Metrics))]
    #[case::metrics_below("GET /metrics/any/thing", each(Merge::Metrics))]
    #[case::load("GET /load", each(Merge::Sum("server_load", LeaveOut)))]
    #[case::version("GET /version", VERSION)]
    #[case::live("GET /proxy/live", LIVE)]
    #[case::status("GET /proxy/status?x", STATUS)]
    #[case::not_ours("GET /proxy/x", READ)]
    #[case::kv_event_sources("GET /kv_event_sources", each(Merge::Ranks))]
    #[case::openapi("GET /openapi.json", READ)]
    #[case::openapi_head("HEAD /openapi.json", READ)]
    #[case::docs("GET /docs", READ)]
    #[case::redoc("GET /redoc", READ)]
    #[case::docs_redirect("GET /docs/oauth2-redirect", READ)]
    #[case::start_profile("POST /start_profile", every(Merge::Same, None))]
    #[case::stop_profile("POST /stop_profile", every(Merge::Same, None))]
    #[case::scale("POST /scale_elastic_ep", ONE_NAMED)]
    #[case::is_scaling("POST /is_scaling_elastic_ep", each(Merge::Or("is_scaling_elastic_ep")))]
    #[case::fault_apply("POST /fault_tolerance/apply", ONE_NAMED)]
    #[case::fault_status("GET /fault_tolerance/status", ONE_NAMED)]
    #[case::abort_all("POST /abort_requests", every(Merge::Sum("aborted", Fail), None))]
    #[case::server_info("GET /server_info?config_format=json", READ)]
    #[case::reset_prefix_cache(
        "POST /reset_prefix_cache?reset_external=true",
        every(Merge::And("success"), Some(Change::Cache))
    )]
    #[case::reset_mm_cache("POST /reset_mm_cache", every(Merge::Same, None))]
    #[case::reset_encoder_cache("POST /reset_encoder_cache", every(Merge::Same, None))]
    #[case::sleep("POST /sleep?level=1", every(Merge::Same, Some(Change::Rest)))]
    #[case::wake_up("POST /wake_up", every(Merge::Awake, Some(Change::Rest)))]
    #[case::is_sleeping("GET /is_sleeping", each(Merge::Or("is_sleeping")))]
    #[case::release_kv("POST /release_kv_cache_memory", every(Merge::Same, Some(Change::Cache)))]
    #[case::pause("POST /pause", every(Merge::Same, Some(Change::Rest)))]
    #[case::resume("POST /resume", every(Merge::Same, Some(Change::Rest)))]
    #[case::is_paused("GET /is_paused", each(Merge::Or("is_paused")))]
    #[case::collective_rpc("POST /collective_rpc", every(Merge::Concat("results"), None))]
    #[case::start_weights("POST /start_weight_update", every(Merge::Same, Some(Change::Weights)))]
    #[case::start_draft_weights(
        "POST /start_draft_weight_update",
        every(Merge::Same, Some(Change::Weights))
    )]
    #[case::finish_weights("POST /finish_weight_update", every(Merge::Same, Some(Change::Weights)))]
    #[case::weight_version(
        "POST /update_weight_version",
        every(Merge::Same, Some(Change::Weights))
    )]
    #[case::shutdown_weights("POST /shutdown_weight_transfer_engine", every(Merge::Same, None))]
    #[case::init_weights("POST /init_weight_transfer_engine", ONE_NAMED)]
    #[case::update_weights("POST /update_weights", Rule { change: Some(Change::Weights), ..ONE_NAMED })]
    #[case::weight_info("GET /weight_info", each(Merge::Compare))]
    #[case::weight_checker("POST /weight_checker", every(Merge::Compare, None))]
    #[case::world_size("GET /get_world_size", each(Merge::Sum("world_size", Fail)))]
    fn vllm_route(#[case] request: &str, #[case] rule: Rule) {
        check(request, rule);
    }

    #[rstest]
    #[case::query("GET /v1/models?a=/health", MODELS)]
    #[case::empty_query("GET /health?", HEALTH)]
    #[case::fragment("GET /health#x?y", HEALTH)]
    #[case::encoded("POST /v1/ch%61t/completions", INFERENCE)]
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
    #[case::other_method_of_every("GET /sleep", READ)]
    #[case::other_method_of_each("POST /load", ONCE)]
    #[case::response_without_id("GET /v1/responses/", READ)]
    #[case::deleted_response("DELETE /v1/responses/resp_1", ONCE)]
    #[case::metrics_with_slash("GET /metrics/", each(Merge::Metrics))]
    #[case::metrics_longer("GET /metricsx", READ)]
    fn path_as_sent(#[case] request: &str, #[case] rule: Rule) {
        check(request, rule);
    }

    #[rstest]
    #[case::response("GET /v1/responses/resp_1?stream=true", Some("resp_1"))]
    #[case::cancel("POST /v1/responses/resp%5F1/cancel", Some("resp_1"))]
    #[case::adapter("DELETE /adapters/sql%20%C3%A9", Some("sql é"))]
    #[case::no_text("DELETE /adapters/%ff", None)]
    #[case::no_name("GET /v1/responses/", None)]
    #[case::two_segments("GET /v1/responses/a/b", None)]
    #[case::encoded_slash("GET /v1/responses/a%2Fb", None)]
    #[case::slash_behind("GET /v1/responses/a/", None)]
    #[case::no_place("POST /v1/responses", None)]
    #[case::rest("GET /metrics/a/b", None)]
    fn names_in_paths(#[case] request: &str, #[case] name: Option<&str>) {
        let (method, target) = request.split_once(' ').expect("a space is in every case");
        assert_eq!(find(method, target.as_bytes(), Access::default()).name.as_deref(), name);
    }

    /// vLLM 0.32, asked: its 405 for /ping names GET only, although it takes POST as well.
    #[rstest]
    fn method_refused(
        #[values(
            "/health",
            "/ping",
            "/version",
            "/v1/models",
            "/v1%2Fmodels?x",
            "/proxy/live",
            "/proxy/status"
        )]
        target: &str,
        #[values("HEAD", "PUT", "DELETE", "PATCH", "get", "")] method: &str,
    ) {
        assert_eq!(find(method, target.as_bytes(), Access::default()).rule.allow, Some("GET"));
    }

    #[test]
    fn post_is_refused_except_for_ping() {
        assert_eq!(find("POST", b"/health", Access::default()).rule.allow, Some("GET"));
        assert_eq!(find("POST", b"/v1/models", Access::default()).rule.allow, Some("GET"));
        assert_eq!(find("POST", b"/ping", Access::default()).rule.allow, None);
    }

    #[test]
    fn bytes_that_are_no_text() {
        assert_eq!(find("GET", b"/\xff%ff", Access::default()).rule, READ);
    }

    #[rstest]
    #[case::drain("POST", "/proxy/drain?backend=a:1", DRAIN)]
    #[case::undrain("POST", "/proxy/%75ndrain", UNDRAIN)]
    #[case::read("GET", "/proxy/drain?backend=a:1", Rule { allow: Some("POST"), ..DRAIN })]
    #[case::head("HEAD", "/proxy/undrain", Rule { allow: Some("POST"), ..UNDRAIN })]
    #[case::preflight("OPTIONS", "/proxy/drain", Rule { allow: Some("POST"), ..DRAIN })]
    #[case::lower_case("post", "/proxy/drain", Rule { allow: Some("POST"), ..DRAIN })]
    #[case::slash_behind("POST", "/proxy/drain/", ONCE)]
    fn operators_act_where_they_alone_come(
        #[case] method: &str,
        #[case] target: &str,
        #[case] rule: Rule,
    ) {
        assert_eq!(find(method, target.as_bytes(), Access::ADMIN).rule, rule);
        for reads in [false, true] {
            let access = Access { reads, explains: true, acts: false };
            let found = find(method, target.as_bytes(), access).rule;
            assert_eq!((found.who, found.allow), (Who::Backend, None));
        }
    }

    #[track_caller]
    fn check(request: &str, rule: Rule) {
        let (method, target) = request.split_once(' ').expect("a space is in every case");
        assert_eq!(find(method, target.as_bytes(), Access::default()).rule, rule);
    }

    #[rstest]
    #[case::shown(Access::default(), Who::Status)]
    #[case::hidden(Access { reads: false, ..Access::default() }, Who::Backend)]
    #[case::operators(Access::ADMIN, Who::Status)]
    fn what_is_not_shown_is_a_path_like_any_other(#[case] access: Access, #[case] who: Who) {
        let found = find("GET", b"/proxy/status", access);
        assert_eq!((found.rule.who, found.rule.allow), (who, None));
        let is_own = who == Who::Status;
        assert_eq!(find("POST", b"/proxy/status", access).rule.allow.is_some(), is_own);
    }
}
