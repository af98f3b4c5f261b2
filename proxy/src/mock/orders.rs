//! The field `mock` of a request: what it orders for itself, see `vllm-proxy mock --help`.

use super::answers::Answer;
use super::check::Fields;
use super::run::Pace;
use super::state::Mock;
use http_types::StatusCode;
use serde_json::Value;
use std::time::Duration;
use vllm_proxy_sim::faults::Fault;

/// What a request says about its own fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ordered {
    /// Nothing: the options decide.
    Nothing,
    Fault(Option<Fault>),
}

/// What the field `mock` orders.
pub(super) struct Orders {
    pub(super) pace: Pace,
    /// Length of the answer.
    pub(super) natural: u32,
    pub(super) fault: Ordered,
    pub(super) after: Option<u32>,
}

impl Orders {
    pub(super) fn read(mock: &Mock, fields: &Fields<'_>) -> Result<Self, Answer> {
        let mut pace = mock.args.pace();
        let orders = fields.value("mock");
        let order = |name: &str| orders.and_then(|orders| orders.get(name));
        let number = |name: &str| match order(name) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
                Some(number) => Ok(Some(number)),
                None => Err(Answer::refused(
                    &format!("mock: expected a whole number for {name}, got {value}"),
                    Some("mock"),
                )),
            },
        };
        if let Some(millis) = number("ttft_ms")? {
            pace.first = Some(Duration::from_millis(millis.into()));
        }
        if let Some(millis) = number("itl_ms")? {
            pace.between = Some(Duration::from_millis(millis.into()));
        }
        let fault = match order("fail") {
            None => Ordered::Nothing,
            Some(Value::String(name)) if name == "none" => Ordered::Fault(None),
            Some(value) => {
                let name = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let named = match (Fault::named(&name), number("status")?) {
                    (Some(Fault::Event(_)), Some(status)) => {
                        Some(Fault::Event(u16::try_from(status).unwrap_or(0)))
                    }
                    (named, _) => named,
                };
                match named {
                    Some(Fault::Status(status) | Fault::Event(status))
                        if StatusCode::try_from(status).is_err() =>
                    {
                        let message = format!("mock: cannot answer with status {status}");
                        return Err(Answer::refused(&message, Some("mock")));
                    }
                    Some(fault) => Ordered::Fault(Some(fault)),
                    None => {
                        let message = format!("mock: unknown fault {value}");
                        return Err(Answer::refused(&message, Some("mock")));
                    }
                }
            }
        };
        let natural = number("tokens")?.unwrap_or(mock.args.tokens);
        Ok(Self { pace, natural, fault, after: number("after")? })
    }
}
