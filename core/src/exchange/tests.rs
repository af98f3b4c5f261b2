//! The machine, driven by hand: every output in order, and then silence.

mod asked;
mod breaking;
mod events;
mod explaining;
mod failures;
mod gathering;
pub(crate) mod harness;
mod leaving;
mod own;
mod pipe;
mod realtime;
mod requests;
mod shown;
mod splits;
mod stopping;
pub(crate) mod texts;
mod usage;
mod watching;
