//! Compresses frames on several threads, and hashes each byte as few times as the digests allow.
//!
//! Three kinds of threads work side by side: the caller's reads files and writes the blob, one hashes the tar, and
//! `threads` others hash and compress one frame each. Frames leave in the order in which they came.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::error::LayerError;
use super::toc::Frame;
use crate::digest::{Digest, Hashing};

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// zstd, one frame each; with the TOC in the blob.
    Zstd {
        /// zstd's level; 3 unless there is a reason.
        level: i32,
    },
    /// gzip, one member each, for clients that know no zstd.
    Gzip {
        /// 0 to 9.
        level: u32,
    },
    /// None.
    None,
}

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd { level: 3 }
    }
}

/// More threads would only hold more memory.
const THREADS_MAX: usize = 6;

/// Raw bytes of the frames that are under way at once. With what they are compressed to, at most twice that is held in
/// memory. Small frames are many then, so that no thread waits for another:
/// measured on 27,000 files of 18 kB, 16 MiB against 6 frames take a fifth less time.
const IN_FLIGHT_BYTES: usize = 16 << 20;

/// Frames under way at once: as many as fill [`IN_FLIGHT_BYTES`] if they are small.
const IN_FLIGHT_FRAMES: usize = 128;

struct Job {
    raw: Vec<u8>,
    reply: SyncSender<io::Result<Done>>,
}

struct Done {
    id: Digest,
    raw_size: usize,
    bytes: Vec<u8>,
}

/// What is known when everything is written.
pub(crate) struct Finished<W> {
    pub(crate) out: Hashing<W>,
    pub(crate) frames: Vec<Frame>,
}

pub(crate) struct Pipeline<W> {
    out: Hashing<W>,
    frames: Vec<Frame>,
    jobs: SyncSender<Job>,
    waiting: VecDeque<Receiver<io::Result<Done>>>,
    /// Raw bytes of what is in `waiting`.
    in_flight: usize,
    workers: Vec<JoinHandle<()>>,
}

impl<W: Write> Pipeline<W> {
    pub(crate) fn new(out: W, compression: Compression, threads: usize) -> Result<Self, LayerError> {
        let threads = threads.clamp(1, THREADS_MAX);
        let (jobs, queue) = sync_channel::<Job>(IN_FLIGHT_FRAMES);
        let queue = Arc::new(Mutex::new(queue));
        let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let mut workers = Vec::new();
        for _ in 0..threads {
            let queue = Arc::clone(&queue);
            let mut worker = Worker::new(compression).map_err(LayerError::io("preparing compression"))?;
            let thread = spawn("layer-frame").spawn(move || {
                loop {
                    let job = match queue.lock() {
                        Ok(queue) => queue.recv(),
                        Err(_) => return,
                    };
                    let Ok(Job { raw, reply }) = job else { return };
                    // Nobody waits for the answer if the writer was given up.
                    let _ = reply.send(worker.run(raw));
                }
            });
            workers.push(thread.map_err(LayerError::io("starting a thread"))?);
        }
        let out = Hashing::new(out);
        let waiting = VecDeque::new();
        Ok(Self { out, frames: Vec::new(), jobs, waiting, in_flight: 0, workers })
    }

    /// Adds the next frame of the tar.
    pub(crate) fn frame(&mut self, raw: Vec<u8>) -> Result<(), LayerError> {
        if raw.is_empty() {
            return Ok(());
        }
        while !self.waiting.is_empty()
            && (self.waiting.len() >= IN_FLIGHT_FRAMES || self.in_flight + raw.len() > IN_FLIGHT_BYTES)
        {
            self.write_next()?;
        }
        self.in_flight += raw.len();
        let (reply, answer) = sync_channel(1);
        self.jobs.send(Job { raw, reply }).map_err(|_| LayerError::Pipeline)?;
        self.waiting.push_back(answer);
        Ok(())
    }

    fn write_next(&mut self) -> Result<(), LayerError> {
        let Some(answer) = self.waiting.pop_front() else { return Ok(()) };
        let done = answer.recv().map_err(|_| LayerError::Pipeline)?;
        let done = done.map_err(LayerError::io("compressing the layer"))?;
        self.in_flight -= done.raw_size;
        self.out.write_all(&done.bytes).map_err(LayerError::io("writing the layer"))?;
        self.frames.push(Frame {
            id: done.id,
            raw_size: done.raw_size as u64,
            size: done.bytes.len() as u64,
        });
        Ok(())
    }

    /// Waits for everything that was added.
    pub(crate) fn finish(mut self) -> Result<Finished<W>, LayerError> {
        while !self.waiting.is_empty() {
            self.write_next()?;
        }
        drop(self.jobs);
        for worker in self.workers {
            worker.join().map_err(|_| LayerError::Pipeline)?;
        }
        Ok(Finished { out: self.out, frames: self.frames })
    }
}

enum Worker {
    Zstd(zstd::bulk::Compressor<'static>),
    Gzip(u32),
    None,
}

impl Worker {
    fn new(compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::Zstd { level } => Self::Zstd(compressor(level)?),
            Compression::Gzip { level } => Self::Gzip(level.min(9)),
            Compression::None => Self::None,
        })
    }

    fn run(&mut self, raw: Vec<u8>) -> io::Result<Done> {
        let raw_size = raw.len();
        let bytes = match self {
            Self::Zstd(compressor) => compressor.compress(&raw)?,
            Self::Gzip(level) => gzip(&raw, *level)?,
            Self::None => raw,
        };
        Ok(Done { id: Digest::of(&bytes), raw_size, bytes })
    }
}

/// A compressor as the format wants it: content size on; no checksum, since every frame is verified by its digest; no
/// dictionary.
pub(super) fn compressor(level: i32) -> io::Result<zstd::bulk::Compressor<'static>> {
    use zstd::zstd_safe::CParameter;
    let mut compressor = zstd::bulk::Compressor::new(level)?;
    compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
    compressor.set_parameter(CParameter::ChecksumFlag(false))?;
    Ok(compressor)
}

/// One gzip member, without name and time.
fn gzip(raw: &[u8], level: u32) -> io::Result<Vec<u8>> {
    let out = Vec::with_capacity(raw.len() / 2);
    let builder = flate2::GzBuilder::new().mtime(0).operating_system(255);
    let mut encoder = builder.write(out, flate2::Compression::new(level));
    encoder.write_all(raw)?;
    encoder.finish()
}
