//! The world around vLLM Proxy, simulated: for its tests, its mock, its demo and for comparing
//! policies.
//!
//! Invariant: no I/O, no clock and no chance of its own. Whoever uses this crate says what time it
//! is and gives a seed; same seed, same world.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod checks;
pub mod faults;
mod map;
pub mod policies;
pub mod redis;
pub mod reply;
pub mod report;
pub mod trace;
pub mod vllm;
pub mod world;
