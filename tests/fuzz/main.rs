//! One fuzzer for all targets of `crossdock::fuzz`; `CROSSDOCK_FUZZ_TARGET` says which. `tests/fuzz/run` starts it.

#![no_main]

use std::sync::OnceLock;

use crossdock::fuzz::{Target, target};
use libfuzzer_sys::fuzz_target;

fn chosen() -> &'static Target {
    static CHOSEN: OnceLock<&'static Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("CROSSDOCK_FUZZ_TARGET").expect("CROSSDOCK_FUZZ_TARGET names a target");
        target(&name).unwrap_or_else(|| panic!("there is no target {name}"))
    })
}

fuzz_target!(|input: &[u8]| chosen().run(input));
