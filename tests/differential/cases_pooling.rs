//! What clients ask of embedding and classifying models: every form that inputs and answers have.

use crate::cases::{Case, Request};

/// All of them, for a server of this model.
pub(crate) fn cases(model: &str) -> Vec<Case> {
    let post = |name, target: &str, more: &str| {
        Case::post(name, target, &format!(r#"{{"model":"{model}",{more}}}"#))
    };
    let embed = |name, more: &str| post(name, "/v1/embeddings", more);
    let pool = |name, more: &str| post(name, "/pooling", more);
    let cohere = |name, more: &str| post(name, "/v2/embed", more);
    let score = |name, more: &str| post(name, "/score", more);
    let rerank = |name, more: &str| post(name, "/rerank", more);
    let user = r#""messages":[{"role":"user","content":"Hello"}]"#;
    let long = "hello ".repeat(4000);
    vec![
        embed("embed_list", r#""input":["Hello","there"]"#),
        embed("embed_token_ids", r#""input":[40,41,42]"#),
        embed("embed_token_id_lists", r#""input":[[40,41],[42]]"#),
        embed("embed_chat", user),
        embed("embed_empty", r#""input":"""#),
        embed("embed_empty_list", r#""input":[]"#),
        embed("embed_null", r#""input":null"#),
        embed("embed_wrong_type", r#""input":{"a":1}"#),
        embed("embed_base64", r#""input":["a","b"],"encoding_format":"base64""#),
        embed("embed_bytes", r#""input":["a","b"],"encoding_format":"bytes""#),
        embed("embed_bytes_only", r#""input":["a","b"],"encoding_format":"bytes_only""#),
        embed("embed_bad_encoding", r#""input":"a","encoding_format":"frobnicate""#),
        embed("embed_half", r#""input":"a","embed_dtype":"float16","encoding_format":"base64""#),
        embed("embed_dimensions", r#""input":"a","dimensions":3"#),
        embed("embed_too_long", &format!(r#""input":"{long}""#)),
        embed("embed_truncated", &format!(r#""input":"{long}","truncate_prompt_tokens":9"#)),
        embed("embed_cache_salt", r#""input":"a","cache_salt":"a/b""#),
        embed("embed_many", &format!(r#""input":[{}"a"]"#, r#""a","#.repeat(40))),
        embed(
            "embed_many_bytes",
            &format!(r#""input":[{}"a"],"encoding_format":"bytes""#, r#""a","#.repeat(300)),
        ),
        embed("embed_user", r#""input":"a","user":"u","priority":1"#),
        pool("pool_list", r#""input":["a","b"]"#),
        pool("pool_chat", user),
        pool("pool_bytes", r#""input":"a","encoding_format":"bytes""#),
        pool("pool_task_embed", r#""input":"a","task":"embed""#),
        pool("pool_task_tokens", r#""input":"a","task":"token_embed""#),
        pool("pool_task_classify", r#""input":"a","task":"classify""#),
        pool("pool_task_unknown", r#""input":"a","task":"frobnicate""#),
        pool("pool_data", r#""data":{"a":1}"#),
        cohere("cohere_embed", r#""texts":["a","b"],"embedding_types":["float"]"#),
        cohere(
            "cohere_embed_types",
            r#""texts":["a"],"embedding_types":["float","int8","ubinary","base64"]"#,
        ),
        cohere("cohere_embed_input_type", r#""texts":["a"],"input_type":"search_query""#),
        cohere("cohere_embed_inputs", r#""inputs":[{"content":[{"type":"text","text":"a"}]}]"#),
        cohere("cohere_embed_both", r#""texts":["a"],"inputs":[]"#),
        cohere("cohere_embed_neither", r#""truncate":"END""#),
        score("score_one_to_many", r#""queries":"a","documents":["b","c"]"#),
        score("score_many_to_many", r#""queries":["a","b"],"documents":["b","c"]"#),
        score("score_uneven", r#""queries":["a","b"],"documents":["b","c","d"]"#),
        score("score_items", r#""queries":"a","items":["b"]"#),
        score("score_data", r#""data_1":"a","data_2":"b""#),
        score("score_texts", r#""text_1":["a","b"],"text_2":["c","d"]"#),
        score("score_empty", r#""queries":"","documents":[]"#),
        rerank("rerank_top_n", r#""query":"a","documents":["b","c","d"],"top_n":2"#),
        rerank("rerank_too_many", r#""query":"a","documents":["b"],"top_n":9"#),
        rerank("rerank_negative", r#""query":"a","documents":["b"],"top_n":-1"#),
        rerank("rerank_no_documents", r#""query":"a","documents":[]"#),
        rerank("rerank_without_text", r#""query":"a","documents":["b"],"return_documents":false"#),
        post("classify_list", "/classify", r#""input":["a","b"]"#),
        post("classify_chat", "/classify", user),
        post("classify_probs", "/classify", r#""input":"a","use_activation":false"#),
        post("invocations_embed", "/invocations", r#""input":"a""#),
        post(
            "invocations_embed_chat",
            "/invocations",
            &format!(r#"{user},"temperature":0,"max_tokens":3"#),
        ),
        post("invocations_rerank", "/invocations", r#""query":"a","documents":["b","c"]"#),
        post("invocations_score", "/invocations", r#""queries":"a","documents":["b","c"]"#),
        post("invocations_score_texts", "/invocations", r#""text_1":"a","text_2":"b""#),
        post("invocations_pooling", "/invocations", r#""input":"a","task":"token_embed""#),
        Case::raw(
            "embed_x_request_id",
            Request::new("POST", "/v1/embeddings")
                .header("X-Request-Id", "mine")
                .header("X-data-parallel-rank", "7")
                .json(&format!(r#"{{"model":"{model}","input":"a"}}"#))
                .bytes(),
        ),
    ]
}
