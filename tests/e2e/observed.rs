//! What a cache server lets others see of it: a build's requests in its log, and traces at a collector.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::http::{Reply, Server};
use crate::support::lab::Lab;
use crate::support::server::CacheServer;

const DOCKERFILE: &str = "FROM busybox\nCOPY a /a\nRUN wc -c < /a > /size\n";

fn lab() -> Lab {
    let lab = Lab::new();
    lab.file("a", "content\n");
    lab
}

/// Who reads a warning about the server finds what it is about in the server's log.
#[test]
fn a_warning_names_the_request_that_the_server_has_in_its_log() {
    let lab = lab();
    let mut server = CacheServer::start(&lab.context, "storage", &[]);
    let build =
        |name: &str| server.cache(lab.build(DOCKERFILE)).env("CROSSDOCK_LOCAL", lab.context.path(name));
    let refused = build("one").env("CROSSDOCK_TOKEN", "xdk_wrong.token").success().stderr();
    let (_, rest) =
        refused.split_once("(request ").unwrap_or_else(|| panic!("no request is named: {refused}"));
    let id = rest.split(')').next().unwrap();
    let log = server.log();
    let line = log
        .lines()
        .find(|line| line.contains(&format!("\"id\":\"{id}\"")))
        .unwrap_or_else(|| panic!("{log}"));
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["status"], 401, "{line}");
    // No two requests have the same name, and all of a build's begin alike.
    let (prefix, _) = id.split_once('-').unwrap();
    server.asked();
    build("two").success();
    let log = server.log();
    let ids: Vec<String> = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["message"] == "request" && line["status"] != 401)
        .map(|line| line["id"].as_str().unwrap().to_owned())
        .collect();
    assert!(ids.len() > 3 && ids.iter().all(|id| !id.starts_with(prefix)), "{ids:?}");
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    assert_eq!(ids.iter().map(|id| id.split('-').next()).collect::<BTreeSet<_>>().len(), 1, "{ids:?}");
    // One that does not answer is named too: whatever it is called there, it begins so.
    server.signal(Signal::STOP);
    let silent = build("three").success().stderr();
    assert!(silent.contains("(requests ") || silent.contains("(request "), "{silent}");
    server.kill();
}

/// A collector gets a span for each request; those of one build are one trace.
#[test]
fn traces_arrive_at_a_collector() {
    let lab = lab();
    let collector = Server::new(|request| match request.path.as_str() {
        "/v1/traces" => Reply::ok("{}").header("Content-Type", "application/json"),
        _ => Reply::new(404, ""),
    });
    let endpoint = collector.url("");
    let with = |run: crate::support::Run| run.env("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret%20key");
    let storage = lab.context.path("storage");
    let storage = crate::support::text(&storage).to_owned();
    let mut server = CacheServer::over(&lab.context, &storage, with, &["--otlp-endpoint", &endpoint]);
    server.cache(lab.build(DOCKERFILE)).env("CROSSDOCK_LOCAL", lab.context.path("one")).success();
    let asked = server.asked();
    // What waits is sent before it ends.
    server.signal(Signal::TERM);
    assert!(server.wait().success());
    let requests = collector.requests();
    assert!(!requests.is_empty(), "nothing was sent");
    let mut spans: Vec<Value> = Vec::new();
    for request in &requests {
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/v1/traces"));
        assert_eq!(request.header("content-type"), Some("application/json"));
        assert_eq!(request.header("x-key"), Some("secret key"));
        let message: Value = serde_json::from_slice(&request.body).unwrap();
        let resource = &message["resourceSpans"][0];
        assert_eq!(resource["resource"]["attributes"][0]["value"]["stringValue"], "crossdock");
        spans.extend(resource["scopeSpans"][0]["spans"].as_array().unwrap().iter().cloned());
    }
    assert_eq!(spans.len(), asked.len(), "{asked:#?}\n{spans:#?}");
    let attribute = |span: &Value, name: &str| -> String {
        let attributes = span["attributes"].as_array().unwrap().iter();
        let found =
            attributes.filter(|attribute| attribute["key"] == name).map(|attribute| &attribute["value"]);
        let value = found.flat_map(|value| value.as_object().unwrap().values()).next();
        value.unwrap_or_else(|| panic!("no {name}: {span}")).as_str().unwrap().to_owned()
    };
    for span in &spans {
        let number = |name: &str| span[name].as_str().unwrap().parse::<u64>().unwrap();
        assert!(number("startTimeUnixNano") <= number("endTimeUnixNano"), "{span}");
        assert_eq!((span["kind"].as_u64(), span["spanId"].as_str().unwrap().len()), (Some(2), 16), "{span}");
        assert_eq!(attribute(span, "crossdock.tenant"), "default");
        let told = format!("{} {}", attribute(span, "http.request.method"), attribute(span, "http.route"));
        assert_eq!(span["name"], told.as_str());
        let status = attribute(span, "http.response.status_code");
        let line =
            format!("{} {} {status}", attribute(span, "http.request.method"), attribute(span, "url.path"));
        assert!(asked.contains(&line), "{line}: {asked:#?}");
        // The request's name is that of the span's parent, which is the client's.
        let number =
            attribute(span, "crossdock.request_id").split('-').nth(1).unwrap().parse::<u64>().unwrap();
        assert_eq!(span["parentSpanId"], format!("{number:016x}").as_str());
    }
    let traces: BTreeSet<&str> = spans.iter().map(|span| span["traceId"].as_str().unwrap()).collect();
    assert_eq!(traces.len(), 1, "{traces:?}");
    assert!(spans.iter().any(|span| attribute(span, "crossdock.operation") == "write-record"), "{spans:#?}");
    assert!(!server.log().contains("secret"), "the collector's secret is in the log");
}

/// A collector that is not there holds nobody up.
#[test]
fn a_collector_that_does_not_answer_holds_nobody_up() {
    let lab = lab();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let mut server = CacheServer::start(&lab.context, "storage", &["--otlp-endpoint", &endpoint]);
    let build =
        |name: &str| server.cache(lab.build(DOCKERFILE)).env("CROSSDOCK_LOCAL", lab.context.path(name));
    build("one").success();
    build("two").success().says("2 cached, 0 run");
    server.signal(Signal::TERM);
    let started = Instant::now();
    assert!(server.wait().success());
    assert!(started.elapsed() < Duration::from_secs(40), "it waits for the collector");
    let check = |endpoint: &str| {
        lab.context.crossdock().args(["serve", "--check-config", "--otlp-endpoint", endpoint])
    };
    check("collector:4318").failure().says("no URL of a collector");
}
