//! The body of a message, made up by libFuzzer to reach every corner of `decode`.
#![no_main]

mod properties;

libfuzzer_sys::fuzz_target!(|body: &[u8]| properties::check(body));
