//! Jobs of CI providers at a cache server, with no secret of their own.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::support::http::{Reply, Server};
use crate::support::lab::Lab;
use crate::support::server::CacheServer;
use crate::support::{Context, text};

const DOCKERFILE: &str = "FROM busybox\nCOPY a /a\nRUN wc -c < /a > /size\n";

/// What stands for the provider: its keys, and the runner's service that gives tokens to jobs. The job is named by the
/// secret that it asks with.
struct Provider {
    http: Server,
}

impl Provider {
    fn start(context: &Context) -> Self {
        let made = "openssl genrsa -traditional 2048 2>/dev/null | openssl rsa -traditional -outform DER 2>/dev/null > key";
        context.command("sh").args(["-c", made]).success();
        let key = EncodingKey::from_rsa_der(&std::fs::read(context.path("key")).unwrap());
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::RS256).unwrap();
        jwk.common.key_id = Some("one".to_owned());
        let keys = json!({"keys": [jwk]}).to_string();
        let http = Server::new(move |request| {
            let here = format!("http://{}", request.header("host").unwrap());
            let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
            match path {
                "/.well-known/openid-configuration" => {
                    Reply::ok(json!({"issuer": here, "jwks_uri": format!("{here}/keys")}).to_string())
                }
                "/keys" => Reply::ok(keys.clone()),
                "/job" => {
                    let job = request.header("authorization").unwrap().strip_prefix("Bearer ").unwrap();
                    let audience = url::form_urlencoded::parse(query.as_bytes());
                    let audience = audience.into_iter().find(|(name, _)| name == "audience").unwrap().1;
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                    let mut claims: Value = serde_json::from_str(job).unwrap();
                    claims["iss"] = here.into();
                    claims["aud"] = audience.into_owned().into();
                    claims["exp"] = (now.as_secs() + 300).into();
                    claims["jti"] = now.as_nanos().to_string().into();
                    let header = Header { kid: Some("one".to_owned()), ..Header::new(Algorithm::RS256) };
                    let token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
                    Reply::ok(json!({"value": token}).to_string())
                }
                _ => Reply::new(404, ""),
            }
        });
        Self { http }
    }

    fn config(&self, context: &Context, audience: &str) -> std::path::PathBuf {
        let issuer = self.http.url("");
        let issuer = issuer.trim_end_matches('/');
        context.write(
            "config.toml",
            format!(
                "[[serve.oidc]]\nissuer = \"{issuer}\"\naudience = \"{audience}\"\n\n[[serve.policy]]\n\
                 when = {{ repository_owner_id = \"7\" }}\nscopes = \"github\"\n"
            ),
        )
    }
}

fn job(event: &str, reference: &str) -> String {
    json!({
        "repository": "acme/app", "repository_id": "12", "repository_owner_id": "7",
        "event_name": event, "ref": reference, "base_ref": "main",
    })
    .to_string()
}

#[test]
fn jobs_share_what_their_provider_says_they_may() {
    let lab = Lab::new();
    lab.file("a", "content\n");
    let provider = Provider::start(&lab.context);
    let config = provider.config(&lab.context, "https://cache.example");
    let server = CacheServer::start(&lab.context, "storage", &["--config", text(&config)]);
    let build = |runner: &str, job: &str| {
        lab.build(DOCKERFILE)
            .env("CROSSDOCK_LOCAL", lab.context.path(runner))
            .env("ACTIONS_ID_TOKEN_REQUEST_URL", provider.http.url("/job?api-version=2"))
            .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", job)
            .env("CROSSDOCK_AUDIENCE", "https://cache.example")
            .option("--cache", server.url())
    };
    let (main, pull) = (job("push", "refs/heads/main"), job("pull_request", "refs/pull/3/merge"));
    // A pull request keeps what it makes to itself.
    build("one", &pull).success().says("0 cached, 2 run");
    build("two", &main).success().says("0 cached, 2 run");
    build("three", &pull).success().says("2 cached, 0 run");
    build("four", &main).success().says("2 cached, 0 run");
    // Another one reads what main has made.
    server.asked();
    build("five", &job("pull_request", "refs/pull/4/merge")).success().says("2 cached, 0 run");
    let asked = server.asked();
    assert!(asked[0].starts_with("POST /api/v1/session 201"), "{asked:#?}");
    assert!(asked.len() <= 4, "never more than four round trips: {asked:#?}");
    // What outsiders can cause only reads, and a stranger is no reason to fail.
    build("six", &job("issue_comment", "refs/heads/main")).success().says("2 cached, 0 run");
    let stranger = main.replace("\"7\"", "\"8\"");
    let output = build("seven", &stranger).success();
    output.says("0 cached, 2 run");
    output.says("warning: the shared cache is not used");
    output.says("no rule knows these claims");
    let output = build("eight", &main).env("CROSSDOCK_AUDIENCE", "https://other.example").success();
    output.says("0 cached, 2 run");
    output.says("InvalidAudience");
    let output =
        build("nine", &main).env("ACTIONS_ID_TOKEN_REQUEST_URL", provider.http.url("/nothing")).success();
    output.says("the runner gave no identity token");
    assert!(!server.log().contains("eyJ"), "no identity in the log");
}

#[test]
fn a_policy_explains_itself() {
    let context = Context::new();
    let provider = Provider::start(&context);
    let config = provider.config(&context, "https://cache.example");
    let explain = |claims: &str| {
        let claims = context.write("claims.json", claims);
        context.crossdock().args(["policy", "explain", "--config", text(&config), text(&claims)])
    };
    let output = explain(&job("pull_request", "refs/pull/3/merge")).success();
    assert_eq!(
        output.stdout(),
        "rule 1 decides\nacme/app@refs/pull/3/merge: tenant default\n\
         reads   12/refs/pull/3/merge, 12/refs/heads/main\nwrites  12/refs/pull/3/merge\npulls   nothing\npushes  nothing\n"
    );
    let output = explain(&job("push", "refs/heads/main").replace("\"7\"", "\"8\"")).failure();
    assert_eq!(
        output.stdout(),
        "rule 1 is for others: `repository_owner_id` is `8`, not `7`\nno rule knows these claims\n"
    );
    let output = explain(&job("push", "refs/heads/x")).args(["--format", "json"]).success();
    let answer: Value = serde_json::from_str(&output.stdout()).unwrap();
    assert_eq!(
        (answer["write"].as_str(), answer["tenant"].as_str()),
        (Some("12/refs/heads/x"), Some("default"))
    );
    explain("nonsense").failure().says("has no claims");
    // Settings that would let everybody in, or nobody.
    for (settings, message) in [
        ("[[serve.oidc]]\nissuer = \"https://x\"\naudience = \"a\"\n", "lets nobody in"),
        (
            "[[serve.oidc]]\nissuer = \"https://x\"\naudience = \"a\"\n[[serve.policy]]\nwhen = {}\n",
            "it would let everybody in",
        ),
        ("[[serve.oidc]]\nissuer = \"http://example.com\"\naudience = \"a\"\n", "is not https"),
        ("[[serve.oidc]]\nissuer = \"https://x\"\naudience = \"\"\n", "needs an `audience`"),
    ] {
        let config = context.write("wrong.toml", settings);
        let run = context.crossdock().args(["serve", "--check-config", "--config", text(&config)]);
        run.failure().says(message);
    }
}
