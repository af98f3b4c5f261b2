//! The routes of vLLM's development mode: pausing, sleeping, caches, weights, calls to workers.
//! Wording, checks and their order are those of 0.32.

use super::answers::{Answer, quote};
use super::check::{Fields, object};
use super::connection::Connection;
use super::power::{Cache, Mode};
use super::state::Mock;
use serde_json::{Map, Value};

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dev {
    Sleep,
    WakeUp,
    IsSleeping,
    ReleaseKvCache,
    Pause,
    Resume,
    IsPaused,
    AbortRequests,
    ResetPrefixCache,
    /// Done, without a word: there are no such caches here.
    ResetOther,
    ServerInfo,
    CollectiveRpc,
    WorldSize,
    WeightInfo,
    UpdateWeightVersion,
    FinishWeightUpdate,
    WeightChecker,
    /// Done, with a message.
    Weights(&'static str),
    /// The same, if the body has this object.
    WeightsOf(&'static str, &'static str),
}

/// The request, as these routes read it.
pub(super) struct Asked<'a> {
    pub(super) query: &'a Map<String, Value>,
    /// All values of `tags`.
    pub(super) tags: &'a [String],
    pub(super) content_type: Option<&'a str>,
    pub(super) body: &'a [u8],
}

/// Answers one of them.
pub(super) async fn answer(connection: &Connection, dev: Dev, asked: Asked<'_>) -> Answer {
    let done = if dev == Dev::Sleep {
        sleep(connection, asked.query).await
    } else if dev == Dev::Pause {
        pause(connection, asked.query).await
    } else {
        at_once(&connection.mock, dev, &asked)
    };
    done.unwrap_or_else(|refused| refused)
}

fn mode(fields: &mut Fields<'_>) -> Mode {
    fields.word("mode", &Mode::NAMES).map_or(Mode::Abort, Mode::named)
}

async fn sleep(connection: &Connection, query: &Map<String, Value>) -> Result<Answer, Answer> {
    let mut fields = Fields::of_query(query);
    let level = fields.number_to("level", 2).unwrap_or(1);
    let mode = mode(&mut fields);
    fields.done()?;
    connection.watch(None);
    connection.mock.power.sleep(level, mode).await;
    Ok(Answer::json(format!(r#"{{"status":"sleeping","level":{level}}}"#)))
}

async fn pause(connection: &Connection, query: &Map<String, Value>) -> Result<Answer, Answer> {
    let mut fields = Fields::of_query(query);
    let mode = mode(&mut fields);
    let keep = fields.value("clear_cache").is_some() && !fields.flag("clear_cache");
    fields.done()?;
    connection.watch(None);
    let cache = if keep { Cache::Keep } else { Cache::Clear };
    connection.mock.power.pause(mode, cache).await;
    Ok(Answer::json(r#"{"status":"paused"}"#.to_owned()))
}

/// What needs no waiting.
fn at_once(mock: &Mock, dev: Dev, asked: &Asked<'_>) -> Result<Answer, Answer> {
    let power = &mock.power;
    let mut query = Fields::of_query(asked.query);
    let json = match dev {
        Dev::Sleep | Dev::Pause | Dev::ResetOther => return Ok(Answer::empty()),
        Dev::WakeUp => {
            let tags = Value::from(asked.tags);
            let tags = if asked.tags.is_empty() { "null".to_owned() } else { tags.to_string() };
            let status = if power.wake_up(asked.tags) { "awake" } else { "sleeping" };
            format!(r#"{{"status":"{status}","tags":{tags}}}"#)
        }
        Dev::IsSleeping => format!(r#"{{"is_sleeping":{}}}"#, power.is_sleeping()),
        Dev::ReleaseKvCache => {
            power.release_kv_cache().map_err(|why| {
                let message = format!("Call to release_kv_cache_memory method failed: {why}");
                Answer::error(500, "InternalServerError", &message, None)
            })?;
            r#"{"status":"kv_cache_released"}"#.to_owned()
        }
        Dev::Resume => {
            power.resume();
            r#"{"status":"resumed"}"#.to_owned()
        }
        Dev::IsPaused => format!(r#"{{"is_paused":{}}}"#, power.is_paused()),
        Dev::AbortRequests => abort(mock, asked.body)?,
        Dev::ResetPrefixCache => {
            let running = query.flag("reset_running_requests");
            query.flag("reset_external");
            query.done()?;
            // What a running request holds is given up only if that request may begin anew.
            let success = running || mock.engine.is_idle();
            if success {
                mock.engine.machine.forget();
            }
            format!(r#"{{"success":{success}}}"#)
        }
        Dev::ServerInfo => {
            query.word("config_format", &["text", "json"]);
            query.done()?;
            info(mock)
        }
        Dev::CollectiveRpc => rpc(asked.body)?,
        Dev::WorldSize => {
            query.flag("include_dp");
            query.done()?;
            r#"{"world_size":1}"#.to_owned()
        }
        Dev::WeightInfo => {
            format!(r#"{{"weight_version":{}}}"#, quote(&mock.weight_version.borrow()))
        }
        Dev::UpdateWeightVersion => {
            let body = embedded(asked)?;
            let mut fields = Fields::new(&body);
            fields.require_apart("new_version");
            let version = fields.string("new_version").unwrap_or_default();
            fields.done()?;
            version.clone_into(&mut mock.weight_version.borrow_mut());
            format!(r#"{{"success":true,"new_version":{}}}"#, quote(version))
        }
        Dev::FinishWeightUpdate => {
            let body = embedded(asked)?;
            let mut fields = Fields::new(&body);
            let version = fields.string("weight_version");
            fields.done()?;
            if let Some(version) = version {
                version.clone_into(&mut mock.weight_version.borrow_mut());
            }
            r#"{"message":"Weight update finished"}"#.to_owned()
        }
        Dev::WeightChecker => check_weights(mock, asked)?,
        Dev::Weights(message) => format!(r#"{{"message":"{message}"}}"#),
        Dev::WeightsOf(name, message) => {
            let body = embedded(asked)?;
            let mut fields = Fields::new(&body);
            fields.require_apart(name);
            fields.object(name);
            fields.done()?;
            format!(r#"{{"message":"{message}"}}"#)
        }
    };
    Ok(Answer::json(json))
}

/// A body whose fields are taken one by one; none at all is an empty one.
fn embedded(asked: &Asked<'_>) -> Result<Map<String, Value>, Answer> {
    if asked.body.is_empty() { Ok(Map::new()) } else { object(asked.content_type, asked.body) }
}

/// What these routes say where no model of the body does.
fn bad_request(message: &str) -> Answer {
    Answer::error(400, "Bad Request", message, None)
}

fn abort(mock: &Mock, body: &[u8]) -> Result<String, Answer> {
    let body = serde_json::from_slice::<Value>(body);
    let body = body.map_err(|_| bad_request("Invalid JSON format"))?;
    let Value::Object(body) = body else {
        return Err(bad_request("Request body must be a JSON object"));
    };
    let ids: Vec<_> =
        body.get("request_ids").and_then(Value::as_array).into_iter().flatten().collect();
    let aborted = if ids.is_empty() {
        mock.engine.abort(|_| true)
    } else {
        mock.engine.abort(|own| {
            // Each prompt of a completion has its number behind the id.
            let part = |id: &str| {
                own.starts_with("cmpl-")
                    && id.strip_prefix(own).is_some_and(|rest| rest.starts_with('-'))
            };
            ids.iter().filter_map(|id| id.as_str()).any(|id| id == own || part(id))
        });
        ids.len()
    };
    Ok(format!(r#"{{"status":"aborted","aborted":{aborted}}}"#))
}

/// One worker, which returns the first argument of whatever it is asked to do.
fn rpc(body: &[u8]) -> Result<String, Answer> {
    let body = serde_json::from_slice::<Value>(body).map_err(|_| {
        let python = "Expecting value: line 1 column 1 (char 0)";
        bad_request(&format!("JSON decode error: {python}"))
    })?;
    let Value::Object(body) = body else {
        return Err(bad_request("Request body must be a JSON object"));
    };
    if body.get("method").is_none_or(Value::is_null) {
        return Err(bad_request("Missing 'method' in request body"));
    }
    let result = match &body.get("args").unwrap_or(&Value::Null)[0] {
        kept @ (Value::Null | Value::String(_) | Value::Array(_) | Value::Object(_)) => {
            kept.to_string()
        }
        Value::Bool(yes) => quote(if *yes { "True" } else { "False" }),
        Value::Number(number) => quote(&number.to_string()),
    };
    Ok(format!(r#"{{"results":[{result}]}}"#))
}

fn info(mock: &Mock) -> String {
    let args = &mock.args;
    let config = format!(
        "model='{}', seed={}, max_seq_len={}",
        args.canonical(),
        args.seed,
        args.max_model_len
    );
    format!(
        r#"{{"vllm_config":{},"vllm_env":{{"VLLM_SERVER_DEV_MODE":true}},"system_env":{{}}}}"#,
        quote(&config)
    )
}

fn check_weights(mock: &Mock, asked: &Asked<'_>) -> Result<String, Answer> {
    let body = embedded(asked)?;
    let mut fields = Fields::new(&body);
    fields.require_apart("action");
    let action = fields.word("action", &["checksum", "reset", "compare"]);
    let baseline = fields.object("baseline");
    fields.done()?;
    let sum = format!("{}:{}", mock.args.canonical(), mock.weight_version.borrow());
    let json = match (action, baseline) {
        (Some("reset"), _) => r#"{"status":"reset"}"#.to_owned(),
        (Some("compare"), None) => {
            return Err(bad_request("action='compare' requires a 'baseline' object"));
        }
        (Some("compare"), Some(baseline)) => {
            let own = |name: &str| (name == "model").then_some(sum.as_str());
            let mut names: Vec<&str> = baseline.keys().map(String::as_str).collect();
            names.push("model");
            names.sort_unstable();
            names.dedup();
            names.retain(|name| baseline.get(*name).and_then(Value::as_str) != own(name));
            let (same, names) = (names.is_empty(), Value::from(names));
            format!(r#"{{"match":{same},"mismatches":{names}}}"#)
        }
        (Some(_) | None, _) => format!(r#"{{"checksums":{{"model":{}}}}}"#, quote(&sum)),
    };
    Ok(json)
}
