//! Everything at once, for a while: several servers over one storage, several clients, slow links between them, and
//! whatever can go wrong. At the end nothing that was acknowledged is lost, and nothing wrong was read.
//!
//! Twenty seconds each by default, ten minutes with `./test --long`.

#![allow(clippy::print_stdout, reason = "what was done is said aloud")]

mod client;
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossdock::digest::Digest;

use self::client::{Client, Told};
use self::world::World;
use crate::support::chance::Chance;
use crate::support::disk::SmallDisk;
use crate::support::lab::Lab;
use crate::support::s3::S3;

/// Clients that speak to the servers' API without a pause.
const CLIENTS: usize = 4;

/// What a server must have acknowledged for the rest to mean anything.
const ACKNOWLEDGED_MIN: usize = 20;

fn time() -> Duration {
    if std::env::var_os("CROSSDOCK_TEST_LONG").is_some() {
        Duration::from_mins(10)
    } else {
        Duration::from_secs(20)
    }
}

/// Over a directory on a disk of its own, which is full now and then.
#[test]
fn servers_over_one_directory() {
    let chance = Chance::new("soak over a directory");
    let lab = Lab::new();
    let disk = SmallDisk::mount(&lab.context, "disk", "256m");
    let storage = lab.context.path("disk/storage").display().to_string();
    soak(lab, storage, None, chance);
    drop(disk);
}

/// Over a bucket, whose own server stops, is killed and comes back.
#[test]
fn servers_over_one_bucket() {
    let chance = Chance::new("soak over a bucket");
    let lab = Lab::new();
    // moto forgets everything when it is killed, and is only stopped.
    let Some(s3) = S3::files(&lab.context, "buckets").or_else(|| S3::moto(&lab.context)) else { return };
    soak(lab, "s3://cache/soak".to_owned(), Some(s3), chance);
}

fn soak(lab: Lab, storage: String, s3: Option<S3>, mut chance: Chance) {
    let mut world = World::new(lab, storage, s3);
    let told = Arc::new(Told::default());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let chance = chance.fork();
            Client::start(number, world.addresses(), Arc::clone(&told), chance)
        })
        .collect();
    let started = Instant::now();
    let (mut faults, mut builds) = (0, 0);
    // On a busy machine it takes longer to do enough.
    let is_enough =
        || told.blobs().len().min(told.reads()) >= ACKNOWLEDGED_MIN || started.elapsed() > 10 * time();
    while started.elapsed() < time() || !is_enough() {
        std::thread::sleep(Duration::from_millis(chance.below(600)));
        world.revive();
        match chance.below(4) {
            0 => builds += u32::from(world.build(&mut chance)),
            _ => {
                let fault = world.fault(&mut chance);
                println!("{:6.1} s: {fault}", started.elapsed().as_secs_f64());
                faults += 1;
            }
        }
        world.check_builds();
        assert!(clients.iter().all(Client::is_running), "a client has failed");
    }
    told.end();
    for client in clients {
        client.finish();
    }
    let at_the_end = world.rest();
    let blobs = told.blobs();
    let records = told.records();
    println!(
        "{faults} faults, {builds} builds, {} blobs and {} records acknowledged, {} reads, {} refused or broken off",
        blobs.len(),
        records.len(),
        told.reads(),
        told.refused()
    );
    assert!(blobs.len() >= ACKNOWLEDGED_MIN, "too little was done: {} blobs", blobs.len());
    assert!(told.reads() >= ACKNOWLEDGED_MIN, "too little was done: {} reads", told.reads());
    let lost = client::lost(&at_the_end, &blobs, &records);
    assert!(lost.is_empty(), "acknowledged, and lost: {lost:#?}");
    world.verify();
}

/// Content that follows from a number.
fn content(seed: u64) -> Vec<u8> {
    let mut chance = Chance::seeded(seed);
    // Mostly small; some take several pieces on their way.
    let length = match chance.below(8) {
        0 => chance.below(1_500_000),
        1 => chance.below(100),
        _ => chance.below(40_000),
    };
    let mut bytes: Vec<u8> = Vec::with_capacity(usize::try_from(length).unwrap() + 8);
    while (bytes.len() as u64) < length {
        bytes.extend(chance.below(u64::MAX).to_le_bytes());
    }
    bytes
}

/// Its digest.
fn digest(seed: u64) -> Digest {
    Digest::of(content(seed))
}
