//! The sample project: a program of three modules, each "compiled" in a stage of its own by a shell script that takes
//! its time. No compiler is needed.

use std::path::Path;

use fs_err as fs;

/// The file that is edited between the two builds.
pub(super) const EDITED: &str = "greeting/greeting.src";

const FILES: &[(&str, &str)] = &[
    (
        "Dockerfile",
        r#"FROM base AS tools
WORKDIR /work
COPY tools/ /tools/
RUN sh /tools/prepare

FROM tools AS greeting
COPY greeting/ .
RUN sh /tools/compile greeting.src /out/greeting

FROM tools AS farewell
COPY farewell/ .
RUN sh /tools/compile farewell.src /out/farewell

FROM tools AS weather
COPY weather/ .
RUN sh /tools/compile weather.src /out/weather

FROM base
COPY --from=farewell /out/ /app/
COPY --from=weather /out/ /app/
COPY --from=greeting /out/ /app/
RUN for part in greeting weather farewell; do cat /app/$part; done > /app/program && sh /app/program
CMD ["/bin/sh", "/app/program"]
"#,
    ),
    (
        // For machines that cannot run steps.
        "Dockerfile.copy-only",
        r#"FROM base AS sources
COPY farewell/ /sources/
COPY weather/ /sources/
COPY greeting/ /sources/

FROM base
COPY tools/ /tools/
COPY --from=sources /sources/ /app/
CMD ["/bin/sh", "/app/greeting.src"]
"#,
    ),
    (
        "tools/prepare",
        r#"# Stands for the installation of dependencies: it takes long, and everything else builds on it.
set -e
count=0
while [ "$count" -lt 1500000 ]; do count=$((count + 1)); done
mkdir -p /out
echo "ready"
"#,
    ),
    (
        "tools/compile",
        r#"# Stands for a compiler: it reads one file, takes its time, and writes another.
set -e
echo "compiling $1"
count=0
while [ "$count" -lt 400000 ]; do count=$((count + 1)); done
cat "$1" > "$2"
echo "wrote $2"
"#,
    ),
    ("greeting/greeting.src", "echo 'Good morning!'\n"),
    ("farewell/farewell.src", "echo 'Good bye!'\n"),
    ("weather/weather.src", "echo 'It is a fine day.'\n"),
];

/// Writes the project into the new directory `directory`; `edited` with one source file changed.
pub(super) fn write(directory: &Path, edited: bool) -> std::io::Result<()> {
    for (name, content) in FILES {
        let path = directory.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let content = if edited && *name == EDITED { "echo 'Good evening!'\n" } else { content };
        fs::write(path, content)?;
    }
    Ok(())
}
