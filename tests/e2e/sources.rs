//! Build contexts and sources of ADD that are no files of a directory: tars, URLs, git repositories.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::http::{Reply, Request, Server, file};
use crate::support::lab::Lab;
use crate::support::oci::{TarBuilder, Tree, content, tar_tree};
use crate::support::repository::Repository;
use crate::support::{Context, Output, Run};

const DOCKERFILE: &[u8] = b"FROM scratch\nCOPY . /all/\n";

/// A tar of a build context.
fn context_tar() -> Vec<u8> {
    TarBuilder::new()
        .directory("./", 0o700)
        .file("./Dockerfile", 0o600, DOCKERFILE)
        .file("./.dockerignore", 0o644, b"*\n")
        .directory("sub/", 0o755)
        .file("sub/a", 0o640, b"hello\n")
        .symlink("sub/link", "a")
        .finish()
}

fn compressed(tar: &[u8], with: &str) -> Vec<u8> {
    Context::new().command(with).arg("-c").stdin(tar).output().stdout
}

/// The files of a build, and what it said.
#[track_caller]
fn built(context: &Context, build: Run) -> (Tree, Output) {
    let tar = context.path("files.tar");
    let output = build.option_path("--output", "type=tar,dest=", &tar).success();
    (tar_tree(&tar), output)
}

#[track_caller]
fn ran(output: &Output, steps: u32) {
    output.says(&format!("{steps} run"));
}

#[test]
fn a_tar_on_standard_input_is_the_context() {
    let context = Context::new();
    let tar = context_tar();
    for with in ["", "gzip", "bzip2", "xz", "zstd"] {
        let sent = if with.is_empty() { tar.clone() } else { compressed(&tar, with) };
        let (tree, output) = built(&context, context.build().arg("-").stdin(sent));
        assert_eq!(content(&tree, "all/sub/a"), "hello\n");
        assert_eq!(tree["all/sub/a"].mode, 0o640);
        assert_eq!(tree["all/sub/link"].target, "a");
        // Only a directory's own ignore file counts.
        assert!(tree.contains_key("all/.dockerignore"), "{with}");
        // The same files give the same key, however they were sent.
        ran(&output, u32::from(with.is_empty()));
    }
    let other = TarBuilder::new().file("x/My.Dockerfile", 0o644, b"FROM scratch\nCOPY x /\n").finish();
    let (tree, _) = built(&context, context.build().args(["-f", "x/My.Dockerfile", "-"]).stdin(other));
    assert!(tree.contains_key("My.Dockerfile"));
    let lower = TarBuilder::new().file("dockerfile", 0o644, DOCKERFILE).finish();
    built(&context, context.build().arg("-").stdin(lower));
    // Nothing of the archive stays behind but what the cache is made of.
    context.verify_store("xdg/crossdock");
}

#[test]
fn what_cannot_be_a_context_is_refused() {
    let context = Context::new();
    let both = context.build().args(["-f", "-", "-"]).stdin(context_tar()).failure();
    both.says("cannot both be standard input");
    let two = context.build().args(["-f", "Dockerfile", "-"]).stdin(DOCKERFILE).failure();
    two.says("standard input is no tar");
    context.write("dir/x", "");
    context.build().args(["-f", "-", "dir"]).stdin(context_tar()).failure().says("is an archive");
    let hidden = TarBuilder::new().file("other", 0o644, b"").finish();
    context.build().arg("-").stdin(hidden).failure().says("it has no file `Dockerfile`");
    let no_tar = compressed(DOCKERFILE, "gzip");
    context.build().arg("-").stdin(no_tar).failure().says("no tar");
    let cut = TarBuilder::new().file("Dockerfile", 0o644, DOCKERFILE).file("x", 0o644, &[0; 4000]).finish();
    context.build().arg("-").stdin(&cut[..3000]).failure().says("ends inside a file");
    let gzip = compressed(&context_tar(), "gzip");
    context.build().arg("-").stdin(&gzip[..gzip.len() / 2]).failure();
    let mut hostile = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_old();
    header.set_size(1);
    header.as_old_mut().name[..9].copy_from_slice(b"../../out");
    header.set_cksum();
    hostile.append(&header, &b"x"[..]).unwrap();
    let hostile = hostile.into_inner().unwrap();
    context.build().arg("-").stdin(hostile).failure().says("leads out of the archive");
    let link = TarBuilder::new().symlink("Dockerfile", "/etc/passwd").file("x", 0o644, b"").finish();
    context.build().arg("-").stdin(link).failure().says("it has no file `Dockerfile`");
}

#[test]
fn a_url_is_a_context() {
    let context = Context::new();
    let files = context.path("www");
    context.write("www/context.tgz", compressed(&context_tar(), "gzip"));
    context.write("www/Dockerfile", "FROM scratch\nCOPY context /it\n");
    let server = Server::of_files(files);
    let (tree, _) = built(&context, context.build().arg(server.url("/context.tgz")));
    assert_eq!(content(&tree, "all/sub/a"), "hello\n");
    assert!(tree.contains_key("all/.dockerignore"));
    // A text is a Dockerfile, and the only file of its context.
    let (tree, _) = built(&context, context.build().arg(server.url("/Dockerfile")));
    assert_eq!(content(&tree, "it"), "FROM scratch\nCOPY context /it\n");
    assert_eq!(tree["it"].mode, 0o600);
    // Dockerfiles from elsewhere.
    let own = b"FROM scratch\nCOPY sub/a /own\n";
    let path = context.write("own.Dockerfile", own);
    let url = server.url("/context.tgz");
    let (tree, _) = built(&context, context.build().option("-f", &path).arg(&url));
    assert_eq!(content(&tree, "own"), "hello\n");
    let (tree, _) = built(&context, context.build().args(["-f", "-", &url]).stdin(&own[..]));
    assert_eq!(content(&tree, "own"), "hello\n");
    context.write("dir/context", "local\n");
    let (tree, _) = built(&context, context.build().args(["-f", &server.url("/Dockerfile"), "dir"]));
    assert_eq!(content(&tree, "it"), "local\n");
    let missing = context.build().arg(server.url("/absent?token=secret")).failure();
    missing.says("the server answers 404");
    assert!(!missing.stderr().contains("secret"), "{missing}");
}

#[test]
fn named_contexts_are_fetched_too() {
    let lab = Lab::new();
    let repository = Repository::new(&lab.context, "r");
    repository.commit("a", "from git\n");
    let files = Server::of_files(lab.context.path("www"));
    lab.context.write("www/file", "from http\n");
    let dockerfile = "FROM web AS w\nFROM scratch\nCOPY --from=code a /\nCOPY --from=w / /\n";
    let build = lab
        .build(dockerfile)
        .option("--build-context", format!("code={}", repository.url(&files)))
        .option("--build-context", format!("web={}", files.url("/file")));
    let (tree, _) = built(&lab.context, build);
    assert_eq!((content(&tree, "a"), content(&tree, "context")), ("from git\n".into(), "from http\n".into()));
}

#[test]
fn files_are_fetched_only_if_they_changed() {
    let lab = Lab::new();
    let version = Arc::new(AtomicUsize::new(1));
    let now = Arc::clone(&version);
    let server = Server::new(move |request| {
        let version = now.load(Ordering::SeqCst);
        let (tag, time) = (format!("\"v{version}\""), "Wed, 21 Oct 2015 07:28:00 GMT");
        let reply = match request.path.as_str() {
            "/tagged/file.txt" => Reply::ok(format!("tagged {version}\n")).header("ETag", &tag),
            "/dated/x" => Reply::ok("dated\n")
                .header("Last-Modified", time)
                .header("Date", "Wed, 21 Oct 2015 07:29:00 GMT"),
            "/fresh" => {
                let reply = Reply::ok(format!("fresh {version}\n")).header("Last-Modified", time);
                return reply.header("Date", "Wed, 21 Oct 2015 07:28:01 GMT");
            }
            "/moved" => return Reply::redirect("/tagged/file.txt"),
            "/" => return Reply::ok(format!("plain {version}\n")),
            _ => return Reply::new(404, ""),
        };
        let same = request.header("if-none-match") == Some(&tag)
            || request.path == "/dated/x" && request.header("if-modified-since") == Some(time);
        if same { Reply::new(304, "").header("ETag", &tag) } else { reply }
    });
    let dockerfile = format!(
        "FROM scratch\nADD {0} {1} {2} {3} /d/\nADD --chmod=755 --chown=3:4 {3} /tool\n",
        server.url("/tagged/file.txt?x=1").replace("?x=1", ""),
        server.url("/dated/x"),
        server.url("/"),
        server.url("/moved")
    );
    let shared = lab.context.path("shared");
    let build = |cache: &str| {
        let build = lab.build(&dockerfile).option_path("--cache", "file://", &shared);
        let tar = lab.context.path("files.tar");
        let output = build
            .option("--local-cache", lab.context.path(cache))
            .option_path("--output", "type=tar,dest=", &tar)
            .success();
        (tar, output)
    };
    let (tar, output) = build("one");
    let tree = tar_tree(&tar);
    assert_eq!(content(&tree, "d/file.txt"), "tagged 1\n");
    assert_eq!(content(&tree, "d/__unnamed__"), "plain 1\n");
    assert_eq!(content(&tree, "d/moved"), "tagged 1\n");
    assert_eq!((tree["d/x"].mode, tree["tool"].mode), (0o600, 0o755));
    assert_eq!((tree["tool"].uid, tree["tool"].gid), (3, 4));
    ran(&output, 2);
    let times: Vec<u64> = tar::Archive::new(&std::fs::read(&tar).unwrap()[..])
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| ["d/x", "d/__unnamed__"].contains(&entry.path().unwrap().to_str().unwrap()))
        .map(|entry| entry.header().mtime().unwrap())
        .collect();
    assert_eq!(times, [0, 1_445_412_480], "Last-Modified, or else nothing");
    // A time does not tell versions apart while it is new.
    let fresh = |expected: &str| {
        let dockerfile = format!("FROM scratch\nADD {} /\n", server.url("/fresh"));
        assert_eq!(content(&lab.image(&dockerfile).tree(), "fresh"), expected);
    };
    fresh("fresh 1\n");
    version.store(2, Ordering::SeqCst);
    fresh("fresh 2\n");
    version.store(1, Ordering::SeqCst);
    // A file that is used twice is asked for once.
    let asked = server.asked();
    assert_eq!(asked.iter().filter(|line| *line == "GET /moved").count(), 1, "{asked:?}");

    let conditional = |server: &Server| {
        let requests = server.requests();
        let has = |path: &str, name: &str| {
            requests.iter().any(|request| request.path == path && request.header(name).is_some())
        };
        has("/tagged/file.txt", "if-none-match") && has("/dated/x", "if-modified-since")
    };
    ran(&build("one").1, 0);
    assert!(conditional(&server), "the second time, only changes are asked for");
    // Another machine knows what the first one fetched.
    let (tar, output) = build("two");
    ran(&output, 0);
    assert_eq!(content(&tar_tree(&tar), "d/file.txt"), "tagged 1\n");
    assert!(conditional(&server), "another machine asks for changes only");

    version.store(2, Ordering::SeqCst);
    let (tar, output) = build("two");
    assert_eq!(content(&tar_tree(&tar), "tool"), "tagged 2\n");
    ran(&output, 2);
    version.store(1, Ordering::SeqCst);
    ran(&build("one").1, 0);
}

#[test]
fn a_file_with_a_known_checksum_is_not_asked_for() {
    let lab = Lab::new();
    let server = Server::new(|_| Reply::ok("content\n"));
    let sum = "sha256:434728a410a78f56fc1b5899c3593436e61ab0c731e9072d95e96db290205e53";
    let dockerfile = |sum: &str, path: &str| {
        format!("FROM scratch\nARG SUM={sum}\nADD --checksum=${{SUM}} {} /\n", server.url(path))
    };
    let (tree, _) = built(&lab.context, lab.build(&dockerfile(sum, "/a/f")));
    assert_eq!(content(&tree, "f"), "content\n");
    assert_eq!(server.asked(), ["GET /a/f"]);
    // Not even where it is said to be elsewhere, or where other steps are new.
    let more = format!("{}ADD f:x /\n", dockerfile(sum, "/b/f")).replace("f:x", "Dockerfile");
    built(&lab.context, lab.build(&more));
    assert_eq!(server.asked(), [""; 0]);
    let wrong = lab.build(&dockerfile(&sum.replace('4', "5"), "/f")).failure();
    wrong.says("digest mismatch").says("Dockerfile:3");
    lab.build(&dockerfile("md5:00", "/f")).failure().says("invalid checksum");
    let two = format!("FROM scratch\nADD --checksum={sum} {} x /\n", server.url("/f"));
    lab.build(&two).failure().says("checksum can't be specified for multiple sources");
    let local = format!("FROM scratch\nADD --checksum={sum} Dockerfile /\n");
    lab.build(&local).failure().says("checksum requires HTTP(S) or Git sources");
    let copy = format!("FROM scratch\nCOPY {} /\n", server.url("/f"));
    lab.build(&copy).failure().says("source can't be a URL for COPY");
}

#[test]
fn archives_from_urls_are_unpacked_if_asked() {
    let lab = Lab::new();
    lab.context.write("www/c.tar.gz", compressed(&context_tar(), "gzip"));
    let server = Server::of_files(lab.context.path("www"));
    let url = server.url("/c.tar.gz");
    lab.file("local.tar", context_tar());
    let dockerfile = format!(
        "FROM scratch\nADD {url} /packed/\nADD --unpack {url} /unpacked/\nADD --unpack=true local.tar {url} /both/\nADD \
         --link {url} /linked\n"
    );
    let (tree, _) = built(&lab.context, lab.build(&dockerfile));
    assert!(tree.contains_key("packed/c.tar.gz") && tree.contains_key("linked"));
    assert_eq!(content(&tree, "unpacked/sub/a"), "hello\n");
    assert_eq!(content(&tree, "both/sub/a"), "hello\n");
}

#[test]
fn secrets_open_urls_and_go_nowhere_else() {
    let lab = Lab::new();
    let elsewhere = Arc::new(Server::new(|_| Reply::ok("elsewhere\n")));
    let target = elsewhere.url("/x").replace("127.0.0.1", "localhost");
    let server = Server::new(move |request| match request.header("authorization") {
        Some("Bearer s3cret" | "Basic s3cret") if request.path == "/away" => Reply::redirect(&target),
        Some("Bearer s3cret" | "Basic s3cret") => Reply::ok("private\n"),
        _ => Reply::new(401, "who are you?"),
    });
    let dockerfile = format!("FROM scratch\nADD {} {} /\n", server.url("/f"), server.url("/away"));
    let denied = lab.build(&dockerfile).failure();
    denied.says("the server answers 401").says("HTTP_AUTH_TOKEN_127.0.0.1");
    let token = ["--secret", "id=HTTP_AUTH_TOKEN_127.0.0.1,env=TOKEN"];
    let (tree, output) = built(&lab.context, lab.build(&dockerfile).args(token).env("TOKEN", "s3cret"));
    assert_eq!(content(&tree, "f"), "private\n");
    assert_eq!(content(&tree, "away"), "elsewhere\n");
    assert!(!output.stderr().contains("s3cret"), "{output}");
    assert!(elsewhere.requests().iter().all(|request| request.header("authorization").is_none()));
    let header = ["--secret", "id=HTTP_AUTH_HEADER_127.0.0.1,env=HEADER"];
    built(&lab.context, lab.build(&dockerfile).args(header).env("HEADER", "Basic s3cret\n"));
    let wrong = lab.build(&dockerfile).args(token).env("TOKEN", "wr\u{7f}ong").failure();
    assert!(!wrong.stderr().contains("wr\u{7f}ong"), "{wrong}");
    assert!(!holds(&lab.context.path("xdg"), b"s3cret"), "a secret is in the cache");
}

/// Whether a file below a directory holds `text`.
fn holds(directory: &Path, text: &[u8]) -> bool {
    std::fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return holds(&path, text);
        }
        path.is_file() && std::fs::read(&path).unwrap().windows(text.len()).any(|window| window == text)
    })
}

#[test]
fn bad_answers_are_errors() {
    let lab = Lab::new();
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tries);
    let server = Server::new(move |request| match request.path.as_str() {
        "/loop" => Reply::redirect("/loop"),
        "/file" => Reply::redirect("file:///etc/passwd"),
        "/short" => Reply::ok("short").claims(100),
        "/huge" => Reply::ok("").claims(usize::MAX >> 1),
        "/strange" => Reply::ok("x").header("Content-Encoding", "br"),
        "/unasked" => Reply::new(304, ""),
        "/part" => Reply::new(206, "part"),
        "/flaky" if counted.fetch_add(1, Ordering::SeqCst) < 2 => Reply::new(503, "later"),
        "/flaky" => Reply::ok("at last\n"),
        "/packed" => Reply::ok(compressed(b"unpacked\n", "gzip")).header("Content-Encoding", "gzip"),
        _ => Reply::new(500, ""),
    });
    for (path, message) in [
        ("/loop", "redirects more than 10 times"),
        ("/file", "not safe"),
        ("/short", "end of file before message length reached"),
        ("/huge", "larger than"),
        ("/strange", "encoded as br"),
        ("/unasked", "unasked"),
        ("/part", "206"),
    ] {
        let dockerfile = format!("FROM scratch\nADD {} /\n", server.url(path));
        let failed = lab.build(&dockerfile).failure();
        assert!(failed.stderr().contains(message), "{path}: {failed}");
        failed.says("Dockerfile:2");
    }
    let dockerfile = format!("FROM scratch\nADD {} {} /\n", server.url("/flaky"), server.url("/packed"));
    let (tree, _) = built(&lab.context, lab.build(&dockerfile));
    assert_eq!(
        (content(&tree, "flaky"), content(&tree, "packed")),
        ("at last\n".into(), "unpacked\n".into())
    );
    let nobody = Server::new(|_| Reply::ok("")).url("/f");
    let dockerfile = format!("FROM scratch\nADD {nobody} /\n");
    lab.build(&dockerfile).failure().says("could not get `http://127.0.0.1");
}

#[test]
fn an_endless_answer_can_be_interrupted() {
    let lab = Lab::new();
    let server = Server::new(|_| Reply::ok("").endless());
    let mut child = lab.build(&format!("FROM scratch\nADD {} /\n", server.url("/f"))).spawn();
    while server.asked().is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(200));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let started = std::time::Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(started.elapsed() < Duration::from_secs(20));
    lab.context.verify_store("xdg/crossdock");
}

#[test]
fn repositories_are_added() {
    let lab = Lab::new();
    let server = Server::of_files(lab.context.path("www"));
    let repository = Repository::new(&lab.context, "r");
    repository.write("sub/tool", "#!/bin/sh\n");
    std::fs::set_permissions(
        repository.work.join("sub/tool"),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
    std::os::unix::fs::symlink("tool", repository.work.join("sub/link")).unwrap();
    let first = repository.commit("a", "one\n");
    repository.git(&["tag", "-a", "v1", "-m", "v1"]);
    let second = repository.commit("a", "two\n");
    repository.git(&["branch", "other", &first]);
    repository.publish();
    let url = repository.url(&server);
    let tree = |source: &str| {
        let dockerfile = format!("FROM scratch\nADD {source} /d/\n");
        built(&lab.context, lab.build(&dockerfile)).0
    };
    let all = tree(&url);
    assert_eq!(content(&all, "d/a"), "two\n");
    assert_eq!((all["d/a"].mode, all["d/sub/tool"].mode, all["d/sub"].mode), (0o644, 0o755, 0o755));
    assert_eq!((all["d/a"].uid, all["d/sub/link"].target.as_str()), (0, "tool"));
    assert!(!all.keys().any(|path| path.contains(".git")), "{:?}", all.keys());
    for (fragment, expected) in [
        ("#main", "two\n"),
        ("#v1", "one\n"),
        ("?tag=v1", "one\n"),
        ("?branch=other", "one\n"),
        ("?ref=refs/heads/other", "one\n"),
        (&format!("#{first}"), "one\n"),
        (&format!("?ref=main&checksum={}", &second[..9]), "two\n"),
        (&format!("?commit={first}&fetch-by-commit=1"), "one\n"),
    ] {
        assert_eq!(content(&tree(&format!("{url}{fragment}")), "d/a"), expected, "{fragment}");
    }
    let sub = tree(&format!("{url}#main:sub"));
    assert!(sub.contains_key("d/tool") && !sub.contains_key("d/a"));
    let kept = tree(&format!("--keep-git-dir=true {url}#v1"));
    assert_eq!(content(&kept, "d/.git/HEAD").trim(), first);
    assert!(content(&kept, "d/.git/config").contains(&url));
    assert!(!kept.keys().any(|path| path.contains("/hooks/")), "{:?}", kept.keys());
    for (source, message) in [
        (format!("{url}#absent"), "has no ref absent"),
        (format!("{url}#main:absent"), "has no directory absent"),
        (format!("{url}#main:a"), "has no directory a"),
        (format!("{url}#main:sub/link"), "has no directory sub/link"),
        (format!("{url}?depth=1"), "unexpected query"),
        (format!("--keep-git-dir=false {url}?keep-git-dir=1"), "inconsistent keep-git-dir"),
        (format!("--checksum={second} {url}#v1"), "expected checksum to match"),
        (format!("--checksum={first} {url}?checksum={second}"), "checksum mismatch"),
        (format!("--checksum={second} {url}#{first}"), "expected checksum to match"),
        (format!("{url}?fetch-by-commit=1"), "fetch-by-commit requires"),
        (server.url("/absent.git"), "not found"),
    ] {
        let failed = lab.build(&format!("FROM scratch\nADD {source} /\n")).failure();
        assert!(failed.stderr().contains(message), "{source}: {failed}");
        failed.says("Dockerfile:2");
    }
    lab.build(&format!("FROM scratch\nCOPY {url} /\n")).failure().says("source can't be a git ref for COPY");
    lab.context.verify_store("xdg/crossdock");
}

#[test]
fn only_what_a_branch_means_is_asked_for() {
    let lab = Lab::new();
    let server = Server::of_files(lab.context.path("www"));
    let repository = Repository::new(&lab.context, "r");
    let first = repository.commit("a", "one\n");
    let url = repository.url(&server);
    let shared = lab.context.path("shared");
    let build = |source: &str, cache: &str| {
        let dockerfile = format!("FROM scratch\nADD {source} /\n");
        let build = lab.build(&dockerfile).option_path("--cache", "file://", &shared);
        built(&lab.context, build.option("--local-cache", lab.context.path(cache)))
    };
    let objects = |server: &Server| server.asked().iter().filter(|line| line.contains("/objects/")).count();
    let (_, output) = build(&url, "one");
    ran(&output, 1);
    assert!(objects(&server) > 0);
    ran(&build(&url, "one").1, 0);
    assert_eq!(objects(&server), 0, "nothing changed");
    ran(&build(&url, "two").1, 0);
    assert_eq!(objects(&server), 0, "the other machine's checkout is used");
    build(&format!("{url}#{first}"), "three");
    assert_eq!(server.asked(), [""; 0], "a commit that is known needs no server");
    // A commit that changes nothing that is copied runs nothing again; one that does, does.
    repository.commit("a", "one\n");
    ran(&build(&url, "one").1, 0);
    repository.commit("a", "two\n");
    let (tree, output) = build(&url, "one");
    assert_eq!(content(&tree, "a"), "two\n");
    ran(&output, 1);
    // Moved back, and history rewritten.
    repository.git(&["reset", "--quiet", "--hard", &first]);
    repository.publish();
    ran(&build(&url, "one").1, 0);
    repository.git(&["commit", "--quiet", "--amend", "--message", "amended"]);
    repository.commit("a", "three\n");
    assert_eq!(content(&build(&url, "one").0, "a"), "three\n");
    // What was kept of the repository is damaged.
    repository.commit("a", "four\n");
    for entry in std::fs::read_dir(lab.context.path("one/v1/state/git")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            std::fs::write(path.join("config"), "[nonsense").unwrap();
        }
    }
    assert_eq!(content(&build(&url, "one").0, "a"), "four\n");
}

#[test]
fn submodules_come_along() {
    let lab = Lab::new();
    let server = Server::of_files(lab.context.path("www"));
    let inner = Repository::new(&lab.context, "inner");
    inner.commit("inside", "inside\n");
    let outer = Repository::new(&lab.context, "outer");
    let url = inner.url(&server);
    outer.git(&["submodule", "--quiet", "add", &url, "module"]);
    outer.commit("a", "a\n");
    let url = outer.url(&server);
    let tree = |source: &str| {
        let dockerfile = format!("FROM scratch\nADD {source} /\n");
        built(&lab.context, lab.build(&dockerfile)).0
    };
    let with = tree(&url);
    assert_eq!(content(&with, "module/inside"), "inside\n");
    assert!(!with.contains_key("module/.git") && !with.contains_key(".git"));
    let without = tree(&format!("{url}?submodules=false"));
    assert!(without.contains_key("module") && !without.contains_key("module/inside"));
    // A repository must not reach for files of this machine.
    let secret = Repository::new(&lab.context, "secret");
    secret.commit("x", "x\n");
    outer.git(&["config", "-f", ".gitmodules", "submodule.module.url", crate::support::text(&secret.bare)]);
    outer.commit("b", "b\n");
    lab.build(&format!("FROM scratch\nADD {url} /\n")).failure().says("not allowed");
}

#[test]
fn a_repository_is_a_context() {
    let context = Context::new();
    let server = Server::of_files(context.path("www"));
    let repository = Repository::new(&context, "r");
    repository.write(".dockerignore", "*\n");
    repository.write("sub/Dockerfile", "FROM scratch\nCOPY a /sub\n");
    repository.write("sub/a", "sub\n");
    repository.write("sub/x.Dockerfile", "FROM scratch\nCOPY a /x\n");
    repository.commit("Dockerfile", "FROM scratch\nCOPY . /\n");
    let url = repository.url(&server);
    let (tree, _) = built(&context, context.build().arg(&url));
    assert!(tree.contains_key(".dockerignore") && !tree.contains_key(".git"));
    let (tree, _) = built(&context, context.build().arg(format!("{url}#main:sub")));
    assert_eq!(content(&tree, "sub"), "sub\n");
    let build = context.build().args(["-f", "x.Dockerfile", &format!("{url}?subdir=sub")]);
    assert_eq!(content(&built(&context, build).0, "x"), "sub\n");
    let build = context.build().args(["--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1", &url]);
    assert!(built(&context, build).0.contains_key(".git/HEAD"));
    // Times of the commit, where all others are fixed too.
    let build = context.build().env("SOURCE_DATE_EPOCH", "4000000000").arg(&url);
    built(&context, build);
    let time: u64 = repository.git(&["log", "-1", "--format=%ct"]).parse().unwrap();
    let bytes = std::fs::read(context.path("files.tar")).unwrap();
    let mut archive = tar::Archive::new(&bytes[..]);
    let entry = archive.entries().unwrap().map(|entry| entry.unwrap());
    let entry = entry.into_iter().find(|entry| entry.path_bytes().ends_with(b"sub/a")).unwrap();
    assert_eq!(entry.header().mtime().unwrap(), time);
    context.build().arg(format!("{url}#absent")).failure().says("build context").says("has no ref absent");
    context.build().arg(format!("{url}#main:absent")).failure().says("has no directory");
}

#[test]
fn tokens_open_repositories() {
    let lab = Lab::new();
    let root = lab.context.path("www");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let headers = Arc::clone(&seen);
    let server = Server::new(move |request: &Request| {
        let header = request.header("authorization").unwrap_or_default().to_owned();
        headers.lock().unwrap().push(header.clone());
        // x-access-token:s3cret
        if header == "basic eC1hY2Nlc3MtdG9rZW46czNjcmV0" || header == "Custom s3cret" {
            file(&root, request)
        } else {
            Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\"")
        }
    });
    let repository = Repository::new(&lab.context, "r");
    repository.commit("a", "private\n");
    let dockerfile = format!("FROM scratch\nADD {} /\n", repository.url(&server));
    lab.build(&dockerfile).failure().says("GIT_AUTH_TOKEN");
    for (id, value) in [
        ("GIT_AUTH_TOKEN", "s3cret\n"),
        ("GIT_AUTH_HEADER", "Custom s3cret"),
        ("GIT_AUTH_TOKEN.127.0.0.1:PORT", "s3cret"),
    ] {
        let port = server.url("").rsplit(':').next().unwrap().to_owned();
        let secret = format!("id={},env=TOKEN", id.replace("PORT", &port));
        let build = lab.build(&dockerfile).args(["--secret", &secret]).env("TOKEN", value);
        let (tree, output) = built(&lab.context, build);
        assert_eq!(content(&tree, "a"), "private\n");
        assert!(!output.stderr().contains("s3cret"), "{output}");
    }
    let build = lab.build(&dockerfile).args(["--secret", "id=GIT_AUTH_TOKEN,env=TOKEN"]);
    let wrong = build.env("TOKEN", "wr0ng").failure();
    assert!(!wrong.stderr().contains("wr0ng") && !wrong.stderr().contains("d3Iwbmc"), "{wrong}");
    for part in [&b"s3cret"[..], b"czNjcmV0"] {
        assert!(!holds(&lab.context.path("xdg"), part), "a secret is in the cache");
    }
    let ssh = "FROM scratch\nADD git@localhost:r.git /\n";
    lab.build(ssh).failure().says("no SSH key `default` is forwarded").says("--ssh default");
}

#[test]
fn nothing_of_the_user_and_the_machine_reaches_git() {
    let lab = Lab::new();
    let server = Server::of_files(lab.context.path("www"));
    let repository = Repository::new(&lab.context, "r");
    repository.commit("a", "a\n");
    let witness = lab.context.path("witness");
    let script = format!("#!/bin/sh\ntouch {}\n", witness.display());
    let hook = lab.context.write_mode("hooks/post-checkout", &script, 0o755);
    let config = format!(
        "[core]\n\thooksPath = {0}\n\tfsmonitor = {1}\n[url \"http://localhost:1/\"]\n\tinsteadOf = http://127.0.0.1\n",
        hook.parent().unwrap().display(),
        hook.display()
    );
    lab.context.write("home/.gitconfig", &config);
    let dockerfile = format!("FROM scratch\nADD {} /\n", repository.url(&server));
    let build = lab
        .build(&dockerfile)
        .env("GIT_DIR", "/nonexistent")
        .env("GIT_ASKPASS", &hook)
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "core.hooksPath")
        .env("GIT_CONFIG_VALUE_0", hook.parent().unwrap());
    let (tree, _) = built(&lab.context, build);
    assert_eq!(content(&tree, "a"), "a\n");
    assert!(!witness.exists());
    let tools = lab.context.path("tools");
    std::fs::create_dir(&tools).unwrap();
    let other = format!("FROM scratch\nADD {}#absent /\n", repository.url(&server));
    lab.build(&other).env("PATH", &tools).failure().says("`git` could not be started").says("install git");
}
