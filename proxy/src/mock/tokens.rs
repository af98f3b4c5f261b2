//! The routes that only count and translate tokens.

use super::answers::{Answer, quote};
use super::check::Fields;
use super::prompt::token_ids;
use super::request;
use super::state::Mock;
use vllm_proxy_sim::reply::{detokenize, tokenize};

/// /v1/messages/count_tokens
pub(super) fn counted(mock: &Mock, fields: Fields<'_>) -> Result<Answer, Answer> {
    let count = request::counted(mock, fields)?.tokens;
    Ok(Answer::json(format!(
        r#"{{"input_tokens":{count},"context_management":{{"original_input_tokens":{count}}}}}"#
    )))
}

/// /tokenize
pub(super) fn tokenized(mock: &Mock, mut fields: Fields<'_>) -> Result<Answer, Answer> {
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

/// /detokenize
pub(super) fn detokenized(mock: &Mock, mut fields: Fields<'_>) -> Result<Answer, Answer> {
    let model = fields.string("model");
    fields.require("tokens");
    let ids = fields.list("tokens").unwrap_or_default();
    fields.done()?;
    mock.serves(model)?;
    let text = quote(&detokenize(token_ids(ids)));
    Ok(Answer::json(format!(r#"{{"prompt":{text}}}"#)))
}
