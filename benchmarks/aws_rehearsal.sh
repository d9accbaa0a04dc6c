#!/usr/bin/env bash
# A rehearsal on a real AWS account. IT HAS NOT BEEN RUN YET: expect surprises, and watch the EC2 console.
#
# Rents three g4dn.xlarge spot instances in one region, trains gpt-tiny, has the Fault Injection Service interrupt one,
# and checks that its notice was heard, that training went on and that nothing is left: exit code 0 then, else 1 or 5.
#
# Expected cost: 3 to 4 instances for 20 to 40 minutes at some 0.2 USD an hour each (0.53 on demand), for each a disk
# of 100 GB and a public address (0.02 USD an hour), and 0.10 USD for each minute of fault injection, of which there
# are 2 to 4: below 1 USD. --budget 1 ends the instances in any case.
#
# Needs: parcae, jq, and the aws command; credentials that may use EC2, SSM parameters, Service Quotas and FIS, and
# pass FIS_ROLE_ARN to FIS: a role that trusts fis.amazonaws.com and allows ec2:SendSpotInstanceInterruptions and
# ec2:DescribeInstances; a spot quota of 16 vCPUs for G instances (one more instance for the replacement). An account
# that has never had a spot instance or an experiment may also need iam:CreateServiceLinkedRole.
set -euo pipefail
: "${AWS_REGION:?set AWS_REGION}" "${FIS_ROLE_ARN:?set FIS_ROLE_ARN: a role that FIS may take}"
export AWS_REGION AWS_DEFAULT_REGION="$AWS_REGION" # version 1 of the aws command knows the second only
PARCAE="${PARCAE:-parcae}"
for tool in "$PARCAE" aws jq; do
  command -v "$tool" >/dev/null || { echo "$tool is not installed" >&2; exit 2; }
done
JOB="rehearsal-$(date +%s)"
SETTINGS=$(mktemp --suffix .toml)
TEMPLATE="" EXPERIMENT="" LAUNCHED=""

clean_up() {
  local code=$?
  trap - EXIT INT TERM
  set +e
  [ -z "$EXPERIMENT" ] || aws fis stop-experiment --id "$EXPERIMENT" >/dev/null 2>&1 # one that is over refuses
  [ -z "$TEMPLATE" ] || aws fis delete-experiment-template --id "$TEMPLATE" >/dev/null
  if [ -n "$LAUNCHED" ]; then
    "$PARCAE" down "$JOB" || { [ $? -ne 5 ] || code=5; }
    "$PARCAE" gc || { [ $? -ne 5 ] || code=5; }
    left || code=5
  fi
  rm -f "$SETTINGS"
  exit "$code"
}

# Whatever still carries the job's tag, by the API's word.
left() {
  local tagged="[{\"Name\": \"tag:parcae:job\", \"Values\": [\"$JOB\"]}]" found
  found=$(
    aws ec2 describe-instances --query 'Reservations[].Instances[].InstanceId' --output text --filters \
      "[{\"Name\": \"tag:parcae:job\", \"Values\": [\"$JOB\"]}, {\"Name\": \"instance-state-name\",
        \"Values\": [\"pending\", \"running\", \"stopping\", \"stopped\", \"shutting-down\"]}]" &&
      aws ec2 describe-volumes --query 'Volumes[].VolumeId' --output text --filters "$tagged" &&
      aws ec2 describe-launch-templates --query 'LaunchTemplates[].LaunchTemplateId' --output text --filters "$tagged"
  ) || { echo "cannot see what is left" >&2; return 1; }
  found=$(echo $found)
  [ -z "$found" ] || { echo "LEFT BEHIND: $found" >&2; return 1; }
  echo "nothing is left"
}

# until_true SECONDS WHAT COMMAND..: waits for it, unless the job ends before.
until_true() {
  local seconds=$1 what=$2
  shift 2
  echo "waiting for $what"
  for _ in $(seq $((seconds / 10))); do
    ! "$@" || return 0
    ! status '.state | IN("done", "failed", "interrupted")' || break
    sleep 10
  done
  echo "it did not come to $what:" >&2
  "$PARCAE" logs "$JOB" --last 20 >&2
  return 1
}

status() { "$PARCAE" status "$JOB" --once --json 2>/dev/null | jq -e "$1" >/dev/null; }
# Whether there is an event of this kind (about the victim, with a second argument), at or after the victim's notice.
event() {
  "$PARCAE" logs "$JOB" --json 2>/dev/null | jq -e --arg kind "$1" --arg who "${2:-}" --arg victim "$VICTIM" '
    .events | (map(.kind == "notice" and (.text | startswith($victim))) | index(true)) as $at | $at != null and
    (.[$at:] | any(.kind == $kind and (.text | startswith($who))))' >/dev/null
}

printf 'instance_types = ["g4dn.xlarge"]\ndevice = "model"\n' >"$SETTINGS"
trap clean_up EXIT
trap 'exit 130' INT TERM
COMMON=(launch gpt-tiny --cloud aws --fleet "$SETTINGS" --nodes 3)
"$PARCAE" "${COMMON[@]}" --dry-run
read -r -p "Spend up to 1 USD on this? [y/N] " answer
[ "$answer" = y ] || exit 1

LAUNCHED=yes
"$PARCAE" "${COMMON[@]}" --steps 1000000 --budget 1 --max-hours 1 --name "$JOB" --yes --detach
# The bootstrap installs torch: some minutes.
until_true 1500 "training on three nodes" status '.state == "running" and ([.nodes[] | select(.position)] | length) == 3'

VICTIM=$("$PARCAE" status "$JOB" --once --json | jq -r '.nodes[0].name')
CALLER=$(aws sts get-caller-identity --query Arn --output text)
IFS=: read -r _ PARTITION _ _ ACCOUNT _ <<<"$CALLER"
TEMPLATE=$(aws fis create-experiment-template --client-token "$JOB" --description "$JOB" --role-arn "$FIS_ROLE_ARN" \
  --stop-conditions '[{"source": "none"}]' --tags "{\"parcae:job\": \"$JOB\"}" \
  --targets "{\"victim\": {\"resourceType\": \"aws:ec2:spot-instance\", \"selectionMode\": \"ALL\",
    \"resourceArns\": [\"arn:$PARTITION:ec2:$AWS_REGION:$ACCOUNT:instance/$VICTIM\"]}}" \
  --actions '{"interrupt": {"actionId": "aws:ec2:send-spot-instance-interruptions",
    "parameters": {"durationBeforeInterruption": "PT2M"}, "targets": {"SpotInstances": "victim"}}}' \
  --query experimentTemplate.id --output text)
EXPERIMENT=$(aws fis start-experiment --client-token "$JOB" --experiment-template-id "$TEMPLATE" \
  --query experiment.id --output text)
echo "$VICTIM will be interrupted in two minutes"

until_true 240 "the notice" event notice "$VICTIM"
until_true 300 "a layout without it" event migration
until_true 300 "its end" event lost "$VICTIM"
STEP=$("$PARCAE" status "$JOB" --once --json | jq .step)
until_true 300 "more steps" status ".step > $STEP"
until_true 1200 "a replacement that trains" status '([.nodes[] | select(.position)] | length) == 3'
aws fis get-experiment --id "$EXPERIMENT" --query experiment.state.status --output text
"$PARCAE" status "$JOB" --once
"$PARCAE" status "$JOB" --once --json | jq '.migrations'
