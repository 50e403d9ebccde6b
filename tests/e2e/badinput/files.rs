//! Contexts in which things cannot be read, are no files, or change while they are read.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support::aftermath::{assert_nothing_left, assert_told};
use crate::support::lab::Lab;
use crate::support::oci::content;
use crate::support::{Context, is_root};

/// Does something again and again until it is dropped.
struct Meanwhile(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Meanwhile {
    fn new(mut work: impl FnMut(u64) + Send + 'static) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let ended = Arc::clone(&ended);
            move || {
                let mut round = 0;
                while !ended.load(Ordering::Relaxed) {
                    work(round);
                    round += 1;
                }
            }
        });
        Self(ended, Some(thread))
    }
}

impl Drop for Meanwhile {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.take().unwrap().join().unwrap();
    }
}

#[test]
fn files_that_may_not_be_read() {
    if !is_root() {
        return;
    }
    let lab = Lab::of(Context::for_user(65534));
    let secret = lab.file("sub/secret", "x").path("sub/secret");
    lab.file("fine", "y");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let output = lab.build("FROM scratch\nCOPY . /\n").failure();
    assert_told(&output, &["sub/secret", "Permission denied"]);
    assert_nothing_left(&lab);
    // What is not copied or ignored need not be readable.
    lab.build("FROM scratch\nCOPY fine /\n").success();
    lab.file(".dockerignore", "sub/secret\n");
    lab.build("FROM scratch\nCOPY . /\n").success();
    std::fs::remove_file(lab.path(".dockerignore")).unwrap();
    std::fs::set_permissions(lab.path("sub"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let output = lab.build("FROM scratch\nCOPY . /\n").failure();
    assert_told(&output, &["sub", "Permission denied"]);
    // The Dockerfile itself.
    let build = lab.build("FROM scratch\n");
    std::fs::set_permissions(lab.path("Dockerfile"), std::fs::Permissions::from_mode(0o000)).unwrap();
    assert_told(&build.failure(), &["Dockerfile", "Permission denied"]);
    assert_nothing_left(&lab);
}

#[test]
fn pipes_sockets_and_devices_keep_nobody_waiting() {
    let lab = Lab::new();
    lab.file("file", "content");
    lab.context.command("mkfifo").arg(lab.path("pipe")).success();
    let _socket = std::os::unix::net::UnixListener::bind(lab.path("socket")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", lab.path("zero")).unwrap();
    std::os::unix::fs::symlink("round", lab.path("round")).unwrap();
    std::os::unix::fs::symlink("/nowhere", lab.path("dangling")).unwrap();
    let soon = Duration::from_mins(1);
    let tree = lab.image_of(lab.build("FROM busybox\nCOPY . /all\n").timeout(soon)).tree();
    assert_eq!(content(&tree, "all/file"), "content");
    assert_eq!(tree["all/pipe"].kind, "fifo");
    assert_eq!(tree["all/zero"].target, "/dev/zero");
    for source in ["zero", "round", "dangling", "socket"] {
        let output = lab.build(&format!("FROM busybox\nCOPY {source} /x\n")).timeout(soon).failure();
        assert_told(&output, &["Dockerfile:2", source]);
    }
    // As archives they are none.
    lab.build("FROM busybox\nADD pipe /x/\n").timeout(soon).output();
    // An ignore file that never ends, or never begins.
    std::os::unix::fs::symlink("/dev/zero", lab.path(".dockerignore")).unwrap();
    let output = lab.build("FROM busybox\nCOPY . /all\n").timeout(soon).failure();
    assert_told(&output, &[".dockerignore"]);
    std::fs::remove_file(lab.path(".dockerignore")).unwrap();
    lab.context.command("mkfifo").arg(lab.path(".dockerignore")).success();
    let output = lab.build("FROM busybox\nCOPY . /all\n").timeout(soon).failure();
    assert_told(&output, &[".dockerignore", "not a regular file"]);
    std::fs::remove_file(lab.path(".dockerignore")).unwrap();
    let output = lab.build("FROM busybox\n").args(["--file", "/dev/zero"]).timeout(soon).failure();
    assert_told(&output, &["/dev/zero"]);
    assert_nothing_left(&lab);
}

#[test]
fn dockerfiles_and_ignore_files_of_any_size() {
    let lab = Lab::new();
    lab.file("file", "content");
    let soon = Duration::from_mins(1);
    let cases: [(String, &str); 6] = [
        (format!("FROM busybox\n{}", "# comment\n".repeat(2 << 20)), "larger than"),
        (format!("FROM busybox\nRUN {}", "x".repeat(4 << 20)), ""),
        (format!("FROM busybox\nENV A=ab\n{}", "ENV A=$A$A$A$A\n".repeat(64)), "Dockerfile"),
        (format!("FROM busybox\nRUN <<E\n{}", "x\n".repeat(100_000)), "Dockerfile"),
        (
            "FROM a AS a0\n".to_owned()
                + &(1..3000).map(|n| format!("FROM a{} AS a{n}\n", n - 1)).collect::<Vec<_>>().concat(),
            "",
        ),
        (format!("FROM busybox\nENV A={}x{}\n", "${A:-".repeat(100_000), "}".repeat(100_000)), "Dockerfile"),
    ];
    for (dockerfile, part) in &cases {
        let started = Instant::now();
        let output = lab.build(dockerfile).timeout(soon).failure();
        assert_told(&output, &[part]);
        assert!(started.elapsed() < soon);
    }
    // Patterns that would take a naive matcher for ever.
    let long = "a".repeat(200);
    lab.file(&format!("dir/{long}"), "x");
    lab.file(".dockerignore", format!("{}b\n", "**/*a".repeat(40)));
    lab.build("FROM busybox\nCOPY . /all\n").timeout(soon).success();
    lab.file(".dockerignore", format!("{}b\n", "*a".repeat(2000)));
    lab.build("FROM busybox\nCOPY . /all\n").timeout(soon).success();
    lab.file(".dockerignore", vec![b'x'; 70_000]);
    assert_told(&lab.build("FROM busybox\nCOPY . /all\n").failure(), &[".dockerignore:1", "longer than"]);
    assert_nothing_left(&lab);
}

/// Whatever happens meanwhile: a build succeeds, or it says what it could not do; it never takes something wrong for
/// right, which the last build shows, when all is quiet.
fn build_while(lab: &Lab, what: &str, rounds: usize, work: impl FnMut(u64) + Send + 'static) {
    // A pipe may well be there at that moment, and is copied as one: nobody would ever write to it.
    let dockerfile = "FROM busybox\nCOPY . /all\n\
        RUN for f in /all/changing*; do [ ! -f $f ] || cat $f; done | wc -c > /length\n";
    lab.file("Dockerfile", dockerfile);
    {
        let _meanwhile = Meanwhile::new(work);
        for _ in 0..rounds {
            let output = lab.build(dockerfile).timeout(Duration::from_secs(100)).output();
            assert!(!output.stderr().contains("panicked"), "{what}: {output}");
            if !output.status.success() {
                assert_eq!(output.status.code(), Some(1), "{what}: {output}");
                assert_told(&output, &["changing"]);
            }
        }
    }
    assert_nothing_left(lab);
}

#[test]
fn files_that_change_while_they_are_read() {
    let lab = Lab::new();
    let path = lab.file("changing", "x").path("changing");
    build_while(&lab, "rewritten", 6, move |round| {
        std::fs::write(&path, vec![b'a' + (round % 26) as u8; 1000 + (round % 5) as usize * 100_000])
            .unwrap();
    });
    lab.file("changing", "quiet");
    let tree = lab.image("FROM busybox\nCOPY . /all\n").tree();
    assert_eq!(content(&tree, "all/changing"), "quiet");
}

#[test]
fn files_that_grow_as_fast_as_they_are_read() {
    let lab = Lab::new();
    let path = lab.file("changing", "x").path("changing");
    build_while(&lab, "growing", 3, move |_| {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        // Enough to be ahead of a reader, little enough for the disk.
        if file.metadata().unwrap().len() < 256 << 20 {
            file.write_all(&vec![b'x'; 1 << 20]).unwrap();
        }
    });
    lab.file("changing", "quiet");
    let tree = lab.image("FROM busybox\nCOPY . /all\n").tree();
    assert_eq!(content(&tree, "all/changing"), "quiet");
}

#[test]
fn files_that_come_and_go_and_become_something_else() {
    let lab = Lab::new();
    for number in 0..200 {
        lab.file(&format!("stable/{number}"), format!("{number}"));
    }
    let directory = lab.path("");
    build_while(&lab, "coming and going", 10, move |round| {
        let path = directory.join(format!("changing-{}", round % 7));
        match round / 7 % 5 {
            0 => std::fs::write(&path, "content").unwrap(),
            1 => std::fs::remove_file(&path).unwrap(),
            2 => std::fs::create_dir(&path).unwrap(),
            3 => {
                std::fs::remove_dir(&path).unwrap();
                std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
            }
            _ => {
                std::fs::remove_file(&path).unwrap();
                // A pipe for a moment.
                let made = rustix::fs::mknodat(
                    rustix::fs::CWD,
                    &path,
                    rustix::fs::FileType::Fifo,
                    rustix::fs::Mode::from_raw_mode(0o644),
                    0,
                );
                made.unwrap();
                std::fs::remove_file(&path).unwrap();
            }
        }
    });
    for entry in std::fs::read_dir(lab.path("")).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("changing") {
            let path = entry.path();
            drop(std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path)));
        }
    }
    let tree = lab.image("FROM busybox\nCOPY . /all\n").tree();
    assert_eq!(content(&tree, "all/stable/199"), "199");
    assert!(!tree.keys().any(|path| path.starts_with("all/changing")));
}
