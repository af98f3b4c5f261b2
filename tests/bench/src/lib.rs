//! What the bench's programs share: the bytes that both ends know, a way to wait, the kernel's
//! account of what a process used, and prompts as chains of chunks. Knows nothing of the proxies
//! under test.

pub mod chunks;
pub mod content;
pub mod engine;
pub mod poll;
pub mod prompts;
pub mod sample;
pub mod usage;

/// What ends a program: a sentence for the person who started it.
pub type Fault = Box<dyn std::error::Error>;
