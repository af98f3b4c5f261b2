//! The machine, driven by hand: every output in order, and then silence.

mod asked;
mod breaking;
mod events;
mod failures;
mod gathering;
mod harness;
mod leaving;
mod own;
mod pipe;
mod realtime;
mod requests;
mod splits;
mod stopping;
mod texts;
mod usage;
