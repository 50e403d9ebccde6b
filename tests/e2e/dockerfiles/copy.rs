//! COPY and ADD.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::support::lab::Lab;
use crate::support::oci::{Image, Tree, content};
use crate::support::text;

/// A context with files of several kinds.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.file("a.txt", "a\n").file("b.txt", "b\n").file("c.md", "c\n");
    lab.file("dir/one", "1\n").file("dir/sub/two", "2\n").file("dir/sub/three.md", "3\n");
    lab.file("run.sh", "#!/bin/sh\n");
    std::fs::set_permissions(lab.path("run.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    symlink("one", lab.path("dir/link")).unwrap();
    lab
}

fn listing(tree: &Tree, below: &str) -> Vec<String> {
    let prefix = format!("{below}/");
    tree.keys().filter_map(|path| path.strip_prefix(&prefix)).map(ToOwned::to_owned).collect()
}

#[test]
fn where_sources_go() {
    let tree = lab()
        .image(
            r#"FROM busybox
COPY a.txt /plain
COPY a.txt /into/
COPY a.txt b.txt /several/
COPY dir /contents
COPY dir/ dir/sub/ /merged/
COPY *.txt /wild/
COPY d?r/su* /wild-directory/
COPY ["a.txt", "/with space/"]
COPY ../../a.txt /clamped
COPY /dir/one /absolute
COPY nothing*here a.txt /nothing/
WORKDIR /work
COPY a.txt relative
COPY . /all/
COPY dir/link /followed
"#,
        )
        .tree();
    assert_eq!(content(&tree, "plain"), "a\n");
    assert_eq!(listing(&tree, "into"), ["a.txt"]);
    assert_eq!(listing(&tree, "several"), ["a.txt", "b.txt"]);
    assert_eq!(listing(&tree, "contents"), ["link", "one", "sub", "sub/three.md", "sub/two"]);
    assert_eq!(tree["contents/link"].target, "one");
    assert_eq!(
        listing(&tree, "merged"),
        ["link", "one", "sub", "sub/three.md", "sub/two", "three.md", "two"]
    );
    assert_eq!(listing(&tree, "wild"), ["a.txt", "b.txt"]);
    assert_eq!(listing(&tree, "wild-directory"), ["three.md", "two"]);
    assert_eq!(listing(&tree, "with space"), ["a.txt"]);
    assert_eq!(content(&tree, "clamped"), "a\n");
    assert_eq!(content(&tree, "absolute"), "1\n");
    assert_eq!(listing(&tree, "nothing"), ["a.txt"]);
    assert_eq!(content(&tree, "work/relative"), "a\n");
    assert!(listing(&tree, "all").contains(&"dir/sub/two".to_owned()));
    assert_eq!(tree["all/run.sh"].mode, 0o755);
    assert_eq!((tree["followed"].kind, content(&tree, "followed").as_str()), ("file", "1\n"));
    for path in ["plain", "contents/sub/two", "all/run.sh", "into"] {
        assert_eq!((tree[path].uid, tree[path].gid), (0, 0), "{path}");
    }
}

#[test]
fn owners_and_modes() {
    let tree = lab()
        .image(
            r"FROM busybox
USER app
COPY a.txt /root-owned
COPY --chown=app:staff a.txt /owned/deeper/a.txt
COPY --chown=app dir /named
COPY --chown=1234 a.txt /number
COPY --chown=1234:4321 a.txt /numbers
COPY --chmod=640 a.txt /mode
COPY --chmod=u+x,g-r a.txt /symbolic
COPY --chmod=4755 run.sh /set-user-id
ARG WHO=app
COPY --chown=$WHO a.txt /expanded
",
        )
        .tree();
    let owner = |path: &str| (tree[path].uid, tree[path].gid);
    assert_eq!(owner("root-owned"), (0, 0), "COPY is root's, whoever runs");
    assert_eq!(owner("owned/deeper/a.txt"), (1000, 50));
    assert_eq!(owner("owned/deeper"), (1000, 50), "made for it");
    assert_eq!(owner("owned"), (1000, 50), "made for it");
    assert_eq!(owner("named/sub/two"), (1000, 1000));
    assert_eq!(owner("number"), (1234, 1234));
    assert_eq!(owner("numbers"), (1234, 4321));
    assert_eq!(owner("expanded"), (1000, 1000));
    assert_eq!(tree["mode"].mode, 0o640);
    assert_eq!(tree["symbolic"].mode, 0o704);
    assert_eq!(tree["set-user-id"].mode, 0o4755);
    assert_eq!(tree["root-owned"].mode, 0o644);
}

#[test]
fn parents_exclude_and_link() {
    let tree = lab()
        .image(
            r"FROM busybox
COPY --parents dir/sub/two a.txt /parents/
COPY --parents ./dir/./sub/two /pivot/
COPY --parents **/*.md /deep/
COPY --parents di*/./sub/two ./*/./nothing /wild-pivot
COPY --exclude=*.md --exclude=dir/link . /excluded/
COPY --exclude=**/*.md dir /excluded-deep/
COPY --link a.txt /linked/a.txt
COPY --link --chown=1000 dir /linked/dir
",
        )
        .tree();
    assert_eq!(listing(&tree, "parents"), ["a.txt", "dir", "dir/sub", "dir/sub/two"]);
    assert_eq!(listing(&tree, "pivot"), ["sub", "sub/two"]);
    assert_eq!(listing(&tree, "wild-pivot"), ["sub", "sub/two"]);
    assert_eq!(listing(&tree, "deep"), ["c.md", "dir", "dir/sub", "dir/sub/three.md"]);
    let excluded = listing(&tree, "excluded");
    assert!(
        excluded.contains(&"a.txt".to_owned()) && excluded.contains(&"dir/sub/three.md".to_owned()),
        "{excluded:?}"
    );
    assert!(
        !excluded.contains(&"c.md".to_owned()) && !excluded.contains(&"dir/link".to_owned()),
        "{excluded:?}"
    );
    assert_eq!(listing(&tree, "excluded-deep"), ["link", "one", "sub", "sub/two"]);
    assert_eq!(content(&tree, "linked/a.txt"), "a\n");
    assert_eq!(tree["linked/dir/sub/two"].uid, 1000);
}

/// What --link adds is a layer by itself: it replaces links and directories' modes, and follows nothing.
#[test]
fn linked_copies_know_nothing_of_what_they_are_put_on() {
    let lab = lab();
    let tree = lab
        .image(
            r"FROM busybox
RUN mkdir /real && ln -s real /alias && ln -s real /other
COPY --link a.txt /alias/f
COPY --link a.txt /tmp/f
COPY --link --chmod=600 a.txt /other/g
",
        )
        .tree();
    assert_eq!(tree["alias"].kind, "directory");
    assert_eq!(content(&tree, "alias/f"), "a\n");
    assert!(!tree.contains_key("real/f"));
    assert_eq!(tree["tmp"].mode, 0o755);
    // With --chmod it has no effect.
    assert_eq!(tree["other"].kind, "symlink");
    assert_eq!(content(&tree, "real/g"), "a\n");
    lab.build("FROM busybox\nCOPY --link --chown=app a.txt /\n").failure().says("--chown=app").says("--link");
}

/// Owners of files are looked up in other ways than users of commands, and nobody is root.
#[test]
fn owners_that_are_not_there() {
    let tree = lab()
        .image(
            r"FROM busybox
RUN echo 'odd:x:70:71::/:/bin/sh' >> /etc/passwd && mkdir -m 2755 /shared && chgrp 50 /shared
COPY --chown=odd a.txt /named
COPY --chown=absent a.txt /absent
COPY --chown=5:absent a.txt /absent-group
COPY --chmod=4711 a.txt /made/for/it
COPY a.txt /shared/made/it
USER absent
WORKDIR /absent-work
USER 5
WORKDIR /numbered-work
USER odd
WORKDIR /named-work
COPY --from=scratch / /nothing/
",
        )
        .tree();
    let owner = |path: &str| (tree[path].uid, tree[path].gid);
    assert_eq!(owner("named"), (70, 71));
    assert_eq!(owner("absent"), (0, 0));
    assert_eq!(owner("absent-group"), (5, 5));
    assert_eq!(owner("absent-work"), (0, 0));
    assert_eq!(owner("numbered-work"), (5, 5));
    assert_eq!(owner("named-work"), (70, 71));
    assert_eq!((tree["made/for/it"].mode, tree["made/for"].mode), (0o4711, 0o711));
    assert_eq!((tree["shared/made"].mode, owner("shared/made")), (0o2755, (0, 50)));
    assert_eq!(owner("shared/made/it"), (0, 0));
    assert_eq!(tree["nothing"].kind, "directory");
}

#[test]
fn destinations_that_exist() {
    let tree = lab()
        .image(
            r"FROM busybox
RUN mkdir -m 700 /real && chown app /real && ln -s real /alias && ln -s /real/target /file-alias && mkdir /replaced
COPY a.txt /alias/
COPY b.txt /file-alias
COPY dir /real
RUN mkdir -p /tree/sub && echo old > /tree/sub/two && echo kept > /tree/sub/kept
COPY dir /tree
COPY a.txt /tmp/
",
        )
        .tree();
    assert_eq!(tree["alias"].kind, "symlink");
    assert_eq!(content(&tree, "real/a.txt"), "a\n");
    assert_eq!(content(&tree, "real/target"), "b\n");
    assert_eq!(content(&tree, "real/one"), "1\n");
    assert_eq!(content(&tree, "tree/sub/two"), "2\n");
    assert_eq!(content(&tree, "tree/sub/kept"), "kept\n");
    assert_eq!(tree["tmp"].mode, 0o1777, "a directory on the way keeps its mode");
}

#[test]
fn heredocs_as_files() {
    let tree = Lab::new()
        .image(
            "FROM busybox\nENV WHO=world\n\
             COPY <<EOF /expanded\nhello ${WHO} \"quoted\"\nEOF\n\
             COPY <<'EOF' /literal\nhello ${WHO}\nEOF\n\
             COPY <<-EOF /tabs\n\t\thello\nEOF\n\
             COPY <<one <<two /both/\n1\none\n2\ntwo\n\
             COPY --chmod=755 --chown=app <<run.sh /bin/run.sh\n#!/bin/sh\nrun.sh\n\
             ADD <<EOF /added\nadded\nEOF\n",
        )
        .tree();
    assert_eq!(content(&tree, "expanded"), "hello world \"quoted\"\n");
    assert_eq!(content(&tree, "literal"), "hello ${WHO}\n");
    assert_eq!(content(&tree, "tabs"), "hello\n");
    assert_eq!(content(&tree, "both/one"), "1\n");
    assert_eq!(content(&tree, "both/two"), "2\n");
    assert_eq!((tree["bin/run.sh"].mode, tree["bin/run.sh"].uid), (0o755, 1000));
    assert_eq!(content(&tree, "added"), "added\n");
    assert_eq!(tree["literal"].mode, 0o644);
}

#[test]
fn copies_between_stages_keep_what_files_are() {
    let lab = lab();
    let other = lab.context.write("other/named.txt", "named\n");
    let tree = lab
        .image_of(
            lab.build(
                r"FROM busybox AS made
RUN mkdir -p /out/d && echo x > /out/f && ln /out/f /out/hard && ln -s f /out/soft && mkfifo /out/d/fifo
RUN chown -R app:staff /out && chmod 750 /out/d && chmod 4711 /out/f
FROM busybox
COPY --from=made /out /out
COPY --from=made /out/soft /followed
COPY --from=other named.txt /named
COPY --from=made --chown=0:0 /out/f /rooted
",
            )
            .option_path("--build-context", "other=", other.parent().unwrap()),
        )
        .tree();
    assert_eq!((tree["out/f"].uid, tree["out/f"].gid, tree["out/f"].mode), (1000, 50, 0o4711));
    assert_eq!((tree["out/d"].uid, tree["out/d"].mode), (1000, 0o750));
    assert_eq!(tree["out/d/fifo"].kind, "fifo");
    assert_eq!(tree["out/soft"].target, "f");
    assert_eq!(content(&tree, "out/hard"), "x\n");
    assert_eq!(content(&tree, "followed"), "x\n");
    assert_eq!(content(&tree, "named"), "named\n");
    assert_eq!((tree["rooted"].uid, tree["rooted"].gid), (0, 0));
}

#[test]
fn archives_are_unpacked_by_content() {
    let lab = lab();
    let pack = |name: &str, how: &str| {
        lab.context
            .command("tar")
            .args([
                "--create",
                how,
                "--file",
                text(&lab.path(name)),
                "--directory",
                text(&lab.path("dir")),
                ".",
            ])
            .success();
    };
    pack("plain.tar", "--format=gnu");
    pack("a.tar.gz", "--gzip");
    pack("a.tar.xz", "--xz");
    pack("a.tar.bz2", "--bzip2");
    pack("unnamed", "--gzip");
    lab.file("fake.tar.gz", "no archive\n");
    let tree = lab
        .image(
            r"FROM busybox
RUN mkdir -m 711 /there
ADD plain.tar /plain/
ADD a.tar.gz /gz/
ADD a.tar.xz /xz/
ADD a.tar.bz2 /bz2/
ADD unnamed /unnamed/
ADD fake.tar.gz /fake/
ADD plain.tar a.txt /several/
ADD --unpack=false plain.tar /packed/
ADD --chown=app:staff --chmod=700 plain.tar /owned/
ADD a.tar.gz /there
COPY a.tar.gz /copied/
",
        )
        .tree();
    for unpacked in ["plain", "gz", "xz", "bz2", "unnamed", "there"] {
        assert_eq!(listing(&tree, unpacked), ["link", "one", "sub", "sub/three.md", "sub/two"], "{unpacked}");
        assert_eq!(content(&tree, &format!("{unpacked}/sub/two")), "2\n");
    }
    assert_eq!(content(&tree, "fake/fake.tar.gz"), "no archive\n");
    assert!(listing(&tree, "several").contains(&"sub/two".to_owned()));
    assert!(listing(&tree, "several").contains(&"a.txt".to_owned()));
    assert_eq!(listing(&tree, "packed"), ["plain.tar"]);
    assert_eq!((tree["owned/sub/two"].uid, tree["owned/sub/two"].gid), (1000, 50));
    // --chmod is for what is copied.
    assert_eq!((tree["owned"].mode, tree["owned/sub/two"].mode), (0o755, 0o644));
    assert_eq!(listing(&tree, "copied"), ["a.tar.gz"]);
}

#[test]
fn ignored_files_are_not_there() {
    let lab = lab();
    lab.file(".dockerignore", "# comment\n*.md\n!kept.md\ndir/sub\n**/*.log\n/only-at-root\n");
    lab.file("kept.md", "").file("x.log", "").file("dir/y.log", "").file("only-at-root", "");
    lab.file("dir/only-at-root", "");
    let tree = lab.image("FROM busybox\nCOPY . /all/\n").tree();
    let all = listing(&tree, "all");
    for present in ["a.txt", "kept.md", "dir/one", "dir/only-at-root"] {
        assert!(all.contains(&present.to_owned()), "{present} is missing from {all:?}");
    }
    for absent in ["c.md", "dir/sub", "dir/sub/two", "x.log", "dir/y.log", "only-at-root"] {
        assert!(!all.contains(&absent.to_owned()), "{absent} was to be ignored");
    }
    // A file of the Dockerfile's own name wins, and the other one is not looked at.
    lab.file("Dockerfile.dockerignore", "dir\n");
    let tree = lab.image("FROM busybox\nCOPY . /all/\n").tree();
    let all = listing(&tree, "all");
    assert!(all.contains(&"c.md".to_owned()) && !all.iter().any(|path| path.starts_with("dir")), "{all:?}");
    assert!(Path::new(&lab.path("dir/one")).exists());
}

#[test]
fn owners_that_the_image_does_not_have_are_root_and_that_is_said() {
    let lab = lab();
    let dockerfile = "FROM busybox\nCOPY --chown=app:staff a.txt /known\n\nCOPY --chown=nobody-knows a.txt /user\n\
        COPY --chown=app:none-such a.txt /group\n";
    let archive = lab.context.path("image.tar");
    let output = lab.build(dockerfile).option_path("--output", "type=oci,dest=", &archive).success();
    let told = output.stderr();
    let warnings: Vec<_> = told.lines().filter(|line| line.contains("warning:")).collect();
    assert!(matches!(warnings[..], [_, _]), "{output}");
    output.says("Dockerfile:4: unable to find user nobody-knows");
    output.says("Dockerfile:5: unable to find group none-such");
    let tree = Image::read(&archive).tree();
    let owner = |path: &str| (tree[path].uid, tree[path].gid);
    assert_eq!([owner("known"), owner("user"), owner("group")], [(1000, 50), (0, 0), (1000, 1000)]);
}
