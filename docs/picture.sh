#!/usr/bin/env bash
# Makes docs/picture.svg, the picture at the head of the README, from a real run: the demo's project is built on one
# "runner", a source file is changed, and a second one that starts empty builds it with the shared cache. What the
# terminal shows of the second is the picture.
#
# Needs: apt-get install tmux python3-rich
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --release --quiet
program=$PWD/target/release/crossdock
work=$(mktemp -d)
session=crossdock-picture-$$
trap 'tmux kill-session -t "$session" 2>/dev/null || true; rm -rf "$work"' EXIT

"$program" demo --keep "$work/demo" >/dev/null
ln -s "$program" "$work/crossdock"
mkdir "$work/app"
cp -r "$work/demo/checkout-1/." "$work/app"

tmux new-session -d -s "$session" -x 180 -y 31 -c "$work/app" "env -i PATH=$work:/usr/bin:/bin HOME=$work TERM=xterm-256color PS1='\$ ' sh"
type_line() {
    tmux send-keys -t "$session" -l "$1"
    tmux send-keys -t "$session" Enter
}
# Waits until the shell asks again: nothing runs in the pane but the shell.
wait_for_shell() {
    sleep 0.5
    while [[ $(tmux display-message -p -t "$session" '#{pane_current_command}') != sh ]]; do sleep 0.1; done
    sleep 0.3
}
type_line "export CROSSDOCK_CACHE=file://$work/shared; alias build='crossdock build --build-context base=oci-layout://$work/demo/base'"
type_line "CROSSDOCK_LOCAL=$work/one build -t app -o type=oci,dest=app.tar . ; clear"
wait_for_shell
type_line "echo 'Good evening' >> greeting/greeting.src; clear"
wait_for_shell
type_line "CROSSDOCK_LOCAL=$work/empty build -t app -o type=oci,dest=app.tar ."
wait_for_shell
# The directories are temporary; what they stand for is shown.
tmux capture-pane -e -p -t "$session" |
    sed -e 's|CROSSDOCK_LOCAL=[^ ]*/empty build|crossdock build --cache file:///mnt/cache|' \
        -e "s|$work/shared|/mnt/cache|g" >"$work/screen"

python3 - "$work/screen" docs/picture.svg <<'PYTHON'
import io
import re
import sys
from rich.console import Console
from rich.text import Text

lines = open(sys.argv[1], encoding="utf-8").read().rstrip().splitlines()
while lines and lines[-1].strip() in ("", "$"):
    lines.pop()
console = Console(record=True, width=136, file=io.StringIO(), force_terminal=True)
console.print(Text.from_ansi("\n".join(lines)))
svg = console.export_svg(title="a new runner, one source file changed")
# No fonts from elsewhere: who reads the README is nobody's business.
svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
with open(sys.argv[2], "w", encoding="utf-8") as file:
    file.write(svg)
PYTHON
echo "docs/picture.svg"
