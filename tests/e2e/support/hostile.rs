//! A real HTTP server on loopback that does what it is told, however wrong.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What is done with a request.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// A status, header lines, and a body with its true length.
    Full(u16, Vec<String>, Vec<u8>),
    /// The same with a length that is announced whatever the body is; then the connection ends.
    Lying(u64, Vec<String>, Vec<u8>),
    /// A body that never ends, of this piece again and again, announced as whatever these header lines say.
    Endless(Vec<String>, Vec<u8>),
    /// A body of which a byte comes now and then.
    Dripping(Duration, Vec<String>, Vec<u8>),
    /// Nothing at all; the connection stays open.
    Silence,
    /// Bytes that are no HTTP.
    Raw(Vec<u8>),
}

type Handler = dyn Fn(&str, &str) -> Answer + Send + Sync;

/// The server, until it is dropped.
pub(crate) struct Hostile {
    address: String,
    ended: Arc<AtomicBool>,
}

impl Hostile {
    /// Starts it. `handler` gets `METHOD /path` and the server's own address.
    pub(crate) fn start(handler: impl Fn(&str, &str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let ended = Arc::new(AtomicBool::new(false));
        let handler: Arc<Handler> = Arc::new(handler);
        std::thread::spawn({
            let (address, ended) = (address.clone(), Arc::clone(&ended));
            move || {
                for stream in listener.incoming() {
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    let Ok(stream) = stream else { continue };
                    let (handler, address, ended) =
                        (Arc::clone(&handler), address.clone(), Arc::clone(&ended));
                    // A client that goes away in the middle is what these tests are about.
                    std::thread::spawn(move || drop(serve(stream, &*handler, &address, &ended)));
                }
            }
        });
        Self { address, ended }
    }

    /// `127.0.0.1:port`
    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for connections.
        drop(TcpStream::connect(&self.address));
    }
}

fn serve(mut stream: TcpStream, handler: &Handler, address: &str, ended: &AtomicBool) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let request = request.rsplit_once(' ').map_or("", |(request, _)| request).replace("%3A", ":");
    let head = |status: u16, lines: &[String]| {
        lines
            .iter()
            .fold(format!("HTTP/1.1 {status} X\r\nConnection: close\r\n"), |head, line| head + line + "\r\n")
            + "\r\n"
    };
    let with = |mut lines: Vec<String>, length: u64| {
        lines.push(format!("Content-Length: {length}"));
        lines
    };
    let body_wanted = !request.starts_with("HEAD ");
    match handler(&request, address) {
        Answer::Full(status, lines, body) => {
            stream.write_all(head(status, &with(lines, body.len() as u64)).as_bytes())?;
            if body_wanted {
                stream.write_all(&body)?;
            }
        }
        Answer::Lying(length, lines, body) => {
            stream.write_all(head(200, &with(lines, length)).as_bytes())?;
            if body_wanted {
                stream.write_all(&body)?;
            }
        }
        Answer::Endless(lines, piece) => {
            stream.write_all(head(200, &lines).as_bytes())?;
            while body_wanted && !ended.load(Ordering::Relaxed) {
                stream.write_all(&piece)?;
            }
        }
        Answer::Dripping(pause, lines, body) => {
            stream.write_all(head(200, &with(lines, body.len() as u64)).as_bytes())?;
            for byte in body {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                stream.write_all(&[byte])?;
                std::thread::sleep(pause);
            }
        }
        Answer::Silence => {
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        Answer::Raw(bytes) => stream.write_all(&bytes)?,
    }
    stream.flush()
}
