//! A connection to a server that counts what goes through.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What went through.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traffic {
    /// What clients sent, of all connections.
    pub(crate) sent: Vec<u8>,
    /// How many bytes the server answered with.
    pub(crate) received: usize,
}

impl Traffic {
    /// The requests: `GET /v2/`.
    pub(crate) fn requests(&self) -> Vec<String> {
        let sent = String::from_utf8_lossy(&self.sent);
        let lines = sent.lines().filter_map(|line| line.strip_suffix(" HTTP/1.1"));
        // A body may end without a line's end, and the next request is on its line then.
        let methods = ["GET /", "HEAD /", "POST /", "PUT /", "PATCH /"];
        lines
            .filter_map(|line| {
                methods.iter().filter_map(|method| line.rfind(method)).max().map(|at| &line[at..])
            })
            .map(str::to_owned)
            .collect()
    }
}

/// It listens on a port of its own and passes everything on, until it is dropped.
pub(crate) struct Counting {
    address: String,
    traffic: Arc<Mutex<Traffic>>,
    ended: Arc<AtomicBool>,
}

impl Counting {
    pub(crate) fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let traffic = Arc::new(Mutex::new(Traffic::default()));
        let ended = Arc::new(AtomicBool::new(false));
        let (count, end, server) = (Arc::clone(&traffic), Arc::clone(&ended), server.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(server) = TcpStream::connect(&server) else { continue };
                let sent = Arc::clone(&count);
                let received = Arc::clone(&count);
                let up = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    pass(up, |bytes| sent.lock().unwrap().sent.extend_from_slice(bytes));
                });
                std::thread::spawn(move || {
                    pass((server, client), |bytes| received.lock().unwrap().received += bytes.len());
                });
            }
        });
        Self { address, traffic, ended }
    }

    /// `127.0.0.1:port`
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// What went through since the last time.
    pub(crate) fn take(&self) -> Traffic {
        std::mem::take(&mut *self.traffic.lock().unwrap())
    }
}

/// Passes on what comes until one side has enough.
fn pass((mut from, mut to): (TcpStream, TcpStream), count: impl Fn(&[u8])) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        count(&buffer[..length]);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // Each side learns that the other one has gone.
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for connections.
        drop(TcpStream::connect(&self.address));
    }
}
