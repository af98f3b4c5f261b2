//! Fuzzes the scanner of JSON bodies.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vllm_proxy_fuzz::scan(data));
