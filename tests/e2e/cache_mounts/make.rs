//! A C project with its objects in a cache mount.

use std::fmt::Write as _;

use super::{Files, Story, assert_done, told};
use crate::support::base;

/// Source files besides `main.c`.
const FILES: usize = 200;

/// Each source file includes one of so many headers, in turn.
const HEADERS: usize = 10;

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
fn project() -> Files {
    let mut files = Files::new();
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
    let tools = base::debian_with("c", "gcc libc6-dev make");
    let make = "make -j2 O=/obj && cp /obj/app /out/";
    let mut story = Story::new(tools, &["target=/obj"], make, project());
    let compiled = |said: &str| told(said, "CC");
    let said = story.on("one", "cold", &[]);
    assert_eq!(compiled(&said).len(), FILES + 1, "{said}");

    // Nothing that matters: another time of every file, another text that nobody reads, another argument.
    story.write("README", "The project.\n");
    let said = story.on_a_fresh_runner("unread", &[]);
    assert_done("unread", &said, &compiled(&said), &[]);
    assert_done("unread", &said, &told(&said, "LD"), &[]);

    story.write("part_7.c", &part(7, 1000));
    let said = story.on_a_fresh_runner("one changed", &[]);
    assert_done("one changed", &said, &compiled(&said), &["part_7.c"]);

    story.write("part_7.c", &part(7, 7));
    let said = story.on_a_fresh_runner("reverted", &[]);
    assert_done("reverted", &said, &compiled(&said), &["part_7.c"]);

    // Older than any object; and all the others are too, for good measure.
    story.write("part_8.c", &part(8, 2000));
    let all: Vec<_> = story.files.keys().cloned().collect();
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    let said = story.on_a_fresh_runner("older", &all);
    assert_done("older", &said, &compiled(&said), &["part_8.c"]);

    story.write("group_3.h", "#define GROUP 33\n");
    let said = story.on_a_fresh_runner("a header", &["group_3.h"]);
    let includers: Vec<_> = (3..FILES).step_by(HEADERS).map(|number| format!("part_{number}.c")).collect();
    let includers: Vec<_> = includers.iter().map(String::as_str).collect();
    assert_done("a header", &said, &compiled(&said), &includers);

    // The first runner has been away: what it finds is what the last one left.
    let said = story.on("one", "back again", &[]);
    assert_done("back again", &said, &compiled(&said), &[]);

    // A name that is gone, and another one for the same.
    let content = story.files.remove("part_9.c").unwrap();
    story.write("moved.c", &content);
    let said = story.on_a_fresh_runner("moved", &[]);
    assert_done("moved", &said, &compiled(&said), &["moved.c"]);
    story.files.remove("moved.c");
    story.write("part_9.c", &content);
    let said = story.on_a_fresh_runner("moved back", &["part_9.c"]);
    assert_done("moved back", &said, &compiled(&said), &["part_9.c"]);
    story.runners.lab.context.verify_store(story.runners.stored());
}
