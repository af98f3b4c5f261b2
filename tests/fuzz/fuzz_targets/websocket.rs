//! Fuzzes websocket frames and the messages they carry.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vllm_proxy_fuzz::websocket(data));
