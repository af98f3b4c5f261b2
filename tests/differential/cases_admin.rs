//! What operators ask of a server: its state, its caches, pauses and sleep, the profiler, weights.
//! Each case leaves the server as it found it, and says the same when it is asked again.

use crate::cases::{Case, Request, kept_open_after_500};

/// All of them, for a server of this model.
pub(crate) fn cases(model: &str) -> Vec<Case> {
    let mut cases = state();
    cases.extend(caches());
    cases.extend(pauses(model));
    cases.extend(engine());
    cases.extend(weights());
    cases.into_iter().map(kept_open_after_500).collect()
}

fn state() -> Vec<Case> {
    let lists = "another backend has other series";
    vec![
        Case::get("metrics", "/metrics").view(families).fleet(lists),
        Case::get("metrics_slash", "/metrics/").view(families).fleet(lists),
        Case::get("metrics_below", "/metrics/anything").view(families).fleet(lists),
        Case::get("metrics_query", "/metrics?name[]=vllm:num_requests_running")
            .view(families)
            .fleet(lists),
        Case::raw(
            "metrics_openmetrics",
            Request::get("/metrics")
                .header("Accept", "application/openmetrics-text;version=1.0.0")
                .bytes(),
        )
        .view(families)
        .fleet(lists),
        Case::head("metrics_head", "/metrics").view(families).fleet(lists),
        Case::post("metrics_post", "/metrics", "").view(families).fleet(lists),
        Case::get("load_query", "/load?x=1"),
        Case::get("kv_event_sources_query", "/kv_event_sources?x=1"),
        Case::get("server_info_json", "/server_info?config_format=json"),
        Case::get("server_info_bad", "/server_info?config_format=xml"),
        Case::get("world_size_without_dp", "/get_world_size?include_dp=false"),
        Case::get("world_size_bad", "/get_world_size?include_dp=perhaps"),
        Case::get("weight_info", "/weight_info"),
        Case::get("tokenizer_info_query", "/tokenizer_info?model=nope"),
        Case::get("docs_redirect", "/docs/oauth2-redirect"),
        Case::head("docs_head", "/docs"),
        Case::get("static", "/static/swagger-ui.css"),
        Case::post("is_scaling_body", "/is_scaling_elastic_ep", "{}"),
    ]
}

/// Names and types of the families of a scrape, without the proxy's own, and the head without its
/// length.
fn families(lines: &mut Vec<String>) {
    let framing = lines.iter().position(|line| line.starts_with("[framing"));
    let body = framing.unwrap_or(lines.len());
    let (head, rest) = lines.split_at(body);
    let own = |line: &&String| line.starts_with("# TYPE vllm_proxy_");
    // The answer to a HEAD has the head of a scrape only.
    let is_scrape = lines.iter().any(|line| line.starts_with("content-type: text/plain; version="));
    if !is_scrape {
        return;
    }
    let mut types: Vec<String> = rest
        .iter()
        .filter(|line| line.starts_with("# TYPE"))
        .filter(|l| !own(l))
        .cloned()
        .collect();
    types.sort_unstable();
    // Its length and how it is framed, and which version of the format this path speaks.
    let differs = ["content-length:", "transfer-encoding:", "content-type:"];
    let head =
        head.iter().filter(|line| !differs.iter().any(|name| line.starts_with(name))).cloned();
    let end = rest.iter().filter(|line| line.starts_with('[') && !line.starts_with("[framing"));
    *lines = head.chain(types).chain(end.cloned()).collect();
}

fn caches() -> Vec<Case> {
    let post = |name, target| Case::post(name, target, "");
    vec![
        post(
            "reset_prefix_cache_all",
            "/reset_prefix_cache?reset_running_requests=true&reset_external=true",
        ),
        post("reset_prefix_cache_bad", "/reset_prefix_cache?reset_external=perhaps"),
        Case::raw("reset_prefix_cache_bare", Request::new("POST", "/reset_prefix_cache").bytes()),
        post("reset_mm_cache", "/reset_mm_cache"),
        post("reset_encoder_cache", "/reset_encoder_cache"),
        // Refused while nothing is paused: a 500 of the server's own, without its usual headers.
        post("release_kv_cache_unpaused", "/release_kv_cache_memory"),
    ]
}

fn pauses(model: &str) -> Vec<Case> {
    let post = |target: &str| Request::post(target, "");
    let is_paused = || Request::get("/is_paused");
    let is_sleeping = || Request::get("/is_sleeping");
    let around = |name, pause: &str| {
        Case::talk(
            name,
            &[is_paused(), post(pause), post(pause), is_paused(), post("/resume"), is_paused()],
        )
    };
    let asleep = |name, sleep: &str, wake: &str| {
        Case::talk(
            name,
            &[
                is_sleeping(),
                post(sleep),
                is_sleeping(),
                is_paused(),
                post(wake),
                is_sleeping(),
                post("/resume"),
                is_paused(),
            ],
        )
    };
    let tokenize = format!(r#"{{"model":"{model}","prompt":"Hi"}}"#);
    vec![
        around("pause_and_resume", "/pause"),
        around("pause_wait", "/pause?mode=wait&clear_cache=false"),
        around("pause_keep", "/pause?mode=keep"),
        Case::post("pause_bad_mode", "/pause?mode=frobnicate", ""),
        Case::post("pause_bad_clear_cache", "/pause?clear_cache=perhaps", ""),
        Case::talk(
            "paused_is_healthy",
            &[
                post("/pause"),
                Request::get("/health"),
                Request::get("/ping"),
                Request::get("/load"),
                Request::get("/v1/models"),
                Request::post("/tokenize", &tokenize),
                post("/resume"),
            ],
        )
        .fleet("lists all models"),
        Case::post("resume_unpaused", "/resume", ""),
        asleep("sleep_and_wake", "/sleep?level=0", "/wake_up"),
        asleep("sleep_keep", "/sleep?level=0&mode=keep", "/wake_up?tags=scheduling"),
        asleep(
            "sleep_wait_two_tags",
            "/sleep?level=0&mode=wait",
            "/wake_up?tags=weights&tags=kv_cache",
        ),
        Case::post("sleep_bad_level", "/sleep?level=9", ""),
        Case::post("sleep_bad_mode", "/sleep?mode=frobnicate", ""),
        Case::post("wake_up_awake", "/wake_up", ""),
        Case::post("wake_up_unknown_tag", "/wake_up?tags=frobnicate", ""),
        Case::post("abort_all", "/abort_requests", r#"{"request_ids":[]}"#),
        Case::post("abort_two", "/abort_requests", r#"{"request_ids":["a","b"]}"#),
    ]
}

fn engine() -> Vec<Case> {
    let rpc = |name, body: &str| Case::post(name, "/collective_rpc", body);
    let profile = |target: &str| Request::post(target, "");
    let scale = |name, body: &str| Case::post(name, "/scale_elastic_ep", body);
    vec![
        rpc("rpc_unknown_method", r#"{"method":"frobnicate"}"#),
        rpc("rpc_list", r#"{"method":"list_loras","args":[],"kwargs":{},"timeout":5}"#),
        rpc("rpc_bad_arguments", r#"{"method":"check_health","args":["x"]}"#),
        Case::talk(
            "profile",
            &[
                profile("/start_profile"),
                profile("/start_profile"),
                profile("/stop_profile"),
                profile("/stop_profile"),
            ],
        ),
        Case::post("profile_bad_override", "/start_profile", r#"{"delay_iterations":"x"}"#),
        scale("scale_nothing", r#"{"new_data_parallel_size":0}"#),
        scale("scale_bad_timeout", r#"{"new_data_parallel_size":2,"drain_timeout":0}"#),
        scale("scale_fails", r#"{"new_data_parallel_size":2}"#),
        Case::post("fault_tolerance_apply", "/fault_tolerance/apply", r#"{"instruction":"retry"}"#),
    ]
}

fn weights() -> Vec<Case> {
    let check = |name, body: &str| Case::post(name, "/weight_checker", body);
    vec![
        check("weights_unknown_action", r#"{"action":"frobnicate"}"#),
        check("weights_compare_nothing", r#"{"action":"compare"}"#),
        check("weights_compare", r#"{"action":"compare","baseline":{"x":"y"}}"#),
        Case::talk(
            "weight_version",
            &[
                Request::post("/update_weight_version", r#"{"new_version":"v-2"}"#),
                Request::get("/weight_info"),
                Request::post("/update_weight_version", r#"{"new_version":"default"}"#),
                Request::get("/weight_info"),
            ],
        ),
        // No weight transfer is configured: 500s of the server's own.
        Case::post("weight_update_start", "/start_weight_update", ""),
        Case::post("weight_update_start_draft", "/start_draft_weight_update", ""),
        Case::post("weight_update_finish", "/finish_weight_update", ""),
        Case::post("weight_transfer_shutdown", "/shutdown_weight_transfer_engine", ""),
    ]
}
