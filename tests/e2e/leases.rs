//! Leases: a step that several runners need at the same time is executed by one of them, whatever dies.

use std::process::Child;
use std::time::{Duration, Instant};

use crate::support::aftermath::assert_no_processes;
use crate::support::lab::Lab;
use crate::support::s3::S3;
use crate::support::server::CacheServer;
use crate::support::{Run, text};

const SLOW: &str = "FROM busybox\nRUN sleep 3; head -c 8 /dev/urandom | od > /random\n";

/// "Within seconds": a lease that is not taken again lasts ten, and a client looks every second. The rest is what two
/// busy cores need; who waits for ever is what this is for.
const TAKES_OVER: Duration = Duration::from_mins(1);

fn runner(lab: &Lab, server: &CacheServer, token: &str, name: &str, dockerfile: &str) -> Run {
    let build = lab.build(dockerfile).env("CROSSDOCK_LOCAL", lab.context.path(name));
    let build = build.option("--cache", server.url()).env("CROSSDOCK_TOKEN", token);
    build.option_path("--output", "", lab.context.path(format!("out-{name}")))
}

fn random(lab: &Lab, name: &str) -> String {
    std::fs::read_to_string(lab.context.path(format!("out-{name}/random"))).unwrap()
}

/// On a machine that is busy beyond measure a build may give its server up, and takes no lease then.
const ATTEMPTS: u32 = 6;

/// Waits until somebody has the lease on a step; `false` if the build, which is to take it, has ended.
fn wait_for_lease(server: &CacheServer, build: &mut Child) -> bool {
    let is_lease = |asked: &String| asked.starts_with("PUT /api/v1/leases/") && asked.ends_with(" 200");
    while !server.asked().iter().any(is_lease) {
        if build.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Two servers over one directory.
fn two_servers(lab: &Lab) -> (CacheServer, CacheServer, String) {
    let one = CacheServer::start(&lab.context, "storage", &[]);
    let two = CacheServer::start(&lab.context, "storage", &[]);
    let token = one.token.clone();
    (one, two, token)
}

/// Two runners that need the same step at the same time execute it once.
#[test]
fn a_step_is_executed_by_one_runner_at_a_time() {
    let lab = Lab::new();
    let server = CacheServer::start(&lab.context, "storage", &[]);
    let build = |name: &str| runner(&lab, &server, &server.token, name, SLOW);
    let mut first = build("one").spawn();
    assert!(wait_for_lease(&server, &mut first), "no lease was taken");
    let second = build("two").success();
    assert!(first.wait().unwrap().success());
    second.says("waiting for ").says("which is running this step").says("1 cached, 0 run");
    assert_eq!(random(&lab, "one"), random(&lab, "two"));
    // Given back at once: nobody has to wait for its end.
    assert!(server.asked().iter().any(|asked| asked.starts_with("DELETE /api/v1/leases/")));
}

/// Runs a step with several runners at two servers: one executes it, and all have its result.
fn all_at_once(lab: &Lab, servers: [&CacheServer; 2], token: &str) {
    for attempt in 0..ATTEMPTS {
        let names: Vec<String> = (0..4).map(|number| format!("runner-{attempt}-{number}")).collect();
        let dockerfile = SLOW.replace("FROM busybox\n", &format!("FROM busybox\nENV ATTEMPT={attempt}\n"));
        let builds: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(number, name)| {
                let build = runner(lab, servers[number % 2], token, name, &dockerfile);
                std::thread::spawn(move || build.output())
            })
            .collect();
        let outputs: Vec<_> = builds.into_iter().map(|build| build.join().unwrap()).collect();
        for output in &outputs {
            assert!(output.status.success(), "{output}");
        }
        if outputs.iter().any(|output| output.stderr().contains("going on without")) {
            continue;
        }
        let executed = outputs.iter().filter(|output| output.stderr().contains("0 cached, 1 run")).count();
        assert_eq!(executed, 1, "{}", outputs.iter().map(ToString::to_string).collect::<String>());
        let mut results: Vec<_> = names.iter().map(|name| random(lab, name)).collect();
        results.dedup();
        assert_eq!(results.len(), 1, "{results:?}");
        return;
    }
    panic!("the servers were given up {ATTEMPTS} times");
}

#[test]
fn several_servers_grant_one_lease() {
    let lab = Lab::new();
    let (one, two, token) = two_servers(&lab);
    all_at_once(&lab, [&one, &two], &token);
}

#[test]
fn several_servers_on_one_bucket_grant_one_lease() {
    let lab = Lab::new();
    let Some(s3) = S3::moto(&lab.context) else { return };
    let start = || CacheServer::over(&lab.context, "s3://cache/leases", |run| s3.with(run), &[]);
    let one = start();
    let two = start();
    all_at_once(&lab, [&one, &two], &one.token);
}

/// The runner that executes a step dies; another one that waits for it goes on.
fn takes_over(lab: &Lab, first_at: &mut CacheServer, second_at: &CacheServer, with_server: bool) {
    let token = first_at.token.clone();
    for attempt in 0..ATTEMPTS {
        let mark =
            format!("lease-mark-{}-{}-{attempt}", std::process::id(), first_at.address.replace(':', "-"));
        let dockerfile = SLOW.replace("FROM busybox\n", &format!("FROM busybox\nENV MARK={mark}\n"));
        let mut first = runner(lab, first_at, &token, &format!("one-{attempt}"), &dockerfile).spawn();
        if !wait_for_lease(first_at, &mut first) {
            continue;
        }
        let second = runner(lab, second_at, &token, &format!("two-{attempt}"), &dockerfile);
        let waiting = std::thread::spawn(move || {
            let output = second.timeout(Duration::from_mins(2)).output();
            (output, Instant::now())
        });
        // It has been told that somebody else is at it.
        let is_refused = |asked: &String| asked.starts_with("PUT /api/v1/leases/") && asked.ends_with(" 409");
        while !second_at.asked().iter().any(is_refused) && !waiting.is_finished() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let is_waiting = !waiting.is_finished() && first.try_wait().unwrap().is_none();
        let killed = Instant::now();
        first.kill().unwrap();
        if with_server && is_waiting {
            first_at.kill();
        }
        first.wait().unwrap();
        let (output, ended) = waiting.join().unwrap();
        assert!(output.status.success(), "{output}");
        assert_no_processes(&mark);
        if !is_waiting {
            continue;
        }
        output.says("waiting for ").says("0 cached, 1 run");
        let took = ended - killed;
        assert!(took < TAKES_OVER, "it took over after {took:?}\n{output}");
        return;
    }
    panic!("the servers were given up {ATTEMPTS} times");
}

#[test]
fn a_step_of_a_dead_runner_is_taken_over() {
    let lab = Lab::new();
    let (mut one, two, _) = two_servers(&lab);
    takes_over(&lab, &mut one, &two, false);
}

#[test]
fn a_step_of_a_dead_runner_is_taken_over_when_its_server_has_died_too() {
    let lab = Lab::new();
    let (mut one, two, _) = two_servers(&lab);
    takes_over(&lab, &mut one, &two, true);
}

#[test]
fn a_step_of_a_dead_runner_is_taken_over_at_another_server_of_the_bucket() {
    let lab = Lab::new();
    let Some(s3) = S3::moto(&lab.context) else { return };
    let start = || CacheServer::over(&lab.context, "s3://cache/leases", |run| s3.with(run), &[]);
    let mut one = start();
    let two = start();
    takes_over(&lab, &mut one, &two, true);
}

/// Who has a lease and can tell no server so goes on, and so does who waits for it: the step is executed twice, and both
/// are right.
#[test]
fn a_lease_whose_server_dies_holds_nobody_up() {
    let lab = Lab::new();
    let (mut one, two, token) = two_servers(&lab);
    let slow = SLOW.replace("sleep 3", "sleep 5");
    let mut first = runner(&lab, &one, &token, "one", &slow).spawn();
    assert!(wait_for_lease(&one, &mut first), "no lease was taken");
    one.kill();
    let second = runner(&lab, &two, &token, "two", &slow).timeout(Duration::from_mins(2)).success();
    second.says("waiting for ");
    assert!(first.wait().unwrap().success());
    assert!(!random(&lab, "one").is_empty() && !random(&lab, "two").is_empty());
    lab.context.verify_store(text(&two.storage.join("tenants/default")));
}
