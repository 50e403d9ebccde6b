//! `RUN --mount`.

use crate::support::lab::Lab;
use crate::support::oci::content;

#[test]
fn bind_mounts_show_other_files_and_leave_nothing() {
    let lab = Lab::new();
    lab.file("dir/one", "1\n").file("dir/sub/two", "2\n");
    let tree = lab
        .image(
            r"FROM busybox AS other
RUN echo other > /other
FROM busybox
RUN --mount=target=/context cat /context/dir/one > /from-context
RUN --mount=type=bind,source=dir,target=/in cat /in/sub/two > /from-source && ! touch /in/new 2>/dev/null
RUN --mount=type=bind,source=dir,target=/in,rw touch /in/new && test -e /in/new
RUN --mount=type=bind,source=dir,target=/in ! test -e /in/new
RUN --mount=type=bind,from=other,source=/other,target=/deep/er/file cat /deep/er/file > /from-stage
RUN --mount=type=bind,from=busybox,source=/etc,target=/in grep -c app /in/group > /from-image
WORKDIR /work
RUN --mount=type=bind,source=dir/one,dst=here cat /work/here > /relative
",
        )
        .tree();
    assert_eq!(content(&tree, "from-context"), "1\n");
    assert_eq!(content(&tree, "from-source"), "2\n");
    assert_eq!(content(&tree, "from-stage"), "other\n");
    assert_eq!(content(&tree, "from-image"), "2\n");
    assert_eq!(content(&tree, "relative"), "1\n");
    for left in ["context", "in", "deep", "work/here"] {
        assert!(!tree.contains_key(left), "the mount point {left} is in the image");
    }
}

#[test]
fn cache_mounts_outlive_steps_and_builds() {
    let lab = Lab::new();
    let dockerfile = |round: u32| {
        format!(
            "FROM busybox\nARG ROUND={round}\n\
             RUN --mount=type=cache,target=/cache echo a$ROUND >> /cache/log && cp /cache/log /first\n\
             RUN --mount=type=cache,target=/elsewhere,id=/cache echo b$ROUND >> /elsewhere/log && cp /elsewhere/log /second\n\
             RUN --mount=type=cache,target=/cache,id=another ls /cache > /another\n\
             RUN --mount=type=cache,target=/modes,mode=750,uid=1000,gid=50 stat -c '%a %u %g' /modes > /modes-seen\n"
        )
    };
    let tree = lab.image(&dockerfile(1)).tree();
    assert_eq!(content(&tree, "first"), "a1\n");
    assert_eq!(content(&tree, "second"), "a1\nb1\n");
    assert_eq!(content(&tree, "another"), "");
    assert_eq!(content(&tree, "modes-seen"), "750 1000 50\n");
    assert!(!tree.contains_key("cache"));
    let tree = lab.image(&dockerfile(2)).tree();
    assert_eq!(content(&tree, "second"), "a1\nb1\na2\nb2\n");
}

#[test]
fn temporary_file_systems_are_empty_and_vanish() {
    let tree = Lab::new()
        .image(
            "FROM busybox\nRUN echo covered > /tmp/below\n\
             RUN --mount=type=tmpfs,target=/tmp test ! -e /tmp/below && echo x > /tmp/gone && grep -q ' /tmp tmpfs' /proc/mounts\n\
             RUN test -e /tmp/below -a ! -e /tmp/gone\n",
        )
        .tree();
    assert_eq!(content(&tree, "tmp/below"), "covered\n");
}

#[test]
fn secrets_are_seen_and_never_kept() {
    let lab = Lab::new();
    let secret = "correct-horse-battery-staple";
    let file = lab.context.write("token.txt", secret);
    let dockerfile = "FROM busybox\n\
         RUN --mount=type=secret,id=token test \"$(cat /run/secrets/token)\" = correct-horse-$(echo battery)-staple\n\
         RUN --mount=type=secret,id=token stat -c '%a %u' /run/secrets/token > /mode\n\
         RUN --mount=type=secret,id=token,target=/etc/token,mode=444,uid=1000 stat -c '%a %u' /etc/token > /mode2\n\
         RUN --mount=type=secret,id=token,env=TOKEN test -n \"$TOKEN\" -a ! -e /run/secrets/token\n\
         RUN --mount=type=secret,id=absent test ! -e /run/secrets/absent\n\
         RUN --mount=type=secret,id=absent,env=ABSENT test \"${ABSENT-unset}\" = ''\n\
         RUN test ! -e /run/secrets/token\n";
    let output = lab.context.path("image.tar");
    let build = |id: &str| lab.build(dockerfile).option("--secret", id);
    build(&format!("id=token,src={}", file.display()))
        .option_path("--output", "type=oci,dest=", &output)
        .success();
    let image = crate::support::oci::Image::read(&output);
    let tree = image.tree();
    assert_eq!(content(&tree, "mode"), "400 0\n");
    assert_eq!(content(&tree, "mode2"), "444 1000\n");
    for left in ["run/secrets", "etc/token"] {
        assert!(!tree.contains_key(left), "{left} is in the image");
    }
    // Neither the image nor any cache has it.
    let found = |directory: &str| {
        lab.context
            .command("grep")
            .args(["-r", "-l", "-a", secret])
            .arg(lab.context.path(directory))
            .output()
            .stdout()
    };
    assert!(image.layers.iter().all(|layer| !layer.windows(secret.len()).any(|w| w == secret.as_bytes())));
    assert_eq!(found("xdg"), "");
    assert_eq!(found("home"), "");
    // Another value is no other step; without any value a required one is an error.
    let other = lab.context.write("other.txt", "another");
    build(&format!("id=token,src={}", other.display())).arg("--dry-run").success();
    lab.build("FROM busybox\nRUN --mount=type=secret,id=token,required=true true\n").failure().says("token");
}
