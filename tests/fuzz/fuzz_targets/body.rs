//! Fuzzes bodies and where they end.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vllm_proxy_fuzz::body(data));
