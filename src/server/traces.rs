//! Traces on request: a span for each request, sent to a collector by OTLP over HTTP, in JSON
//! (<https://opentelemetry.io/docs/specs/otlp/>, OpenTelemetry protocol 1.x).
//!
//! A client that sends `traceparent` (<https://www.w3.org/TR/trace-context/>) makes the spans of its requests part of its own
//! trace; a build does that, so that all of its requests are one trace. Nobody waits for the collector: what it does not
//! take in time is dropped, and counted.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use url::Url;

use super::Server;

/// Spans that wait to be sent: some seconds of a busy server, and a few MiB.
const WAITING_MAX: usize = 8192;

/// Spans sent at a time.
const BATCH: usize = 512;

/// How often they are sent.
const EVERY: Duration = Duration::from_secs(1);

/// A collector that takes longer gets no more of this batch.
const PATIENCE: Duration = Duration::from_secs(5);

/// `SPAN_KIND_SERVER`, `STATUS_CODE_ERROR`
const KIND_SERVER: u8 = 2;
const STATUS_ERROR: u8 = 2;

/// Where traces are sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Otlp {
    /// The collector: `http://collector:4318`. Traces go to `v1/traces` below it.
    pub endpoint: Url,
    /// What is sent with each request: maybe a secret.
    pub headers: Vec<(String, String)>,
}

impl fmt::Debug for Otlp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Otlp").field("endpoint", &self.endpoint.as_str()).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SpanLabels {
    pub(super) result: &'static str,
}

/// What a request was.
#[derive(Debug, Clone)]
pub(super) struct Span {
    pub(super) context: Context,
    pub(super) name: String,
    pub(super) start: SystemTime,
    pub(super) took: Duration,
    pub(super) status: u16,
    /// Names and values; those that are empty are left out.
    pub(super) attributes: Vec<(&'static str, String)>,
}

/// Which trace a span is part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Context {
    trace: String,
    span: String,
    parent: Option<String>,
}

impl Context {
    /// That of a request with this `traceparent`, or of a trace of its own; `None` if the caller wants none.
    pub(super) fn of(parent: Option<&str>) -> Option<Self> {
        // The lower half of a number is as random as the whole.
        let span = format!("{:016x}", random()? as u64);
        match parent.and_then(parse) {
            Some((_, _, false)) => None,
            Some((trace, parent, true)) => Some(Self { trace, span, parent: Some(parent) }),
            None => Some(Self { trace: format!("{:032x}", random()?), span, parent: None }),
        }
    }
}

/// The trace, the span, and whether it is recorded, of a `traceparent`.
fn parse(text: &str) -> Option<(String, String, bool)> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let some = |text: &str| text.bytes().any(|byte| byte != b'0');
    // Later versions may have more behind.
    let is_whole = version != "00" || parts.next().is_none();
    let is_good = hex(version, 2)
        && version != "ff"
        && hex(trace, 32)
        && some(trace)
        && hex(span, 16)
        && some(span)
        && hex(flags, 2);
    let flags = u8::from_str_radix(flags, 16).ok().filter(|_| is_whole && is_good)?;
    Some((trace.to_owned(), span.to_owned(), flags & 1 == 1))
}

fn random() -> Option<u128> {
    let mut bytes = [0; 16];
    let got = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()).ok()?;
    (got == bytes.len()).then(|| u128::from_ne_bytes(bytes))
}

/// Spans on their way to the collector, if there is one.
#[derive(Debug)]
pub(super) struct Traces {
    sender: Option<mpsc::Sender<Span>>,
    /// Taken by whoever sends them.
    receiver: Mutex<Option<mpsc::Receiver<Span>>>,
    ending: Notify,
    pub(super) spans: Family<SpanLabels, Counter>,
}

impl Traces {
    pub(super) fn new(otlp: Option<&Otlp>, spans: Family<SpanLabels, Counter>) -> Self {
        let (sender, receiver) = otlp.map(|_| mpsc::channel(WAITING_MAX)).unzip();
        Self { sender, receiver: Mutex::new(receiver), ending: Notify::new(), spans }
    }

    /// Whether anybody wants spans.
    pub(super) fn is_on(&self) -> bool {
        self.sender.is_some()
    }

    /// Has a span sent, unless too many are waiting.
    pub(super) fn record(&self, span: Span) {
        if self.sender.as_ref().is_some_and(|sender| sender.try_send(span).is_err()) {
            self.count("dropped", 1);
        }
    }

    /// Has what is waiting sent at once, and no more.
    pub(super) fn end(&self) {
        self.ending.notify_one();
    }

    fn count(&self, result: &'static str, spans: usize) {
        self.spans.get_or_create(&SpanLabels { result }).inc_by(spans as u64);
    }
}

/// Sends spans until the server ends.
pub(super) async fn run(server: Arc<Server>) {
    let traces = &server.traces;
    let receiver = traces.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (Some(mut receiver), Some(otlp)) = (receiver, &server.settings.otlp) else { return };
    let client = reqwest::Client::builder()
        .timeout(PATIENCE)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("crossdock/", env!("CARGO_PKG_VERSION")))
        .build();
    let client = match client {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(error = crate::hint::with_causes(&error), "traces cannot be sent");
            return;
        }
    };
    let mut is_well = true;
    loop {
        let is_last = tokio::select! {
            () = tokio::time::sleep(EVERY) => false,
            () = traces.ending.notified() => true,
        };
        loop {
            let batch: Vec<Span> = std::iter::from_fn(|| receiver.try_recv().ok()).take(BATCH).collect();
            if batch.is_empty() {
                break;
            }
            match send(&client, otlp, &batch).await {
                Ok(()) => {
                    traces.count("sent", batch.len());
                    is_well = true;
                }
                Err(reason) => {
                    traces.count("failed", batch.len());
                    // Once, and not every second.
                    if std::mem::take(&mut is_well) {
                        tracing::warn!(collector = %otlp.endpoint, reason, "traces are not taken");
                    }
                }
            }
        }
        if is_last {
            return;
        }
    }
}

async fn send(client: &reqwest::Client, otlp: &Otlp, spans: &[Span]) -> Result<(), String> {
    let mut url = otlp.endpoint.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(["v1", "traces"]);
    }
    let mut request =
        client.post(url).header("content-type", "application/json").body(message(spans).to_string());
    for (name, value) in &otlp.headers {
        request = request.header(name, value);
    }
    let answer = request.send().await.and_then(reqwest::Response::error_for_status);
    answer.map(|_| ()).map_err(|error| crate::hint::with_causes(&error.without_url()))
}

/// `ExportTraceServiceRequest`, as its JSON encoding has it: ids in hexadecimal, 64-bit numbers as text.
fn message(spans: &[Span]) -> Value {
    let resource =
        [attribute("service.name", "crossdock"), attribute("service.version", env!("CARGO_PKG_VERSION"))];
    let spans: Vec<Value> = spans.iter().map(span).collect();
    json!({"resourceSpans": [{
        "resource": {"attributes": resource},
        "scopeSpans": [{"scope": {"name": "crossdock.server"}, "spans": spans}],
    }]})
}

fn span(span: &Span) -> Value {
    let nanos = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
    let mut attributes =
        vec![json!({"key": "http.response.status_code", "value": {"intValue": span.status.to_string()}})];
    let told = span.attributes.iter().filter(|(_, value)| !value.is_empty());
    attributes.extend(told.map(|(name, value)| attribute(name, value)));
    let mut told = json!({
        "traceId": span.context.trace,
        "spanId": span.context.span,
        "name": span.name,
        "kind": KIND_SERVER,
        "startTimeUnixNano": nanos(span.start),
        "endTimeUnixNano": nanos(span.start + span.took),
        "attributes": attributes,
    });
    if let Some(parent) = &span.context.parent {
        told["parentSpanId"] = parent.as_str().into();
    }
    if span.status >= 500 {
        told["status"] = json!({"code": STATUS_ERROR});
    }
    told
}

fn attribute(name: &str, value: &str) -> Value {
    json!({"key": name, "value": {"stringValue": value}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_by_their_grammar() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let read = |text: &str| parse(text);
        let good = Some((trace.to_owned(), span.to_owned(), true));
        assert_eq!(read(&format!("00-{trace}-{span}-01")), good);
        assert_eq!(read(&format!("cc-{trace}-{span}-03-more")), good);
        assert!(!read(&format!("00-{trace}-{span}-00")).unwrap().2);
        let zeros = "0".repeat(32);
        for bad in [
            "",
            "00",
            &format!("00-{trace}-{span}"),
            &format!("00-{trace}-{span}-01-more"),
            &format!("ff-{trace}-{span}-01"),
            &format!("00-{zeros}-{span}-01"),
            &format!("00-{trace}-{}-01", &zeros[..16]),
            &format!("00-{}-{span}-01", trace.to_uppercase()),
            &format!("00-{trace}-{span}-1"),
            &format!("00-{trace}-{span}-\u{e9}"),
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(Context::of(Some(&format!("00-{trace}-{span}-00"))), None);
        let own = Context::of(Some("nonsense")).unwrap();
        assert!(own.parent.is_none() && own.trace.len() == 32 && own.span.len() == 16);
    }

    #[test]
    fn what_cannot_be_sent_is_dropped_and_counted() {
        let otlp = Otlp { endpoint: "http://127.0.0.1:1/".parse().unwrap(), headers: Vec::new() };
        let traces = Traces::new(Some(&otlp), Family::default());
        let span = Span {
            context: Context::of(None).unwrap(),
            name: "GET".to_owned(),
            start: UNIX_EPOCH,
            took: Duration::ZERO,
            status: 200,
            attributes: Vec::new(),
        };
        for _ in 0..WAITING_MAX + 3 {
            traces.record(span.clone());
        }
        assert_eq!(traces.spans.get_or_create(&SpanLabels { result: "dropped" }).get(), 3);
    }
}
