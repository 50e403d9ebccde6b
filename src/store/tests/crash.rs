//! `kill -9` at any moment leaves nothing that is wrong.

use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use super::{scopes, store_sample};
use crate::digest::Digest;
use crate::store::maintain::{list, verify};
use crate::store::{BlobSource, DirectoryStore, Store};

/// Set for the child: where it writes until it is killed.
const STORE: &str = "CROSSDOCK_TEST_CRASH_STORE";

/// Not a test of its own: what the child of the test below runs.
#[tokio::test]
async fn child() {
    let Some(root) = std::env::var_os(STORE) else { return };
    let store = DirectoryStore::open(root, SystemTime::now).unwrap();
    for number in 0..1_000_000_u32 {
        // Large enough that a kill can come in the middle of the system call that writes it.
        let mut large = vec![1; 8 << 20];
        large[..4].copy_from_slice(&number.to_le_bytes());
        large[4..8].copy_from_slice(&std::process::id().to_le_bytes());
        store.write_blob(&Digest::of(&large), BlobSource::Bytes(large.into())).await.unwrap();
        store_sample(&store, &format!("{}-{number}", std::process::id())).await;
    }
}

#[tokio::test]
async fn killed_writers_leave_only_whole_objects() {
    let root = tempfile::tempdir().unwrap();
    for round in 0..25_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::crash::child"])
            .env(STORE, root.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Any moment will do; these are spread over starting, the first write and the steady state.
        std::thread::sleep(Duration::from_millis(30 + round * 13 % 61));
        // On a busy machine none of them may have come as far as writing something: the last one does.
        let started = std::time::Instant::now();
        while round == 24 && started.elapsed() < Duration::from_mins(1) {
            let store = DirectoryStore::open(root.path(), SystemTime::now).unwrap();
            if !list(&store).unwrap().is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = DirectoryStore::open(root.path(), SystemTime::now).unwrap();
        let report = verify(&store, false).unwrap();
        assert!(report.damaged.is_empty() && report.incomplete.is_empty(), "{report:?}");
    }
    let store = DirectoryStore::open(root.path(), SystemTime::now).unwrap();
    let items = list(&store).unwrap();
    assert!(!items.is_empty(), "the children wrote nothing at all");
    for item in &items {
        assert!(store.read_record(&item.key, &scopes()).await.unwrap().is_some());
    }
    store.sweep_tmp();
    let left = fs_err::read_dir(root.path().join("v1/tmp")).unwrap().count();
    assert_eq!(left, 0, "what the dead left is gone");
}
