#!/usr/bin/env bash
# A rehearsal on a real AWS account. IT HAS NOT BEEN RUN YET: expect surprises, and watch the EC2 console.
#
# Rents two g4dn.xlarge spot instances in one region, trains gpt-tiny, has the Fault Injection Service interrupt one,
# and checks that training went on and that nothing is left. Expected cost: 2-3 instances for about 20 minutes at
# some 0.2 USD an hour each, two disks of 100 GB for that time, and 0.10 USD for one minute of fault injection:
# below 0.50 USD. --budget 1 ends it in any case.
#
# Needs: credentials that may use EC2, SSM parameters, Service Quotas and FIS; the role FIS_ROLE_ARN, which allows
# ec2:SendSpotInstanceInterruptions; a spot quota of 8 vCPUs for G instances; the aws command, jq.
set -euo pipefail
: "${AWS_REGION:?set AWS_REGION}" "${FIS_ROLE_ARN:?set FIS_ROLE_ARN: a role that FIS may take}"
JOB="rehearsal-$(date +%s)"
PARCAE="${PARCAE:-parcae}"
SETTINGS=$(mktemp --suffix .toml)
printf 'instance_types = ["g4dn.xlarge"]\ndevice = "model"\n' >"$SETTINGS"

"$PARCAE" launch gpt-tiny --cloud aws --fleet "$SETTINGS" --nodes 2 --dry-run
read -r -p "Spend up to 1 USD on this? [y/N] " answer
[ "$answer" = y ] || exit 1
trap '"$PARCAE" down "$JOB"; "$PARCAE" gc' EXIT

"$PARCAE" launch gpt-tiny --cloud aws --fleet "$SETTINGS" --nodes 2 --steps 100000 --budget 1 --max-hours 1 \
  --name "$JOB" --yes --detach
echo "waiting for training to start (the bootstrap installs torch: some minutes)"
until [ "$("$PARCAE" status "$JOB" --once --json | jq -r .state)" = running ]; do sleep 10; done

VICTIM=$("$PARCAE" status "$JOB" --once --json | jq -r '.nodes[0].name')
ACCOUNT=$(aws sts get-caller-identity --query Account --output text)
TEMPLATE=$(aws fis create-experiment-template --client-token "$JOB" --description "$JOB" --role-arn "$FIS_ROLE_ARN" \
  --stop-conditions source=none --tags "parcae:job=$JOB" \
  --targets "{\"victim\":{\"resourceType\":\"aws:ec2:spot-instance\",\"selectionMode\":\"ALL\",
    \"resourceArns\":[\"arn:aws:ec2:$AWS_REGION:$ACCOUNT:instance/$VICTIM\"]}}" \
  --actions '{"interrupt":{"actionId":"aws:ec2:send-spot-instance-interruptions",
    "parameters":{"durationBeforeInterruption":"PT2M"},"targets":{"SpotInstances":"victim"}}}' \
  --query experimentTemplate.id --output text)
aws fis start-experiment --experiment-template-id "$TEMPLATE" >/dev/null
echo "$VICTIM will be interrupted in two minutes"
for _ in $(seq 60); do
  sleep 10
  if "$PARCAE" status "$JOB" --once --json | jq -e '.migrations | length > 0' >/dev/null; then break; fi
done
"$PARCAE" status "$JOB" --once
"$PARCAE" status "$JOB" --once --json | jq '.migrations'
aws fis delete-experiment-template --id "$TEMPLATE" >/dev/null

"$PARCAE" down "$JOB"
LEFT=$(aws ec2 describe-instances --filters "Name=tag:parcae:job,Values=$JOB" \
  "Name=instance-state-name,Values=pending,running,stopping,stopped,shutting-down" \
  --query 'Reservations[].Instances[].InstanceId' --output text)
[ -z "$LEFT" ] || { echo "LEFT BEHIND: $LEFT"; exit 5; }
echo "nothing is left"
