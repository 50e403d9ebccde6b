//! A server that is 20 ms and 1 Gbit/s away: what a build waits for.

use std::time::Duration;

use crate::support::lab::Lab;
use crate::support::link::{Count, Link, Speed};
use crate::support::server::CacheServer;

/// A server in the same region as its clients.
const SPEED: Speed = Speed { round_trip: Duration::from_millis(20), rate: 1e9 };

/// Steps of all kinds, one on the other.
fn dockerfile(last: &str) -> String {
    let mut text = "FROM busybox AS base\nCOPY a /a\nENV X=1\nWORKDIR /w\n".to_owned();
    for number in 0..8 {
        text.push_str(&format!("RUN echo {number} > /file{number}\nCOPY a /copy{number}\n"));
    }
    text.push_str("FROM busybox\nCOPY --from=base /a /a\n");
    text.push_str(&format!("RUN echo {last} > /last\nRUN cat /last > /more\n"));
    text
}

struct Runners {
    lab: Lab,
    server: CacheServer,
    link: Link,
}

impl Runners {
    fn new() -> Self {
        let lab = Lab::new();
        lab.file("a", "content\n");
        let server = CacheServer::start(&lab.context, "storage", &[]);
        let link = Link::start(&server.address, SPEED);
        Self { lab, server, link }
    }

    /// A build on a runner that starts empty: what it says at its end, and what it waited for. It is what the build waits
    /// for that counts, and not what it sends beside that; so a build that sends nothing is asked for where it matters.
    fn build(&self, runner: &str, dockerfile: &str, file: &str) -> (String, Count) {
        self.link.take();
        let run = self.lab.build("FROM scratch\n");
        self.lab.file(file, dockerfile);
        let run = run.env("CROSSDOCK_LOCAL", self.lab.context.path(runner));
        let run = run.option("--cache", format!("http://{}", self.link.address()));
        let run = run.env("CROSSDOCK_TOKEN", &self.server.token).arg("--cache-readonly");
        let run = run.option("--file", self.lab.path(file).display().to_string());
        (run.success().stderr(), self.link.take())
    }

    /// A build that others find in the cache.
    fn publish(&self, runner: &str, dockerfile: &str, file: &str) {
        let run = self.lab.build("FROM scratch\n");
        self.lab.file(file, dockerfile);
        let run = self.server.cache(run.env("CROSSDOCK_LOCAL", self.lab.context.path(runner)));
        run.option("--file", self.lab.path(file).display().to_string()).success();
    }
}

#[test]
fn a_cached_build_waits_for_one_round_trip_and_never_more_than_four() {
    let runners = Runners::new();
    let (a, b) = (dockerfile("a"), dockerfile("b"));
    runners.publish("first", &a, "Dockerfile");
    // Already the second runner, whose bundle comes from a build that found nothing.
    let (said, count) = runners.build("second", &a, "Dockerfile");
    assert!(said.contains(" 0 run"), "{said}");
    assert_eq!(count.round_trips, 1, "{count:?}");
    // A branch that changes something, and goes back: both are in the bundle.
    runners.publish("third", &b, "Dockerfile");
    for (runner, dockerfile) in [("fourth", &a), ("fifth", &b)] {
        let (said, count) = runners.build(runner, dockerfile, "Dockerfile");
        assert!(said.contains(" 0 run"), "{said}");
        assert_eq!(count.round_trips, 1, "{runner}: {count:?}");
    }
    // The same under another name: there is no bundle of it.
    let (said, count) = runners.build("sixth", &a, "other.Dockerfile");
    assert!(said.contains(" 0 run"), "{said}");
    assert!((2..=4).contains(&count.round_trips), "{count:?}");
}

/// Six commands behind a `COPY . .` of which a file has changed that they do not read, in a cache that knows many such builds.
#[test]
fn what_no_step_reads_costs_few_round_trips_and_bytes() {
    let runners = Runners::new();
    let mut dockerfile = "FROM busybox\nWORKDIR /w\nCOPY . .\n".to_owned();
    for number in 0..6 {
        dockerfile.push_str(&format!("RUN cat /w/a > /out{number}\n"));
    }
    runners.lab.file(".dockerignore", "*ockerfile\n");
    for number in 0..5 {
        runners.lab.file("README", format!("{number}\n"));
        runners.publish(&format!("runner-{number}"), &dockerfile, "Dockerfile");
    }
    runners.lab.file("README", "another\n");
    let (said, count) = runners.build("last", &dockerfile, "Dockerfile");
    assert!(said.contains("7 cached, 1 run"), "{said}");
    assert!(count.round_trips <= 5, "one after the other it was more than two for each command: {count:?}");
    assert!(count.down < 100_000, "{count:?}");
}
