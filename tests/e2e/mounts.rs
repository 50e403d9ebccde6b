//! What a push costs where the registry has the base image in another repository: bytes, counted on the wire.

use crate::support::Context;
use crate::support::chance::Chance;
use crate::support::counting::Counting;
use crate::support::oci::{self, Image};
use crate::support::registry::Registry;

/// Of the base image, in bytes; nothing compresses it.
const SIZE: usize = 4 << 20;

/// More than the requests and documents of a small build, and much less than a layer of the base.
const LITTLE: usize = 64 << 10;

#[test]
fn a_base_image_of_the_same_registry_is_mounted() {
    let context = Context::new();
    let registry = Registry::start();
    let wire = Counting::start(registry.address());
    let mut chance = Chance::new("a base image of the same registry is mounted");
    for layer in ["one", "two"] {
        let bytes: Vec<u8> = (0..SIZE / 2).map(|_| u8::try_from(chance.below(256)).unwrap()).collect();
        context.write(format!("base/{layer}"), bytes);
    }
    context.write("base/Dockerfile", "FROM scratch\nCOPY one /one\nCOPY two /two\n");
    let base = format!("{}/team/base:1", wire.address());
    context.build().args(["--push", "--tag", &base]).arg(context.path("base")).success();
    assert!(wire.take().sent.len() > SIZE);
    context.write("app/Dockerfile", format!("FROM {base}\nCOPY file /file\nENV A=b\n"));

    // A build of the application on a machine of its own, and what it took.
    let build = |machine: &str, repository: &str, content: &str| {
        context.write("app/file", content);
        let name = format!("{}/{repository}:1", wire.address());
        context
            .build()
            .env("CROSSDOCK_LOCAL", context.path(machine))
            .option_path("--cache", "file://", context.path("shared"))
            .args(["--push", "--tag", &name])
            .arg(context.path("app"))
            .success();
        let traffic = wire.take();
        // Somebody else finds it whole.
        let archive = context.path(format!("{machine}.tar"));
        context
            .command("skopeo")
            .args([
                "copy",
                "--src-tls-verify=false",
                &format!("docker://{}/{repository}:1", registry.address()),
            ])
            .arg(format!("oci-archive:{}:x", archive.display()))
            .success();
        let tree = Image::read(&archive).tree();
        assert_eq!(oci::content(&tree, "file"), content);
        assert!(tree.contains_key("one") && tree.contains_key("two"));
        traffic
    };
    let mounts = |requests: &[String]| {
        requests
            .iter()
            .filter(|request| request.contains("mount=") && request.contains("team%2Fbase"))
            .count()
    };

    // The first machine has to look into the base once. It sends nothing of it.
    let first = build("first", "team/app", "first\n");
    assert!(first.received > SIZE && first.received < SIZE + 2 * LITTLE, "{}", first.received);
    assert!(first.sent.len() < LITTLE, "{}", first.sent.len());
    assert_eq!(mounts(&first.requests()), 2, "{:#?}", first.requests());

    // What is in the base is known to all machines then: the next one gets nothing of it either.
    let second = build("second", "other/app", "second\n");
    let requests = second.requests();
    assert!(second.received < LITTLE, "{}\n{requests:#?}", second.received);
    assert!(second.sent.len() < LITTLE, "{}\n{requests:#?}", second.sent.len());
    assert_eq!(mounts(&requests), 2, "{requests:#?}");
    // One layer and the configuration are all that was uploaded.
    let uploads = requests.iter().filter(|request| request.starts_with("PUT /v2/other/app/blobs/")).count();
    assert_eq!(uploads, 2, "{requests:#?}");

    // The same repository again: what it has is not even mounted.
    let third = build("second", "other/app", "third\n");
    assert_eq!(mounts(&third.requests()), 0, "{:#?}", third.requests());
    assert!(third.sent.len() + third.received < LITTLE);
}
