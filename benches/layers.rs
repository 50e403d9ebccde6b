//! Layers: writing one, reading it back, and merging it into a tree.
//!
//! `cargo bench --bench layers` measures synthetic trees. With `LAYER_BENCH_DIR=/usr/lib` a real directory is packed
//! once as well, to be compared with `tar --sort=name -c DIR | zstd -3 -T0 >/dev/null`.

use std::hint::black_box;
use std::io::{Cursor, Read, Write};
use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossdock::layer::{
    Compression, DiffOptions, FinishedLayer, LayerOptions, LayerWriter, Metadata, ScanOptions, TocReader,
    diff_upper, scan,
};
use crossdock::tree::Tree;

/// Text-like bytes, which compress about threefold.
fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 16);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let word = (state >> 33) % 512;
        write!(bytes, "{word:x} token ").expect("a Vec takes everything");
    }
    bytes.truncate(length);
    bytes
}

/// Many small files and some large ones, like a package's files.
fn files(count: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let file = |n: usize| {
        let length = if n.is_multiple_of(97) { 700_000 } else { n * 7919 % 12_000 };
        (format!("usr/lib/package-{:03}/file-{n}", n / 40).into_bytes(), content(n as u64, length))
    };
    (0..count).map(file).collect()
}

fn write(files: &[(Vec<u8>, Vec<u8>)], compression: Compression) -> (FinishedLayer, Vec<u8>) {
    let mut blob = Vec::new();
    let metadata = Metadata { mode: 0o644, ..Metadata::default() };
    let mut writer =
        LayerWriter::new(&mut blob, LayerOptions { compression, threads: 2 }).expect("threads start");
    for (path, content) in files {
        writer.file(path, &metadata, content.len() as u64, &mut &**content).expect("memory is readable");
    }
    (writer.finish().expect("the layer is valid"), blob)
}

fn layers(c: &mut Criterion) {
    let files = files(4000);
    let (layer, blob) = write(&files, Compression::default());
    let mut group = c.benchmark_group("layer");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(layer.raw_size));
    group.bench_function("write zstd", |b| b.iter(|| write(&files, Compression::default())));
    group.bench_function("write plain", |b| b.iter(|| write(&files, Compression::None)));
    group.bench_function("scan", |b| {
        b.iter(|| scan(black_box(&*blob), &ScanOptions::default(), &mut ()).expect("our own layer"));
    });
    group.bench_function("read frames", |b| {
        b.iter(|| {
            let mut reader =
                TocReader::new(&layer.toc, layer.media_type, Cursor::new(&blob)).expect("it has frames");
            let mut bytes = Vec::new();
            for entry in &layer.toc.entries {
                bytes.clear();
                reader.content(entry).read_to_end(&mut bytes).expect("our own layer");
            }
        });
    });
    group.finish();

    let many: Vec<_> =
        (0..12_000).map(|n| (format!("usr/share/d{}/f{n}", n / 30).into_bytes(), vec![b'x'])).collect();
    let (layer, _) = write(&many, Compression::None);
    let mut group = c.benchmark_group("12k entries");
    group.bench_function("decode", |b| {
        b.iter(|| crossdock::layer::Toc::decode(black_box(&layer.toc_bytes)).expect("our own TOC"));
    });
    let merge = || {
        let mut tree = Tree::empty();
        tree.apply(0, black_box(&layer.toc)).expect("our own TOC");
        tree
    };
    group.bench_function("merge", |b| b.iter(merge));
    group.bench_function("merge and digest", |b| b.iter(|| merge().digest()));
    group.finish();
}

/// Packs a real directory, three times: from the second on its files are in the page cache.
#[expect(clippy::print_stdout, reason = "a benchmark reports")]
fn directory(_: &mut Criterion) {
    let Some(path) = std::env::var_os("LAYER_BENCH_DIR") else { return };
    for _ in 0..3 {
        let start = Instant::now();
        let directory = fs_err::File::open(&path).expect("LAYER_BENCH_DIR can be opened");
        let mut writer = LayerWriter::new(std::io::sink(), LayerOptions::default()).expect("threads start");
        diff_upper(directory.file(), &Tree::empty(), &DiffOptions::default(), &mut writer)
            .expect("the directory does not change");
        let layer = writer.finish().expect("the layer is valid");
        let elapsed = start.elapsed();
        let speed = u128::from(layer.raw_size) / elapsed.as_micros().max(1);
        println!(
            "{}: {} bytes to {} in {} frames, {elapsed:.2?}, {speed} MB/s",
            path.display(),
            layer.raw_size,
            layer.size,
            layer.toc.frames.len()
        );
    }
}

criterion_group!(benches, directory, layers);
criterion_main!(benches);
