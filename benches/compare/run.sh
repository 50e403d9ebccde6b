#!/usr/bin/env bash
# Builds one project with Crossdock, with Debian's buildah and, if it is installed, with BuildKit, and says how long
# each took: cold, warm and unchanged, and from an empty local state with a shared cache: nothing changed, a file that no
# step reads, one source file, the base image.
# Also: the same with the objects in a cache mount, and what a large cache mount costs; peak memory for a 2 GiB image, how fast
# a layer is written next to `tar | zstd`, and what tracing costs.
#
# Needs Debian or Ubuntu, root, and: buildah skopeo docker-registry runc zstd time (apt); docs/benchmarks.md says more.
# All servers run on loopback, all files are in one temporary directory, and both are gone at the end.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=benches/lib.sh
source "$root/benches/lib.sh"

usage() {
    cat <<'TEXT'
Usage: benches/compare/run.sh [--runs N] [--tools LIST] [--only LIST] [--far] [--results FILE]
  --runs N        rounds of each scenario; the median is reported (3)
  --tools LIST    of crossdock,buildah,buildkit (those that are installed)
  --only LIST     of builds,mounts,memory,layers,tracing (all)
  --far           the registry, and the shared cache with it, is 20 ms of round trip and 1 Gbit/s away: a small proxy
                  (tests/tools/link) is in front of it, and of the `crossdock serve` that is Crossdock's cache; what goes
                  through both is counted
  --results FILE  also write every measurement there: tool, scenario, seconds
Environment: CROSSDOCK (the program; default: target/release/crossdock, built if absent), BUILDKIT_BIN (the directory
of buildkitd and buildctl, if they are not in PATH), TMPDIR (a file system that overlayfs accepts).
TEXT
}

runs=3
tools=
only=builds,mounts,memory,layers,tracing
results=
far=
while (($#)); do
    case $1 in
        --runs) runs=$2; shift ;;
        --tools) tools=$2; shift ;;
        --only) only=$2; shift ;;
        --far) far=yes ;;
        --results) results=$(realpath -m "$2"); shift ;;
        --help | -h) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
((EUID == 0)) || { echo "run it as root: buildah's fastest isolation here needs it" >&2; exit 1; }
PATH=${BUILDKIT_BIN:+$BUILDKIT_BIN:}$PATH:/usr/sbin:/sbin

if [[ -z $tools ]]; then
    tools=crossdock,buildah
    if command -v buildkitd >/dev/null && command -v buildctl >/dev/null; then tools+=,buildkit; fi
fi
uses() { [[ ,$tools, == *,$1,* ]]; }
measures() { [[ ,$only, == *,$1,* ]]; }

crossdock=${CROSSDOCK:-$root/target/release/crossdock}
if uses crossdock && [[ ! -x $crossdock ]]; then
    (cd "$root" && cargo build --release --locked)
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/crossdock-compare.XXXXXX")
pids=()
finish() {
    set +e
    stop "${pids[@]}"
    if [[ -d $work/buildah ]]; then
        buildah_storage umount --all >/dev/null 2>&1
        # The overlay driver keeps its own directory mounted.
        umount "$work/buildah/root/overlay" 2>/dev/null
    fi
    rm -rf --one-file-system "$work"
}
trap finish EXIT

measurements=$work/measurements
: >"$measurements"

# measure TOOL SCENARIO COMMAND…: runs it quietly and notes the seconds; its output is shown if it fails.
measure() {
    local tool=$1 scenario=$2 begin end seconds
    shift 2
    if [[ -n $far ]]; then went_through >/dev/null; fi
    begin=$(date +%s%N)
    if ! "$@" >"$work/log" 2>&1; then
        echo "$tool, $scenario: failed: $*" >&2
        tail -n 40 "$work/log" >&2
        exit 1
    fi
    end=$(date +%s%N)
    seconds=$(awk "BEGIN { printf \"%.3f\", ($end - $begin) / 1e9 }")
    printf '%s\t%s\t%s\n' "$tool" "$scenario" "$seconds" >>"$measurements"
    printf '%-10s %-28s %8s s%s\n' "$tool" "$scenario" "$seconds" "${far:+   $(went_through)}"
}

median() { # TOOL SCENARIO
    awk -F'\t' -v tool="$1" -v scenario="$2" '$1 == tool && $2 == scenario { print $3 }' "$measurements" |
        sort -n | awk '{ a[NR] = $1 } END { if (NR) printf "%.3f", NR % 2 ? a[(NR + 1) / 2] : (a[NR / 2] + a[NR / 2 + 1]) / 2 }'
}

# ---- a base image, a project ----

base_image() {
    debian_base
    skopeo --policy "$work/policy.json" copy --quiet --dest-tls-verify=false \
        "oci:$debian:latest" "docker://$registry/base:released"
    # The same after a security update of a package that no step uses. Its one layer is another one then, as of every image
    # that is rebuilt.
    local files=$work/updated
    mkdir -p "$files"
    printf 'FROM base\n' | "$crossdock" build --local-cache "$work/base-cache" --build-context "base=oci-layout://$debian" \
        --output "type=tar,dest=$files/root.tar" --progress quiet -
    mkdir "$files/root"
    tar --extract --numeric-owner --xattrs --file "$files/root.tar" --directory "$files/root"
    sed -i '/^Package: login$/,/^$/s/^Version: .*/&.1/' "$files/root/var/lib/dpkg/status"
    printf 'fixed' >>"$files/root/usr/bin/faillog"
    tar --create --numeric-owner --xattrs --file "$files/root.tar" --directory "$files/root" .
    rm -rf "$files/root"
    printf 'FROM scratch\nADD root.tar /\nCMD ["bash"]\n' >"$files/Dockerfile"
    "$crossdock" build --local-cache "$work/base-cache" --tag "$registry/base:updated" --push --progress quiet "$files"
    rm -rf "$files" "$work/base-cache"
}

# released or updated: what `base:latest` is.
base_is() {
    skopeo --policy "$work/policy.json" copy --quiet --src-tls-verify=false --dest-tls-verify=false \
        "docker://$registry/base:$1" "docker://$registry/base:latest"
}

project() {
    local directory=$work/project number
    mkdir -p "$directory/src"
    for number in $(seq -w 0 199); do
        {
            echo '#include <stdio.h>'
            echo '#include <stdlib.h>'
            for function in 1 2 3 4 5 6 7 8; do
                echo "static int step_${number}_$function(int a) { int s = 0; for (int i = 0; i < a; i++) s += (s ^ i) * $function; return s; }"
            done
            echo "int unit_$number(int a) { return step_${number}_1(a) + step_${number}_5(a) + step_${number}_8(a); }"
        } >"$directory/src/unit_$number.c"
    done
    {
        echo '#include <stdio.h>'
        echo '#include <zlib.h>'
        for number in $(seq -w 0 199); do echo "int unit_$number(int);"; done
        echo 'int main(void) { long sum = 0;'
        for number in $(seq -w 0 199); do echo "sum += unit_$number(${number#0});" | sed 's/(0*\([0-9]\)/(\1/'; done
        echo 'printf("%ld zlib %s\n", sum, zlibVersion()); return 0; }'
    } >"$directory/src/main.c"
    printf '%s\n' 'objects := $(patsubst src/%.c,build/%.o,$(wildcard src/*.c))' \
        'app: $(objects)' '	$(CC) -o $@ $^ -lz' 'build/%.o: src/%.c' '	@mkdir -p build' '	$(CC) -O1 -c -o $@ $<' \
        >"$directory/Makefile"
    echo zlib1g-dev >"$directory/dependencies.txt"
    echo 'The first line.' >"$directory/README.md"
    cat >"$directory/Dockerfile" <<DOCKERFILE
FROM $registry/base:latest AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev make
WORKDIR /project
COPY dependencies.txt .
RUN xargs apt-get install -y --no-install-recommends < dependencies.txt
COPY . .
RUN make -j2

FROM $registry/base:latest
COPY --from=build /project/app /usr/local/bin/app
CMD ["app"]
DOCKERFILE
}

# ---- the tools: each can forget its local state, and build and push ----

crossdock_forget() { rm -rf "$work/crossdock-local"; }
crossdock_forget_shared() {
    if [[ -n $server_pid ]]; then
        kill "$server_pid"
        wait "$server_pid" || true
    fi
    rm -rf "$work/crossdock-shared"
    start_server
}
crossdock_build() {
    "$crossdock" build --local-cache "$work/crossdock-local" --cache "$crossdock_cache" \
        --progress plain --tag "$registry/app/crossdock:latest" --push "$work/project"
}

buildah_storage() {
    buildah --root "$work/buildah/root" --runroot "$work/buildah/run" --storage-driver overlay "$@"
}
buildah_forget() {
    if [[ -d $work/buildah ]]; then
        buildah_storage rm --all >/dev/null
        buildah_storage rmi --all --force >/dev/null
        rm -rf --one-file-system "$work/buildah"
    fi
}
buildah_forget_shared() { rm -rf "$work/registry/docker/registry/v2/repositories/cache/buildah"; }
buildah_build() {
    # Every image of --cache-to is pushed with its layers; --cache-from looks them up by the step's key.
    buildah_storage --signature-policy "$work/policy.json" bud --isolation "${BUILDAH_ISOLATION:-chroot}" \
        --layers --tls-verify=false --cache-from "$registry/cache/buildah" --cache-to "$registry/cache/buildah" \
        --tag "$registry/app/buildah:latest" "$work/project"
    buildah_storage --signature-policy "$work/policy.json" push --tls-verify=false "$registry/app/buildah:latest"
}

buildkit_forget_shared() { rm -rf "$work/registry/docker/registry/v2/repositories/cache/buildkit"; }
buildkit_build() {
    buildctl --addr "unix://$work/buildkit/socket" build --progress plain --frontend dockerfile.v0 \
        --local "context=$work/project" --local "dockerfile=$work/project" \
        --import-cache "type=registry,ref=$registry/cache/buildkit" \
        --export-cache "type=registry,ref=$registry/cache/buildkit,mode=max,image-manifest=true" \
        --output "type=image,name=$registry/app/buildkit:latest,push=true"
}

# ---- the measurements ----

compare_builds() {
    local round tool
    # What a tool has pushed goes before its next cold run: the registry finds a blob only through a repository that
    # has it, so removing the repository makes it push everything again.
    for round in $(seq "$runs"); do
        echo "# round $round of $runs"
        for tool in ${tools//,/ }; do
            "${tool}_forget"
            "${tool}_forget_shared"
            rm -rf "$work/registry/docker/registry/v2/repositories/app/$tool" "$work/project"
            project
            base_is released
            measure "$tool" cold "${tool}_build"
            measure "$tool" "warm, unchanged" "${tool}_build"
            "${tool}_forget"
            measure "$tool" "empty, unchanged" "${tool}_build"
            check_image "$tool"
            "${tool}_forget"
            echo 'Another line.' >>"$work/project/README.md"
            measure "$tool" "empty, unread file" "${tool}_build"
            steps "$tool"
            "${tool}_forget"
            sed -i 's/s ^ i/s + i/' "$work/project/src/unit_100.c"
            measure "$tool" "empty, one source file" "${tool}_build"
            steps "$tool"
            "${tool}_forget"
            base_is updated
            measure "$tool" "empty, updated base" "${tool}_build"
            steps "$tool"
            check_image "$tool"
        done
    done
}

# What the last build of a tool ran, in its own words.
steps() {
    case $1 in
        crossdock) grep -A 3 '^#.*RUN because' "$work/log" | grep 'because\|DONE' | sed 's/^/# /' || true ;;
        buildkit) grep -E '^#[0-9]+ (DONE [0-9.]+s|\[.*RUN)' "$work/log" | grep -A 1 RUN | sed 's/^/# /' || true ;;
    esac
}

# The three images must do the same.
check_image() {
    local image=$work/check digest
    rm -rf "$image"
    skopeo --policy "$work/policy.json" copy --quiet --src-tls-verify=false "docker://$registry/app/$1:latest" "oci:$image:latest"
    digest=$(skopeo inspect --raw "oci:$image:latest" | sha256sum | cut -c-12)
    echo "# $1 pushed an image with manifest $digest…, $(du -sm "$image" | cut -f1) MB"
}

# The same project with its objects in a cache mount, on a runner that starts empty: what the mount is worth there.
compare_mounts() {
    local round tool
    for round in $(seq "$runs"); do
        echo "# round $round of $runs"
        for tool in ${tools//,/ }; do
            [[ $tool == buildah ]] && continue
            "${tool}_forget"
            "${tool}_forget_shared"
            rm -rf "$work/registry/docker/registry/v2/repositories/app/$tool" "$work/project"
            project
            sed -i 's|^RUN make|RUN --mount=type=cache,target=/project/build make|' "$work/project/Dockerfile"
            base_is released
            measure "$tool" "mount: cold" "${tool}_build"
            "${tool}_forget"
            sed -i 's/s ^ i/s + i/' "$work/project/src/unit_100.c"
            measure "$tool" "mount: one source file" "${tool}_build"
            echo "# $tool compiled $(grep -c -- '-c -o' "$work/log") files; $(grep -o '[0-9.]* [kM]*B downloaded' "$work/log" || true)"
        done
    done
    for tool in ${tools//,/ }; do
        if [[ $tool == buildkit ]]; then
            awk "BEGIN { printf \"# mount, one source file: %.3f of buildkit\n\", $(median crossdock 'mount: one source file') / $(median buildkit 'mount: one source file') }"
        fi
    done
}

# A directory of compiler output of 2 GB, in a cache mount, on a runner that starts empty.
compare_large_mount() {
    local directory=$work/large-mount round
    debian_base
    mkdir -p "$directory"
    crossdock_forget_shared
    cat >"$directory/Dockerfile" <<'DOCKERFILE'
FROM debian AS fill
RUN --mount=type=cache,target=/target for d in $(seq 100); do mkdir /target/$d; for f in $(seq 200); do \
    { head -c 50000 /dev/urandom; yes "$d $f" | head -c 50000; } > /target/$d/$f.o; done; done
FROM debian AS without
ARG ROUND
RUN echo
FROM debian AS with
ARG ROUND
RUN --mount=type=cache,target=/target echo
FROM debian AS change
ARG ROUND
RUN --mount=type=cache,target=/target { echo $ROUND; head -c 80000 /dev/urandom; } > /target/50/100.o
DOCKERFILE
    large() { # TARGET
        "$crossdock" build --local-cache "$work/crossdock-local" --cache "$crossdock_cache" --progress plain \
            --build-context "debian=oci-layout://$debian" --target "$1" --build-arg "ROUND=$RANDOM$RANDOM" "$directory"
    }
    measure crossdock "2 GB mount: fill" large fill
    for round in $(seq "$runs"); do
        for name in without with change; do
            crossdock_forget
            measure crossdock "2 GB mount: $name" large "$name"
            echo "# $(tail -n 2 "$work/log" | grep steps)"
        done
    done
    awk "BEGIN { printf \"# 2 GB mount: the step begins %.3f s later; one object of it changed: %.3f s more\n\", \
        $(median crossdock '2 GB mount: with') - $(median crossdock '2 GB mount: without'), \
        $(median crossdock '2 GB mount: change') - $(median crossdock '2 GB mount: with') }"
}

compare_memory() {
    local tool
    mkdir -p "$work/large"
    # Half of it compresses, half does not.
    for number in $(seq 32); do
        { head -c 33554432 /dev/urandom; head -c 33554432 /dev/zero | tr '\0' "\\$((number % 8))"; } >"$work/large/file-$number"
    done
    printf 'FROM scratch\nCOPY . /\n' >"$work/large/Dockerfile"
    for tool in ${tools//,/ }; do
        case $tool in
            crossdock)
                set -- "$crossdock" build --local-cache "$work/large-crossdock" --progress plain \
                    --output "type=oci,dest=$work/large-image.tar" "$work/large" ;;
            buildah)
                set -- buildah --root "$work/buildah/root" --runroot "$work/buildah/run" --storage-driver overlay \
                    --signature-policy "$work/policy.json" bud --isolation chroot --layers --tag large "$work/large" ;;
            *) continue ;; # Its memory is the daemon's.
        esac
        if ! /usr/bin/time --format '%M %e' --output "$work/time" "$@" >"$work/log" 2>&1; then
            tail -n 40 "$work/log" >&2
            exit 1
        fi
        awk -v tool="$tool" '{ printf "%-10s 2 GiB image: peak memory %6.1f MiB, %.1f s\n", tool, $1 / 1024, $2 }' "$work/time" |
            tee -a "$work/memory"
        rm -rf "$work/large-crossdock" "$work/large-image.tar"
    done
    if uses buildah; then buildah_forget; fi
    rm -rf "$work/large"
}

compare_layers() {
    local tree=$work/tree round size
    mkdir -p "$tree"
    # A real tree: this machine's own programs and libraries, up to about 500 MB.
    (cd /usr && find bin lib share -xdev -type f -size -8M -print0 2>/dev/null | head -z -n 20000 |
        tar --create --null --files-from=- --ignore-failed-read 2>/dev/null | head -c 500000000) |
        tar --extract --directory "$tree" 2>/dev/null || true
    printf 'FROM scratch\nCOPY . /\n' >"$tree/Dockerfile"
    size=$(du -sm --apparent-size "$tree" | cut -f1)
    echo "# a layer of $(find "$tree" -type f | wc -l) files, $size MB"
    tar_zstd() { tar --create --directory "$tree" . | zstd -q -3 -T0 -o "$work/layer.tar.zst" -f; }
    layer_crossdock() {
        "$crossdock" build --local-cache "$work/layer-local" --progress plain "$tree"
    }
    tar_zstd # Once, so that all read from the page cache.
    for round in $(seq "$runs"); do
        echo "# round $round of $runs"
        measure tar "layer: tar | zstd -3 -T0" tar_zstd
        rm -rf "$work/layer-local"
        if uses crossdock; then measure crossdock "layer: build of COPY" layer_crossdock; fi
    done
    echo "# tar | zstd: $(awk "BEGIN { printf \"%.0f\", $size / $(median tar 'layer: tar | zstd -3 -T0') }") MB/s"
    if uses crossdock; then
        echo "# crossdock: $(awk "BEGIN { printf \"%.0f\", $size / $(median crossdock 'layer: build of COPY') }") MB/s," \
            "with reading the context twice (fingerprint, layer), and storing"
    fi
}

# Steps that do nothing else than what they are named after, on a base that has all they need: with and without tracing.
compare_tracing() {
    local directory=$work/traced round name
    debian_base
    mkdir -p "$directory"
    cp -r "$work/project/." "$directory/"
    cat >"$directory/package.json" <<'JSON'
{"name": "example", "version": "1.0.0", "dependencies": {"express": "4.21.2", "lodash": "4.17.21", "typescript": "5.7.3"}}
JSON
    cat >"$directory/Dockerfile" <<'DOCKERFILE'
FROM debian AS tools
RUN apt-get update -q && apt-get install -q -y --no-install-recommends make gcc libc6-dev zlib1g-dev npm python3-pip ca-certificates
COPY package.json /js/
RUN --mount=type=secret,id=ca,target=/ca.pem if [ -e /ca.pem ]; then export NODE_EXTRA_CA_CERTS=/ca.pem; fi; \
    cd /js && npm install --no-audit --no-fund && rm -r node_modules
RUN --mount=type=secret,id=ca,target=/ca.pem if [ -e /ca.pem ]; then export PIP_CERT=/ca.pem; fi; \
    mkdir /wheels && pip download --quiet --dest /wheels requests flask numpy
FROM tools AS compile
COPY . /project
RUN cd /project && make -s
FROM tools AS npm
RUN cd /js && npm ci --no-audit --no-fund --prefer-offline
FROM tools AS pip
RUN pip install --quiet --break-system-packages --no-index --find-links /wheels --target /out requests flask numpy
FROM tools AS apt
RUN apt-get update -q && apt-get install -q -y --no-install-recommends git perl
DOCKERFILE
    traced() { # TARGET FLAG…
        local target=$1
        shift
        "$crossdock" build --local-cache "$work/traced-local" --build-context "debian=oci-layout://$debian" --progress plain \
            ${SSL_CERT_FILE:+--secret "id=ca,src=$SSL_CERT_FILE"} --target "$target" "$@" "$directory"
    }
    # What they start from is here, unpacked and framed, before the clock starts.
    traced tools >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; exit 1; }
    for name in compile npm pip apt; do
        traced "$name" --no-trace >/dev/null 2>&1
        for round in $(seq "$runs"); do
            measure traced "$name" traced "$name" --no-cache-filter "$name"
            measure untraced "$name" traced "$name" --no-cache-filter "$name" --no-trace
        done
        awk "BEGIN { printf \"# %s: traced %.2f of untraced\n\", \"$name\", $(median traced "$name") / $(median untraced "$name") }"
    done
}

table() {
    local tool scenario value ours
    echo
    printf '| median of %s | ' "$runs"
    for tool in ${tools//,/ }; do printf '%s | ' "$tool"; done
    printf '\n|---|'
    for tool in ${tools//,/ }; do printf -- '---:|'; done
    echo
    for scenario in cold "warm, unchanged" "empty, unchanged" "empty, unread file" "empty, one source file" \
        "empty, updated base"; do
        printf '| %s | ' "$scenario"
        ours=$(median crossdock "$scenario")
        for tool in ${tools//,/ }; do
            value=$(median "$tool" "$scenario")
            if [[ -n $ours && $tool != crossdock ]]; then
                printf '%s s (%s×) | ' "$value" "$(awk "BEGIN { printf \"%.1f\", $value / $ours }")"
            else
                printf '%s s | ' "$value"
            fi
        done
        echo
    done
}

main() {
    echo '{"default":[{"type":"insecureAcceptAnything"}]}' >"$work/policy.json"
    if measures builds || measures mounts; then
        start_registry
        if [[ -n $far ]]; then
            far_from "$registry"
            registry=$link
        fi
        base_image
    fi
    if measures builds; then
        project
        compare_builds
    fi
    if measures mounts; then
        compare_mounts
        if uses crossdock; then compare_large_mount; fi
    fi
    if measures memory; then compare_memory; fi
    if measures layers; then compare_layers; fi
    if measures tracing; then
        [[ -d $work/project ]] || { registry=none project; }
        compare_tracing
    fi
    if measures builds; then table; fi
    if [[ -n $results ]]; then cp "$measurements" "$results"; fi
}

# On one line with `exit`, so that editing this file does not change a run that is under way.
main; exit
