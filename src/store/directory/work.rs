//! A directory for each process that writes: everything unfinished is in it, so that what a dead process left
//! can be found and removed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::{Clock, files, lock};

/// What another machine's process left is removed after this time: whether that process lives cannot be seen
/// from here.
const FOREIGN_AGE: Duration = Duration::from_hours(24);

/// `tmp/`, and this process's directory in it.
#[derive(Debug)]
pub(super) struct Work {
    tmp: PathBuf,
    clock: Clock,
    own: Mutex<Option<Own>>,
}

/// This process's directory, with the locked file beside it that says that its owner lives.
#[derive(Debug)]
struct Own {
    directory: PathBuf,
    marker: PathBuf,
    _locked: fs_err::File,
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = fs_err::remove_dir_all(&self.directory);
        let _ = fs_err::remove_file(&self.marker);
    }
}

impl Work {
    pub(super) fn new(tmp: PathBuf, clock: Clock) -> Self {
        Self { tmp, clock, own: Mutex::new(None) }
    }

    /// This process's directory, made at the first call.
    pub(super) fn path(&self) -> io::Result<PathBuf> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = &*own {
            return Ok(own.directory.clone());
        }
        fs_err::create_dir_all(&self.tmp)?;
        let made = self.make()?;
        let directory = made.directory.clone();
        let (tmp, clock, marker) = (self.tmp.clone(), self.clock, made.marker.clone());
        *own = Some(made);
        drop(own);
        // Leftovers may be whole unpacked trees: nobody should wait for their removal. If the process ends
        // first, the next one goes on.
        let sweeper = std::thread::Builder::new().name("sweep".to_owned());
        let _ = sweeper.spawn(move || sweep(&tmp, clock, Some(&marker)));
        Ok(directory)
    }

    fn make(&self) -> io::Result<Own> {
        for _ in 0..100 {
            let mut random = [0; 8];
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
            let name = format!("{}-{:016x}", host(), u64::from_ne_bytes(random));
            let (directory, marker) = (self.tmp.join(&name), self.tmp.join(format!("{name}.lock")));
            let locked = lock::open(&marker)?;
            // A sweeper may have come between these two lines, and have taken it for a dead process's.
            if lock::try_flock(&locked)? && files::still_names(&marker, &locked)? {
                fs_err::create_dir(&directory)?;
                return Ok(Own { directory, marker, _locked: locked });
            }
        }
        Err(io::Error::other("no directory for temporary files could be made"))
    }

    pub(super) fn file(&self) -> io::Result<tempfile::NamedTempFile> {
        files::new_file_in(&self.path()?)
    }

    pub(super) fn dir(&self) -> io::Result<tempfile::TempDir> {
        tempfile::Builder::new().prefix("dir-").tempdir_in(self.path()?)
    }

    pub(super) fn sweep(&self) {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let marker = own.as_ref().map(|own| own.marker.clone());
        drop(own);
        sweep(&self.tmp, self.clock, marker.as_deref());
    }

    /// When the oldest other living process made its directory.
    pub(super) fn oldest_user(&self) -> Option<SystemTime> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let own = own.as_ref().map(|own| own.marker.clone());
        let entries = fs_err::read_dir(&self.tmp).ok()?;
        let markers = entries.filter_map(Result::ok).map(|entry| entry.path());
        markers
            .filter(|path| path.extension().is_some_and(|e| e == "lock") && own.as_ref() != Some(path))
            .filter_map(|path| {
                let file = files::open(&path).ok()?;
                let modified = file.metadata().ok()?.modified().ok()?;
                let young = (self.clock)().duration_since(modified).is_ok_and(|age| age < FOREIGN_AGE);
                let foreign = !is_ours(&path) && young;
                (foreign || !lock::try_flock(&file).ok()?).then_some(modified)
            })
            .min()
    }
}

/// This machine, or this container: a lock is certainly seen only there.
fn host() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    name.chars().filter(char::is_ascii_alphanumeric).take(32).collect()
}

fn is_ours(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.split_once('-').is_some_and(|(machine, _)| machine == host()))
}

/// Removes the directories of dead processes. Whatever cannot be removed stays for the next time.
fn sweep(tmp: &Path, clock: Clock, own: Option<&Path>) {
    let Ok(entries) = fs_err::read_dir(tmp) else { return };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let _ = sweep_one(&path, clock, own);
    }
}

fn sweep_one(path: &Path, clock: Clock, own: Option<&Path>) -> io::Result<()> {
    let metadata = fs_err::symlink_metadata(path)?;
    let old = clock().duration_since(metadata.modified()?).is_ok_and(|age| age >= FOREIGN_AGE);
    if metadata.is_dir() {
        let marker = path.with_extension("lock");
        // A directory without its marker is what a sweeper left that died half-way.
        if old && !marker.try_exists()? {
            fs_err::remove_dir_all(path)?;
        }
        return Ok(());
    }
    if path.extension().is_none_or(|extension| extension != "lock") || Some(path) == own {
        return Ok(());
    }
    let file = files::open(path)?;
    if (old || is_ours(path)) && lock::try_flock(&file)? && files::still_names(path, &file)? {
        let directory = path.with_extension("");
        if directory.try_exists()? {
            fs_err::remove_dir_all(&directory)?;
        }
        fs_err::remove_file(path)?;
    }
    Ok(())
}
