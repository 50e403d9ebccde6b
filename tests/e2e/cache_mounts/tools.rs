//! The same story with other tools, each with what it keeps in a cache mount. Only in long runs: it takes time to install
//! them, and a network.

use std::io::Write as _;
use std::path::Path;

use base64::Engine as _;
use serde_json::json;
use sha2::Digest as _;

use super::{Files, Runners, Story, assert_done, is_long, told};
use crate::support::base;
use crate::support::http::Server;
use crate::support::oci::{TarBuilder, content};

fn files(files: &[(&str, &str)]) -> Files {
    files.iter().map(|(path, content)| ((*path).to_owned(), (*content).to_owned())).collect()
}

/// The first word of each.
fn names(told: &[String]) -> Vec<String> {
    told.iter().map(|told| told.split(' ').next().unwrap().to_owned()).collect()
}

/// Three crates of a workspace, and a vendored one of which the first needs something.
fn workspace() -> Files {
    let package = |name: &str, dependencies: &str| {
        format!(
            "[package]\nname = \"{name}\"\nversion = \"1.0.0\"\nedition = \"2021\"\n\n[dependencies]\n{dependencies}"
        )
    };
    let paths = "one = { path = \"../one\" }\ntwo = { path = \"../two\" }\n";
    let mut files = files(&[
        ("README", "A workspace.\n"),
        ("Cargo.toml", "[workspace]\nmembers = [\"app\", \"one\", \"two\"]\n"),
        (
            ".cargo/config.toml",
            "[source.crates-io]\nreplace-with = \"vendored\"\n\n[source.vendored]\ndirectory = \"vendor\"\n",
        ),
        ("vendor/outside/.cargo-checksum.json", "{\"files\":{}}"),
        ("vendor/outside/src/lib.rs", "pub fn outside() -> u32 { 1000 }\n"),
        ("app/src/main.rs", "fn main() { println!(\"{}\", one::one() + two::two()); }\n"),
        ("one/src/lib.rs", "mod inner;\npub fn one() -> u32 { inner::inner() + outside::outside() }\n"),
        ("one/src/inner.rs", "pub fn inner() -> u32 { 1 }\n"),
        ("two/src/lib.rs", "pub fn two() -> u32 { 2 }\n"),
    ]);
    files.insert("vendor/outside/Cargo.toml".to_owned(), package("outside", ""));
    files.insert("app/Cargo.toml".to_owned(), package("app", paths));
    files.insert("one/Cargo.toml".to_owned(), package("one", "outside = \"1\"\n"));
    files.insert("two/Cargo.toml".to_owned(), package("two", ""));
    files
}

#[test]
fn cargo_compiles_what_changed() {
    if !is_long() {
        return;
    }
    let tools = base::debian_with("cargo", "cargo");
    let cargo = "export CARGO_HOME=/cargo CARGO_TARGET_DIR=/target && cargo build --offline --release --color never \
                 && cp /target/release/app /out/";
    let mut story = Story::new(tools, &["target=/cargo", "target=/target"], cargo, workspace());
    let mut compiles = |change: Option<(&str, &str)>, old: &[&str], expected: &[&str]| {
        if let Some((path, content)) = change {
            story.write(path, content);
        }
        let what = format!("{change:?}");
        let said = story.on_a_fresh_runner(&what, old);
        assert_done(&what, &said, &names(&told(&said, "Compiling")), expected);
    };
    let (two, changed) = ("pub fn two() -> u32 { 2 }\n", "pub fn two() -> u32 { 22 }\n");
    compiles(None, &[], &["outside", "one", "two", "app"]);
    compiles(Some(("README", "The workspace.\n")), &[], &[]);
    compiles(Some(("two/src/lib.rs", changed)), &[], &["two", "app"]);
    compiles(Some(("two/src/lib.rs", two)), &[], &["two", "app"]);
    let main = "fn main() { println!(\"{}\", one::one() * two::two()); }\n";
    compiles(Some(("app/src/main.rs", main)), &["app/src/main.rs"], &["app"]);
    let inner = "pub fn inner() -> u32 { 11 }\n";
    compiles(Some(("one/src/inner.rs", inner)), &["one/src/inner.rs"], &["one", "app"]);
    compiles(None, &["two/src/lib.rs", "app/src/main.rs"], &[]);
}

#[test]
fn go_compiles_what_changed() {
    if !is_long() {
        return;
    }
    let tools = base::debian_with("go", "golang-go");
    let go = "export GOCACHE=/gocache GOPATH=/tmp/go CGO_ENABLED=0 && \
              go build -v -trimpath -buildvcs=false -o /out/app .";
    let project = files(&[
        ("README", "A module.\n"),
        ("go.mod", "module example.test/app\n"),
        (
            "main.go",
            "package main\n\nimport (\n\t\"example.test/app/one\"\n\t\"example.test/app/two\"\n\t\"fmt\"\n)\n\n\
             func main() { fmt.Println(one.One(), two.Two()) }\n",
        ),
        ("one/one.go", "package one\n\nfunc One() int { return 1 }\n"),
        ("two/two.go", "package two\n\nfunc Two() int { return 2 }\n"),
    ]);
    let mut story = Story::new(tools, &["target=/gocache"], go, project);
    let mut compiles = |change: Option<(&str, &str)>, old: &[&str], expected: &[&str]| {
        if let Some((path, content)) = change {
            story.write(path, content);
        }
        let what = format!("{change:?}");
        let said = story.on_a_fresh_runner(&what, old);
        // The library of Go itself comes from its package, or is compiled by the first one.
        let done = said.lines().filter(|line| line.starts_with("example.test/")).map(str::to_owned);
        assert_done(&what, &said, &done.collect::<Vec<_>>(), expected);
        let library = said.lines().filter(|line| !line.starts_with("example.test/")).count();
        assert!(expected.len() == 3 || library == 0, "{what}: the library too\n{said}");
    };
    let [app, one, two] = ["example.test/app", "example.test/app/one", "example.test/app/two"];
    compiles(None, &[], &[app, one, two]);
    compiles(Some(("README", "The module.\n")), &[], &[]);
    let changed = "package two\n\nfunc Two() int { return 22 }\n";
    compiles(Some(("two/two.go", changed)), &[], &[two, app]);
    // It has both results, and knows them by content.
    compiles(Some(("two/two.go", "package two\n\nfunc Two() int { return 2 }\n")), &[], &[]);
    compiles(
        Some(("one/one.go", "package one\n\nfunc One() int { return 11 }\n")),
        &["one/one.go"],
        &[one, app],
    );
}

/// Without the objects: all is compiled anew, with results from the mount.
#[test]
fn ccache_finds_what_it_has_compiled() {
    if !is_long() {
        return;
    }
    let tools = base::debian_with("ccache", "gcc libc6-dev make ccache");
    let ccache = "export CCACHE_DIR=/ccache && ccache -z && make O=/tmp/obj CC=\"ccache gcc\" \
                  && ccache --print-stats && cp /tmp/obj/app /out/";
    let mut project = files(&[
        ("README", "A project.\n"),
        ("common.h", "#define COMMON 1\n"),
        (
            "Makefile",
            "objects := $(patsubst %.c,$(O)/%.o,$(sort $(wildcard *.c)))\n$(O)/app: $(objects)\n\tgcc -o $@ $^\n\
             $(O)/%.o: %.c\n\t@mkdir -p $(O)\n\t$(CC) -O1 -c -o $@ $<\n",
        ),
        ("main.c", "int main(void) { return 0; }\n"),
    ]);
    let part = |number: usize, value: usize| {
        format!("#include \"common.h\"\nint part_{number}(void) {{ return {value} + COMMON; }}\n")
    };
    for number in 0..19 {
        project.insert(format!("part_{number}.c"), part(number, number));
    }
    let mut story = Story::new(tools, &["target=/ccache"], ccache, project);
    let mut misses = |change: Option<(&str, &str)>, old: &[&str], expected: usize| {
        if let Some((path, content)) = change {
            story.write(path, content);
        }
        let what = format!("{change:?}");
        let said = story.on_a_fresh_runner(&what, old);
        let counted = |names: &[&str]| -> usize {
            let lines = said.lines().filter_map(|line| line.split_once('\t'));
            lines
                .filter(|(name, _)| names.contains(name))
                .map(|(_, count)| count.parse::<usize>().unwrap())
                .sum()
        };
        let hits = counted(&["direct_cache_hit", "preprocessed_cache_hit"]);
        assert_eq!((counted(&["cache_miss"]), hits), (expected, 20 - expected), "{what}\n{said}");
    };
    misses(None, &[], 20);
    misses(Some(("README", "The project.\n")), &[], 0);
    misses(Some(("part_3.c", &part(3, 1000))), &[], 1);
    misses(Some(("part_3.c", &part(3, 3))), &[], 0);
    misses(Some(("part_4.c", &part(4, 2000))), &["part_4.c"], 1);
    misses(Some(("common.h", "#define COMMON 2\n")), &["common.h"], 19);
    misses(Some(("common.h", "#define COMMON 1\n")), &["common.h"], 0);
}

fn compressed(tar: TarBuilder) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&tar.finish()).unwrap();
    encoder.finish().unwrap()
}

/// How often such a thing was asked for since the last time.
fn downloads(registry: &Server, part: &str) -> Vec<String> {
    let mut asked = registry.asked();
    asked.retain(|asked| asked.contains(part));
    asked.sort();
    asked
}

#[test]
fn npm_downloads_what_it_does_not_have() {
    if !is_long() {
        return;
    }
    let tools = base::debian_with("npm", "npm");
    let runners = Runners::new(tools);
    let place = runners.lab.context.path("registry");
    let registry = Server::of_files(place.clone());
    let mut packages = serde_json::Map::new();
    for name in ["alpha", "beta", "gamma"] {
        let description = json!({"name": name, "version": "1.0.0", "main": "index.js"}).to_string();
        let program = format!("module.exports = '{name}';\n");
        let tarball =
            compressed(TarBuilder::new().file("package/package.json", 0o644, description.as_bytes()).file(
                "package/index.js",
                0o644,
                program.as_bytes(),
            ));
        let integrity = base64::engine::general_purpose::STANDARD.encode(sha2::Sha512::digest(&tarball));
        let file = format!("/{name}/-/{name}-1.0.0.tgz");
        runners.lab.context.write(format!("registry{file}"), &tarball);
        packages.insert(
            name.to_owned(),
            json!({"version": "1.0.0", "resolved": registry.url(&file), "integrity": format!("sha512-{integrity}")}),
        );
    }
    let dockerfile = format!(
        "FROM tools AS build\nWORKDIR /src\nCOPY . .\nARG ROUND\nENV no_proxy=127.0.0.1\n\
         RUN --mount=type=cache,target=/root/.npm npm ci --prefer-offline --no-audit --no-fund --registry {}\n\
         RUN node -e \"for (const name of ['alpha', 'beta', 'gamma']) try {{ console.log(require(name)) }} catch {{}}\" > /out\n\
         FROM scratch\nCOPY --from=build /out /\nCOPY --from=build /src/node_modules /node_modules\n",
        registry.url("/")
    );
    let install = |what: &str, names: &[&str], expected: &[&str]| {
        let dependencies: serde_json::Map<_, _> =
            names.iter().map(|name| ((*name).to_owned(), json!("1.0.0"))).collect();
        let mut locked = serde_json::Map::new();
        locked
            .insert(String::new(), json!({"name": "app", "version": "1.0.0", "dependencies": dependencies}));
        for name in names {
            locked.insert(format!("node_modules/{name}"), packages[*name].clone());
        }
        let package = json!({"name": "app", "version": "1.0.0", "dependencies": dependencies});
        let lock = json!({"name": "app", "version": "1.0.0", "lockfileVersion": 3, "requires": true, "packages": locked});
        runners.check_out(&files(&[
            ("package.json", &package.to_string()),
            ("package-lock.json", &lock.to_string()),
        ]));
        registry.asked();
        let runner = format!("runner-{}", runners.round.get());
        let tree = runners.result(runners.build(&runner, &dockerfile));
        let wanted: Vec<_> = expected.iter().map(|name| format!("GET /{name}/-/{name}-1.0.0.tgz")).collect();
        assert_eq!(downloads(&registry, "/"), wanted, "{what}");
        assert_eq!(content(&tree, "out"), names.join("\n") + "\n");
        assert!(tree == runners.made_from_scratch(&dockerfile), "{what}: not what is installed from scratch");
    };
    install("cold", &["alpha", "beta"], &["alpha", "beta"]);
    install("again", &["alpha", "beta"], &[]);
    install("one more", &["alpha", "beta", "gamma"], &["gamma"]);
    install("reverted", &["alpha", "beta"], &[]);
    install("others", &["beta", "gamma"], &[]);
}

#[test]
fn pip_builds_a_wheel_once() {
    if !is_long() {
        return;
    }
    let tools = base::debian_with("pip", "python3-pip python3-setuptools python3-wheel");
    let runners = Runners::new(tools);
    let registry = Server::of_files(runners.lab.context.path("registry"));
    let mut links = String::new();
    for version in ["1.0", "2.0"] {
        let at = |path: &str| format!("thing-{version}/{path}");
        let setup = format!(
            "from setuptools import setup\nsetup(name='thing', version='{version}', py_modules=['thing'])\n"
        );
        let information = format!("Metadata-Version: 2.1\nName: thing\nVersion: {version}\n");
        let program = format!("version = '{version}'\n");
        let sdist = compressed(
            TarBuilder::new()
                .file(&at("setup.py"), 0o644, setup.as_bytes())
                .file(&at("PKG-INFO"), 0o644, information.as_bytes())
                .file(&at("thing.py"), 0o644, program.as_bytes()),
        );
        let digest = crate::support::oci::digest(&sdist).replace(':', "=");
        runners.lab.context.write(format!("registry/files/thing-{version}.tar.gz"), sdist);
        links.push_str(&format!(
            "<a href=\"/files/thing-{version}.tar.gz#{digest}\">thing-{version}.tar.gz</a>\n"
        ));
    }
    let page = format!("<!DOCTYPE html>\n<html><body>\n{links}</body></html>\n");
    let index = Server::new(move |request| {
        let reply = crate::support::http::Reply::ok(page.clone());
        match request.path.as_str() {
            "/simple/thing/" => reply.header("Content-Type", "text/html"),
            path if path.starts_with("/files/") => crate::support::http::Reply::redirect(&registry.url(path)),
            _ => crate::support::http::Reply::new(404, ""),
        }
    });
    let dockerfile = format!(
        "FROM tools AS build\nWORKDIR /src\nCOPY . .\nARG ROUND\nENV no_proxy=127.0.0.1 PIP_DISABLE_PIP_VERSION_CHECK=1\n\
         RUN --mount=type=cache,target=/root/.cache/pip python3 -m pip install --no-build-isolation --no-compile \
         --root-user-action=ignore --index-url {} --target /site --requirement requirements.txt > /said 2>&1 || {{ cat /said; false; }}\n\
         FROM scratch\nCOPY --from=build /said /\nCOPY --from=build /site /site\n",
        index.url("/simple/")
    );
    let install = |what: &str, version: &str, builds: usize| {
        runners.check_out(&files(&[("requirements.txt", &format!("thing=={version}\n"))]));
        index.asked();
        let runner = format!("runner-{}", runners.round.get());
        let mut tree = runners.result(runners.build(&runner, &dockerfile));
        let said = tree.remove("said").unwrap();
        let said = String::from_utf8_lossy(&said.content);
        let asked = downloads(&index, "/files/");
        let built = said
            .lines()
            .filter(|line| line.contains("Building wheel for thing") && line.contains("finished"));
        assert_eq!((built.count(), asked.len()), (builds, builds), "{what}: {asked:?}\n{said}");
        assert_eq!(content(&tree, "site/thing.py"), format!("version = '{version}'\n"));
        let mut scratch = runners.made_from_scratch(&dockerfile);
        scratch.remove("said");
        assert!(tree.keys().eq(scratch.keys()), "{what}: {:?}\n{:?}", tree.keys(), scratch.keys());
    };
    install("cold", "1.0", 1);
    install("again", "1.0", 0);
    install("changed", "2.0", 1);
    install("reverted", "1.0", 0);
}

#[test]
fn apt_downloads_a_package_once() {
    if !is_long() {
        return;
    }
    let runners = Runners::new(Path::new(base::debian()));
    let dockerfile = |packages: &str| {
        format!(
            "FROM tools AS build\nARG ROUND\n\
             RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
             {{ apt-get update -q && apt-get install -q -y --no-install-recommends {packages}; }} > /said 2>&1 || {{ cat /said; false; }}\n\
             FROM scratch\nCOPY --from=build /said /usr/bin/hello /\n"
        )
    };
    let install = |what: &str, packages: &str| {
        let runner = format!("runner-{}", runners.round.get());
        let tree = runners.result(runners.build(&runner, &dockerfile(packages)));
        let said = content(&tree, "said");
        let needs = said.lines().find_map(|line| line.strip_prefix("Need to get "));
        let needs = needs.unwrap_or_else(|| panic!("{what}: no sum\n{said}"));
        // A line for each archive names the package.
        let mut archives: Vec<_> = said.lines().filter(|line| line.starts_with("Get:")).collect();
        archives
            .retain(|line| packages.split(' ').any(|package| line.split(' ').any(|word| word == package)));
        let archives = archives.len();
        assert!(runners.made_from_scratch(&dockerfile(packages))["hello"] == tree["hello"], "{what}");
        (needs.starts_with("0 B/"), archives)
    };
    assert_eq!(install("cold", "hello"), (false, 1));
    assert_eq!(install("again", "hello"), (true, 0));
    assert_eq!(install("one more", "hello tree"), (false, 1));
    assert_eq!(install("all of it", "hello tree"), (true, 0));
}
