//! What is set for single registries: mirrors, private authorities.

use crate::support::oci;
use crate::support::registry::Registry;
use crate::support::{Context, Run, text};

/// A base image in the registry, and a project on top of it.
fn project(context: &Context, registry: &Registry, build: impl Fn(&Context) -> Run) -> String {
    let name = format!("{}/library/base:1", registry.address());
    context.write("base/Dockerfile", "FROM scratch\nCOPY file /file\n");
    context.write("base/file", "content\n");
    build(context).args(["--push", "--tag", &name]).arg(context.path("base")).success();
    name
}

fn build(context: &Context, local: &str) -> Run {
    context.build().env("CROSSDOCK_LOCAL", context.path(local))
}

/// An address that nobody listens on.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn images_come_from_mirrors_where_the_registry_is_down() {
    let context = Context::new();
    let mirror = Registry::start();
    project(&context, &mirror, |context| build(context, "first"));
    let dead = nobody();
    context.write("app/Dockerfile", format!("FROM {dead}/library/base:1\nCOPY more /more\n"));
    context.write("app/more", "more\n");
    let output = context.path("app.tar");
    let app = |config: &str| {
        let config = context.write("config.toml", config);
        build(&context, "second")
            .env("CROSSDOCK_CONFIG", config)
            .args(["--output", &format!("type=oci,dest={}", text(&output))])
            .arg(context.path("app"))
    };
    // Soon, not after half a minute of trying.
    let started = std::time::Instant::now();
    app("").failure().says(&dead);
    assert!(started.elapsed() < std::time::Duration::from_secs(10), "{:?}", started.elapsed());
    // The first mirror is down too; the second has it.
    let mirrors =
        format!("[registries.\"{dead}\"]\nmirrors = [\"{}\", \"{}\"]\n", nobody(), mirror.address());
    app(&mirrors).success();
    let tree = oci::Image::read(&output).tree();
    assert_eq!(oci::content(&tree, "file"), "content\n");
    assert_eq!(oci::content(&tree, "more"), "more\n");
    app("[registries.x]\nmirors = []\n").failure().says("line 2").says("did you mean `mirrors`?");
}

/// Makes an authority, and a certificate of it for 127.0.0.1.
fn certificate(context: &Context) {
    let request = || {
        let run = context.command("openssl").args(["req", "-x509", "-newkey", "rsa:2048", "-nodes"]);
        run.args(["-days", "2", "-subj", "/CN=test"])
    };
    request()
        .option("-keyout", context.path("ca.key"))
        .option("-out", context.path("ca.pem"))
        .args(["-addext", "basicConstraints=critical,CA:TRUE"])
        .success();
    request()
        .option("-keyout", context.path("key.pem"))
        .option("-out", context.path("certificate.pem"))
        .option("-CA", context.path("ca.pem"))
        .option("-CAkey", context.path("ca.key"))
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "subjectAltName=IP:127.0.0.1"])
        .success();
}

#[test]
fn a_registry_with_a_private_authority_is_trusted_if_the_configuration_says_so() {
    let context = Context::new();
    certificate(&context);
    let registry = Registry::start_with_tls(&context.path("certificate.pem"), &context.path("key.pem"));
    let host = format!("[registries.\"{}\"]\n", registry.address());
    let trusting = context.write("trusting.toml", format!("{host}ca = [\"ca.pem\"]\n"));
    let careless = context.write("careless.toml", format!("{host}insecure = true\n"));
    let push = |local: &str, config: Option<&std::path::Path>| {
        let run = build(&context, local);
        match config {
            Some(config) => run.env("CROSSDOCK_CONFIG", config),
            None => run,
        }
    };
    let name = project(&context, &registry, |_| push("one", Some(&trusting)));
    context.write("app/Dockerfile", format!("FROM {name}\nCOPY more /more\n"));
    context.write("app/more", "more\n");
    let output = context.path("app.tar");
    let to_file = |run: Run| {
        run.args(["--output", &format!("type=oci,dest={}", text(&output))]).arg(context.path("app"))
    };
    to_file(push("two", Some(&trusting))).success();
    assert_eq!(oci::content(&oci::Image::read(&output).tree(), "file"), "content\n");
    to_file(push("three", Some(&careless))).success();
    // Without a word about it, it is not even HTTPS that is spoken to this machine.
    to_file(push("four", None)).failure().says(registry.address());
}

#[test]
fn certificates_are_found_where_docker_and_podman_look_for_them() {
    let context = Context::new();
    certificate(&context);
    let [certificate, key, authority] =
        ["certificate.pem", "key.pem", "ca.pem"].map(|name| context.path(name));
    let registry = Registry::start_with_client_authority(&certificate, &key, &authority);
    let found = format!("home/.config/containers/certs.d/{}", registry.address());
    context.write("app/Dockerfile", "FROM scratch\nCOPY file /file\n");
    context.write("app/file", "content\n");
    let name = format!("{}/app:1", registry.address());
    let push = || build(&context, "cache").args(["--push", "--tag", &name]).arg(context.path("app"));
    let copy = |from: &str, to: &str| {
        std::fs::create_dir_all(context.path(&found)).unwrap();
        std::fs::copy(context.path(from), context.path(format!("{found}/{to}"))).unwrap();
    };
    push().failure();
    // The authority is trusted, and the client has nothing to show.
    copy("ca.pem", "ca.crt");
    push().failure().says(registry.address());
    copy("certificate.pem", "client.cert");
    push().failure().says("client.cert has no key beside it");
    copy("key.pem", "client.key");
    push().success();
    // podman reads the same directory, and what was pushed.
    let pulled = context.command("skopeo").arg("inspect").arg(format!("docker://{name}")).success();
    assert!(pulled.stdout().contains("linux"), "{pulled}");
    let directory = context.path(format!("home/.config/containers/certs.d/{}", registry.address()));
    // What is wrong there is told where it matters, and does not matter for other registries.
    context.write(format!("{found}/ca.crt"), "nothing of the kind");
    push().failure().says(text(&directory)).says("malformed");
    let other = Registry::start();
    let elsewhere = format!("{}/app:1", other.address());
    build(&context, "cache").args(["--push", "--tag", &elsewhere]).arg(context.path("app")).success();
    // The configuration file comes first.
    let host = format!("[registries.\"{}\"]\n", registry.address());
    let config = context.write(
        "config.toml",
        format!("{host}ca = [\"ca.pem\"]\nkeypair = [{{ key = \"key.pem\", cert = \"certificate.pem\" }}]\n"),
    );
    push().env("CROSSDOCK_CONFIG", config).success();
    let plain = context.write("plain.toml", format!("{host}http = true\n"));
    push().env("CROSSDOCK_CONFIG", plain).failure().says("400 Bad Request");
}
