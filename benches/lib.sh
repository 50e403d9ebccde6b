# What the comparisons with other builders have in common; sourced, not run. It uses: `root` (the checkout), `crossdock` (the
# program), `work` (a directory), `pids` (what is ended at the end), `far` (not empty: servers are behind a slow link).

# stop PROCESS…: ends them and waits until they are gone.
stop() {
    local pid
    for pid; do
        kill "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    done
    return 0
}

# start_registry: sets `registry` to its address.
start_registry() {
    printf '%s\n' 'version: 0.1' "storage: {filesystem: {rootdirectory: $work/registry}, delete: {enabled: true}}" \
        "http: {addr: '127.0.0.1:0'}" 'log: {accesslog: {disabled: true}}' >"$work/registry.yml"
    docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
    pids+=($!)
    local tries
    for tries in $(seq 100); do
        registry=$(grep -o 'listening on 127\.0\.0\.1:[0-9]*' "$work/registry.log" | grep -o '127.*' || true)
        [[ -n $registry ]] && return
        sleep 0.1
    done
    echo "the registry did not start after $tries tries" >&2
    cat "$work/registry.log" >&2
    exit 1
}

# far_from ADDRESS: sets `link` to an address that leads there, slowly.
far_from() {
    [[ -x $work/link ]] || rustc --edition 2024 -O -o "$work/link" "$root/tests/tools/link/main.rs"
    local name=$work/link-${1##*:} number=${#link_questions[@]}
    mkfifo "$name.questions"
    exec {link_questions[number]}<>"$name.questions"
    exec {link_answers[number]}< <("$work/link" 127.0.0.1:0 "$1" 20 1000 <"$name.questions")
    pids+=($!)
    read -r -u "${link_answers[number]}" link
}
link_questions=()
link_answers=()

# What went through all links since the last time: the most round trips of any, and MB to the clients.
went_through() {
    local number trips up down most=0 sum=0
    for number in "${!link_questions[@]}"; do
        echo >&"${link_questions[number]}"
        read -r -u "${link_answers[number]}" trips up down
        most=$((trips > most ? trips : most)) sum=$((sum + down))
    done
    printf '%s round trips, %s MB down' "$most" "$(awk "BEGIN { printf \"%.1f\", $sum / 1e6 }")"
}

# start_server: sets `crossdock_cache` to its address, and `server_pid`.
start_server() {
    "$crossdock" serve --insecure-no-auth --listen 127.0.0.1:0 --storage "$work/crossdock-shared" \
        >"$work/server.log" 2>&1 &
    pids+=($!)
    server_pid=$!
    local address=
    until [[ -n $address ]]; do
        sleep 0.1
        address=$(grep -o '127\.0\.0\.1:[1-9][0-9]*' "$work/server.log" | head -n 1 || true)
    done
    crossdock_cache=http://$address
    if [[ -n $far ]]; then
        far_from "$address"
        crossdock_cache=http://$link
    fi
}
server_pid=

buildkit_start() {
    mkdir -p "$work/buildkit"
    printf '[registry."%s"]\n  http = true\n' "$registry" >"$work/buildkit/config.toml"
    buildkitd --config "$work/buildkit/config.toml" --root "$work/buildkit/root" --addr "unix://$work/buildkit/socket" \
        --oci-worker=true --containerd-worker=false --oci-worker-net=host --oci-worker-binary="$(command -v runc)" \
        >"$work/buildkit/log" 2>&1 &
    buildkit_pid=$!
    pids+=("$buildkit_pid")
    local tries
    for tries in $(seq 200); do
        buildctl --addr "unix://$work/buildkit/socket" debug workers >/dev/null 2>&1 && return
        sleep 0.05
    done
    echo "buildkitd did not start after $tries tries" >&2
    tail -n 20 "$work/buildkit/log" >&2
    exit 1
}
buildkit_pid=

# buildkit_forget: BuildKit's daemon, started anew with nothing kept.
buildkit_forget() {
    if [[ -n $buildkit_pid ]]; then
        kill "$buildkit_pid"
        wait "$buildkit_pid" || true
        rm -rf --one-file-system "$work/buildkit"
    fi
    buildkit_start
}

# debian_base: sets `debian` to an OCI layout of what debootstrap makes of this machine's release. The tests make the same.
debian_base() {
    debian=$(compgen -G "$root/target/tmp/bases/debian-????????????????" || true)
    [[ -n $debian ]] && return
    (cd "$root" && cargo test --locked --test e2e the_debian_base)
    debian=$(compgen -G "$root/target/tmp/bases/debian-????????????????")
}
