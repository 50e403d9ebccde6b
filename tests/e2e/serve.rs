//! Builds with a cache server: what they share, and what its faults cost them.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::disk::SmallDisk;
use crate::support::lab::Lab;
use crate::support::server::CacheServer;
use crate::support::{Run, text};

const DOCKERFILE: &str = "FROM busybox\nCOPY a /a\nRUN cat /a; head -c 3000000 /dev/urandom > /random\nRUN wc -c < /random > /size\n";

/// A build on a machine of its own.
fn runner(lab: &Lab, name: &str) -> Run {
    lab.build(DOCKERFILE).env("CROSSDOCK_LOCAL", lab.context.path(name))
}

fn lab() -> Lab {
    let lab = Lab::new();
    lab.file("a", "content\n");
    lab
}

#[test]
fn runners_share_a_server() {
    let lab = lab();
    let server = CacheServer::start(&lab.context, "storage", &[]);
    let first = lab.image_of(server.cache(runner(&lab, "one")));
    let second = lab.image_of(server.cache(runner(&lab, "two")));
    assert_eq!(first.digest, second.digest);
    // The second has told which records it needed: the third asks for nothing else.
    server.asked();
    let third = lab.image_of(server.cache(runner(&lab, "three")));
    assert_eq!(first.digest, third.digest);
    let asked = server.asked();
    let (content, questions): (Vec<_>, Vec<_>) =
        asked.iter().partition(|asked| asked.contains("/blobs/sha256:"));
    assert!(questions[0].starts_with("GET /api/v1/bundles/"), "{asked:#?}");
    // What is in the base image's layer is a record of its own.
    assert!(questions.len() <= 2, "{asked:#?}");
    // The layers; that of the base, which is not there, is asked for in vain.
    assert!(content.len() <= 4, "{asked:#?}");
    // And one that wants no layers gets none.
    let output = server.cache(runner(&lab, "four")).success();
    output.says("3 cached, 0 run");
    assert_eq!(server.asked().len(), 1, "one round trip");
    lab.context.verify_store(server.storage.join("tenants/default"));
    assert!(!server.log().contains(&server.token), "no secret in the log");
}

#[test]
fn a_server_that_does_not_work_never_fails_a_build() {
    let lab = lab();
    let mut server = CacheServer::start(&lab.context, "storage", &[]);
    lab.image_of(server.cache(runner(&lab, "one")));
    let token = server.token.clone();
    let works = |build: Run, what: &str| {
        let started = Instant::now();
        let output = build.timeout(Duration::from_secs(100)).success();
        assert!(output.stderr().contains("warning"), "{what}: {output}");
        assert!(!output.stderr().contains(&token), "{what}: {output}");
        output.says("0 cached, 3 run");
        started.elapsed()
    };
    works(server.cache(runner(&lab, "a")).env("CROSSDOCK_TOKEN", "xdk_wrong.token"), "a wrong token");
    works(server.cache(runner(&lab, "b")).env("CROSSDOCK_TOKEN", ""), "no token");
    // Something else answers, or nothing, or never.
    let page = crate::support::http::Server::new(|_| crate::support::http::Reply::ok("<html>"));
    works(runner(&lab, "c").option("--cache", page.url("")), "another server");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    works(runner(&lab, "d").option("--cache", url), "a server that says nothing");
    server.signal(Signal::STOP);
    works(server.cache(runner(&lab, "e")), "a server that has stopped");
    server.signal(Signal::CONT);
    server.kill();
    works(server.cache(runner(&lab, "f")), "a server that is not there");
}

#[test]
fn a_server_without_space_never_fails_a_build() {
    let lab = lab();
    let Some(disk) = SmallDisk::mount(&lab.context, "small", "2m") else { return };
    let server = CacheServer::start(&lab.context, "small/storage", &[]);
    let output = server.cache(runner(&lab, "one")).success();
    assert!(output.stderr().contains("warning"), "{output}");
    // What fitted is whole.
    server.cache(runner(&lab, "two")).success();
    lab.context.verify_store(server.storage.join("tenants/default"));
    drop(server);
    drop(disk);
}

/// Nothing that is wrong is left by servers that are killed while builds send to them.
#[test]
fn killed_servers_leave_nothing_wrong() {
    let lab = lab();
    let first = CacheServer::start(&lab.context, "storage", &[]);
    let token = first.token.clone();
    let mut server = first;
    for round in 0..4_u64 {
        let name = format!("round-{round}");
        let build = runner(&lab, &name).option("--cache", server.url()).env("CROSSDOCK_TOKEN", &token);
        let mut child = build.arg("--no-cache").spawn();
        std::thread::sleep(Duration::from_millis(150 + 250 * round));
        server.kill();
        assert!(child.wait().unwrap().success());
        server = CacheServer::start(&lab.context, "storage", &[]);
        let kept = server.storage.join("tenants/default");
        if kept.is_dir() {
            lab.context.verify_store(kept);
        }
    }
    let whole = |name: &str| {
        runner(&lab, name).option("--cache", server.url()).env("CROSSDOCK_TOKEN", &token).success()
    };
    whole("last");
    whole("after").says("3 cached, 0 run");
}

#[test]
fn tokens_say_what_a_build_may_do() {
    let lab = lab();
    let server = CacheServer::start(&lab.context, "storage", &[]);
    let main = server.create_token(&lab.context, &["--read", "main", "--write", "main"]);
    let pull = server.create_token(&lab.context, &["--read", "pr/*,main", "--write", "pr/*"]);
    let build = |name: &str, token: &str, scopes: &str| {
        runner(&lab, name)
            .option("--cache", server.url())
            .option("--cache-scope", scopes)
            .env("CROSSDOCK_TOKEN", token)
            .success()
    };
    // A pull request that claims to be main has no effect on it.
    let claims = build("one", &pull, "main");
    assert!(claims.stderr().contains("refuses"), "{claims}");
    build("two", &main, "main").says("0 cached, 3 run");
    build("three", &pull, "pr/1,main").says("3 cached, 0 run");
    lab.file("a", "changed\n");
    build("four", &pull, "pr/1,main").says("0 cached, 3 run");
    build("five", &pull, "pr/1,main").says("3 cached, 0 run");
    build("six", &main, "main").says("0 cached, 3 run");
    // Of another tenant nothing is seen.
    let other = server.create_token(&lab.context, &["--tenant", "other", "--write", "*"]);
    build("seven", &other, "main").says("0 cached, 3 run");

    let storage = ["--storage", text(&server.storage)];
    let list = lab.context.crossdock().args(["token", "ls"]).args(storage).success().stdout();
    assert_eq!(list.lines().count(), 4, "{list}");
    assert!(list.contains("t: tenant other, reads *, writes *"), "{list}");
    for token in [&main, &pull, &other] {
        assert!(!list.contains(token.as_str()) && !list.contains(token.split('.').nth(1).unwrap()));
    }
    lab.context.crossdock().args(["token", "revoke", "t"]).args(storage).success();
    lab.context.crossdock().args(["token", "revoke", "t"]).args(storage).failure().says("no token `t`");
    server.signal(Signal::HUP);
    let revoked = build("eight", &main, "main");
    assert!(revoked.stderr().contains("CROSSDOCK_TOKEN"), "{revoked}");
}

/// A request to a server that was asked to end is finished, and no other one is taken.
#[test]
fn sigterm_finishes_what_is_under_way() {
    let lab = lab();
    let mut server = CacheServer::start(&lab.context, "storage", &[]);
    let body = "x".repeat(1000);
    let digest = crate::support::oci::digest(body.as_bytes());
    let mut upload = TcpStream::connect(&server.address).unwrap();
    let head = format!(
        "PUT /api/v1/blobs/{digest} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 1000\r\n\r\n",
        server.token
    );
    upload.write_all(head.as_bytes()).unwrap();
    upload.write_all(&body.as_bytes()[..500]).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    server.signal(Signal::TERM);
    let started = Instant::now();
    while TcpStream::connect(&server.address).is_ok() {
        assert!(started.elapsed() < Duration::from_secs(20), "it still takes connections");
        std::thread::sleep(Duration::from_millis(10));
    }
    upload.write_all(&body.as_bytes()[500..]).unwrap();
    let mut answer = String::new();
    upload.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert!(server.wait().success());
}

#[test]
fn tls_with_certificates_that_change() {
    let lab = lab();
    let make = |name: &str| {
        let (certificate, key) = (lab.context.path("cert.pem"), lab.context.path("key.pem"));
        lab.context
            .command("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "2", "-subj", &format!("/CN={name}"), "-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout", text(&key), "-out", text(&certificate)])
            .success();
        std::fs::read(certificate).unwrap()
    };
    let shown = |server: &CacheServer| {
        let connect = format!(
            "openssl s_client -connect {} </dev/null 2>/dev/null | openssl x509 -noout -subject",
            server.address
        );
        lab.context.command("sh").args(["-c", &connect]).success().stdout()
    };
    make("first");
    let (certificate, key) = (lab.context.path("cert.pem"), lab.context.path("key.pem"));
    let options = ["--tls-certificate", text(&certificate), "--tls-key", text(&key)];
    let server = CacheServer::start(&lab.context, "storage", &options);
    assert!(shown(&server).contains("first"));
    let build = |name: &str| {
        runner(&lab, name)
            .option("--cache", format!("https://{}", server.address))
            .env("CROSSDOCK_TOKEN", &server.token)
            .env("SSL_CERT_FILE", &certificate)
    };
    build("one").success();
    build("two").success().says("3 cached, 0 run");
    let untrusted = build("three").without_env("SSL_CERT_FILE").success();
    assert!(untrusted.stderr().contains("warning"), "{untrusted}");
    // A new certificate; then a broken one, which leaves the old.
    make("second");
    for _ in 0..2 {
        server.signal(Signal::HUP);
        let started = Instant::now();
        while !shown(&server).contains("second") {
            assert!(started.elapsed() < Duration::from_secs(20), "the certificate is not read again");
        }
        std::fs::write(&certificate, "no certificate").unwrap();
    }
    assert!(server.log().contains("the old certificates stay"));
    lab.context
        .crossdock()
        .args(["serve", "--listen", "127.0.0.1:0", "--storage", text(&lab.context.path("other"))])
        .args(options)
        .failure()
        .says("cert.pem");
}

#[test]
fn settings_that_cannot_be_used_are_refused() {
    let lab = lab();
    let serve = |options: &[&str], config: &str| {
        lab.context.write("config.toml", config);
        let config = lab.context.path("config.toml");
        lab.context.crossdock().args(["serve", "--check-config", "--config", text(&config)]).args(options)
    };
    serve(&[], "[serve]\nlisten = \"127.0.0.1:0\"\nlog-format = \"json\"\n").success().says("can be used");
    serve(&[], "[serve]\nlistn = \"127.0.0.1:0\"\n").failure().says("did you mean `listen`?");
    serve(&[], "[serve]\nlog-format = \"xml\"\n").failure().says("log-format");
    serve(&[], "[serve]\nidle-timeout = \"soon\"\n").failure().says("idle-timeout");
    serve(&["--insecure-no-auth", "--listen", "0.0.0.0:0"], "").failure().says("listen on 127.0.0.1");
    serve(&["--tls-key", "x"], "").failure().says("--tls-certificate");
    serve(&["--storage", "http://elsewhere"], "").failure().says("another one's storage");
    serve(&["--storage", "ftp://elsewhere"], "").failure().says("no kind of cache store");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let storage = lab.context.path("storage");
    lab.context
        .crossdock()
        .args(["serve", "--listen", &address, "--storage", text(&storage)])
        .failure()
        .says("could not listen on");
    lab.context.write("strange/system/format", "crossdock store 99\n");
    let strange = lab.context.path("strange");
    lab.context.crossdock().args(["serve", "--storage", text(&strange)]).failure().says("another format");
}

#[test]
fn storage_is_looked_after() {
    let lab = lab();
    let config = lab.context.write(
        "config.toml",
        "[serve.gc]\nmax-size = \"1B\"\ngrace = \"0s\"\ntrash = \"0s\"\ninterval = \"1s\"\n",
    );
    let plain = lab.context.write("plain.toml", "");
    let mut server = CacheServer::start(&lab.context, "storage", &["--config", text(&plain)]);
    lab.image_of(server.cache(runner(&lab, "one")));
    let storage = text(&server.storage).to_owned();
    let admin =
        |command: &[&str]| lab.context.crossdock().arg("admin").args(command).args(["--storage", &storage]);
    let stats = || -> serde_json::Value {
        serde_json::from_str(&admin(&["stats", "--format", "json"]).success().stdout()).unwrap()
    };
    let before = stats();
    assert_eq!(before[0]["tenant"], "default");
    assert!(before[0]["records"].as_u64().unwrap() >= 3, "{before}");
    // The layers of the steps, and the base image in frames.
    let shown = admin(&["stats"]).success().stdout();
    assert!(shown.starts_with("default: ") && shown.contains(" MB"), "{shown}");
    assert!(admin(&["verify"]).success().stdout().contains(", 0 damaged"));
    // What is in use now stays by default; asked for, it goes, and the next build makes it again.
    let report = admin(&["gc", "--max-size", "1B"]).success().stdout();
    assert!(report.starts_with("0 records removed") && report.contains("more than allowed stay"), "{report}");
    let report = admin(&["gc", "--max-size", "1B", "--grace", "0s"]).success().stdout();
    assert!(report.contains(" to the trash") && !report.starts_with('0'), "{report}");
    assert_eq!(stats()[0]["records"], 0);
    server.cache(runner(&lab, "two")).success().says("0 cached, 3 run");
    server.cache(runner(&lab, "three")).success().says("3 cached, 0 run");
    // A server does it by itself.
    server.kill();
    let mut server = CacheServer::start(&lab.context, "storage", &["--config", text(&config)]);
    let started = Instant::now();
    while stats()[0]["blobs"] != 0 {
        assert!(started.elapsed() < Duration::from_mins(1), "{}", stats());
        std::thread::sleep(Duration::from_millis(100));
    }
    // And a build over one that removes everything at once is right all the same.
    let token = server.create_token(&lab.context, &["--write", "*"]);
    let build = runner(&lab, "four").option("--cache", server.url()).env("CROSSDOCK_TOKEN", token);
    build.success().says("0 cached, 3 run");
    server.kill();
}

#[test]
fn only_what_is_new_of_a_layer_is_sent() {
    let lab = Lab::new();
    let server = CacheServer::start(&lab.context, "storage", &[]);
    let noise = |seed: u64| -> Vec<u8> {
        let mut state = seed;
        std::iter::repeat_with(|| {
            // Constants of Knuth's MMIX generator.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .take(400_000)
        .collect()
    };
    for file in 0..20 {
        lab.file(&format!("data/{file}"), noise(file));
    }
    let alone = || lab.build_showing("json", "FROM busybox\nCOPY data /data\nRUN cat /data/* > /all\n");
    let build = |name: &str| server.cache(alone().env("CROSSDOCK_LOCAL", lab.context.path(name)));
    let uploaded = |name: &str| {
        let output = build(name).success().stderr();
        let events = output.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let sent = events.filter_map(|event| event["uploaded"].as_u64()).next_back();
        sent.unwrap_or_else(|| panic!("no figure: {output}"))
    };
    let whole = uploaded("one");
    assert!(whole > 16_000_000, "{whole}");
    lab.file("data/7", noise(77));
    let changed = uploaded("two");
    assert!(changed < whole / 5, "{changed} of {whole} bytes were sent again");
    let asked = server.asked();
    assert!(asked.iter().filter(|asked| asked.ends_with("/compose 201")).count() == 2, "{asked:#?}");
    // It is whole: who starts from nothing gets it, and the same as without any cache.
    let shared = lab.image_of(build("three"));
    let alone = lab.image_of(alone().arg("--no-cache"));
    let contents = |image: &crate::support::oci::Image| -> Vec<(String, Vec<u8>)> {
        image.tree().into_iter().map(|(path, node)| (path, node.content)).collect()
    };
    assert!(contents(&shared) == contents(&alone), "another image than without the cache");
    lab.context.verify_store(server.storage.join("tenants/default"));
}
