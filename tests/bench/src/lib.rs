//! What the bench's backend and load generator share: the bytes that both know, a way to wait,
//! and the kernel's account of what a process used. Knows nothing of the proxies under test.

pub mod chunks;
pub mod content;
pub mod poll;
pub mod usage;

/// What ends a program: a sentence for the person who started it.
pub type Fault = Box<dyn std::error::Error>;
