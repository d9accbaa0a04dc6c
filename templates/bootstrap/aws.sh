#!/bin/sh
# Makes a fresh instance ready: the Python that workers run in, and a switch that ends a forgotten machine.
# Run once as root by cloud-init. Tells how it went by a file: .parcae-ready or .parcae-failed in the user's home.
set -eu
HOME_FOLDER="@HOME@"
LOG="$HOME_FOLDER/.parcae-bootstrap.log"
exec >>"$LOG" 2>&1
trap 'code=$?; [ "$code" = 0 ] || { echo "bootstrap failed with exit code $code"; touch "$HOME_FOLDER/.parcae-failed"; }' EXIT

# The dead man's switch: whoever holds the lease touches the file. It starts before anything can go wrong.
touch "$HOME_FOLDER/.parcae-lease"
chmod 666 "$HOME_FOLDER/.parcae-lease"
nohup setsid sh -c '
  born=$(date +%s)
  while sleep @DEAD_MAN_CHECK_S@; do
    [ @LONGEST_S@ = 0 ] || [ $(( $(date +%s) - born )) -lt @LONGEST_S@ ] || { echo "the bound: shutting down"; shutdown -h now; exit; }
    age=$(( $(date +%s) - $(stat -c %Y "$1/.parcae-lease" 2>/dev/null || echo 0) ))
    [ "$age" -lt @DEAD_MAN_S@ ] || { echo "no lease for $age s: shutting down"; shutdown -h now; exit; }
  done' dead-man "$HOME_FOLDER" >>"$LOG" 2>&1 </dev/null &

echo "$(date) python @PYTHON@, packages: @PACKAGES@"
if [ -n "@PACKAGES@" ]; then
  VENV=$(dirname "$(dirname "@PYTHON@")")
  if [ ! -x "@PYTHON@" ]; then
    python3 -m venv "$VENV" || { apt-get update && apt-get install -y python3-venv && python3 -m venv "$VENV"; }
  fi
  "@PYTHON@" -m pip install --disable-pip-version-check --quiet @PACKAGES@
fi
"@PYTHON@" -c 'import sys; assert sys.version_info >= (3, 11), f"Parcae needs Python 3.11, not {sys.version}"'
touch "$HOME_FOLDER/.parcae-ready"
echo "$(date) ready"
