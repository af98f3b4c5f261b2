//! Fuzzes the scanner of multipart forms.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vllm_proxy_fuzz::form(data));
