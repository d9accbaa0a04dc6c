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

# Compute Engine tells a preempted machine to power off at once, and cuts its power 30 s later. Obeyed, the word would
# cost SSH and workers the whole of their notice, so a node does not heed it.
if [ @DEAD_MAN_S@ = 0 ]; then
  LOGIND="${PARCAE_LOGIND_FOLDER:-/etc/systemd/logind.conf.d}"
  mkdir -p "$LOGIND"
  printf '[Login]\nHandlePowerKey=ignore\n' >"$LOGIND/parcae.conf"
  [ -n "${PARCAE_LOGIND_FOLDER:-}" ] || systemctl kill -s HUP systemd-logind || true
fi

# An anchor's dead man's switch: whoever holds the lease touches the file, or removes it at the end. A machine that
# shuts down goes on costing its disk, so it has itself deleted. Nodes have no switch but their longest run time.
if [ @DEAD_MAN_S@ != 0 ]; then
  mkdir -p "$STATE/lease"
  touch "$STATE/lease/held"
  chmod 777 "$STATE/lease"
  chmod 666 "$STATE/lease/held"
  nohup setsid sh -c '
    told() { curl -sf -H "Metadata-Flavor: Google" "http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/instance/$1"; }
    while sleep @DEAD_MAN_CHECK_S@; do
      age=$(( $(date +%s) - $(stat -c %Y "$1/lease/held" 2>/dev/null || echo 0) ))
      [ "$age" -ge @DEAD_MAN_S@ ] || continue
      echo "no lease for $age s: deleting this machine"
      token=$(told service-accounts/default/token | sed "s/.*\"access_token\" *: *\"\([^\"]*\)\".*/\1/")
      curl -sf -X DELETE -H "Authorization: Bearer $token" \
        "${CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE:-https://compute.googleapis.com}/compute/v1/$(told zone)/instances/$(told name)" \
        || shutdown -h now
    done' dead-man "$STATE" >>"$STATE/log" 2>&1 </dev/null &
fi

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
