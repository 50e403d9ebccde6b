//! A slow link: a TCP proxy that delays and limits what goes through, and counts round trips.
//!
//! Half of the round-trip time is added in each direction, and a connection takes a round trip to be made, as on a
//! real link. All connections share its rate. Round trips are counted as a client waits for them: a request is one
//! later than the latest answer that any connection has brought before it.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// What may be on its way in one direction of a connection: as much as a real link and its buffers hold.
const WINDOW: usize = 8 << 20;

/// What a link is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Speed {
    /// From one end to the other and back.
    pub(crate) round_trip: Duration,
    /// Bits a second, in each direction.
    pub(crate) rate: f64,
}

/// What went through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Answers that somebody has waited for, one after the other.
    pub(crate) round_trips: u32,
    /// Connections made.
    pub(crate) connections: u32,
    /// Bytes from clients.
    pub(crate) up: u64,
    /// Bytes to clients.
    pub(crate) down: u64,
}

#[derive(Debug, Default)]
struct State {
    count: Count,
    /// The round trip that the latest delivered answer belongs to.
    delivered: u32,
}

/// Listens on a port of its own and passes everything on, until it is dropped.
pub(crate) struct Link {
    address: String,
    state: Arc<Mutex<State>>,
    ended: Arc<AtomicBool>,
}

/// One direction that all connections share: when it is free again.
type Lane = Arc<Mutex<Instant>>;

impl Link {
    /// A link on a free port of this machine, to `server`.
    #[allow(dead_code, reason = "the program names its port")]
    pub(crate) fn start(server: &str, speed: Speed) -> Self {
        Self::listen("127.0.0.1:0", server, speed)
    }

    /// The same on a port that is named.
    pub(crate) fn listen(address: &str, server: &str, speed: Speed) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (state, ended) = (Arc::new(Mutex::new(State::default())), Arc::new(AtomicBool::new(false)));
        let (counted, end, server) = (Arc::clone(&state), Arc::clone(&ended), server.to_owned());
        let (up, down) = (Lane::new(Mutex::new(Instant::now())), Lane::new(Mutex::new(Instant::now())));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (state, server) = (Arc::clone(&counted), server.clone());
                let (up, down) = (Arc::clone(&up), Arc::clone(&down));
                std::thread::spawn(move || connection(client, &server, speed, &state, (up, down)));
            }
        });
        Self { address, state, ended }
    }

    /// `127.0.0.1:port`
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// What went through since the last time.
    pub(crate) fn take(&self) -> Count {
        let mut state = self.state.lock().unwrap();
        state.delivered = 0;
        std::mem::take(&mut state.count)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for connections.
        drop(TcpStream::connect(&self.address));
    }
}

fn connection(client: TcpStream, server: &str, speed: Speed, state: &Arc<Mutex<State>>, lanes: (Lane, Lane)) {
    // The handshake of a real one.
    std::thread::sleep(speed.round_trip);
    let Ok(server) = TcpStream::connect(server) else { return };
    for stream in [&client, &server] {
        drop(stream.set_nodelay(true));
    }
    state.lock().unwrap().count.connections += 1;
    // The round trip that this connection's request belongs to, and whether an answer to it has begun.
    let turn = Arc::new(Mutex::new((0_u32, true)));
    let (asking, answering) = (Arc::clone(&turn), turn);
    let (asked, answered) = (Arc::clone(state), Arc::clone(state));
    let request = move |bytes: usize| {
        let mut state = asked.lock().unwrap();
        state.count.up += bytes as u64;
        let mut turn = asking.lock().unwrap();
        if turn.1 {
            *turn = (state.delivered + 1, false);
        }
    };
    let answer = move |bytes: usize| {
        let mut state = answered.lock().unwrap();
        state.count.down += bytes as u64;
        let mut turn = answering.lock().unwrap();
        turn.1 = true;
        state.delivered = state.delivered.max(turn.0);
        state.count.round_trips = state.count.round_trips.max(turn.0);
    };
    let (from_client, to_client) = (client.try_clone().unwrap(), client);
    let (from_server, to_server) = (server.try_clone().unwrap(), server);
    // A request is counted when it is sent, an answer when it has arrived.
    let back = std::thread::spawn(move || pass(from_server, to_client, speed, &lanes.1, |_| (), answer));
    pass(from_client, to_server, speed, &lanes.0, request, |_| ());
    drop(back.join());
}

/// What is on its way.
#[derive(Default)]
struct Pipe {
    queue: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    is_over: bool,
}

fn pass(
    mut from: TcpStream,
    mut to: TcpStream,
    speed: Speed,
    lane: &Lane,
    sent: impl Fn(usize),
    arrived: impl Fn(usize) + Send + 'static,
) {
    let pipe = Arc::new((Mutex::new(Pipe::default()), Condvar::new()));
    let other = Arc::clone(&pipe);
    let writer = std::thread::spawn(move || {
        let (pipe, changed) = &*other;
        loop {
            let next = {
                let mut pipe = pipe.lock().unwrap();
                loop {
                    if let Some((due, bytes)) = pipe.queue.pop_front() {
                        pipe.bytes -= bytes.len();
                        changed.notify_all();
                        break Some((due, bytes));
                    }
                    if pipe.is_over {
                        break None;
                    }
                    pipe = changed.wait(pipe).unwrap();
                }
            };
            let Some((due, bytes)) = next else { break };
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
            arrived(bytes.len());
        }
        drop(to.shutdown(Shutdown::Write));
        let mut pipe = pipe.lock().unwrap();
        pipe.is_over = true;
        changed.notify_all();
    });
    let (pipe, changed) = &*pipe;
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        sent(length);
        let due = {
            let mut free = lane.lock().unwrap();
            #[expect(clippy::cast_precision_loss, reason = "a buffer has not that many bytes")]
            let seconds = length as f64 * 8.0 / speed.rate;
            *free = (*free).max(Instant::now()) + Duration::from_secs_f64(seconds);
            *free + speed.round_trip / 2
        };
        let mut pipe = pipe.lock().unwrap();
        while pipe.bytes >= WINDOW && !pipe.is_over {
            pipe = changed.wait(pipe).unwrap();
        }
        if pipe.is_over {
            break;
        }
        pipe.bytes += length;
        pipe.queue.push_back((due, buffer[..length].to_vec()));
        changed.notify_all();
    }
    pipe.lock().unwrap().is_over = true;
    changed.notify_all();
    drop(from.shutdown(Shutdown::Read));
    drop(writer.join());
}
