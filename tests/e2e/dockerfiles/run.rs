//! RUN in all its forms, and the environment that it runs in.

use crate::support::lab::Lab;
use crate::support::oci::content;

#[test]
fn shell_exec_and_heredoc_forms() {
    let tree = Lab::new()
        .image(
            r#"FROM busybox
RUN echo "$0" > /shell
RUN ["sh", "-c", "echo exec > /exec"]
RUN echo con\
# a comment in between
tinued \
  > /continued
RUN <<EOF
echo one > /heredoc
echo two >> /heredoc
EOF
RUN <<'EOF' cat > /quoted
$HOME stays
EOF
RUN <<EOF cat > /expanded
$((40 + 2)) ${GREETING:-hello}
EOF
RUN <<-EOF
	echo tabs > /tabs
EOF
RUN <<SCRIPT
#!/bin/sh -e
echo "$0" > /script
SCRIPT
RUN cat <<ONE > /one && cat <<TWO > /two
first
ONE
second
TWO
SHELL ["/bin/sh", "-x", "-c"]
RUN echo "$-" > /flags
"#,
        )
        .tree();
    assert_eq!(content(&tree, "shell"), "/bin/sh\n");
    assert_eq!(content(&tree, "exec"), "exec\n");
    assert_eq!(content(&tree, "continued"), "continued\n");
    assert_eq!(content(&tree, "heredoc"), "one\ntwo\n");
    assert_eq!(content(&tree, "quoted"), "$HOME stays\n");
    assert_eq!(content(&tree, "expanded"), "42 hello\n");
    assert_eq!(content(&tree, "tabs"), "tabs\n");
    assert_eq!(content(&tree, "script"), "/dev/pipes/SCRIPT\n");
    assert_eq!(content(&tree, "one"), "first\n");
    assert_eq!(content(&tree, "two"), "second\n");
    assert!(content(&tree, "flags").contains('x'));
    for left in ["dev/pipes", "etc/resolv.conf", "etc/hosts", ".dockerenv"] {
        assert!(!tree.contains_key(left), "{left} was left by the executor");
    }
}

#[test]
fn arguments_and_environment() {
    let lab = Lab::new();
    let image = lab.image_with(
        r#"ARG VERSION=1
ARG NAME=base-${VERSION}
FROM busybox
ARG VERSION
ARG UNSET
ARG LOCAL=default
ARG GIVEN=default
ENV FROM_ARG=$VERSION
RUN echo "$VERSION $LOCAL $GIVEN [$NAME] [${UNSET-unset}]" > /scopes
ARG ORDER=argument
ENV ORDER=environment
RUN echo "$ORDER" > /order
ENV abc=hello
ENV abc=bye def=$abc
ENV LEGACY legacy form
ENV EMPTY= QUOTED="a b" ESCAPED=a\ b SINGLE='$abc' LITERAL=\$abc
ENV DEFAULT=${NOTHING:-fallback} ALTERNATIVE=${abc:+set} NESTED=${NOTHING:-${abc}}
ENV FILE=archive.tar.gz
ENV SHORT=${FILE%.*} SHORTER=${FILE%%.*} END=${FILE#*.} LAST=${FILE##*.} CHANGED=${FILE/ar/AR} ALL=${FILE//ar/AR}
RUN echo "$abc $def" > /abc
"#,
        &["--build-arg", "VERSION=2", "--build-arg", "GIVEN=given"],
    );
    let tree = image.tree();
    assert_eq!(content(&tree, "scopes"), "2 default given [] [unset]\n");
    assert_eq!(content(&tree, "order"), "environment\n");
    assert_eq!(content(&tree, "abc"), "bye hello\n");
    let environment = image.container()["Env"].as_array().unwrap();
    for expected in [
        "PATH=/bin:/usr/bin",
        "FROM_ARG=2",
        "ORDER=environment",
        "abc=bye",
        "def=hello",
        "LEGACY=legacy form",
        "EMPTY=",
        "QUOTED=a b",
        "ESCAPED=a b",
        "SINGLE=$abc",
        "LITERAL=$abc",
        "DEFAULT=fallback",
        "ALTERNATIVE=set",
        "NESTED=bye",
        "SHORT=archive.tar",
        "SHORTER=archive",
        "END=tar.gz",
        "LAST=gz",
        "CHANGED=ARchive.tar.gz",
        "ALL=ARchive.tAR.gz",
    ] {
        assert!(environment.iter().any(|value| value == expected), "{expected} is not in {environment:?}");
    }
    for absent in ["VERSION=", "LOCAL=", "GIVEN=", "UNSET", "NAME="] {
        let found = environment.iter().any(|value| value.as_str().unwrap().starts_with(absent));
        assert!(!found, "the argument {absent} is in the image: {environment:?}");
    }
}

#[test]
fn a_later_argument_wins_over_the_environment() {
    let tree = Lab::new()
        .image("FROM busybox\nENV WHO=environment\nARG WHO=argument\nRUN echo \"$WHO\" > /who\n")
        .tree();
    assert_eq!(content(&tree, "who"), "argument\n");
}

#[test]
fn platform_arguments_and_the_stage_name() {
    let tree = Lab::new()
        .image_with(
            "FROM busybox AS first\nARG TARGETPLATFORM TARGETARCH TARGETOS TARGETSTAGE\n\
             RUN echo \"$TARGETPLATFORM $TARGETOS/$TARGETARCH $TARGETSTAGE\" > /platform\nFROM first\nRUN false\n",
            &["--target", "FIRST"],
        )
        .tree();
    let platform = format!("linux/{}", crate::support::oci::architecture());
    let said = content(&tree, "platform");
    assert!(said.to_lowercase().starts_with(&format!("{platform} {platform} first")), "{said}");
}

#[test]
fn users_and_working_directories() {
    let tree = Lab::new()
        .image(
            r"FROM busybox
RUN mkdir -m 777 /out
WORKDIR /made/by/root
USER app
RUN echo $(id -u):$(id -g) $(id -G) > /out/named && echo made > /out/owned
WORKDIR sub
RUN pwd > /out/where
USER app:staff
RUN echo $(id -u):$(id -g) > /out/named-group
USER 4321
RUN echo $(id -u):$(id -g) > /out/number
USER 4321:4322
RUN echo $(id -u):$(id -g) > /out/numbers
USER root
WORKDIR /
RUN pwd > /out/root
",
        )
        .tree();
    assert_eq!(content(&tree, "out/named"), "1000:1000 1000 50\n");
    assert_eq!((tree["out/owned"].uid, tree["out/owned"].gid), (1000, 1000));
    assert_eq!(content(&tree, "out/where"), "/made/by/root/sub\n");
    assert_eq!(content(&tree, "out/named-group"), "1000:50\n");
    assert_eq!(content(&tree, "out/number"), "4321:0\n");
    assert_eq!(content(&tree, "out/numbers"), "4321:4322\n");
    assert_eq!(content(&tree, "out/root"), "/\n");
    for (path, owner) in [("made", 0), ("made/by/root", 0), ("made/by/root/sub", 1000)] {
        assert_eq!((tree[path].kind, tree[path].mode, tree[path].uid), ("directory", 0o755, owner), "{path}");
    }
}

/// What a step sees of the machine: processes of its own, the usual devices, no way to the host's.
#[test]
fn the_sandbox_has_what_programs_expect() {
    let tree = Lab::new()
        .image(
            r"FROM busybox
RUN test $$ -lt 10 && test -d /proc/1 && ls /proc/self/fd > /dev/null
RUN echo x > /dev/null && head -c 4 /dev/zero | od -An -tx1 > /zeros && test -c /dev/urandom -a -d /dev/shm
RUN test -L /dev/fd && test -L /dev/stdout && test -d /dev/pts
RUN test -r /etc/resolv.conf && grep -q localhost /etc/hosts
RUN ! mount -t tmpfs none /tmp 2>/dev/null
RUN ! (echo 1 > /proc/sys/kernel/hostname) 2>/dev/null
RUN grep CapEff /proc/self/status | cut -f2 > /capabilities
RUN --network=none tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' ' > /interfaces
RUN umask > /umask
RUN touch /tmp/left
",
        )
        .tree();
    assert_eq!(content(&tree, "zeros").trim(), "00 00 00 00");
    // Docker's default set.
    assert_eq!(content(&tree, "capabilities"), "00000000a80425fb\n");
    assert_eq!(content(&tree, "interfaces"), "lo\n");
    assert_eq!(content(&tree, "umask"), "0022\n");
    // /tmp is the image's own: what a step leaves there stays.
    assert!(tree.contains_key("tmp/left"));
    assert_eq!(tree["tmp"].mode, 0o1777);
}
