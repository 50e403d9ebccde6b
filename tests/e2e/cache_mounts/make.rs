//! A C project with its objects in a cache mount.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{LONG_AGO, Runners, assert_done, set_time, told};
use crate::support::base;
use crate::support::oci::{Tree, content};

/// Source files besides `main.c`.
const FILES: usize = 200;

/// Each source file includes one of so many headers, in turn.
const HEADERS: usize = 10;

const DOCKERFILE: &str = "FROM tools AS build
COPY . /src
ARG ROUND
RUN --mount=type=cache,target=/obj mkdir /out && { make -j2 -C /src O=/obj > /out/said 2>&1 || { cat /out/said; false; }; } && cp /obj/app /out/
FROM scratch
COPY --from=build /out /
";

/// The list of objects is a file that changes when they do, so that the program is linked again when one has gone.
const MAKEFILE: &str = "sources := $(sort $(wildcard *.c))
objects := $(sources:%.c=$(O)/%.o)
$(O)/app: $(objects) $(O)/list
\t@echo LD $@
\t@$(CC) -o $@ $(objects)
$(O)/list: always
\t@echo $(objects) | cmp -s - $@ || echo $(objects) > $@
$(O)/%.o: %.c Makefile
\t@echo CC $<
\t@$(CC) -O1 -Wall -Werror -MMD -MP -c -o $@ $<
.PHONY: always
-include $(objects:.o=.d)
";

/// The files of the project.
fn project() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut declared = String::new();
    let mut sum = String::from("0");
    for header in 0..HEADERS {
        files.insert(format!("group_{header}.h"), format!("#define GROUP {header}\n"));
    }
    for number in 0..FILES {
        writeln!(declared, "int part_{number}(void);").unwrap();
        write!(sum, " + part_{number}()").unwrap();
        files.insert(format!("part_{number}.c"), part(number, number));
    }
    let main =
        format!("#include <stdio.h>\n{declared}int main(void) {{ printf(\"%d\\n\", {sum}); return 0; }}\n");
    files.insert("main.c".to_owned(), main);
    files.insert("Makefile".to_owned(), MAKEFILE.to_owned());
    files.insert("README".to_owned(), "A project.\n".to_owned());
    files
}

/// A source file that is worth `value`.
fn part(number: usize, value: usize) -> String {
    format!(
        "#include \"group_{}.h\"\nint part_{number}(void) {{ return {value} + GROUP; }}\n",
        number % HEADERS
    )
}

/// The whole story, told by runners that all start from nothing but what is on the server.
#[test]
fn a_fresh_runner_compiles_what_changed() {
    let runners = Runners::new(base::debian_with("c", "gcc libc6-dev make"));
    // What a build from scratch gives, by what it was built from.
    let mut known: BTreeMap<Vec<String>, Vec<u8>> = BTreeMap::new();
    let mut build = |what: &str, runner: &str, files: &BTreeMap<String, String>, old: &[&str]| {
        runners.check_out(files);
        for path in old {
            set_time(&runners.lab.path(path), LONG_AGO);
        }
        let tree = runners.result(runners.build(runner, DOCKERFILE));
        let sources = files.iter().filter(|(path, _)| *path != "README");
        let sources = sources.map(|(path, content)| format!("{path}\n{content}")).collect();
        let scratch = known.entry(sources).or_insert_with(|| app(&runners.from_scratch(DOCKERFILE)));
        assert!(app(&tree) == *scratch, "{what}: not what a build from scratch gives");
        content(&tree, "said")
    };
    let compiled = |said: &str| told(said, "CC");
    let mut files = project();
    let said = build("cold", "one", &files, &[]);
    assert_eq!(compiled(&said).len(), FILES + 1, "{said}");

    // Nothing that matters: another time of every file, another text that nobody reads, another argument.
    files.insert("README".to_owned(), "The project.\n".to_owned());
    let said = build("unread", "two", &files, &[]);
    assert_done("unread", &said, &compiled(&said), &[]);
    assert_done("unread", &said, &told(&said, "LD"), &[]);

    files.insert("part_7.c".to_owned(), part(7, 1000));
    let said = build("one changed", "three", &files, &[]);
    assert_done("one changed", &said, &compiled(&said), &["part_7.c"]);

    files.insert("part_7.c".to_owned(), part(7, 7));
    let said = build("reverted", "four", &files, &[]);
    assert_done("reverted", &said, &compiled(&said), &["part_7.c"]);

    // Older than any object; and all the others are too, for good measure.
    files.insert("part_8.c".to_owned(), part(8, 2000));
    let all: Vec<_> = files.keys().map(String::as_str).collect();
    let said = build("older", "five", &files, &all);
    assert_done("older", &said, &compiled(&said), &["part_8.c"]);

    files.insert("group_3.h".to_owned(), "#define GROUP 33\n".to_owned());
    let said = build("a header", "six", &files, &["group_3.h"]);
    let includers: Vec<_> = (0..FILES).filter(|number| number % HEADERS == 3).collect();
    let includers: Vec<_> = includers.iter().map(|number| format!("part_{number}.c")).collect();
    let includers: Vec<_> = includers.iter().map(String::as_str).collect();
    assert_done("a header", &said, &compiled(&said), &includers);

    // The first runner has been away: what it finds is what the last one left.
    let said = build("back again", "one", &files, &[]);
    assert_done("back again", &said, &compiled(&said), &[]);

    // A name that is gone, and another one for the same.
    let moved = files.remove("part_9.c").unwrap();
    files.insert("moved.c".to_owned(), moved);
    let said = build("moved", "seven", &files, &[]);
    assert_done("moved", &said, &compiled(&said), &["moved.c"]);
    let moved = files.remove("moved.c").unwrap();
    files.insert("part_9.c".to_owned(), moved);
    let said = build("moved back", "eight", &files, &["part_9.c"]);
    assert_done("moved back", &said, &compiled(&said), &["part_9.c"]);
    runners.lab.context.verify_store(runners.stored());
}

/// The program that was built.
fn app(tree: &Tree) -> Vec<u8> {
    tree["app"].content.clone()
}
