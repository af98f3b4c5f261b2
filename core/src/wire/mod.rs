//! Bytes to values and back. Knows nothing of backends.

pub mod answers;
pub mod body;
#[cfg(test)]
mod documented;
pub mod drained;
pub mod facts;
pub mod form;
pub mod forward;
pub mod head;
pub mod merge;
pub mod metrics;
pub mod origin;
pub mod page;
pub mod probe;
pub mod response_id;
pub mod routes;
pub mod scan;
pub mod status;
pub mod target;
pub mod usage;
pub mod way;
pub mod websocket;
