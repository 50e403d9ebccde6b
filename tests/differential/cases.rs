//! The tables of cases: what stands in `cases/*.txt`, and how it becomes files.
//!
//! ```text
//! ## What the cases below show: a rule of Dockerfiles, in a sentence.
//!
//! # A remark for readers.
//! === name-of-the-case
//! % --build-arg WHO=me          an option of the build, as Crossdock spells it; one on a line
//! % fails Dockerfile:2          both builders must fail, and our message must have this in it
//! % context http://{server}/c   what is built instead of the directory
//! % stdin www/c.tar             the file that standard input is, and the context if no `--file -` says otherwise
//! FROM busybox
//! COPY dir /
//! --- dir/script 0755           a file of the build context, with its mode
//! echo hello
//! --- dir/link -> script        a symbolic link
//! --- dir/empty/ 0700           a directory
//! --- setup                     commands for sh(1) in the build context, for what has no notation of its own
//! ln dir/script dir/hardlink
//! --- pack                      the same, after the variation has changed files; for archives and repositories of them
//! tar -cf www/c.tar dir
//! ```
//!
//! `{server}` in a Dockerfile and in options is the address of a web server that has what is in `www`.
//! A case without a Dockerfile text has none at the usual place.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One small Dockerfile, with what it needs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Case {
    /// The table's name, a slash, and its own.
    pub(crate) name: String,
    /// What it shows.
    pub(crate) rule: String,
    pub(crate) options: Vec<String>,
    /// Both builders must fail, ours with this in its message.
    pub(crate) fails: Option<String>,
    pub(crate) dockerfile: String,
    pub(crate) files: Vec<Given>,
    pub(crate) setup: String,
    pub(crate) pack: String,
    /// An address that is the build context.
    pub(crate) context: Option<String>,
    /// What is given on standard input.
    pub(crate) stdin: Option<String>,
    /// A directory whose files are there before all others.
    pub(crate) directory: Option<PathBuf>,
    /// Base images by the names that the Dockerfile has for them, where those are not their own.
    pub(crate) bases: Vec<(String, String)>,
}

/// A path of the build context.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) path: String,
    mode: u32,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    File(String),
    Directory,
    Symlink(String),
}

impl Given {
    fn parse(line: &str, place: &str) -> Self {
        if let Some((path, target)) = line.split_once(" -> ") {
            return Self { path: path.to_owned(), mode: 0o777, what: What::Symlink(target.to_owned()) };
        }
        let (path, mode) = match line.rsplit_once(' ') {
            Some((path, mode)) if mode.starts_with('0') => {
                (path, u32::from_str_radix(mode, 8).unwrap_or_else(|_| panic!("{place}: no mode: {mode}")))
            }
            _ => (line, if line.ends_with('/') { 0o755 } else { 0o644 }),
        };
        let what = if path.ends_with('/') { What::Directory } else { What::File(String::new()) };
        Self { path: path.trim_end_matches('/').to_owned(), mode, what }
    }

    /// Whether it is a file that a build reads for its own sake.
    pub(crate) fn is_source(&self) -> bool {
        matches!(self.what, What::File(_))
            && !self.path.ends_with("ockerfile")
            && !self.path.ends_with(".dockerignore")
    }
}

/// Reads every table, in the order of their names.
pub(crate) fn tables() -> Vec<Case> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential/cases");
    let mut tables: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    tables.sort();
    let mut cases = Vec::new();
    for table in &tables {
        let name = table.file_stem().unwrap().to_str().unwrap();
        cases.extend(parse(name, &std::fs::read_to_string(table).unwrap()));
    }
    for (number, case) in cases.iter().enumerate() {
        assert!(!cases[..number].iter().any(|other| other.name == case.name), "two cases {}", case.name);
    }
    cases
}

/// Reads one table. A rule without a case is a mistake: nothing shows it.
fn parse(table: &str, text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut rule = String::new();
    let mut shown = true;
    let mut part = Part::Between;
    for (number, line) in text.lines().enumerate() {
        let place = format!("cases/{table}.txt:{}", number + 1);
        if let Some(next) = line.strip_prefix("## ") {
            assert!(shown, "{place}: no case shows {rule:?}");
            (rule, shown, part) = (next.to_owned(), false, Part::Between);
        } else if let Some(name) = line.strip_prefix("=== ") {
            assert!(!rule.is_empty(), "{place}: a case before the first rule");
            shown = true;
            cases.push(Case { name: format!("{table}/{name}"), rule: rule.clone(), ..Case::default() });
            part = Part::Head;
        } else if part == Part::Between {
            assert!(line.is_empty() || line.starts_with('#'), "{place}: outside of a case: {line}");
        } else if let Some(file) = line.strip_prefix("--- ") {
            let case = cases.last_mut().unwrap();
            part = match file {
                "setup" => Part::Setup,
                "pack" => Part::Pack,
                _ => Part::File,
            };
            if part == Part::File {
                case.files.push(Given::parse(file, &place));
            }
        } else {
            let case = cases.last_mut().unwrap();
            match (part, line.strip_prefix("% ")) {
                (Part::Head, Some(option)) => match option.split_once(' ').unwrap_or((option, "")) {
                    ("fails", message) => case.fails = Some(message.trim().to_owned()),
                    ("context", address) => case.context = Some(address.to_owned()),
                    ("stdin", path) => case.stdin = Some(path.to_owned()),
                    _ => case.options.push(option.to_owned()),
                },
                (Part::Head | Part::Dockerfile, _) => {
                    part = Part::Dockerfile;
                    case.dockerfile += line;
                    case.dockerfile.push('\n');
                }
                (Part::Setup, _) => {
                    case.setup += line;
                    case.setup.push('\n');
                }
                (Part::Pack, _) => {
                    case.pack += line;
                    case.pack.push('\n');
                }
                _ => match &mut case.files.last_mut().unwrap().what {
                    What::File(content) => {
                        content.push_str(line);
                        content.push('\n');
                    }
                    _ => assert!(line.is_empty(), "{place}: content of something else than a file"),
                },
            }
        }
    }
    assert!(shown, "cases/{table}.txt: no case shows {rule:?}");
    for case in &mut cases {
        case.trim();
    }
    cases
}

/// Where in a table a line stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Between,
    Head,
    Dockerfile,
    File,
    Setup,
    Pack,
}

impl Case {
    /// Blank lines before the next case belong to nobody.
    fn trim(&mut self) {
        let trim = |text: &mut String| {
            let length = text.trim_end_matches('\n').len();
            if length < text.len() {
                text.truncate(length + 1);
            }
            if text == "\n" {
                text.clear();
            }
        };
        if self.files.is_empty() {
            trim(&mut self.dockerfile);
        }
        if let Some(Given { what: What::File(content), .. }) = self.files.last_mut() {
            trim(content);
        }
    }

    /// Where the Dockerfile is.
    pub(crate) fn dockerfile_path(&self) -> &str {
        self.options.iter().find_map(|option| option.strip_prefix("--file ")).unwrap_or("Dockerfile")
    }

    /// Makes the build context in an empty directory; `server` is where its `www` can be had from.
    pub(crate) fn write(&self, root: &Path, server: &str) {
        if let Some(directory) = &self.directory {
            // With their links and modes: the directory is somebody else's, and read-only.
            run(Command::new("cp").arg("-a").arg(directory.join(".")).arg(root));
            run(Command::new("chmod").args(["-R", "u+w"]).arg(root));
        }
        for given in &self.files {
            let path = root.join(&given.path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            match &given.what {
                What::File(content) => std::fs::write(&path, content).unwrap(),
                What::Directory => std::fs::create_dir_all(&path).unwrap(),
                What::Symlink(target) => {
                    std::os::unix::fs::symlink(target, &path).unwrap();
                    continue;
                }
            }
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(given.mode)).unwrap();
        }
        if !self.dockerfile.is_empty() {
            let text = self.dockerfile.replace("{server}", server);
            std::fs::write(root.join(self.dockerfile_path()), text).unwrap();
        }
        if !self.setup.is_empty() {
            run(Command::new("sh").args(["-euc", &self.setup]).current_dir(root));
        }
        same_times(root);
    }

    /// Makes archives and repositories of the build context.
    pub(crate) fn pack(&self, root: &Path) {
        if self.pack.is_empty() {
            return;
        }
        let mut shell = Command::new("sh");
        for role in ["AUTHOR", "COMMITTER"] {
            shell
                .env(format!("GIT_{role}_NAME"), "Test")
                .env(format!("GIT_{role}_EMAIL"), "test@example.com");
            shell.env(format!("GIT_{role}_DATE"), "@1234567890 +0200");
        }
        shell.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        run(shell.args(["-euc", &self.pack]).current_dir(root));
    }
}

/// Whatever was not given a time of its own has the same one in every run.
fn same_times(root: &Path) {
    let date = "@1580601600.25";
    run(Command::new("find").arg(root).args([
        "-newermt",
        "2021-01-01",
        "-exec",
        "touch",
        "-hd",
        date,
        "{}",
        "+",
    ]));
}

/// Runs a tool that must succeed.
pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
