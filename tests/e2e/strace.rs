//! Read sets against another witness: strace says what real programs looked at, and all of that is in the step's read set.

#![allow(clippy::print_stdout, reason = "what was compared is said aloud")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crossdock::record::Shape;
use crossdock::tree::Look;

use crate::support::base;
use crate::support::lab::Lab;
use crate::support::oci::{Tree, content};
use crate::traced::tree_of;

/// What is not the tree's: mounts, and what the executor puts there.
const MOUNTS: &[&str] = &["proc", "sys", "dev", "etc/resolv.conf", "etc/hosts", "etc/hostname"];

const STRACE: &str = "strace -f -y -s 4096 -e trace=%file,getdents64,read,pread64 -o";

/// Real work: a name, and the command.
type Work = [(&'static str, &'static str)];

/// The steps before the work, which needs these packages; and the work.
fn dockerfile(packages: &str, work: &Work) -> String {
    let mut text = format!(
        "FROM debian AS tools\n\
        RUN apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends strace {packages}\n\
        RUN mkdir /debs && cd /debs && apt-get download -q hello && mv hello_*.deb hello.deb\n\
        FROM tools AS project\nCOPY . /src\n"
    );
    if work.is_empty() {
        return text;
    }
    for (name, command) in work {
        text.push_str(&format!(
            "FROM project AS {name}\nRUN : > /marker-{name}; {STRACE} /trace {command} > /said 2>&1; echo $? > /code\n"
        ));
    }
    text.push_str("FROM scratch\n");
    for (name, _) in work {
        text.push_str(&format!("COPY --from={name} /trace /said /code /{name}/\n"));
    }
    text
}

fn project(lab: &Lab) {
    lab.file(
        "Makefile",
        "all: a.o b.o\n\tcc -o /tmp/program a.o b.o\n%.o: %.c common.h\n\tcc -O1 -c -o $@ $<\n",
    );
    lab.file("common.h", "#include <stdio.h>\nint other(void);\n");
    lab.file("a.c", "#include \"common.h\"\nint main(void) { return printf(\"%d\\n\", other()) < 0; }\n");
    lab.file("b.c", "#include \"common.h\"\nint other(void) { return 7; }\n");
    lab.file(
        "main.py",
        "import json, os, sqlite3, helper\nprint(os.listdir('/src'), json.dumps(helper.value))\n",
    );
    lab.file("helper.py", "value = open('/src/data.json').read()\n");
    lab.file("data.json", "{\"a\": 1}\n");
    lab.file("unread.txt", "never\n");
    lab.file("go/go.mod", "module example\n");
    lab.file("go/main.go", "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(1) }\n");
    lab.file("rust/Cargo.toml", "[package]\nname = \"example\"\nversion = \"0.1.0\"\n");
    lab.file("rust/src/main.rs", "fn main() { println!(\"1\"); }\n");
    lab.file("js/package.json", "{\"name\": \"example\", \"version\": \"1.0.0\"}\n");
    lab.file(
        "js/package-lock.json",
        "{\"name\": \"example\", \"version\": \"1.0.0\", \"lockfileVersion\": 3, \"packages\": {\"\": {\"name\": \"example\", \"version\": \"1.0.0\"}}}\n",
    );
}

#[test]
fn nothing_that_make_dpkg_and_python_look_at_is_missing() {
    let work = [
        ("make", "make -C /src"),
        ("python", "python3 /src/main.py"),
        ("python-module", "python3 -m json.tool /src/data.json"),
        ("venv", "python3 -m venv --system-site-packages --without-pip /tmp/venv"),
        ("dpkg", "dpkg -i /debs/hello.deb"),
        ("tar", "tar cf /tmp/doc.tar -C / usr/share/doc"),
        ("find", "find /etc -name '*.conf' -newer /etc/passwd"),
    ];
    check("make gcc libc6-dev python3 python3-venv", &work);
}

#[test]
fn nothing_that_go_looks_at_is_missing() {
    let build = "sh -c 'cd /src/go && HOME=/tmp go build -o /tmp/out .'";
    check("golang-go", &[("go", build)]);
}

#[test]
fn nothing_that_cargo_looks_at_is_missing() {
    let build = "sh -c 'cd /src/rust && HOME=/tmp cargo build --offline'";
    check("cargo", &[("cargo", build)]);
}

#[test]
fn nothing_that_npm_and_pip_look_at_is_missing() {
    let install = "sh -c 'cd /src/js && HOME=/tmp npm ci --offline --no-audit'";
    check("npm python3-pip", &[("npm", install), ("pip", "python3 -m pip list")]);
}

/// Does the work in steps, and compares what strace says with the steps' read sets.
fn check(packages: &str, work: &Work) {
    if std::env::var_os("CROSSDOCK_TEST_LONG").is_none() {
        println!("skipped: only with CROSSDOCK_TEST_LONG");
        return;
    }
    let lab = Lab::new();
    project(&lab);
    let run = |work: &Work| {
        let dockerfile = dockerfile(packages, work);
        let run =
            lab.build(&dockerfile).option_path("--build-context", "debian=oci-layout://", base::debian());
        let (tree, output) = tree_of(run.timeout(Duration::from_mins(40)), &lab);
        tree.unwrap_or_else(|| panic!("{output}"))
    };
    let (results, before) = (run(work), run(&[]));
    let shapes = shapes(&lab);
    let mut missing = Vec::new();
    for (name, _) in work {
        let marker = format!("marker-{name}");
        let shape = shapes.iter().find(|shape| shape.contains_key(marker.as_bytes()));
        let shape = shape.unwrap_or_else(|| panic!("{name} has no read set"));
        let seen = seen(&content(&results, &format!("{name}/trace")), &before);
        let code = content(&results, &format!("{name}/code"));
        println!("{name}: exit code {}, {} paths seen, {} recorded", code.trim(), seen.len(), shape.len());
        assert_eq!(code.trim(), "0", "{name}: {}", content(&results, &format!("{name}/said")));
        assert!(seen.len() > 20, "{name}: strace says next to nothing");
        for (path, look) in seen {
            if !shape.get(path.as_bytes()).is_some_and(|recorded| recorded.has(look)) {
                missing.push(format!("{name}: /{path} {look:?}, recorded {:?}", shape.get(path.as_bytes())));
            }
        }
        let unread = shape.get(&b"src/unread.txt"[..]);
        assert!(unread.is_none_or(|look| !look.has(Look::CONTENT)), "{name}");
    }
    assert!(missing.is_empty(), "{} are missing:\n{}", missing.len(), missing.join("\n"));
}

/// The read sets of all steps in the local cache, as far as they are about the step's own tree.
fn shapes(lab: &Lab) -> Vec<HashMap<Vec<u8>, Look>> {
    let blobs = walkdir::WalkDir::new(lab.context.path("xdg/crossdock/v1/blobs")).into_iter().flatten();
    let files = blobs.filter(|entry| entry.file_type().is_file());
    let shapes = files.filter_map(|entry| Shape::decode(&std::fs::read(entry.path()).ok()?).ok());
    shapes.filter_map(|shape| Some(shape.trees.into_iter().next()?.into_iter().collect())).collect()
}

/// What of the tree `before` was looked at, by strace's account.
fn seen(trace: &str, before: &Tree) -> BTreeMap<String, Look> {
    let mut seen = Seen { before, looks: BTreeMap::new(), written: BTreeSet::new() };
    // Each process's working directory, once it has said it.
    let mut directories: HashMap<&str, String> = HashMap::new();
    for line in trace.lines() {
        let Some((process, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        let Some((name, rest)) = call.split_once('(') else { continue };
        let result = rest.rsplit_once(" = ").map_or("", |(_, result)| result);
        if ["read", "pread64", "getdents64"].contains(&name) {
            let Some(path) = descriptor(rest) else { continue };
            let look = if name == "getdents64" { Look::NAMES } else { Look::CONTENT };
            // Nothing that came is no content.
            if !result.starts_with('-') && (look == Look::NAMES || result != "0") {
                seen.at_end(&path, look);
            }
            continue;
        }
        let mut at = None;
        let mut arguments = rest;
        if let Some(behind) = rest.strip_prefix("AT_FDCWD<") {
            let Some((directory, behind)) = behind.split_once('>') else { continue };
            directories.insert(process, directory.to_owned());
            arguments = behind;
        } else if rest.starts_with(|first: char| first.is_ascii_digit()) {
            at = descriptor(rest);
            arguments = rest.split_once('>').map_or("", |(_, behind)| behind);
        }
        // The first word of a new symbolic link is its text, and nobody looks there.
        let Some(path) = quoted(arguments).filter(|_| !name.starts_with("symlink")) else { continue };
        let path = if path.starts_with('/') {
            path
        } else if let Some(directory) = at.as_ref().or_else(|| directories.get(process)) {
            format!("{directory}/{path}")
        } else {
            continue;
        };
        let follows = !["readlink", "readlinkat", "unlink", "unlinkat", "rename", "lstat"].contains(&name)
            && !rest.contains("NOFOLLOW")
            && !rest.contains("O_EXCL");
        if rest.contains("O_TRUNC") || rest.contains("O_WRONLY") || name.starts_with("rename") {
            seen.written.insert(path.trim_start_matches('/').to_owned());
        }
        seen.walk(&path, follows);
        if name == "chdir" && result.starts_with('0') {
            directories.insert(process, path);
        }
    }
    seen.looks
}

/// The path of a descriptor: `3</etc/passwd>, …`.
fn descriptor(text: &str) -> Option<String> {
    let (number, rest) = text.split_once('<')?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let (path, _) = rest.split_once('>')?;
    (is_number && path.starts_with('/')).then(|| path.to_owned())
}

/// The first quoted argument, if it needs no unescaping.
fn quoted(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('"')?;
    let (path, _) = rest.split_once('"')?;
    (!path.is_empty() && !path.contains('\\')).then(|| path.to_owned())
}

struct Seen<'t> {
    before: &'t Tree,
    looks: BTreeMap<String, Look>,
    /// Paths that were written: what is read of them afterwards is the step's own.
    written: BTreeSet<String>,
}

impl Seen<'_> {
    fn look(&mut self, path: &str, look: Look) {
        if !MOUNTS.iter().any(|mount| path == *mount || path.starts_with(&format!("{mount}/"))) {
            let known = self.looks.entry(path.to_owned()).or_default();
            *known = known.and(look);
        }
    }

    /// What is looked at under a name without any link in it.
    fn at_end(&mut self, path: &str, look: Look) {
        let path = path.trim_start_matches('/').to_owned();
        let kind = if look == Look::NAMES { "directory" } else { "file" };
        if self.before.get(&path).is_some_and(|node| node.kind == kind) && !self.written.contains(&path) {
            self.look(&path, Look::NODE.and(look));
        }
    }

    /// Each component that the kernel goes through, as far as it is in the tree: the first one that is not, too.
    fn walk(&mut self, path: &str, follows: bool) {
        let mut done: Vec<String> = Vec::new();
        let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            match name.as_str() {
                "" | "." => continue,
                ".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(name),
            }
            let here = done.join("/");
            if MOUNTS.contains(&here.as_str()) || self.written.contains(&here) {
                return;
            }
            self.look(&here, Look::NODE);
            match self.before.get(&here) {
                Some(node) if node.kind == "directory" => {}
                Some(node) if node.kind == "symlink" && (follows || !todo.is_empty()) => {
                    links += 1;
                    if links > 40 {
                        return;
                    }
                    if node.target.starts_with('/') {
                        done.clear();
                    } else {
                        done.pop();
                    }
                    todo.extend(node.target.split('/').rev().map(str::to_owned));
                }
                _ => return,
            }
        }
    }
}
