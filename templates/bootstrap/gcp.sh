#!/bin/sh
# Makes a fresh instance ready: the host key that its launcher expects, and the Python that workers run in.
# Run as root by the guest agent at every boot. Tells how it went by a file: ready or failed, beside its log.
set -eu
STATE="${PARCAE_STATE:-/var/lib/parcae}"
SSH_FOLDER="${PARCAE_SSH_FOLDER:-/etc/ssh}"
umask 022
mkdir -p "$STATE" "$SSH_FOLDER"
exec >>"$STATE/log" 2>&1
trap 'code=$?; [ "$code" = 0 ] || { echo "bootstrap failed with exit code $code"; touch "$STATE/failed"; }' EXIT

# Until this is done the instance shows another key, and nobody of ours talks to it.
( umask 077; cat >"$SSH_FOLDER/ssh_host_ed25519_key" <<'KEY'
@HOST_KEY@
KEY
)
echo "@HOST_PUBLIC_KEY@" >"$SSH_FOLDER/ssh_host_ed25519_key.pub"
${PARCAE_RESTART_SSH:-eval systemctl restart ssh || systemctl restart sshd}

echo "$(date) python @PYTHON@, packages: @PACKAGES@"
if [ -n "@PACKAGES@" ]; then
  VENV=$(dirname "$(dirname "@PYTHON@")")
  if [ ! -x "@PYTHON@" ]; then
    python3 -m venv "$VENV" || { apt-get update && apt-get install -y python3-venv && python3 -m venv "$VENV"; }
  fi
  "@PYTHON@" -m pip install --disable-pip-version-check --quiet @PACKAGES@
fi
"@PYTHON@" -c 'import sys; assert sys.version_info >= (3, 11), f"Parcae needs Python 3.11, not {sys.version}"'
touch "$STATE/ready"
echo "$(date) ready"
