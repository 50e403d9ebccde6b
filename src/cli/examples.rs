//! The examples at the end of each help text.

pub(super) const TOP: &str = "\
Examples:
  crossdock demo                                  See it work, without network or daemon
  crossdock build -t registry.example/app --push .
  crossdock doctor                                Say what this machine allows

`crossdock COMMAND --help` explains each command.";

pub(super) const BUILD: &str = "\
Examples:
  Build and push, with a cache that other runners share:
    crossdock build --cache file:///mnt/cache -t registry.example/app:1 --push .
  Build a stage of another Dockerfile into an archive for `docker load`:
    crossdock build -f docker/app.Dockerfile --target tests -t app -o type=docker,dest=app.tar .
  Take the files of the last stage out into a directory:
    crossdock build -o out .
  Give a step a secret:
    crossdock build --secret id=token,env=TOKEN -t app -o type=oci,dest=app.tar .
  Fail if anything would have to be built:
    crossdock build --dry-run .

Without --push and --output the result stays in the cache.
Progress goes to standard error. Standard output gets what `-o -` or `--quiet` ask for.";

pub(super) const FINGERPRINT: &str = "\
Examples:
  crossdock fingerprint .
  crossdock fingerprint --target build --format json . > before.json";

pub(super) const EXPLAIN: &str = "\
Examples:
  crossdock explain .                             Which steps would run, and what is different for each
  crossdock explain --target build --format json . | jq '.[] | select(.status == \"would run\")'
  crossdock explain --advice .                    What would shorten the next builds

Of a step behind one that would run nothing can be known: that one may make what it made before.";

pub(super) const INSPECT: &str = "\
Examples:
  crossdock inspect step 1f3a9c0d
  crossdock inspect step --log 1f3a9c0d";

pub(super) const INSPECT_STEP: &str = "\
Examples:
  crossdock inspect step 1f3a9c0d                 Everything, with what the step read
  crossdock inspect step --names 1f3a9c0d         The directories that it listed
  crossdock inspect step --log 1f3a9c0d           What it printed

`crossdock explain` and `crossdock cache ls` print keys.";

pub(super) const CACHE: &str = "\
Examples:
  crossdock cache du
  crossdock cache prune --max-size 10GB --force";

pub(super) const CACHE_LS: &str = "\
Examples:
  crossdock cache ls
  crossdock cache ls --format json --local-cache /mnt/cache";

pub(super) const CACHE_DU: &str = "\
Examples:
  crossdock cache du
  crossdock cache du --format json";

pub(super) const CACHE_PRUNE: &str = "\
Examples:
  crossdock cache prune --max-size 10GB
  crossdock cache prune --max-age 14d --force
  crossdock cache prune --all";

pub(super) const CACHE_VERIFY: &str = "\
Examples:
  crossdock cache verify
  crossdock cache verify --repair

Exit code 3 if something is damaged and was not repaired.";

pub(super) const CACHE_MOUNTS: &str = "\
Examples:
  crossdock cache mounts ls
  crossdock cache mounts rm /root/.npm --force";

pub(super) const CACHE_MOUNTS_LS: &str = "\
Examples:
  crossdock cache mounts ls
  crossdock cache mounts ls --cache https://cache.example --format json";

pub(super) const CACHE_MOUNTS_INSPECT: &str = "\
Examples:
  crossdock cache mounts inspect /src/target
  crossdock cache mounts inspect /src/target --files";

pub(super) const CACHE_MOUNTS_RM: &str = "\
Examples:
  crossdock cache mounts rm /src/target
  crossdock cache mounts rm --all --force";

pub(super) const CACHE_MOUNTS_EXPORT: &str = "\
Examples:
  crossdock cache mounts export /root/.npm -o npm.tar.zst
  crossdock cache mounts export /src/target -o - | tar -t";

pub(super) const CACHE_MOUNTS_IMPORT: &str = "\
Examples:
  crossdock cache mounts import /root/.npm npm.tar.zst
  tar -c -C ~/.npm . | crossdock cache mounts import /root/.npm -";

pub(super) const SERVE: &str = "\
Examples:
  crossdock serve                                 On 127.0.0.1, over ~/.cache/crossdock-server
  crossdock serve --listen 0.0.0.0:443 --storage /var/lib/crossdock \\
    --tls-certificate fullchain.pem --tls-key key.pem --log-format json
  crossdock serve --config /etc/crossdock/config.toml --check-config

The first start makes a token and shows it; `crossdock token` makes others.
It stays in the foreground. SIGTERM finishes what is under way and ends it (exit code 0); SIGHUP reads certificates
and tokens again.";

pub(super) const TOKEN: &str = "\
Examples:
  crossdock token create ci --write main --expires 90d
  crossdock token ls
  crossdock token revoke ci

Tokens are in the server's storage: the commands need that, and no server that runs.";

pub(super) const TOKEN_CREATE: &str = "\
Examples:
  crossdock token create ci --write main --expires 90d
  crossdock token create pull-requests --read 'pr/*,main' --write 'pr/*'
  crossdock token create readers --storage /var/lib/crossdock --tenant team-a";

pub(super) const TOKEN_LS: &str = "\
Examples:
  crossdock token ls
  crossdock token ls --format json --storage /var/lib/crossdock";

pub(super) const ADMIN: &str = "\
Examples:
  crossdock admin stats
  crossdock admin gc --max-size 500GiB
  crossdock admin verify";

pub(super) const ADMIN_STATS: &str = "\
Examples:
  crossdock admin stats
  crossdock admin stats --storage s3://bucket/crossdock --format json";

pub(super) const ADMIN_GC: &str = "\
Examples:
  crossdock admin gc --max-size 500GiB
  crossdock admin gc --max-age 30d --storage /var/lib/crossdock";

pub(super) const ADMIN_VERIFY: &str = "\
Examples:
  crossdock admin verify
  crossdock admin verify --storage /var/lib/crossdock";

pub(super) const POLICY: &str = "\
Examples:
  crossdock policy explain claims.json";

pub(super) const POLICY_EXPLAIN: &str = "\
Examples:
  crossdock policy explain claims.json
  crossdock policy explain --config /etc/crossdock/config.toml --format json -";

pub(super) const TOKEN_REVOKE: &str = "\
Examples:
  crossdock token revoke ci

Servers that run notice it within five seconds, or on SIGHUP.";

pub(super) const DOCTOR: &str = "\
Examples:
  crossdock doctor
  crossdock doctor --format json

Exit code 4 if steps cannot be run on this machine.";

pub(super) const DEMO: &str = "\
Examples:
  crossdock demo
  crossdock demo --keep /tmp/demo                 Leave the project and the caches for a look";

pub(super) const COMPLETION: &str = "\
Examples:
  crossdock completion bash > /etc/bash_completion.d/crossdock
  crossdock completion zsh > ~/.zfunc/_crossdock
  crossdock completion fish > ~/.config/fish/completions/crossdock.fish";

pub(super) const MAN: &str = "\
Examples:
  crossdock man ~/.local/share/man/man1
  crossdock man /tmp/pages && man /tmp/pages/crossdock-build.1";

pub(super) const VERSION: &str = "\
Examples:
  crossdock version";
