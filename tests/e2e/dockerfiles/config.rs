//! The configuration of the image.

use serde_json::json;

use crate::support::lab::Lab;
use crate::support::oci::{architecture, content};

#[test]
fn every_field_of_the_configuration() {
    let lab = Lab::new();
    let image = lab.image_with(
        r#"FROM busybox
MAINTAINER somebody
ENTRYPOINT ["/entry", "point"]
CMD ["an", "argument"]
EXPOSE 80 443/tcp 53/udp 8000-8002
VOLUME /data /more
VOLUME ["/with space"]
LABEL one=1 "two words"="a value" three='3'
LABEL four 4 in the old form
STOPSIGNAL SIGUSR1
HEALTHCHECK --interval=5s --timeout=3s --start-period=1m --retries=2 CMD wget -q http://localhost
USER app:staff
WORKDIR /work
WORKDIR down
SHELL ["/bin/sh", "-ec"]
"#,
        &["--label", "given=by hand", "--annotation", "org.example.note=hello"],
    );
    let container = image.container();
    assert_eq!(image.config["author"], "somebody");
    assert_eq!(image.config["os"], "linux");
    assert_eq!(image.config["architecture"], architecture());
    assert_eq!(container["Entrypoint"], json!(["/entry", "point"]));
    assert_eq!(container["Cmd"], json!(["an", "argument"]));
    let ports: Vec<_> = container["ExposedPorts"].as_object().unwrap().keys().cloned().collect();
    let mut ports_sorted = ports.clone();
    ports_sorted.sort();
    assert_eq!(ports_sorted, ["443/tcp", "53/udp", "80/tcp", "8000/tcp", "8001/tcp", "8002/tcp"]);
    assert_eq!(container["Volumes"], json!({"/data": {}, "/more": {}, "/with space": {}}));
    assert_eq!(
        container["Labels"],
        json!({"one": "1", "two words": "a value", "three": "3", "four": "4 in the old form", "given": "by hand"})
    );
    assert_eq!(container["StopSignal"], "SIGUSR1");
    let healthcheck = &container["Healthcheck"];
    assert_eq!(healthcheck["Test"], json!(["CMD-SHELL", "wget -q http://localhost"]));
    assert_eq!(healthcheck["Interval"], json!(5_000_000_000_u64));
    assert_eq!(healthcheck["Timeout"], json!(3_000_000_000_u64));
    assert_eq!(healthcheck["StartPeriod"], json!(60_000_000_000_u64));
    assert_eq!(healthcheck["Retries"], json!(2));
    assert_eq!(container["User"], "app:staff");
    assert_eq!(container["WorkingDir"], "/work/down");
    assert_eq!(container["Shell"], json!(["/bin/sh", "-ec"]));
    assert_eq!(image.manifest["annotations"]["org.example.note"], "hello");
    assert!(!image.tree().contains_key("data"), "VOLUME makes no directory");
}

/// An entry point resets the command of the base, but not one that the same stage has set.
#[test]
fn commands_and_entry_points() {
    let lab = Lab::new();
    for (dockerfile, entry_point, command) in [
        ("FROM busybox\n", json!(null), json!(["/bin/sh"])),
        ("FROM busybox\nENTRYPOINT [\"/a\"]\n", json!(["/a"]), json!(null)),
        ("FROM busybox\nCMD [\"b\"]\nENTRYPOINT [\"/a\"]\n", json!(["/a"]), json!(["b"])),
        (
            "FROM busybox\nENTRYPOINT echo a\nCMD echo b\n",
            json!(["/bin/sh", "-c", "echo a"]),
            json!(["/bin/sh", "-c", "echo b"]),
        ),
        ("FROM busybox\nENTRYPOINT [\"/a\"]\nENTRYPOINT []\n", json!(null), json!(null)),
        ("FROM busybox\nCMD\n", json!(null), json!(["/bin/sh", "-c", ""])),
        ("FROM busybox\nSHELL [\"/s\", \"-c\"]\nCMD b\n", json!(null), json!(["/s", "-c", "b"])),
    ] {
        let image = lab.image(dockerfile);
        let empty_as_absent = |value: &serde_json::Value| {
            if value.as_array().is_some_and(Vec::is_empty) { json!(null) } else { value.clone() }
        };
        assert_eq!(empty_as_absent(&image.container()["Entrypoint"]), entry_point, "{dockerfile}");
        assert_eq!(empty_as_absent(&image.container()["Cmd"]), command, "{dockerfile}");
    }
}

#[test]
fn onbuild_triggers_run_in_the_next_image_only() {
    let lab = Lab::new();
    lab.file("in.txt", "from the context\n");
    let parent = lab.context.path("parent");
    lab.build(
        "FROM busybox\nONBUILD RUN echo triggered > /triggered\nONBUILD COPY in.txt /in.txt\nONBUILD ENV LATE=yes\n",
    )
    .option_path("--output", "type=oci,tar=false,dest=", &parent)
    .success();
    let image = crate::support::oci::Image::read(&parent);
    assert_eq!(
        image.container()["OnBuild"],
        json!(["RUN echo triggered > /triggered", "COPY in.txt /in.txt", "ENV LATE=yes"])
    );
    assert!(!image.tree().contains_key("triggered"));
    let child = lab.image_of(lab.build("FROM parent\nRUN echo \"$LATE\" > /late\n").option_path(
        "--build-context",
        "parent=oci-layout://",
        &parent,
    ));
    let tree = child.tree();
    assert_eq!(content(&tree, "triggered"), "triggered\n");
    assert_eq!(content(&tree, "in.txt"), "from the context\n");
    assert_eq!(content(&tree, "late"), "yes\n");
    assert!(child.container()["OnBuild"].as_array().is_none_or(Vec::is_empty));
}

/// Every instruction leaves its line in the history; `RUN` names the arguments that it could see.
#[test]
fn history_tells_what_was_done() {
    let lab = Lab::new();
    let image = lab.image(
        "FROM busybox\nARG WHO=me\nENV A=b\nRUN echo \"$WHO\" > /who\nCOPY Dockerfile /d\nCMD [\"x\"]\n",
    );
    let lines: Vec<_> = image.config["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            (entry["created_by"].as_str().unwrap_or("").to_owned(), entry["empty_layer"] == json!(true))
        })
        .collect();
    assert_eq!(lines.len(), 6, "{lines:?}");
    assert_eq!(lines[0].0, "base");
    assert!(lines[1].0.starts_with("ARG WHO=me") && lines[1].1, "{lines:?}");
    assert!(lines[2].0.starts_with("ENV A=b") && lines[2].1, "{lines:?}");
    assert!(lines[3].0.contains("|1 WHO=me /bin/sh -c echo \"$WHO\" > /who") && !lines[3].1, "{lines:?}");
    assert!(lines[4].0.starts_with("COPY Dockerfile /d") && !lines[4].1, "{lines:?}");
    assert!(lines[5].0.starts_with("CMD [\"x\"]") && lines[5].1, "{lines:?}");
}

#[test]
fn stages_are_named_numbered_and_pruned() {
    let tree = Lab::new()
        .image(
            "FROM busybox AS One\nRUN echo 1 > /one\n\
             FROM busybox AS unused\nRUN false\n\
             FROM scratch AS files\nCOPY --from=0 /one /first\nCOPY --from=ONE /one /second\n\
             FROM files\nCOPY --from=busybox /etc/group /group\n",
        )
        .tree();
    let paths: Vec<_> = tree.keys().filter(|path| !path.is_empty()).map(String::as_str).collect();
    assert_eq!(paths, ["first", "group", "second"]);
}
