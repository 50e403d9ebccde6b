//! What steps can leave behind: every kind of file, and the absence of files.

use crate::support::is_root;
use crate::support::lab::Lab;
use crate::support::oci::content;

#[test]
fn every_kind_of_file_is_kept() {
    let long = "n".repeat(200);
    let image = Lab::new().image(&format!(
        r"FROM busybox
RUN mkdir /k && cd /k && echo x > file && ln file hard && chown 1000:50 file && chmod 6755 file && ln -s file soft && mkfifo fifo && mkdir -m 2775 set-group
RUN cd /k && ln -s /nowhere/at/all dangling && ln -s ../k/./file odd
RUN mkdir -p /k/{long}/{long} && echo deep > /k/{long}/{long}/{long}
RUN truncate -s 64M /k/sparse && echo end >> /k/sparse
RUN touch /k/$(printf 'not-utf8-\377') '/k/space and	tab' '/k/back\slash' && touch -d @1 /k/old && touch -d @4102444800 /k/future
{}
",
        if is_root() { "RUN mknod /k/null c 1 3" } else { "" }
    ));
    let tree = image.tree();
    assert_eq!((tree["k/file"].mode, tree["k/file"].uid, tree["k/file"].gid), (0o6755, 1000, 50));
    assert_eq!(tree["k/hard"], tree["k/file"]);
    assert_eq!(tree["k/soft"].target, "file");
    assert_eq!(tree["k/dangling"].target, "/nowhere/at/all");
    assert_eq!(tree["k/odd"].target, "../k/./file");
    assert_eq!(tree["k/fifo"].kind, "fifo");
    assert_eq!(tree["k/set-group"].mode, 0o2775);
    assert_eq!(content(&tree, &format!("k/{long}/{long}/{long}")), "deep\n");
    assert_eq!(tree["k/sparse"].content.len(), 64 * 1024 * 1024 + 4);
    assert!(tree["k/sparse"].content.ends_with(b"\0end\n"));
    assert!(tree.keys().any(|path| path.starts_with("k/not-utf8-")));
    assert!(tree.contains_key("k/space and\ttab") && tree.contains_key("k/back\\slash"));
    if is_root() {
        assert_eq!(tree["k/null"].kind, "char");
    }
}

#[test]
fn removed_and_replaced_files() {
    let image = Lab::new().image(
        r"FROM busybox
RUN mkdir -p /a/b/c /remade /swapped && touch /a/b/c/1 /a/b/2 /a/3 /remade/old /swapped/inside /file
RUN rm -r /a/b && rm /etc/group && rm -r /remade && mkdir /remade && touch /remade/new
RUN rm -r /swapped && echo file > /swapped && rm /file && mkdir /file && touch /file/inside
RUN mv /a/3 /a/4 && mkdir /a/b
RUN touch /passing && rm /passing
",
    );
    let tree = image.tree();
    for gone in ["a/b/2", "a/b/c", "a/3", "etc/group", "remade/old", "swapped/inside", "passing"] {
        assert!(!tree.contains_key(gone), "{gone} should be gone");
    }
    for there in ["a/4", "a/b", "remade/new", "file/inside", "etc/passwd"] {
        assert!(tree.contains_key(there), "{there} should be there");
    }
    assert_eq!(content(&tree, "swapped"), "file\n");
    // A file that came and went within one step leaves not even a whiteout.
    let last = String::from_utf8_lossy(image.layers.last().unwrap()).into_owned();
    assert!(!last.contains("passing"), "the last layer mentions /passing");
}

/// A layer holds what its step changed: the next tools to look at it are people with `tar t`.
#[test]
fn layers_hold_only_what_changed() {
    let image = Lab::new().image("FROM busybox\nRUN mkdir -p /x/y && echo 1 > /x/y/z && echo 1 > /x/other\nRUN echo 2 > /x/y/z\nRUN chmod 700 /x/y\nRUN true\n");
    let names = |layer: &[u8]| {
        let mut archive = tar::Archive::new(layer);
        let mut names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().trim_end_matches('/').to_owned())
            .collect();
        names.sort();
        names
    };
    let layers: Vec<_> = image.layers.iter().map(|layer| names(layer)).collect();
    assert_eq!(layers[1], ["x", "x/other", "x/y", "x/y/z"]);
    assert!(
        !layers[2].contains(&"x/other".to_owned()) && layers[2].contains(&"x/y/z".to_owned()),
        "{:?}",
        layers[2]
    );
    assert!(
        layers[3].contains(&"x/y".to_owned()) && !layers[3].contains(&"x/y/z".to_owned()),
        "{:?}",
        layers[3]
    );
    assert_eq!(image.tree()["x/y"].mode, 0o700);
}
