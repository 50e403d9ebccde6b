//! What goes wrong is said: where, what, and what to do.

use crate::support::lab::Lab;

#[test]
fn mistakes_in_the_dockerfile() {
    let lab = Lab::new();
    lab.file("names/.wh.x", "");
    for (dockerfile, said) in [
        ("FROM scratch\nCOPY names /\n", &["Dockerfile:2", ".wh.x", "removed"][..]),
        ("FROM scratch\nCOPY --parents . /\n", &["Dockerfile:2", "not found"]),
        ("FROM busybox\nRNU true\n", &["Dockerfile:2", "RNU", "RUN"][..]),
        ("FROM busybox\nCOPY absent.txt /\n", &["absent.txt", "Dockerfile:2"]),
        ("FROM busybox\nCOPY --form=x a /\n", &["--form", "from"]),
        ("FROM busybox\nCOPY --from=7 a /\n", &["7"]),
        ("RUN true\n", &["Dockerfile:1", "FROM"]),
        ("FROM busybox\nRUN <<EOF\nnever ended\n", &["EOF"]),
        ("FROM busybox\nENV broken=${x\n", &["Dockerfile:2"]),
        ("FROM $NOTHING\n", &["Dockerfile:1"]),
        ("FROM busybox\nUSER nobody-here\nRUN true\n", &["nobody-here"]),
        ("FROM scratch\nCOPY --chown=who Dockerfile /\n", &["Dockerfile:2", "who"]),
        ("# syntax=example.test/frontend:1\nFROM busybox\n", &["example.test/frontend"]),
        ("", &["Dockerfile"]),
    ] {
        let output = lab.build(dockerfile).failure();
        for text in said {
            output.says(text);
        }
    }
    lab.file("Dockerfile", "FROM busybox\n");
    lab.build("FROM busybox AS one\n").args(["--target", "noe"]).failure().says("noe").says("one");
}

#[test]
fn sources_that_are_not_supported_say_so() {
    let lab = Lab::new();
    for dockerfile in [
        "FROM busybox\nADD https://example.test/file /\n",
        "FROM busybox\nADD https://example.test/repository.git /\n",
    ] {
        lab.build(dockerfile).failure().says("example.test");
    }
}

#[test]
fn a_failed_step_shows_itself() {
    let lab = Lab::new();
    let output = lab.build("FROM busybox\nRUN true\nRUN echo the last words && exit 7\nRUN true\n").failure();
    output.says("exit 7").says("the last words").says("7").says("Dockerfile:3");
    let output = lab.build("FROM busybox\nRUN sh -c 'kill -9 $$' && true\n").failure();
    output.says("kill -9").says("137");
    lab.build("FROM busybox\nRUN [\"/no/such/program\"]\n").failure().says("/no/such/program");
}

/// A destination that cannot be written is no reason to leave half of an image there.
#[test]
fn no_half_written_results() {
    let lab = Lab::new();
    let output = lab.context.path("result.tar");
    lab.build("FROM busybox\nRUN false\n").option_path("--output", "type=oci,dest=", &output).failure();
    assert!(!output.exists());
    lab.build("FROM busybox\n").args(["--output", "type=oci,dest=/no/such/directory/result.tar"]).failure();
    lab.build("FROM busybox\n").args(["--output", "type=nonsense,dest=x"]).failure().says("nonsense");
}
