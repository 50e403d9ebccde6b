//! Ports for servers that have to be told one.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below those that connections are made from (Linux takes 32768 and up): whoever waits for a server there could otherwise
/// be connected to itself, and anybody's connection could take the port before the server does.
const FIRST: u16 = 10_000;
const COUNT: u16 = 20_000;

/// How many were given out by this process.
static GIVEN: AtomicU16 = AtomicU16::new(0);

/// A port of `127.0.0.1` that nobody has, and that no other caller gets.
pub(crate) fn free() -> u16 {
    // Test programs that run at once begin at different places.
    let start = std::process::id().wrapping_mul(7919) % u32::from(COUNT);
    loop {
        let number = u32::from(GIVEN.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + u16::try_from((start + number) % u32::from(COUNT)).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
