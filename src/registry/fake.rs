//! A registry that misbehaves on command: answers are made by a function of the request.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What a client sent.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Method and target, with the digests' colons decoded.
    pub(super) fn line(&self) -> String {
        format!("{} {}", self.method, self.target.replace("%3A", ":").replace("%2F", "/"))
    }
}

/// What it gets.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// The connection breaks after as many bytes of the body.
    cut: Option<usize>,
    /// The body has no announced length: it ends with the connection.
    endless: bool,
}

impl Answer {
    pub(super) fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(super) fn header(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(super) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    pub(super) fn without_length(mut self) -> Self {
        self.endless = true;
        self
    }

    pub(super) fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }
}

type Handler = dyn Fn(&Seen, usize) -> Answer + Send + Sync;

/// A server on a port of this machine, for as long as the test's runtime lives.
pub(super) struct Fake {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Fake {
    /// Starts a server; `handler` gets each request and how many there were before.
    pub(super) async fn start(handler: impl Fn(&Seen, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let handler: Arc<Handler> = Arc::new(handler);
        let requests = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (handler, requests) = (Arc::clone(&handler), Arc::clone(&requests));
                // A client that goes away is no error here.
                tokio::spawn(async move { serve(stream, &*handler, &requests).await.unwrap_or_default() });
            }
        });
        Self { address, seen }
    }

    /// The requests so far.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Their methods and targets.
    pub(super) fn lines(&self) -> Vec<String> {
        self.seen().iter().map(Seen::line).collect()
    }
}

async fn serve(mut stream: TcpStream, handler: &Handler, requests: &Mutex<Vec<Seen>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ');
    let (method, target) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut seen = Seen { method, target, headers, body: Vec::new() };
    let length = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    seen.body.resize(length, 0);
    stream.read_exact(&mut seen.body).await?;
    let before = {
        let mut requests = requests.lock().unwrap();
        requests.push(seen.clone());
        requests.len() - 1
    };
    let answer = handler(&seen, before);
    let length = answer.headers.iter().any(|(name, _)| name == "Content-Length");
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status);
    if !length && !answer.endless && answer.status != 204 {
        head.push_str(&format!("Content-Length: {}\r\n", answer.body.len()));
    }
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await?;
    if seen.method != "HEAD" {
        stream.write_all(&answer.body[..answer.cut.unwrap_or(answer.body.len())]).await?;
    }
    stream.flush().await?;
    stream.shutdown().await
}
