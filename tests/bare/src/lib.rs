//! A program without an operating system, as far as the linker is concerned: it proves that the
//! core needs none. Never run.

#![no_std]

extern crate alloc;

use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;
use vllm_proxy_core::config::Config;
use vllm_proxy_core::engine::Engine;
use vllm_proxy_core::time::Instant;

struct NoMemory;

// SAFETY: it never returns memory, which is allowed.
unsafe impl GlobalAlloc for NoMemory {
    unsafe fn alloc(&self, _layout: Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    unsafe fn dealloc(&self, _memory: *mut u8, _layout: Layout) {}
}

#[global_allocator]
static MEMORY: NoMemory = NoMemory;

#[panic_handler]
fn panicked(_info: &PanicInfo<'_>) -> ! {
    loop {}
}

/// Uses the engine, so that it is linked.
#[unsafe(no_mangle)]
pub extern "C" fn engine_size() -> usize {
    let engine = Engine::new(Config::default(), 0, Instant::START);
    core::mem::size_of_val(&engine)
}
