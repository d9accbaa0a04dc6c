#!/usr/bin/env bash
# Draws the README's pictures: a real job in the middle of its run, and a replay. Needs `make setup`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
parcae=.venv/bin/parcae
export PARCAE_HOME
PARCAE_HOME=$(mktemp -d)
trap '$parcae down --all >/dev/null; rm -rf "$PARCAE_HOME"' EXIT
$parcae launch gpt-tiny --nodes 8 --trace templates/traces/demo-8.csv --speed 60 --steps 200 --name demo --detach
for _ in $(seq 600); do
  step=$($parcae status demo --json | .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["step"] or 0)')
  [ "$step" -ge 110 ] && break
  sleep 0.2
done
$parcae status demo --once --svg docs/status.svg --width 110 >/dev/null
$parcae replay templates/traces/synthetic-32.csv --model gpt3-6b \
  --policy parcae,reactive,checkpoint,redundancy,on-demand,ideal --plot docs/replay.svg >/dev/null
# rich names a web font; the pictures must not fetch anything
sed -i '/@font-face/,/}/d; s/Fira Code, monospace/monospace/g' docs/status.svg
ls -l docs/*.svg
