//! Fuzzes the life of a client connection.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vllm_proxy_fuzz::exchange(data));
