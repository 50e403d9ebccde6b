#!/usr/bin/env bash
# Builds the last commits of public projects, one after the other, each on a runner that starts empty and with a shared cache
# of the builds before it, as CI does; with Crossdock and with BuildKit. It says how long each build took, which commands
# it ran, and what it downloaded.
#
# Needs Debian or Ubuntu, root, the network, and: docker-registry runc git skopeo (apt); Go, Node.js and Rust of this machine become
# part of the images that the projects start from. docs/benchmarks.md says more.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=benches/lib.sh
source "$root/benches/lib.sh"

usage() {
    cat <<'TEXT'
Usage: benches/histories/run.sh [--commits N] [--projects LIST] [--tools LIST] [--repositories DIR] [--far] [--results FILE]
  --commits N         how many commits of each project are built, after one that fills the cache (50)
  --projects LIST     of express,checkout,flask,lua,hexyl,fzf (all)
  --tools LIST        of crossdock,buildkit (both)
  --repositories DIR  where the projects' repositories are, each in a directory of its name; what is not there is cloned
  --far               registry and shared cache are 20 ms of round trip and 1 Gbit/s away
  --results FILE      also write every measurement there: project, commit, tool, seconds, commands run, MB downloaded
Environment: CROSSDOCK, BUILDKIT_BIN and TMPDIR as for benches/compare/run.sh.
TEXT
}

commits=50
projects=express,checkout,flask,lua,hexyl,fzf
tools=crossdock,buildkit
repositories=
far=
results=
while (($#)); do
    case $1 in
        --commits) commits=$2; shift ;;
        --projects) projects=$2; shift ;;
        --tools) tools=$2; shift ;;
        --repositories) repositories=$(realpath "$2"); shift ;;
        --far) far=yes ;;
        --results) results=$(realpath -m "$2"); shift ;;
        --help | -h) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
((EUID == 0)) || { echo "run it as root, as BuildKit's daemon is" >&2; exit 1; }
PATH=${BUILDKIT_BIN:+$BUILDKIT_BIN:}$PATH:/usr/sbin:/sbin

crossdock=${CROSSDOCK:-$root/target/release/crossdock}
[[ -x $crossdock ]] || (cd "$root" && cargo build --release --locked)

work=$(mktemp -d "${TMPDIR:-/tmp}/crossdock-histories.XXXXXX")
pids=()
finish() {
    set +e
    stop "${pids[@]}"
    rm -rf --one-file-system "$work"
}
trap finish EXIT
measurements=$work/measurements
: >"$measurements"

# What is where, and whose language it is.
repository() {
    case $1 in
        express) echo expressjs/express ;;
        checkout) echo actions/checkout ;;
        flask) echo pallets/flask ;;
        lua) echo lua/lua ;;
        hexyl) echo sharkdp/hexyl ;;
        fzf) echo junegunn/fzf ;;
        *) echo "there is no project $1 here" >&2; exit 2 ;;
    esac
}
language() {
    case $1 in
        express | checkout) echo node ;;
        flask) echo python ;;
        lua) echo c ;;
        hexyl) echo rust ;;
        fzf) echo go ;;
    esac
}

# The image that projects of a language start from, made once and pushed to the registry.
base_image() { # LANGUAGE
    local files=$work/base rust
    if [[ -e $work/base-$1 ]]; then return; fi
    mkdir -p "$files/certificates"
    # Where programs fetch packages through a proxy with a certificate of its own.
    cp -L "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$files/certificates/all.pem"
    {
        echo 'FROM debian'
        echo 'COPY --from=certificates all.pem /etc/ssl/all.pem'
        echo 'ENV SSL_CERT_FILE=/etc/ssl/all.pem PIP_CERT=/etc/ssl/all.pem' \
            'NODE_EXTRA_CA_CERTS=/etc/ssl/all.pem CARGO_HTTP_CAINFO=/etc/ssl/all.pem'
        install='RUN apt-get update -q && apt-get install -q -y --no-install-recommends git'
        case $1 in
            node)
                echo "$install"
                echo 'COPY --from=node bin/node /usr/local/bin/'
                echo 'COPY --from=node lib/node_modules/npm /usr/local/lib/node_modules/npm'
                echo 'RUN ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm' ;;
            python)
                echo "$install python3-venv && python3 -m venv /opt/venv"
                echo 'ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' ;;
            c) echo "$install gcc libc6-dev make libreadline-dev" ;;
            rust)
                echo "$install gcc libc6-dev"
                echo 'COPY --from=rust bin /usr/local/bin'
                echo 'COPY --from=rust lib /usr/local/lib' ;;
            go)
                echo "$install"
                echo 'COPY --from=go . /usr/local/go'
                echo 'ENV PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' ;;
        esac
    } >"$files/Dockerfile"
    set -- "$1" --build-context "certificates=$files/certificates" --build-context "debian=oci-layout://$debian"
    case $1 in
        node) set -- "$@" --build-context "node=$(dirname "$(dirname "$(readlink -f "$(command -v node)")")")" ;;
        rust) rust=$(rustc --print sysroot); set -- "$@" --build-context "rust=$rust" ;;
        go) set -- "$@" --build-context "go=$(go env GOROOT)" ;;
    esac
    "$crossdock" build --local-cache "$work/base-cache" --tag "$registry/base-$1:latest" --push --progress plain \
        --file "$files/Dockerfile" "${@:2}" "$files" >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; exit 1; }
    touch "$work/base-$1"
}

crossdock_forget() { rm -rf "$work/crossdock-local"; }
crossdock_build() { # PROJECT
    "$crossdock" build --local-cache "$work/crossdock-local" --cache "$crossdock_cache" --progress plain \
        --build-arg "BASE=$registry/base-$(language "$1"):latest" --file "$here/projects/$1.Dockerfile" \
        --tag "$registry/crossdock/$1:latest" --push "$work/context"
}
buildkit_build() { # PROJECT
    buildctl --addr "unix://$work/buildkit/socket" build --progress plain --frontend dockerfile.v0 \
        --opt "build-arg:BASE=$registry/base-$(language "$1"):latest" --opt "filename=$1.Dockerfile" \
        --local "context=$work/context" --local "dockerfile=$here/projects" \
        --import-cache "type=registry,ref=$registry/cache/$1" \
        --export-cache "type=registry,ref=$registry/cache/$1,mode=max,image-manifest=true" \
        --output "type=image,name=$registry/buildkit/$1:latest,push=true"
}

# How many commands the last build ran, in the words that both tools use.
commands() {
    awk '/^#[0-9]+ \[.*\] RUN / { run[$1] = 1 } /^#[0-9]+ CACHED/ { delete run[$1] } END { print length(run) }' "$work/log"
}

build() { # PROJECT COMMIT TOOL FILE: notes there what it took
    local begin end seconds outcome=ok down=-
    "$3_forget"
    if [[ -n $far ]]; then went_through >/dev/null; fi
    begin=$(date +%s%N)
    "$3_build" "$1" >"$work/log" 2>&1 || outcome=failed
    end=$(date +%s%N)
    seconds=$(awk "BEGIN { printf \"%.3f\", ($end - $begin) / 1e9 }")
    if [[ -n $far ]]; then down=$(went_through | grep -o '[0-9.]* MB' | cut -d' ' -f1); fi
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$outcome" "$seconds" "$(commands)" "$down" | tee -a "$4"
    if [[ $outcome == failed ]]; then grep -v '^ *$' "$work/log" | tail -n 12 | sed 's/^/# /'; fi
}

build_history() { # PROJECT
    local repository=$repositories/$1 list commit tool number=0
    if [[ -z $repositories || ! -e $repository ]]; then
        repository=$work/repositories/$1
        git clone --quiet "https://github.com/$(repository "$1")" "$repository"
    fi
    base_image "$(language "$1")"
    list=$(git -C "$repository" log --first-parent --format=%h --reverse --max-count $((commits + 1)))
    for commit in $list; do
        rm -rf "$work/context"
        mkdir "$work/context"
        git -C "$repository" archive "$commit" | tar --extract --directory "$work/context"
        # The first fills the cache. In turn, so that neither tool is always the second to ask the network.
        for tool in $( ((number % 2)) && echo "${tools//,/ }" || tr ',' '\n' <<<"$tools" | tac); do
            build "$1" "$commit" "$tool" "$( ((number)) && echo "$measurements" || echo "$work/first")"
        done
        number=$((number + 1))
    done
}

# A commit counts if no tool failed; that all fail alike is said.
table() {
    echo
    awk -F'\t' -v tools="$tools" '
        { key = $1 "\t" $2; if (!(key in seen)) { seen[key] = 1; keys[++n] = key } if ($4 != "ok") { bad[key]++ }
          seconds[key, $3] = $5; ran[key, $3] = $6; down[key, $3] = $7; builders[$3] = 1 }
        END {
            count = split(tools, tool, ",")
            printf "| project | commits |"
            for (t = 1; t <= count; t++) printf " %s: s | commands | MB |", tool[t]
            print " ratio |"
            for (k = 1; k <= n; k++) {
                split(keys[k], part, "\t"); p = part[1]
                if (!(p in known)) { known[p] = 1; list[++m] = p }
                if (bad[keys[k]]) { failed[p]++; if (bad[keys[k]] != count) odd[p]++; continue }
                good[p]++
                for (t = 1; t <= count; t++) {
                    s[p, tool[t]] += seconds[keys[k], tool[t]]; r[p, tool[t]] += ran[keys[k], tool[t]]; d[p, tool[t]] += down[keys[k], tool[t]]
                    s["all", tool[t]] += seconds[keys[k], tool[t]]; r["all", tool[t]] += ran[keys[k], tool[t]]; d["all", tool[t]] += down[keys[k], tool[t]]
                }
                good["all"]++
            }
            list[++m] = "all"
            for (i = 1; i <= m; i++) {
                p = list[i]
                printf "| %s | %d |", p, good[p]
                for (t = 1; t <= count; t++) printf " %.1f | %d | %.0f |", s[p, tool[t]], r[p, tool[t]], d[p, tool[t]]
                if (count == 2 && s[p, tool[2]] > 0) printf " %.2f |", s[p, tool[1]] / s[p, tool[2]]
                print ""
                if (failed[p]) printf "# %s: %d commits failed, %d of them not with all tools\n", p, failed[p], odd[p]
            }
        }' "$measurements"
}

main() {
    local project
    debian_base
    start_registry
    if [[ -n $far ]]; then
        far_from "$registry"
        registry=$link
    fi
    start_server
    for project in ${projects//,/ }; do build_history "$project"; done
    table
    if [[ -n $results ]]; then cp "$measurements" "$results"; fi
}

# On one line with `exit`, so that editing this file does not change a run that is under way.
main; exit
