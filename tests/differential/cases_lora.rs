//! Adapters: loaded, listed, used, refused and unloaded. Each case unloads what it loads.

use crate::cases::{Case, Request};

const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";
const LISTS: &str = "the answer lists the models of all backends";

/// All of them, for a server of this model that finds an adapter at `path`.
pub(crate) fn cases(model: &str, path: &str) -> Vec<Case> {
    let mut cases = life(path);
    cases.extend(uses(model, path));
    cases.extend(sagemaker(model, path));
    cases.extend(refused(model, path));
    cases
}

fn load(name: &str, path: &str, more: &str) -> Request {
    Request::post(LOAD, &format!(r#"{{"lora_name":"{name}","lora_path":"{path}"{more}}}"#))
}

fn unload(name: &str) -> Request {
    Request::post(UNLOAD, &format!(r#"{{"lora_name":"{name}"}}"#))
}

fn completion(model: &str) -> Request {
    let body = format!(r#"{{"model":"{model}","prompt":"Once","max_tokens":3,"temperature":0}}"#);
    Request::post("/v1/completions", &body)
}

fn life(path: &str) -> Vec<Case> {
    let models = || Request::get("/v1/models");
    vec![
        Case::talk(
            "lora_twice",
            &[load("l1", path, ""), load("l1", path, ""), unload("l1"), unload("l1")],
        ),
        Case::talk(
            "lora_in_place",
            &[load("l2", path, ""), load("l2", path, r#","load_inplace":true"#), unload("l2")],
        ),
        Case::talk("lora_listed", &[load("l3", path, ""), models(), unload("l3"), models()])
            .fleet(LISTS),
        Case::talk(
            "lora_two",
            &[
                load("l4", path, ""),
                load("l5", path, ""),
                completion("l4"),
                completion("l5"),
                unload("l5"),
                unload("l4"),
            ],
        ),
        Case::talk(
            "lora_gone",
            &[load("l6", path, ""), completion("l6"), unload("l6"), completion("l6")],
        )
        .fleet(LISTS),
        Case::talk(
            "lora_back",
            &[
                load("l7", path, ""),
                unload("l7"),
                load("l7", path, ""),
                completion("l7"),
                unload("l7"),
            ],
        ),
        Case::talk(
            "lora_odd_name",
            &[load("a/b ünï%2F", path, ""), completion("a/b ünï%2F"), unload("a/b ünï%2F")],
        ),
        Case::talk(
            "lora_extra_fields",
            &[load("l8", path, r#","model":"nope","is_3d_lora_weight":false"#), unload("l8")],
        ),
    ]
}

fn uses(model: &str, path: &str) -> Vec<Case> {
    let user = r#""messages":[{"role":"user","content":"Hello"}],"max_tokens":3,"temperature":0"#;
    let ask =
        |target: &str, more: &str| Request::post(target, &format!(r#"{{"model":"u",{more}}}"#));
    let used =
        |name, request: Request| Case::talk(name, &[load("u", path, ""), request, unload("u")]);
    vec![
        used("lora_completion", completion("u")),
        used("lora_chat", ask("/v1/chat/completions", user)),
        used("lora_chat_stream", ask("/v1/chat/completions", &format!(r#"{user},"stream":true"#))),
        used("lora_messages", ask("/v1/messages", user)),
        used("lora_messages_stream", ask("/v1/messages", &format!(r#"{user},"stream":true"#))),
        used("lora_count_tokens", ask("/v1/messages/count_tokens", user)),
        used(
            "lora_responses",
            ask("/v1/responses", r#""input":"Hello","max_output_tokens":3,"temperature":0"#),
        ),
        used("lora_tokenize", ask("/tokenize", r#""prompt":"Hello""#)),
        used("lora_detokenize", ask("/detokenize", r#""tokens":[40]"#)),
        used("lora_render", ask("/v1/completions/render", r#""prompt":"Hello""#)),
        used(
            "lora_generate",
            ask(
                "/inference/v1/generate",
                r#""token_ids":[40,41],"sampling_params":{"max_tokens":2,"temperature":0}"#,
            ),
        ),
        used("lora_cohere", ask("/cohere/v2/chat", user)),
        used(
            "lora_invocations",
            ask("/invocations", r#""prompt":"Once","max_tokens":3,"temperature":0"#),
        ),
        used("lora_unloaded_base", completion(model)),
        used("lora_unknown_model", completion("nope")).fleet(LISTS),
    ]
}

fn sagemaker(model: &str, path: &str) -> Vec<Case> {
    let register =
        |name: &str| Request::post("/adapters", &format!(r#"{{"name":"{name}","src":"{path}"}}"#));
    let delete = |name: &str| Request::new("DELETE", &format!("/adapters/{name}"));
    let invoke = |model: &str, adapter: &str| {
        let body = format!(r#"{{{model}"prompt":"Once","max_tokens":3,"temperature":0}}"#);
        Request::new("POST", "/invocations")
            .header("X-Amzn-SageMaker-Adapter-Identifier", adapter)
            .json(&body)
    };
    let named = format!(r#""model":"{model}","#);
    vec![
        Case::talk("adapter_twice", &[register("s1"), register("s1"), delete("s1"), delete("s1")]),
        Case::talk("adapter_invoked", &[register("s2"), invoke(&named, "s2"), delete("s2")]),
        Case::talk("adapter_invoked_no_model", &[register("s3"), invoke("", "s3"), delete("s3")]),
        Case::talk(
            "adapter_beats_unknown_model",
            &[register("s4"), invoke(r#""model":"nope","#, "s4"), delete("s4")],
        ),
        Case::talk("adapter_is_base", &[invoke(&named, model)]),
        Case::talk("adapter_unknown", &[invoke(&named, "nobody")]).fleet(LISTS),
        Case::talk("adapter_empty", &[invoke(&named, "")]),
        Case::talk("adapter_gone", &[register("s5"), delete("s5"), invoke(&named, "s5")])
            .fleet(LISTS),
        Case::talk(
            "adapter_mixed_routes",
            &[register("s6"), unload("s6"), load("s7", path, ""), delete("s7")],
        ),
        Case::talk("adapter_odd_name", &[register("a b"), delete("a%20b"), delete("a%2Fb")]),
        Case::raw("adapter_delete_none", Request::new("DELETE", "/adapters/").bytes()),
        Case::raw("adapter_delete_all", Request::new("DELETE", "/adapters").bytes()),
        Case::post(
            "adapter_in_place",
            "/adapters",
            r#"{"name":"s8","src":"/nowhere","load_inplace":true}"#,
        ),
    ]
}

fn refused(model: &str, path: &str) -> Vec<Case> {
    let one = |name, request: Request| Case::raw(name, request.bytes());
    vec![
        one("lora_missing_path", load("r1", "/nowhere", "")),
        one("lora_empty_name", load("", path, "")),
        one("lora_empty_path", load("r2", "", "")),
        one("lora_named_as_base", load(model, path, "")),
        one("lora_named_as_alias", load(&format!("{model}-alias"), path, "")),
        one(
            "lora_wrong_types",
            Request::post(LOAD, r#"{"lora_name":1,"lora_path":[],"load_inplace":"perhaps"}"#),
        ),
        one("lora_unload_empty_name", unload("")),
        one("lora_unload_base", unload(model)),
        one("lora_unload_wrong_type", Request::post(UNLOAD, r#"{"lora_name":7}"#)),
    ]
}
