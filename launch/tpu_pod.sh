#!/usr/bin/env bash
# Trains on a Cloud TPU pod: asks for a queued resource, installs this checkout on every host, starts the run, follows its
# log. When the TPU is taken away, asks for another and goes on with the run from the bucket. When the run ends, or you press
# Ctrl-C, deletes what costs money. The same command again goes on with whatever is there.
#
# The states of a queued resource: https://cloud.google.com/tpu/docs/queued-resources
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_pod.sh --zone ZONE --type TYPE --bucket gs://BUCKET/PATH [options] CONFIG [key.sub=value …]

  --zone ZONE             us-east5-a, …
  --type TYPE             v5p-128, v5litepod-64, v6e-64, …
  --bucket gs://…         where runs are kept; the hosts' service account must be allowed to read and write there
  --name NAME             of the run and of the queued resource (default: the config's file name)
  --spot                  ask for preemptible capacity
  --secret VARIABLE=NAME  read an environment variable of the run from Secret Manager, on the hosts (again for more)
  --inputs gs://…         files (a model, questions) that are laid over the checkout on every host
  --service-account MAIL  of the hosts (default: the project's)
  --project PROJECT       (default: gcloud's)
  --runtime VERSION       of the hosts' software (default: by type)
  --keep                  delete nothing at the end
  --tries N               give up when N times in a row a TPU was asked for and the run could not be started (default: 5)
  --poll SECONDS          between two looks at the state (default: 30)
  --settle SECONDS        how long a run that failed is given to turn out preempted (default: 90)
  --dry-run               print every command of a run that is not preempted, and run none

Example:
  launch/tpu_pod.sh --zone us-east5-a --type v5p-128 --spot --bucket gs://mine/runs --inputs gs://mine/inputs \
      --secret SERPER_API_KEY=serper-key configs/deepresearcher_7b.toml

Exit code: 0 the run ended well; the run's own (1, 2, …) when it failed; 3 no TPU, or no way to reach it; 130 interrupted.
TEXT
}

say() { echo "$(date +%H:%M:%S) launch: $*" >&2; }
die() { say "$*"; exit 3; }
wrong() { echo "launch: $* (see launch/tpu_pod.sh --help)" >&2; exit 2; }

show() { # a command as one could type it
  local word value
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@,+-]+$ ]]; then printf '%s ' "$word"
    elif [[ $word == --*=* ]]; then value=${word#*=} && printf '%s ' "${word%%=*}=${value@Q}"
    else printf '%s ' "${word@Q}"; fi
  done
  echo
}

patiently() { # in the background, so that Ctrl-C is heard at once
  local rc=0
  set -m
  "$@" </dev/null &
  child=$!
  set +m
  wait "$child" || rc=$?
  child=''
  return "$rc"
}

tpu() { # one gcloud command; what it says on stderr is shown when it fails, and a refusal ends the script
  local command=(gcloud compute tpus "$@" --zone="$zone" "${project[@]}" --quiet)
  if ((dry_run)); then show "${command[@]}"; return; fi
  local rc=0
  patiently "${command[@]}" 2>"$scratch/error" || rc=$?
  ((rc)) || return 0
  cat "$scratch/error" >&2
  say "gcloud compute tpus $1 $2 ended with $rc"
  if grep -q 'PERMISSION_DENIED\|Required .* permission' "$scratch/error"; then
    [[ $* != "queued-resources create"* ]] || ours=0
    die "a permission is missing, see above"
  fi
  return 1
}

on_hosts() { # WORKER COMMAND: on one host, or on all
  tpu tpu-vm ssh "$name" --worker="$1" --ssh-flag='-o ConnectTimeout=20' --ssh-flag='-o ServerAliveInterval=15' --command="$2"
}

look() { # sets `state`
  local ask=(gcloud compute tpus queued-resources describe "$name" --zone="$zone" "${project[@]}" --quiet)
  if ((dry_run)); then show "${ask[@]}" --format='value(state.state)'; return; fi
  state=$("${ask[@]}" --format='value(state.state)' 2>"$scratch/error") && return
  state=UNKNOWN
  if grep -q NOT_FOUND "$scratch/error"; then state=ABSENT; return; fi
  cat "$scratch/error" >&2
  if grep -q PERMISSION_DENIED "$scratch/error"; then die "a permission is missing, see above"; fi
}

create() {
  ((++asked <= tries)) || die "a TPU was asked for $tries times in a row, and the run could not be started"
  ours=1
  tpu queued-resources create "$name" --node-id="$name" --accelerator-type="$type" --runtime-version="$runtime" \
    --scopes=https://www.googleapis.com/auth/cloud-platform "${wanted[@]}" || die "no TPU was asked for, see above"
}

delete() { tpu queued-resources delete "$name" --force; }

install() {
  git ls-files -z | tar --null -T - -czf "$scratch/dr_jax.tar.gz"
  tpu tpu-vm scp "$scratch/dr_jax.tar.gz" "$name:dr_jax.tar.gz" --worker=all &&
    on_hosts all "mkdir -p dr_jax && tar -xzf dr_jax.tar.gz -C dr_jax && dr_jax/launch/host.sh install tpu,gcs"
}

start() { on_hosts all "$settings dr_jax/launch/host.sh start $arguments"; }

status() { on_hosts 0 "[ ! -e dr_jax/launch/host.sh ] || dr_jax/launch/host.sh status"; }

attend() { # sees to it that the run is under way, and follows it; `ended` is its exit code, '' when that is not known
  local lines=+1
  ended=''
  status >"$scratch/status" || return 0
  if grep -q running "$scratch/status"; then
    lines=3
  elif ((started)) && grep -q ended "$scratch/status"; then # while nobody was looking
    ended=$(exit_code)
    return
  else
    say "installing on every host"
    install && start || return 0
  fi
  asked=0 started=1 began=$SECONDS
  say "the run is under way; Ctrl-C $( ((keep)) && echo "leaves it and the TPU" || echo "saves it and deletes the TPU")"
  on_hosts 0 "dr_jax/launch/host.sh follow $lines" || true
  ((SECONDS - began < settle)) || failures=0
  status >"$scratch/status" || return 0
  ended=$(exit_code)
}

exit_code() { sed -n 's/^ended \([0-9]*\)$/\1/p' "$scratch/status"; }

stays() { # whether the TPU is still there after a while: what looks like a failure may be the first sign of its end
  local until=$((SECONDS + settle))
  while look; [[ $state == ACTIVE || $state == UNKNOWN ]]; do
    ((SECONDS < until)) || return 0
    patiently sleep "$poll"
  done
  return 1
}

advance() { # one step towards the end of the run, by the state of the TPU
  case $state in
    ABSENT) create ;;
    ACTIVE)
      attend
      case $ended in
        0) say "the run ended well"; exit 0 ;;
        2) say "the run cannot go on like this, see above"; exit 2 ;;
        '' | 130 | 143) # out of reach, or told to stop, as before a preemption
          if stays && ((++failures >= tries)); then die "the run does not stay under way on $name"; fi
          [[ -z $ended ]] || started=0 ;; # start it again
        *) if stays; then say "the run failed by itself, with code $ended"; exit "$ended"; fi ;;
      esac ;;
    SUSPENDED | FAILED)
      gcloud compute tpus queued-resources describe "$name" --zone="$zone" "${project[@]}" --quiet --format='yaml(state)' >&2 || true
      say "deleting what is left of it; the run goes on from the bucket"
      failures=0
      started=0
      if delete; then ours=0; else patiently sleep "$poll"; fi ;;
    *) patiently sleep "$poll" ;; # ACCEPTED, WAITING_FOR_RESOURCES, PROVISIONING, CREATING, SUSPENDING, DELETING, UNKNOWN
  esac
}

finish() {
  local rc=$?
  trap - EXIT
  trap '' INT TERM HUP
  exec 2>&3 # a signal may have come while stderr went to a file
  if [[ -n $child ]]; then kill -TERM -- "-$child" 2>/dev/null || true; fi
  if ((ours && keep)); then
    say "$name is kept, and paid for. The same command goes on with it; this deletes it:"
    show gcloud compute tpus queued-resources delete "$name" --force --zone="$zone" "${project[@]}" >&2
  elif ((ours)); then
    if [[ $rc -ge 130 && $state == ACTIVE ]]; then
      say "saving the run"
      (on_hosts all "[ ! -e dr_jax/launch/host.sh ] || dr_jax/launch/host.sh stop") || true
    fi
    say "deleting $name"
    if ! (delete) && (look; [[ $state != ABSENT ]]); then say "$name in $zone is NOT DELETED, and paid for until it is"; fi
  fi
  rm -rf "$scratch"
  exit "$rc"
}

plan() { # what a run that is not preempted does
  create; look; install; start; on_hosts 0 "dr_jax/launch/host.sh follow +1"; status
  ((keep)) || delete
  echo "# on every host:"
  eval "$settings launch/host.sh --dry-run install tpu,gcs; $settings launch/host.sh --dry-run run $arguments"
}

zone='' type='' bucket='' name='' runtime='' inputs='' secrets='' project=() wanted=()
keep=0 dry_run=0 tries=5 poll=30 settle=90 gcp=''
words=()
while (($#)); do # options count wherever they stand: a --dry-run that comes last must not be taken for a setting
  case $1 in
    -h | --help) usage; exit ;;
    --spot) wanted+=(--spot) ;;
    --keep) keep=1 ;;
    --dry-run) dry_run=1 ;;
    --zone | --type | --bucket | --name | --secret | --inputs | --service-account | --project | --runtime | --tries | --poll | --settle)
      [[ $# -ge 2 ]] || wrong "$1 needs a value"
      case $1 in
        --secret) [[ $2 =~ ^[A-Za-z_][A-Za-z0-9_]*=[A-Za-z0-9_-]+$ ]] || wrong "--secret needs VARIABLE=NAME-OF-SECRET"
          secrets+="${secrets:+ }$2" ;;
        --service-account) wanted+=("$1=$2") ;;
        --project) project=("$1=$2") gcp=$2 ;;
        *) printf -v "${1#--}" %s "$2" ;;
      esac
      shift ;;
    -*) wrong "$1 is not known" ;;
    *) words+=("$1") ;;
  esac
  shift
done
set -- "${words[@]}"
[[ -n $zone && -n $type && $# -ge 1 ]] || wrong "--zone, --type and CONFIG are needed"
[[ $bucket == gs://?* ]] || wrong "--bucket gs://… is needed: a run on a TPU that may be lost is kept there"
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || wrong "bash 4.4 or newer is needed, this is $BASH_VERSION"
cd "$(dirname "$0")/.."
git ls-files --error-unmatch -- "$1" >/dev/null 2>&1 || wrong "$1 is not in git, and only what is in git is installed on the hosts"
((dry_run)) || command -v gcloud >/dev/null || wrong "gcloud is not on the PATH"
stem=$(basename "$1" .toml)
name=${name:-$(tr '_.' '--' <<<"$stem")}
case $type in
  v6e*) runtime=${runtime:-v2-alpha-tpuv6e} ;;
  v5p*) runtime=${runtime:-v2-alpha-tpuv5} ;;
  v5lite*) runtime=${runtime:-v2-alpha-tpuv5-lite} ;;
  *) runtime=${runtime:-tpu-ubuntu2204-base} ;;
esac
printf -v arguments '%q ' "$@"
printf -v settings '%s=%q ' DR_JAX_NAME "$name" DR_JAX_RUNS "$bucket" DR_JAX_INPUTS "$inputs" DR_JAX_SECRETS "$secrets" \
  DR_JAX_PROJECT "$gcp" DR_JAX_JOIN auto
exec 3>&2
scratch=$(mktemp -d) child='' state='' told='' asked=0 started=0 failures=0 ours=0 unknown=0
trap 'rm -rf "$scratch"' EXIT
if ((dry_run)); then plan; exit; fi
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
while look; do
  if [[ $state == UNKNOWN ]]; then
    ((++unknown < 10)) || die "the state of $name cannot be learned, see above"
  else
    unknown=0
  fi
  [[ $state == ABSENT || $state == UNKNOWN ]] || ours=1
  [[ $state == "$told" ]] || say "$name is $state"
  told=$state
  advance
done
