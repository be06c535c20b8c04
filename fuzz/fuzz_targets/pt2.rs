#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| foldconv_fuzz::check("pt2", bytes));
