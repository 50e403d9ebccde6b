//! Contents against what was put in, whatever happens to the bytes on the way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::*;
use crate::build::engine::{Engine, Ownership};
use crate::event::{Event, EventSink};
use crate::exec::CancelToken;
use crate::layer::tests::{file, noise, write};
use crate::layer::{Compression, FinishedLayer, LayerOptions, ScanOptions, Timestamp, Toc};
use crate::record::Preimage;
use crate::registry::{Client, ClientOptions, NoCredentials};
use crate::store::maintain::{PrunePolicy, prune};
use crate::store::{BlobSource, Cache, CacheOptions, DirectoryStore, MemoryStore, Store};
use crate::tree::Tree;

struct Silent;

impl EventSink for Silent {
    fn emit(&self, _: Event) {}
}

/// A machine with a local store, and perhaps a remote one.
struct Machine {
    _directory: tempfile::TempDir,
    runtime: Runtime,
    engine: Engine,
}

impl Machine {
    fn new(remote: Option<Arc<dyn Store>>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let local = DirectoryStore::open(directory.path().join("local"), SystemTime::now).unwrap();
        let events: crate::event::Events = Arc::new(Silent);
        let cache = Cache::new(local, remote, CacheOptions::default(), Arc::clone(&events));
        let client = Client::new(ClientOptions::default(), Arc::new(NoCredentials)).unwrap();
        let ownership = Ownership { user_namespace: false, single_id: false };
        let cancel = CancelToken::new().unwrap();
        let executor = Err("no commands are run here".to_owned());
        let engine = Engine::new(cache, executor, client, events, Timestamp::default, ownership, cancel);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Self { _directory: directory, runtime: runtime.unwrap(), engine }
    }

    fn local(&self) -> &DirectoryStore {
        self.engine.cache.local()
    }

    /// Puts the blob into the local store.
    fn has(&self, blob: &[u8]) {
        self.local().store_bytes(blob.to_vec()).unwrap();
    }

    fn contents(&self, layers: &[&Layer]) -> Arc<Contents> {
        let _context = self.runtime.enter();
        let pool = Pool::new(&self.engine).unwrap();
        let layers = layers.iter().map(|layer| Arc::new(layer.frames())).collect();
        Arc::new(Contents::new(pool, layers))
    }

    fn frame_files(&self) -> Vec<std::path::PathBuf> {
        let directory = self.local().state_dir("frames").unwrap();
        fs_err::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

/// A layer, its blob, and what is in it.
struct Layer {
    finished: FinishedLayer,
    blob: Vec<u8>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Layer {
    fn new(sizes: &[usize], compression: Compression) -> Self {
        let files: BTreeMap<String, Vec<u8>> = sizes
            .iter()
            .enumerate()
            .map(|(number, size)| (format!("f{number:04}"), noise(number as u64 + 1, *size)))
            .collect();
        let samples: Vec<_> = files.iter().map(|(path, content)| file(path, content.clone())).collect();
        let (finished, blob) = write(&samples, compression);
        Self { finished, blob, files }
    }

    fn frames(&self) -> LayerFrames {
        let toc = Arc::new(self.finished.toc.clone());
        LayerFrames::new(&self.finished.descriptor(), toc, vec![Preimage::default().key()])
    }

    fn tree(&self) -> Tree {
        let mut tree = Tree::empty();
        tree.apply(0, &self.finished.toc).unwrap();
        tree
    }

    /// Bytes of all frames.
    fn framed_bytes(&self) -> u64 {
        self.finished.toc.frames.iter().map(|frame| frame.size).sum()
    }
}

fn remote_with(blob: &[u8]) -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::new());
    let source = BlobSource::Bytes(blob.to_vec().into());
    futures_util::FutureExt::now_or_never(store.write_blob(&Digest::of(blob), source)).unwrap().unwrap();
    store
}

fn read_all(contents: &Arc<Contents>, node: &Node) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    contents.reader(node).read_to_end(&mut content)?;
    Ok(content)
}

#[track_caller]
fn check_all(contents: &Arc<Contents>, layer: &Layer) {
    let tree = layer.tree();
    for (path, expected) in &layer.files {
        let node = tree.get(path.as_bytes()).unwrap();
        assert!(read_all(contents, node.node).unwrap() == *expected, "{path}");
    }
}

const MANY: [usize; 9] = [10, 3_000_000, 70_000, 0, 5000, 65_536, 1_500_000, 1, 200_000];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Random reads of random files, by several threads, of a layer that is here, elsewhere, or in part here.
    #[test]
    fn what_is_read_is_what_was_written(
        sizes in prop::collection::vec(prop_oneof![0..2000_usize, 0..200_000_usize, 0..2_000_000_usize], 1..12),
        reads in prop::collection::vec((any::<prop::sample::Index>(), any::<u32>(), 0..300_000_usize), 1..24),
        place in 0..3,
        compression in prop_oneof![
            Just(Compression::default()), Just(Compression::Gzip { level: 1 }), Just(Compression::None)
        ],
        ahead: bool,
    ) {
        let layer = Layer::new(&sizes, compression);
        let machine = Machine::new((place > 0).then(|| remote_with(&layer.blob) as Arc<dyn Store>));
        if place == 0 {
            machine.has(&layer.blob);
        }
        let tree = layer.tree();
        let contents = machine.contents(&[&layer]);
        if ahead {
            contents.prefetch(tree.walk(b"").map(|(_, node)| node.node));
        }
        let paths: Vec<&String> = layer.files.keys().collect();
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (contents, tree, layer, paths, reads) = (&contents, &tree, &layer, &paths, &reads);
                scope.spawn(move || {
                    for (which, at, length) in reads.iter().cycle().skip(thread * 3).take(reads.len()) {
                        let path = which.get(paths);
                        let expected = &layer.files[*path];
                        let at = *at as usize % (expected.len() + 2);
                        let mut buffer = vec![0; *length];
                        let node = tree.get(path.as_bytes()).unwrap();
                        let count = contents.read(node.node, at as u64, &mut buffer).unwrap();
                        let expected = expected.get(at..).unwrap_or_default();
                        let expected = &expected[..expected.len().min(*length)];
                        assert!(buffer[..count] == *expected, "{path} at {at}");
                    }
                });
            }
        });
        let fetched = contents.fetched();
        prop_assert!(fetched.bytes <= layer.framed_bytes(), "no frame came twice: {:?}", fetched);
        // What is read ahead may still be under way: it counts here once it has come, and in the store's sum before.
        let downloaded = machine.engine.cache.stats().downloaded;
        prop_assert!(fetched.bytes == downloaded || ahead && fetched.bytes < downloaded, "{downloaded}");
        prop_assert!(place > 0 || fetched == Fetched::default());
        prop_assert_eq!(contents.failure().map(ToString::to_string), None);
    }
}

#[test]
fn only_what_is_read_is_fetched_and_once_for_all_threads() {
    let layer = Layer::new(&MANY, Compression::default());
    let machine = Machine::new(Some(remote_with(&layer.blob)));
    let contents = machine.contents(&[&layer]);
    let tree = layer.tree();
    let node = tree.get(b"f0002").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(read_all(&contents, node.node).unwrap() == layer.files["f0002"]));
        }
    });
    assert_eq!(contents.fetched(), Fetched { frames: 1, bytes: contents.fetched().bytes, requests: 1 });
    assert!(contents.fetched().bytes < 100_000, "{:?}", contents.fetched());
    // What goes on and on comes in fewer and larger requests.
    let before = contents.fetched();
    assert!(read_all(&contents, tree.get(b"f0001").unwrap().node).unwrap() == layer.files["f0001"]);
    let frames = contents.fetched().frames - before.frames;
    let requests = contents.fetched().requests - before.requests;
    assert!(frames >= 5 && requests < frames, "{requests} requests for {frames} frames");
    // The next one, whatever tree it has, finds them on this machine.
    let again = machine.contents(&[&layer]);
    assert!(read_all(&again, tree.get(b"f0001").unwrap().node).unwrap() == layer.files["f0001"]);
    assert_eq!(again.fetched(), Fetched::default());
}

#[test]
fn what_is_damaged_here_is_fetched() {
    let layer = Layer::new(&MANY, Compression::default());
    let machine = Machine::new(Some(remote_with(&layer.blob)));
    machine.has(&layer.blob);
    let place = machine.local().blob_path(&layer.finished.digest);
    let mut damaged = layer.blob.clone();
    damaged[2_000_000] ^= 1;
    fs_err::write(&place, &damaged).unwrap();
    let contents = machine.contents(&[&layer]);
    check_all(&contents, &layer);
    assert!(contents.fetched().frames > 0);
    assert!(!place.exists(), "it is out of the way");
    // The same for frames that were kept, one by one.
    let kept = machine.frame_files();
    assert!(!kept.is_empty());
    for file in &kept {
        let mut bytes = fs_err::read(file).unwrap();
        bytes[0] ^= 1;
        fs_err::write(file, bytes).unwrap();
    }
    let contents = machine.contents(&[&layer]);
    check_all(&contents, &layer);
    assert!(contents.fetched().frames >= kept.len() as u64);
}

#[test]
fn what_is_damaged_elsewhere_or_missing_is_an_error_and_a_loss() {
    let layer = Layer::new(&MANY, Compression::default());
    let directory = tempfile::tempdir().unwrap();
    let shared = DirectoryStore::open_shared(directory.path(), SystemTime::now).unwrap();
    shared.store_bytes(layer.blob.clone()).unwrap();
    let place = shared.blob_path(&layer.finished.digest);
    let mut damaged = layer.blob.clone();
    damaged[1000..].iter_mut().for_each(|byte| *byte ^= 1);
    fs_err::write(&place, &damaged).unwrap();
    let tree = layer.tree();
    for (remote, says) in [
        (Some(Arc::new(shared.clone()) as Arc<dyn Store>), "does not give it"),
        (Some(Arc::new(MemoryStore::new()) as Arc<dyn Store>), "does not give it"),
        (None, "there is no shared cache to ask"),
    ] {
        let machine = Machine::new(remote);
        let contents = machine.contents(&[&layer]);
        let node = tree.get(b"f0001").unwrap();
        let mut buffer = [0; 100];
        let error = contents.read(node.node, 50, &mut buffer).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(says) && text.contains(&layer.finished.digest.to_string()), "{text}");
        assert_eq!(buffer, [0; 100]);
        assert!(read_all(&contents, node.node).is_err());
        assert_eq!(contents.failure().unwrap().to_string(), text, "the first one is kept");
        let BuildError::Lost { digest, keys } = BuildError::from(error) else { panic!("{text}") };
        assert_eq!((digest, keys), (layer.finished.digest, vec![Preimage::default().key()]));
        assert!(machine.frame_files().is_empty());
    }
}

#[test]
fn eviction_in_the_middle_costs_requests_only() {
    let layer = Layer::new(&MANY, Compression::default());
    let machine = Machine::new(Some(remote_with(&layer.blob)));
    let everything = PrunePolicy { all: true, ..PrunePolicy::default() };
    let tree = layer.tree();
    // The blob is open while it is removed, and read on.
    machine.has(&layer.blob);
    let contents = machine.contents(&[&layer]);
    assert!(read_all(&contents, tree.get(b"f0000").unwrap().node).unwrap() == layer.files["f0000"]);
    prune(machine.local(), everything).unwrap();
    assert!(!machine.local().blob_path(&layer.finished.digest).exists());
    check_all(&contents, &layer);
    assert_eq!(contents.fetched(), Fetched::default());
    // Frames are removed while threads read them.
    let contents = machine.contents(&[&layer]);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2).map(|_| scope.spawn(|| check_all(&contents, &layer))).collect();
        while readers.iter().any(|reader| !reader.is_finished()) {
            prune(machine.local(), everything).unwrap();
            machine.frame_files().iter().for_each(|file| fs_err::remove_file(file).unwrap_or_default());
        }
    });
    assert!(contents.failure().is_none());
}

#[test]
fn reading_ahead_takes_few_requests_and_spares_later_ones() {
    let layer = Layer::new(&[20_000; 300], Compression::default());
    let remote = remote_with(&layer.blob);
    let machine = Machine::new(Some(Arc::clone(&remote) as Arc<dyn Store>));
    let contents = machine.contents(&[&layer]);
    let tree = layer.tree();
    contents.prefetch(tree.walk(b"").map(|(_, node)| node.node).take(150));
    let started = std::time::Instant::now();
    let half = layer.framed_bytes() * 4 / 10;
    while contents.fetched().bytes < half {
        assert!(started.elapsed().as_secs() < 60, "{:?}", contents.fetched());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    check_some(&contents, &layer, 0..150);
    let fetched = contents.fetched();
    assert!(fetched.requests <= 3 && fetched.bytes < layer.framed_bytes() * 6 / 10, "{fetched:?}");
    // It is here now.
    remote.evict_blob(&layer.finished.digest);
    let again = machine.contents(&[&layer]);
    check_some(&again, &layer, 0..150);
    assert!(read_all(&again, tree.get(b"f0290").unwrap().node).is_err());
}

#[track_caller]
fn check_some(contents: &Arc<Contents>, layer: &Layer, range: std::ops::Range<usize>) {
    let tree = layer.tree();
    for (path, expected) in layer.files.iter().skip(range.start).take(range.len()) {
        assert!(read_all(contents, tree.get(path.as_bytes()).unwrap().node).unwrap() == *expected, "{path}");
    }
}

#[test]
fn what_is_wanted_whole_comes_in_one_request() {
    let layer = Layer::new(&[20_000; 300], Compression::default());
    let machine = Machine::new(Some(remote_with(&layer.blob)));
    let contents = machine.contents(&[&layer]);
    let tree = layer.tree();
    let nodes: Vec<&Node> = tree.walk(b"").map(|(_, node)| node.node).collect();
    machine.runtime.block_on(contents.expect(&nodes));
    assert!(machine.local().blob_path(&layer.finished.digest).is_file());
    check_all(&contents, &layer);
    assert_eq!(contents.fetched(), Fetched::default());
}

/// A cancelled build waits for nobody.
#[test]
fn reading_ends_with_the_build() {
    let layer = Layer::new(&MANY, Compression::default());
    let machine = Machine::new(Some(remote_with(&layer.blob)));
    let contents = machine.contents(&[&layer]);
    machine.engine.cancel.cancel();
    let node = layer.tree();
    let node = node.get(b"f0001").unwrap();
    // Either the answer or the end is there first.
    match contents.read(node.node, 0, &mut [0; 10]) {
        Ok(count) => assert_eq!(count, 10),
        Err(error) => assert!(matches!(error, ContentError::Cancelled), "{error}"),
    }
}

/// As GNU tar stores files with holes.
#[test]
fn files_with_holes_are_put_together() {
    let directory = tempfile::tempdir().unwrap();
    let mut expected = vec![0; 3 << 20];
    expected[1 << 20..][..6].copy_from_slice(b"middle");
    let holes = fs_err::File::create(directory.path().join("holes")).unwrap();
    holes.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(holes.file(), b"middle", 1 << 20).unwrap();
    fs_err::write(directory.path().join("plain"), b"plain").unwrap();
    for format in ["gnu", "pax"] {
        let tar = std::process::Command::new("tar")
            .args(["--sparse", &format!("--format={format}"), "-cf", "-", "-C"])
            .args([directory.path().as_os_str(), "plain".as_ref(), "holes".as_ref()])
            .output()
            .unwrap();
        let mut blob = Vec::new();
        let options = ScanOptions::default();
        let copy = crate::layer::reframe(&*tar.stdout, &options, &mut (), &mut blob, LayerOptions::default())
            .unwrap();
        let toc: Toc = copy.scanned.toc;
        let descriptor = crate::layer::LayerDescriptor {
            diff_id: copy.scanned.diff_id,
            digest: copy.digest,
            size: copy.size,
            media_type: crate::layer::MediaType::Zstd,
            toc: Digest::of(toc.encode()),
        };
        assert!(toc.frames.iter().map(|frame| frame.raw_size).sum::<u64>() < 1 << 20, "there are holes");
        let machine = Machine::new(Some(remote_with(&blob)));
        let mut tree = Tree::empty();
        tree.apply(0, &toc).unwrap();
        for _ in 0..2 {
            let _context = machine.runtime.enter();
            let layer = LayerFrames::new(&descriptor, Arc::new(toc.clone()), Vec::new());
            let contents =
                Arc::new(Contents::new(Pool::new(&machine.engine).unwrap(), vec![Arc::new(layer)]));
            let node = tree.get(b"holes").unwrap();
            assert_eq!(node.origin.offset, 0);
            let mut middle = [0; 8];
            assert_eq!(contents.read(node.node, (1 << 20) - 1, &mut middle).unwrap(), 8);
            assert_eq!(middle, *b"\0middle\0");
            assert!(read_all(&contents, node.node).unwrap() == expected);
            assert_eq!(read_all(&contents, tree.get(b"plain").unwrap().node).unwrap(), b"plain");
        }
    }
}
