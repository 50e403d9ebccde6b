//! What the process takes of its machine, and what is left: read from `/proc` and from file systems.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Server;

/// How often file systems are asked how full they are. A disk fills in minutes.
const EVERY: Duration = Duration::from_secs(10);

/// A tick, as `/proc` counts: no Linux that is met has shown programs another one.
const TICK_MS: u64 = 10;

/// What the process takes. What cannot be read is nothing.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) struct Process {
    pub(super) resident_bytes: u64,
    pub(super) cpu_seconds: f64,
    pub(super) open_files: u64,
    pub(super) open_files_max: u64,
}

impl Process {
    /// Of this process, now.
    pub(super) fn read() -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Self {
            resident_bytes: read("/proc/self/status", resident_kib) << 10,
            cpu_seconds: Duration::from_millis(read("/proc/self/stat", ticks) * TICK_MS).as_secs_f64(),
            open_files: std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64),
            open_files_max: limit.unwrap_or(0),
        }
    }
}

fn read(path: &str, number: impl Fn(&str) -> Option<u64>) -> u64 {
    fs_err::read_to_string(path).ok().and_then(|text| number(&text)).unwrap_or(0)
}

fn resident_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Of the program and the kernel on its behalf. The program's name, in parentheses, may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system) = (fields.next()?.parse::<u64>().ok()?, fields.next()?.parse::<u64>().ok()?);
    Some(user + system)
}

/// Bytes that are free for this process, and all bytes, of the file system that a directory is on.
fn space(directory: &Path) -> Option<(u64, u64)> {
    let found = rustix::fs::statvfs(directory).ok()?;
    Some((found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize))
}

/// Looks again and again how full the disks are. Beside everything else: a file system may not answer.
pub(super) async fn watch_disks(server: Arc<Server>) {
    let disks: Vec<(&'static str, PathBuf)> = server.storage.disks();
    loop {
        for (name, directory) in &disks {
            let directory = directory.clone();
            if let Ok(Some((free, size))) = tokio::task::spawn_blocking(move || space(&directory)).await {
                server.metrics.disk(name, free, size);
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_proc_are_read() {
        assert_eq!(resident_kib("VmHWM:\t 700 kB\nVmRSS:\t     612 kB\nThreads: 1\n"), Some(612));
        assert_eq!(resident_kib("VmRSS: many"), None);
        let stat = "7 (a) (b c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100 2 3";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("7 (a"), None);
    }

    #[test]
    fn this_process_takes_something() {
        let process = Process::read();
        assert!(process.resident_bytes > 1 << 20, "{process:?}");
        assert!(process.open_files > 2 && process.open_files < process.open_files_max, "{process:?}");
        let (free, size) = space(Path::new("/")).unwrap();
        assert!(free <= size && size > 0);
        assert_eq!(space(Path::new("/nothing/here")), None);
    }
}
