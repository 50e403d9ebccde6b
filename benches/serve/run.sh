#!/usr/bin/env bash
# How fast `crossdock serve` is, and how much it holds: reads next to nginx, images next to Debian's docker-registry, many
# connections, and what the faults of a server cost a build.
#
# Needs Debian or Ubuntu, root, and: nginx-light wrk docker-registry skopeo python3 curl (apt); docs/benchmarks.md says more.
# All servers run on loopback, all files are in one temporary directory, and both are gone at the end.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

usage() {
    cat <<'TEXT'
Usage: benches/serve/run.sh [--runs N] [--seconds N] [--only LIST]
  --runs N     rounds of each measurement; the median is reported (5)
  --seconds N  how long reads are measured in each round (3)
  --only LIST  of reads,images,connections,faults (all)
Environment: CROSSDOCK (the program; default: target/release/crossdock, built if absent), TMPDIR, NICE (a priority for the
servers and clients measured, where the machine has other things to do; default 0).
TEXT
}

runs=5
seconds=3
only=reads,images,connections,faults
while (($#)); do
    case $1 in
        --runs) runs=$2; shift ;;
        --seconds) seconds=$2; shift ;;
        --only) only=$2; shift ;;
        --help | -h) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
((EUID == 0)) || { echo "run it as root: the full disk is mounted" >&2; exit 1; }
PATH=$PATH:/usr/sbin:/sbin
measures() { [[ ,$only, == *,$1,* ]]; }

crossdock=${CROSSDOCK:-$root/target/release/crossdock}
[[ -x $crossdock ]] || (cd "$root" && cargo build --release --locked)
nice=(nice -n "${NICE:-0}")

work=$(mktemp -d "${TMPDIR:-/tmp}/crossdock-serve.XXXXXX")
chmod 755 "$work"
export HOME=$work RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup} CARGO_HOME=${CARGO_HOME:-$HOME/.cargo}
pids=()
finish() {
    set +e
    local pid
    for pid in "${pids[@]}"; do
        kill -CONT "$pid" 2>/dev/null
        kill "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    done
    mountpoint -q "$work/full" && umount "$work/full"
    rm -rf --one-file-system "$work"
}
trap finish EXIT

median() { sort -n | awk '{ a[NR] = $1 } END { printf "%.4f", NR % 2 ? a[(NR + 1) / 2] : (a[NR / 2] + a[NR / 2 + 1]) / 2 }'; }
ratio() { awk "BEGIN { printf \"%.2f\", $1 / $2 }"; }

# port_of LOG: the port in its first line that names one on loopback.
port_of() {
    local tries port=
    for tries in $(seq 200); do
        port=$(grep -o '127\.0\.0\.1:[1-9][0-9]*' "$1" | head -n 1 | cut -d: -f2 || true)
        [[ -n $port ]] && { echo "$port"; return; }
        sleep 0.05
    done
    echo "nothing listens after $tries tries:" >&2
    cat "$1" >&2
    return 1
}

# start_server STORAGE: sets `server` to its address and `server_pid`.
start_server() {
    local log=$work/server-${#pids[@]}.log
    "${nice[@]}" "$crossdock" serve --insecure-no-auth --listen 127.0.0.1:0 --storage "$1" >"$log" 2>&1 &
    server_pid=$!
    pids+=("$server_pid")
    server=127.0.0.1:$(port_of "$log")
}

put() { # FILE: prints its digest
    local digest
    digest=sha256:$(sha256sum "$1" | cut -d' ' -f1)
    curl -sS --fail -T "$1" "http://$server/api/v1/blobs/$digest"
    curl -sS --fail -X POST -H 'Content-Type: application/octet-stream' --data-binary "@$1" \
        "http://$server/v2/bench/blobs/uploads/?digest=$digest"
    echo "$digest"
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# ---- reads ----

start_nginx() { # DIRECTORY: sets `nginx`
    local port
    port=$(free_port)
    cat >"$work/nginx.conf" <<CONF
user root;
worker_processes 2;
daemon off;
pid $work/nginx.pid;
error_log $work/nginx-error.log;
events { worker_connections 1024; }
http {
    access_log $work/nginx-access.log;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    server { listen 127.0.0.1:$port; root $1; }
}
CONF
    "${nice[@]}" nginx -c "$work/nginx.conf" 2>/dev/null &
    pids+=($!)
    nginx=127.0.0.1:$port
    until curl -s "http://$nginx/" >/dev/null; do sleep 0.05; done
}

reads_a_second() { # URL CONNECTIONS
    "${nice[@]}" wrk -t1 -c"$2" -d"$seconds" --timeout 30 "$1" >"$work/wrk"
    if grep -q 'Non-2xx\|Socket errors' "$work/wrk"; then cat "$work/wrk" >&2; exit 1; fi
    # The bytes: of large blobs there are few requests in a round.
    awk '/requests in/ { size = $5; unit = 1
        if (size ~ /KB/) unit = 1e3; if (size ~ /MB/) unit = 1e6; if (size ~ /GB/) unit = 1e9
        sub(/[KMG]B/, "", size); sub(/s,/, "", $4); printf "%.2f\n", size * unit / 1e6 / $4 }' "$work/wrk"
}

compare_reads() {
    start_server "$work/storage"
    start_nginx "$work/storage/tenants/default/v1/blobs/sha256"
    local size name digest hex round files=()
    for size in 65536 1048576 67108864; do
        head -c "$size" /dev/urandom >"$work/blob"
        digest=$(put "$work/blob")
        files+=("$size $digest")
    done
    # What was written just now is verified with each read.
    sleep 4
    echo "# MB/s, each in the same round; connections: 8"
    for file in "${files[@]}"; do
        read -r size digest <<<"$file"
        hex=${digest#sha256:}
        : >"$work/nginx-rate"; : >"$work/native-rate"; : >"$work/oci-rate"
        local native=http://$server/api/v1/blobs/$digest oci=http://$server/v2/bench/blobs/$digest
        local theirs=http://$nginx/${hex:0:2}/$hex
        for url in "$native" "$oci" "$theirs"; do
            [[ $(curl -sS --fail "$url" | sha256sum | cut -d' ' -f1) == "$hex" ]] || { echo "wrong content: $url" >&2; exit 1; }
        done
        for round in $(seq "$runs"); do
            reads_a_second "$theirs" 8 >>"$work/nginx-rate"
            reads_a_second "$native" 8 >>"$work/native-rate"
            reads_a_second "$oci" 8 >>"$work/oci-rate"
        done
        local a b c
        a=$(median <"$work/nginx-rate"); b=$(median <"$work/native-rate"); c=$(median <"$work/oci-rate")
        printf 'read %9s bytes: nginx %8.0f  native %8.0f (%s×)  registry %8.0f (%s×)\n' \
            "$size" "$a" "$b" "$(ratio "$b" "$a")" "$c" "$(ratio "$c" "$a")"
    done
}

# ---- images ----

start_registry() { # sets `registry`
    printf '%s\n' 'version: 0.1' "storage: {filesystem: {rootdirectory: $work/registry}, delete: {enabled: true}}" \
        "http: {addr: '127.0.0.1:0'}" 'log: {accesslog: {disabled: true}}' >"$work/registry.yml"
    "${nice[@]}" docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
    registry_pid=$!
    pids+=("$registry_pid")
    registry=127.0.0.1:$(port_of "$work/registry.log")
}

timed() { # COMMAND…: seconds
    local begin end
    begin=$(date +%s%N)
    "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
    end=$(date +%s%N)
    awk "BEGIN { printf \"%.3f\\n\", ($end - $begin) / 1e9 }"
}

copy() { "${nice[@]}" skopeo --policy "$work/policy.json" copy --quiet --src-tls-verify=false --dest-tls-verify=false "$@"; }

compare_images() {
    echo '{"default":[{"type":"insecureAcceptAnything"}]}' >"$work/policy.json"
    mkdir -p "$work/image"
    local number round
    for number in 1 2 3 4; do head -c 50000000 /dev/urandom >"$work/image/part-$number"; done
    printf 'FROM scratch\n' >"$work/image/Dockerfile"
    for number in 1 2 3 4; do printf 'COPY part-%s /\n' "$number"; done >>"$work/image/Dockerfile"
    "$crossdock" build --local-cache "$work/image-local" --progress plain \
        --output "type=oci,dest=$work/image.tar" "$work/image" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
    mkdir "$work/layout"
    tar -xf "$work/image.tar" -C "$work/layout"
    for round in $(seq "$runs"); do
        # Each time into an empty storage: a blob that is there is not sent again.
        rm -rf "$work/registry" "$work/images"
        start_registry
        start_server "$work/images"
        timed copy "oci:$work/layout" "docker://$registry/image:1" >>"$work/registry-push"
        timed copy "oci:$work/layout" "docker://$server/image:1" >>"$work/server-push"
        rm -rf "$work/pulled"
        timed copy "docker://$registry/image:1" "dir:$work/pulled" >>"$work/registry-pull"
        rm -rf "$work/pulled"
        timed copy "docker://$server/image:1" "dir:$work/pulled" >>"$work/server-pull"
        # Without the client's own work: what the servers do.
        local layers digest
        layers=$(skopeo inspect --tls-verify=false "docker://$server/image:1" | python3 -c 'import json, sys; print(*json.load(sys.stdin)["Layers"])')
        bare_pull() { local digest; for digest in $layers; do curl -sS --fail -o /dev/null "http://$1/v2/image/blobs/$digest"; done; }
        bare_push() {
            local digest place
            for digest in $layers; do
                place=$(curl -sS --fail -o /dev/null -D - -X POST "http://$1/v2/other/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
                case $place in /*) place=http://$1$place ;; esac
                case $place in *\?*) place="$place&" ;; *) place="$place?" ;; esac
                curl -sS --fail -X PUT -H 'Content-Type: application/octet-stream' -T "$work/layout/blobs/sha256/${digest#sha256:}" "${place}digest=$digest"
            done
        }
        timed bare_pull "$registry" >>"$work/registry-bare-pull"
        timed bare_pull "$server" >>"$work/server-bare-pull"
        # In a storage without them again.
        kill "$server_pid" "$registry_pid"
        wait "$server_pid" "$registry_pid" || true
        rm -rf "$work/registry" "$work/images"
        start_registry
        start_server "$work/images"
        timed bare_push "$registry" >>"$work/registry-bare-push"
        timed bare_push "$server" >>"$work/server-bare-push"
        kill "$server_pid" "$registry_pid"
        wait "$server_pid" "$registry_pid" || true
    done
    local what a b
    for what in push pull bare-push bare-pull; do
        a=$(median <"$work/registry-$what"); b=$(median <"$work/server-$what")
        printf '200 MB image, %-10s docker-registry %6.2f s  crossdock %6.2f s (%s× as fast)\n' "$what:" "$a" "$b" "$(ratio "$a" "$b")"
    done
}

# ---- connections ----

compare_connections() {
    ulimit -n 16384
    start_server "$work/storage-connections"
    head -c 1048576 /dev/urandom >"$work/blob"
    local digest idle
    digest=$(put "$work/blob")
    sleep 4
    # Each has made one request, and stays.
    python3 - "$server" 5000 >"$work/idle.log" <<'PYTHON' &
import socket, sys, time
host, port = sys.argv[1].split(":")
held = []
for number in range(int(sys.argv[2])):
    one = socket.create_connection((host, int(port)))
    one.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert one.recv(4096).startswith(b"HTTP/1.1 200")
    held.append(one)
print("held", flush=True)
time.sleep(600)
PYTHON
    idle=$!
    pids+=("$idle")
    until grep -q held "$work/idle.log"; do
        kill -0 "$idle" || { echo "the idle connections were not taken" >&2; exit 1; }
        sleep 0.1
    done
    resident() { awk -v what="$1:" '$1 == what { printf "%.0f MiB", $2 / 1024 }' "/proc/$server_pid/status"; }
    echo "5,000 idle connections: $(resident VmRSS)"
    # Half of the busy ones read, the others send.
    cat >"$work/put.lua" <<LUA
wrk.method = "PUT"
wrk.path = "/api/v1/blobs/$digest"
local file = io.open("$work/blob", "rb")
wrk.body = file:read("*a")
LUA
    wrk -t1 -c250 -d10 --timeout 30 "http://$server/v2/bench/blobs/$digest" >"$work/wrk-read" &
    local reader=$!
    wrk -t1 -c250 -d10 --timeout 30 -s "$work/put.lua" "http://$server/" >"$work/wrk-send"
    wait "$reader"
    grep -h 'requests in\|Non-2xx\|Socket errors' "$work/wrk-read" "$work/wrk-send"
    echo "and 500 busy ones, 250 reading and 250 sending 1 MiB each: at most $(resident VmHWM), $(awk '$1 == "Threads:" { print $2 }' "/proc/$server_pid/status") threads"
    kill "$idle"
    wait "$idle" 2>/dev/null || true
}

# ---- faults ----

compare_faults() {
    local project=$work/project number round fault
    mkdir -p "$project"
    {
        echo 'FROM scratch'
        for number in $(seq 12); do
            head -c 2000000 /dev/urandom >"$project/file-$number"
            echo "COPY file-$number /"
        done
    } >"$project/Dockerfile"
    build() { # a runner that starts empty
        rm -rf "$work/runner"
        "$crossdock" build --local-cache "$work/runner" --progress plain "$@" "$project"
    }
    [[ -x $work/link ]] || rustc --edition 2024 -O -o "$work/link" "$root/tests/tools/link/main.rs"
    python3 - >"$work/faults.log" <<'PYTHON' &
import socket, threading, time
def listen(act, backlog=128):
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(backlog)
    def run():
        while True:
            client, _ = server.accept()
            threading.Thread(target=act, args=(client,), daemon=True).start()
    if act: threading.Thread(target=run, daemon=True).start()
    return server, server.getsockname()[1]
held = []
def silent(client):
    held.append(client)
    time.sleep(1e6)
def answering(answer, pause=0):
    def act(client):
        try:
            while client.recv(65536):
                for piece in answer:
                    client.sendall(piece)
                    time.sleep(pause)
        except OSError: pass
    return act
head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1000000\r\n\r\n"
page = b"<html>" * 20
print("silent", listen(silent)[1])
print("page", listen(answering([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page) + page]))[1])
print("error", listen(answering([b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"]))[1])
print("trickle", listen(answering([head] + [b"x"] * 1000000, 0.05))[1])
print("breaks", listen(lambda client: (client.recv(1000), client.close()))[1])
# Nobody accepts, and the queue is full: connecting takes for ever.
full, port = listen(None, 0)
for _ in range(4):
    one = socket.socket(); one.setblocking(False)
    try: one.connect(("127.0.0.1", port))
    except BlockingIOError: pass
    held.append(one)
print("unreachable", port)
dead, port = listen(None)
dead.close()
print("dead", port, flush=True)
time.sleep(1e6)
PYTHON
    pids+=($!)
    until grep -q dead "$work/faults.log"; do sleep 0.05; done
    local kinds=(none) name port
    declare -A urls
    while read -r name port; do
        kinds+=("$name")
        urls[$name]=http://127.0.0.1:$port
    done <"$work/faults.log"
    # A server that works, 20 ms away: what sending everything costs, which is no fault.
    start_server "$work/storage-faults"
    "$work/link" 127.0.0.1:0 "$server" 20 1000 >"$work/link-near" &
    pids+=($!)
    "$work/link" 127.0.0.1:0 "$server" 1500 1 >"$work/link-slow" &
    pids+=($!)
    urls[slow]=http://127.0.0.1:$(port_of "$work/link-slow")
    urls[works]=http://127.0.0.1:$(port_of "$work/link-near")
    start_server "$work/storage-stopped"
    urls[stopped]=http://$server
    kill -STOP "$server_pid"
    mkdir -p "$work/full"
    mount -t tmpfs -o size=3m tmpfs "$work/full"
    start_server "$work/full/storage"
    urls[full]=http://$server
    kinds+=(slow stopped full works)
    for round in $(seq "$runs"); do
        for fault in "${kinds[@]}"; do
            if [[ $fault == none ]]; then timed build >>"$work/fault-none"
            else timed build --cache "${urls[$fault]}" >>"$work/fault-$fault"; fi
            # What it has got is not to be found by the next.
            if [[ $fault == works ]]; then rm -rf "$work/storage-faults/tenants"; fi
        done
    done
    local alone
    alone=$(median <"$work/fault-none")
    printf 'without a cache server: %.2f s; more with one that\n' "$alone"
    for fault in "${kinds[@]:1}"; do
        printf '  %-12s %6.2f s\n' "$fault" "$(awk "BEGIN { print $(median <"$work/fault-$fault") - $alone }")"
    done
}

main() {
    if measures reads; then compare_reads; fi
    if measures images; then compare_images; fi
    if measures connections; then compare_connections; fi
    if measures faults; then compare_faults; fi
}

# On one line with `exit`, so that editing this file does not change a run that is under way.
main; exit
