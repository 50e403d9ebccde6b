//! `link LISTEN SERVER [ROUND-TRIP-MS [MBIT/S]]`: a slow link to a server, until it is killed. It prints its address, and for
//! each line of its standard input what went through since the last: round trips, bytes up, bytes down.

#![allow(
    clippy::unwrap_used,
    clippy::exit,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool of the tests"
)]

mod link;

use std::time::Duration;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, server, rest @ ..] = &arguments[..] else {
        eprintln!("usage: link LISTEN SERVER [ROUND-TRIP-MS [MBIT/S]]");
        std::process::exit(2);
    };
    let number = |at: usize, default: f64| rest.get(at).map_or(default, |text| text.parse().unwrap());
    let round_trip = Duration::from_secs_f64(number(0, 20.0) / 1000.0);
    let speed = link::Speed { round_trip, rate: number(1, 1000.0) * 1e6 };
    let link = link::Link::listen(listen, server, speed);
    println!("{}", link.address());
    for _ in std::io::stdin().lines() {
        let link::Count { round_trips, up, down, .. } = link.take();
        println!("{round_trips} {up} {down}");
    }
    loop {
        std::thread::park();
    }
}
