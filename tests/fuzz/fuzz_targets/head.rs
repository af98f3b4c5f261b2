//! Fuzzes heads and what is sent on of them.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vllm_proxy_fuzz::head(data));
