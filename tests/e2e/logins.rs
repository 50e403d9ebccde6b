//! Credentials as `podman login` writes them, for a registry that asks for some.

use std::os::unix::fs::PermissionsExt;

use crate::support::registry::{PASSWORD, Registry, USER};
use crate::support::{Context, Run, is_root, text};

fn project(context: &Context) {
    context.write("app/Dockerfile", "FROM scratch\nCOPY file /file\n");
    context.write("app/file", "content\n");
}

/// A push of the project to `repository`.
fn push(context: &Context, registry: &Registry, repository: &str) -> Run {
    let name = format!("{}/{repository}:1", registry.address());
    context.build().args(["--push", "--tag", &name]).arg(context.path("app"))
}

/// What somebody else has to say to the registry: one who knows the password.
fn manifest(context: &Context, registry: &Registry, repository: &str) -> Run {
    let name = format!("docker://{}/{repository}:1", registry.address());
    context.command("skopeo").args([
        "inspect",
        "--raw",
        "--tls-verify=false",
        "--creds",
        &format!("{USER}:{PASSWORD}"),
        &name,
    ])
}

/// Logs in at the registry, or for repositories of it only.
fn login(context: &Context, registry: &Registry, below: &str, file: &str) {
    let file = context.path(file);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let run = context.command("podman").arg("login").option("--authfile", &file);
    run.args(["--tls-verify=false", "--username", USER, "--password-stdin"])
        .arg(format!("{}{below}", registry.address()))
        .stdin(PASSWORD)
        .success();
    assert!(file.is_file());
}

#[test]
fn podmans_login_is_enough() {
    let context = Context::new();
    let registry = Registry::start_with_login();
    project(&context);
    let output = push(&context, &registry, "a").failure();
    output.says("access denied").says("docker login").says("podman login");
    // A file that is named.
    login(&context, &registry, "", "named.json");
    let named =
        push(&context, &registry, "a").env("REGISTRY_AUTH_FILE", context.path("named.json")).success();
    assert!(!named.stderr().contains(PASSWORD), "{named}");
    manifest(&context, &registry, "a").success();
    // The usual places.
    login(&context, &registry, "", "run/containers/auth.json");
    push(&context, &registry, "b").env("XDG_RUNTIME_DIR", context.path("run")).success();
    push(&context, &registry, "c").failure().says("access denied");
    login(&context, &registry, "", "home/.config/containers/auth.json");
    push(&context, &registry, "c").success();
    manifest(&context, &registry, "c").success();
    // What is named is all that is read of podman's.
    let other = context.write("other.json", "{}");
    push(&context, &registry, "d").env("REGISTRY_AUTH_FILE", &other).failure().says("access denied");
    // Docker's file comes first, and is wrong here.
    let auths = format!(
        r#"{{"auths": {{"{}": {{"username": "{USER}", "password": "wrong"}}}}}}"#,
        registry.address()
    );
    context.write("home/.docker/config.json", auths);
    let output = push(&context, &registry, "d").failure();
    output.says("not accepted");
    assert!(!output.stderr().contains("wrong"), "{output}");
    // A damaged file is named, and not quoted.
    context.write("home/.docker/config.json", "{\"auths\": {\"x\": hunter2}}");
    let output = push(&context, &registry, "d").failure();
    output.says(text(&context.path("home/.docker/config.json"))).says("line 1");
    assert!(!output.stderr().contains("hunter2"), "{output}");
}

#[test]
fn a_login_for_some_repositories_is_used_for_these() {
    let context = Context::new();
    let registry = Registry::start_with_login();
    project(&context);
    login(&context, &registry, "/team", "auth.json");
    let push = |repository: &str| {
        push(&context, &registry, repository).env("REGISTRY_AUTH_FILE", context.path("auth.json"))
    };
    push("team/app").success();
    manifest(&context, &registry, "team/app").success();
    push("other/app").failure().says("access denied");
    push("teams/app").failure().says("access denied");
    // The longest path counts, right or wrong.
    let file = std::fs::read_to_string(context.path("auth.json")).unwrap();
    let mut file: serde_json::Value = serde_json::from_str(&file).unwrap();
    file["auths"][format!("{}/team/secret", registry.address())] =
        serde_json::json!({"username": USER, "password": "wrong"});
    context.write("auth.json", file.to_string());
    push("team/secret").failure().says("not accepted");
    // One build that pushes to both kinds shows each what is for it.
    let both = format!("{}/other/app:1", registry.address());
    push("team/app").args(["--tag", &both]).failure().says("other/app");
    let base = format!("FROM {}/team/app:1\nCOPY file /again\n", registry.address());
    context.write("app/Dockerfile", base);
    push("team/second").env("CROSSDOCK_LOCAL", context.path("fresh")).success();
}

#[test]
fn credentials_of_somebody_else_are_left_out() {
    if !is_root() {
        return;
    }
    let context = Context::for_user(54_321);
    project(&context);
    // What `su` leaves: root's directory in the variables of another user.
    context.write("root/containers/auth.json", "{}");
    std::fs::set_permissions(context.path("root"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let build = || {
        let build = context.build().option_path("--output", "type=oci,dest=", context.path("home/image.tar"));
        build.env("XDG_RUNTIME_DIR", context.path("root")).arg(context.path("app"))
    };
    build().success().says("root/containers/auth.json: permission denied");
    // Some say so that there is no file.
    build().env("DOCKER_CONFIG", "/dev/null").success();
}
