//! Fuzzes what other proxies publish.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vllm_proxy_fuzz::update(data));
