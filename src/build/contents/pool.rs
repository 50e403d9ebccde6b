//! Frames by their names: in memory, on this machine, from others; each fetched and decompressed once at a time.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::{ContentError, Counts, LayerFrames, lock};
use crate::build::engine::Engine;
use crate::build::error::BuildError;
use crate::digest::Digest;
use crate::layer::Encoding;

/// Decompressed frames kept in memory. Files of a directory are in a few frames, which are read over and over while the
/// directory is gone through; what is evicted is decompressed again in a millisecond.
const MEMORY_BYTES: usize = 64 << 20;

/// More small frames than this are not kept: each costs some hundred bytes besides its own.
const MEMORY_FRAMES: usize = 4096;

/// Whoever reads a file to its end finds as many of its next frames decompressed already, by another thread. One more than is
/// asked for is decompressed in any case: it has the file's neighbours.
const DECODED_AHEAD: usize = 2;

/// The frames that one build reads, whatever trees they are for.
pub(crate) struct Pool {
    pub(super) engine: Engine,
    pub(super) handle: Handle,
    /// Where frames are kept that came from other machines.
    directory: PathBuf,
    memory: Mutex<Memory>,
    flights: Mutex<HashMap<Digest, Arc<Flight>>>,
    /// Files that are in no tar in one piece, put together.
    pub(super) sparse: Mutex<HashMap<Digest, Arc<File>>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// Somebody is getting a frame.
#[derive(Debug, Default)]
struct Flight {
    has_ended: Mutex<bool>,
    changed: Condvar,
}

/// The right to get a frame. When it is dropped, those who wait look again, and one of them goes on if it has to.
#[derive(Debug)]
pub(super) struct Claim {
    pool: Arc<Pool>,
    id: Digest,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let flight = lock(&self.pool.flights).remove(&self.id);
        if let Some(flight) = flight {
            *lock(&flight.has_ended) = true;
            flight.changed.notify_all();
        }
    }
}

impl Pool {
    /// Frames for the builds of `engine`.
    ///
    /// # Errors
    /// If the local store cannot be written to.
    pub(crate) fn new(engine: &Engine) -> Result<Arc<Self>, BuildError> {
        let directory = engine.cache.local().state_dir("frames");
        let directory = directory.map_err(|error| BuildError::cache("opening the local cache", error))?;
        Ok(Arc::new(Self {
            engine: engine.clone(),
            handle: Handle::current(),
            directory,
            memory: Mutex::default(),
            flights: Mutex::default(),
            sparse: Mutex::default(),
        }))
    }

    /// The content of a frame. Those behind it, up to `last`, are likely to be wanted next: if it has to be fetched they are
    /// too, as far as it looks as if they were wanted, and what is on this machine is decompressed meanwhile.
    pub(super) fn frame(
        self: &Arc<Self>,
        layer: &Arc<LayerFrames>,
        number: usize,
        last: usize,
        counts: &Counts,
    ) -> Result<Arc<Vec<u8>>, ContentError> {
        let (raw, is_new) = self.only_frame(layer, number, last, counts)?;
        let ahead = if number < last { DECODED_AHEAD.min(last - number) } else { usize::from(is_new) };
        for next in (number + 1..layer.frames().len()).take(ahead) {
            self.decode_ahead(layer, next);
        }
        Ok(raw)
    }

    /// Decompresses a frame in the background, if it is on this machine and nobody has done it yet.
    fn decode_ahead(self: &Arc<Self>, layer: &Arc<LayerFrames>, number: usize) {
        let id = layer.frames()[number].id;
        let name = (id, layer.encoding());
        if lock(&self.memory).frames.contains_key(&name) || !self.is_here(layer, number) {
            return;
        }
        let Some(claim) = self.claim(id) else { return };
        let (pool, layer) = (Arc::clone(self), Arc::clone(layer));
        self.engine.beside(&self.handle, move || {
            // What is damaged shows when it is read.
            if let Some(bytes) = pool.on_this_machine(&layer, number)
                && let Ok(raw) = layer.frames()[number].decode(layer.encoding(), bytes)
            {
                lock(&pool.memory).insert(name, Arc::new(raw));
            }
            drop(claim);
        });
    }

    /// The content of a frame, and whether it had to be decompressed for that.
    fn only_frame(
        self: &Arc<Self>,
        layer: &Arc<LayerFrames>,
        number: usize,
        last: usize,
        counts: &Counts,
    ) -> Result<(Arc<Vec<u8>>, bool), ContentError> {
        let id = layer.frames()[number].id;
        let name = (id, layer.encoding());
        loop {
            if let Some(raw) = lock(&self.memory).get(&name) {
                return Ok((raw, false));
            }
            if let Some(claim) = self.claim(id) {
                // Whoever had it may have just given it back.
                if let Some(raw) = lock(&self.memory).get(&name) {
                    return Ok((raw, false));
                }
                let bytes = match self.on_this_machine(layer, number) {
                    Some(bytes) => bytes,
                    None => self.fetch_now(layer, number, last, counts)?,
                };
                let raw = layer.frames()[number].decode(layer.encoding(), bytes);
                let raw = Arc::new(raw.map_err(|error| layer.wrong(&error))?);
                lock(&self.memory).insert(name, Arc::clone(&raw));
                drop(claim);
                return Ok((raw, true));
            }
            let flight = lock(&self.flights).get(&id).cloned();
            if let Some(flight) = flight {
                let mut has_ended = lock(&flight.has_ended);
                while !*has_ended {
                    has_ended =
                        flight.changed.wait(has_ended).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
            }
        }
    }

    /// The right to get a frame, if nobody has it.
    pub(super) fn claim(self: &Arc<Self>, id: Digest) -> Option<Claim> {
        let mut flights = lock(&self.flights);
        if flights.contains_key(&id) {
            return None;
        }
        flights.insert(id, Arc::default());
        Some(Claim { pool: Arc::clone(self), id })
    }

    /// Whether a frame can be had without asking anybody.
    pub(super) fn is_here(&self, layer: &LayerFrames, number: usize) -> bool {
        let id = layer.frames()[number].id;
        lock(&self.memory).get(&(id, layer.encoding())).is_some()
            || layer.is_local(self.engine.cache.local())
            || self.place(&id).exists()
    }

    fn place(&self, id: &Digest) -> PathBuf {
        self.directory.join(id.hex())
    }

    /// Where a file is kept that was put together.
    pub(super) fn place_of_content(&self, content: &Digest) -> PathBuf {
        self.directory.join(format!("content-{}", content.hex()))
    }

    fn on_this_machine(&self, layer: &LayerFrames, number: usize) -> Option<Vec<u8>> {
        let local = self.engine.cache.local();
        if let Some(bytes) = layer.local(local, number) {
            return Some(bytes);
        }
        let frame = &layer.frames()[number];
        let place = self.place(&frame.id);
        let length = fs_err::metadata(&place).ok()?.len();
        let bytes = if length == frame.size { fs_err::read(&place).ok() } else { None };
        match bytes.filter(|bytes| frame.id.matches(bytes)) {
            Some(bytes) => {
                local.touch_state(&place);
                Some(bytes)
            }
            None => {
                let _ = fs_err::remove_file(&place);
                None
            }
        }
    }

    /// Fetches a frame that this thread has a claim on, and what follows it up to `last` as far as that is likely to be
    /// wanted, in one request.
    fn fetch_now(
        self: &Arc<Self>,
        layer: &Arc<LayerFrames>,
        number: usize,
        last: usize,
        counts: &Counts,
    ) -> Result<Vec<u8>, ContentError> {
        let window = layer.window(number);
        let mut claims = Vec::new();
        let mut end = number;
        while end < last
            && layer.length(&(number..=end + 1)) <= window
            && !self.is_here(layer, end + 1)
            && let Some(claim) = self.claim(layer.frames()[end + 1].id)
        {
            claims.push(claim);
            end += 1;
        }
        layer.asked(window, end + 1);
        let fetched = self.handle.block_on(async {
            tokio::select! {
                fetched = self.fetch(layer, number..=end, counts) => Some(fetched),
                () = self.engine.cancelled() => None,
            }
        });
        let fetched = fetched.ok_or(ContentError::Cancelled)?.map_err(|why| layer.missing(number, why))?;
        for (number, bytes) in (number..).zip(&fetched) {
            self.keep(layer, number, bytes);
        }
        drop(claims);
        Ok(fetched.into_iter().next().unwrap_or_default().into())
    }

    /// Asks others for frames that follow each other. They come whole and sound, or else there is a reason, in words.
    pub(super) async fn fetch(
        &self,
        layer: &LayerFrames,
        numbers: RangeInclusive<usize>,
        counts: &Counts,
    ) -> Result<Vec<Bytes>, String> {
        let range = layer.range(&numbers);
        let split = |bytes: &Bytes| {
            let mut at = 0;
            let frames = layer.frames()[numbers.clone()].iter().map(|frame| {
                let end = at + usize::try_from(frame.size).unwrap_or(usize::MAX);
                let bytes = bytes.get(at..end).filter(|bytes| frame.id.matches(bytes))?;
                at = end;
                Some(Bytes::copy_from_slice(bytes))
            });
            frames.collect::<Option<Vec<_>>>()
        };
        let frames = self.engine.cache.read_part(layer.digest(), range, split).await;
        let frames = frames.ok_or_else(|| match self.engine.cache.remote() {
            Some(location) => format!("{location} does not give it"),
            None => "there is no shared cache to ask".to_owned(),
        })?;
        counts.add(frames.len(), frames.iter().map(Bytes::len).sum());
        Ok(frames)
    }

    /// Keeps a frame on this machine's disk; `false` if that does not work. It saves a request later, no more.
    pub(super) fn keep(&self, layer: &LayerFrames, number: usize, bytes: &[u8]) -> bool {
        let place = self.place(&layer.frames()[number].id);
        let write = || {
            let mut file = self.engine.cache.local().tmp_file().ok()?;
            file.write_all(bytes).ok()?;
            file.persist(&place).ok()
        };
        write().is_some()
    }
}

/// The name of a frame's content. The same bytes could be meant in two ways.
type Name = (Digest, Encoding);

/// Decompressed frames; the least recently used ones go first.
#[derive(Debug, Default)]
struct Memory {
    frames: HashMap<Name, (Arc<Vec<u8>>, u64)>,
    order: BTreeMap<u64, Name>,
    bytes: usize,
    clock: u64,
}

impl Memory {
    fn get(&mut self, name: &Name) -> Option<Arc<Vec<u8>>> {
        let (raw, used) = self.frames.get_mut(name)?;
        self.clock += 1;
        self.order.remove(used);
        *used = self.clock;
        self.order.insert(self.clock, *name);
        Some(Arc::clone(raw))
    }

    fn insert(&mut self, name: Name, raw: Arc<Vec<u8>>) {
        self.clock += 1;
        self.bytes += raw.len();
        if let Some((before, used)) = self.frames.insert(name, (raw, self.clock)) {
            self.bytes -= before.len();
            self.order.remove(&used);
        }
        self.order.insert(self.clock, name);
        while (self.bytes > MEMORY_BYTES || self.frames.len() > MEMORY_FRAMES)
            && let Some((_, oldest)) = self.order.pop_first()
        {
            if let Some((raw, _)) = self.frames.remove(&oldest) {
                self.bytes -= raw.len();
            }
        }
    }
}
