#!/usr/bin/env bash
# What a host of a training run does. The other scripts here call it; `run` by itself trains on this machine.
#
# A run is kept in DR_JAX_RUNS/NAME: checkpoints are written there directly; the small files (config, metrics, episodes,
# progress) stand in runs/NAME and, where DR_JAX_RUNS is a bucket, are copied there every DR_JAX_MIRROR_S seconds and at the
# end. Whoever runs the same command again, here or on another machine, goes on with the run: that is all that resuming is.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/host.sh [--dry-run] COMMAND …

  install EXTRAS                    makes .venv here, with Python 3.12 (EXTRAS: tpu,gcs or cuda,gcs)
  run CONFIG [key.sub=value …]      trains in the foreground; goes on with a run that is there. SIGTERM saves and ends it
  start CONFIG [key.sub=value …]    the same in the background, unless it runs already
  follow [LINES]                    prints the log, its last LINES first, until the run in the background ends
  status                            running, ended CODE (once it ended), or absent
  stop                              ends the run in the background, saved; waits for it

Environment, all of it optional:
  DR_JAX_NAME         of the run (default: the config's)
  DR_JAX_RUNS         where runs are kept: gs://BUCKET/PATH, or a directory (default: runs)
  DR_JAX_INPUTS       gs://BUCKET/PATH whose files (a model, questions) are laid over this directory first
  DR_JAX_SECRETS      "VARIABLE=SECRET …": variables to read from Secret Manager; names only, never values
  DR_JAX_PROJECT      where those secrets are (default: gcloud's)
  DR_JAX_JOIN         passed to dr-jax train --join: auto, or HOST:PORT/INDEX/COUNT
  DR_JAX_COORDINATOR  HOST:PORT under SLURM, where index and count are known
  DR_JAX_MIRROR_S     seconds between two copies to the bucket (default: 30)
TEXT
}

say() { echo "launch: $*" >&2; }
die() { say "$*"; exit 2; }

dry_run=0
do_or_show() { if ((dry_run)); then echo "$*"; else "$@"; fi; }

install() {
  ((dry_run)) || [[ ! -x .venv/bin/dr-jax || "$(cat .venv/extras 2>/dev/null)" != "$1" ]] || return 0
  # uv brings its own Python: images of Cloud TPU and of GPU clouds have 3.10, which is too old.
  do_or_show python3 -m pip install --quiet --target .uv uv
  do_or_show .uv/bin/uv venv --quiet --clear --python 3.12 .venv
  do_or_show .uv/bin/uv pip install --quiet --python .venv/bin/python --requirements requirements.txt
  do_or_show .uv/bin/uv pip install --quiet --python .venv/bin/python --editable ".[$1]"
  ((dry_run)) || echo "$1" >.venv/extras
}

index() { # this host's number; only the first one writes to the bucket
  local at=http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
  if [[ -z ${DR_JAX_JOIN:-} ]]; then echo "${SLURM_PROCID:-0}"; return; fi
  if [[ $DR_JAX_JOIN == */*/* ]]; then cut -d/ -f2 <<<"$DR_JAX_JOIN"; return; fi
  echo "${TPU_WORKER_ID:-$(curl -sf --max-time 5 -H 'Metadata-Flavor: Google' "$at" || echo 0)}"
}

secrets() {
  local pair project=()
  [[ -z ${DR_JAX_PROJECT:-} ]] || project=(--project="$DR_JAX_PROJECT")
  for pair in ${DR_JAX_SECRETS:-}; do
    if ((dry_run)); then echo "${pair%%=*}=<secret ${pair#*=}>"; continue; fi
    local value
    value=$(gcloud secrets versions access latest --secret="${pair#*=}" "${project[@]}" --quiet) ||
      die "the secret ${pair#*=} for ${pair%%=*} cannot be read: create it, and give this host's service account roles/secretmanager.secretAccessor"
    export "${pair%%=*}=$value"
  done
}

pull() { # what the bucket knows of the run; nothing is there before its first start
  local error
  [[ -z ${DR_JAX_INPUTS:-} ]] || do_or_show gcloud storage rsync --recursive --quiet "$DR_JAX_INPUTS" .
  [[ $kept == gs://* ]] || return 0
  if ((dry_run)); then echo "gcloud storage rsync --recursive $kept runs/$name  (if the run is there)"; return; fi
  if error=$(gcloud storage ls "$kept/config.json" 2>&1); then
    mkdir -p "runs/$name"
    gcloud storage rsync --recursive --quiet --exclude='^checkpoints/.*' "$kept" "runs/$name"
  elif [[ $error != *"matched no objects"* ]]; then
    die "the bucket cannot be read: $error"
  fi
}

push() {
  [[ -d runs/$name ]] || return 0
  gcloud storage rsync --recursive --quiet --exclude='^model\.partial/.*' "runs/$name" "$kept" || say "copying to $kept failed; trying again"
}

mirror() { while sleep "${DR_JAX_MIRROR_S:-30}"; do push; done; }

run() {
  local config=$1 rc stopped mirroring='' child arguments=()
  shift
  name=${DR_JAX_NAME:-$(sed -n '/^\[/q; s/^name *= *"\(.*\)" *$/\1/p' "$config")}
  [[ -n $name ]] || die "$config has no name; set DR_JAX_NAME"
  local runs=${DR_JAX_RUNS:-runs}
  kept=${runs%/}/$name
  pull
  secrets
  arguments=(train "$config" "name=$name")
  if [[ $runs == gs://* ]]; then arguments+=(out=runs "checkpoint.directory=$kept/checkpoints"); else arguments+=("out=$runs"); fi
  arguments+=("$@")
  local here=$kept
  [[ $runs != gs://* ]] || here=runs/$name
  if [[ -e $here/config.json ]]; then arguments+=(--resume); fi
  [[ -z ${DR_JAX_COORDINATOR:-} ]] || DR_JAX_JOIN="$DR_JAX_COORDINATOR/${SLURM_PROCID:-0}/${SLURM_NTASKS:-1}"
  [[ -z ${DR_JAX_JOIN:-} ]] || arguments+=(--join "$DR_JAX_JOIN")
  if ((dry_run)); then echo "$dr_jax ${arguments[*]}  (with --resume if the run is there)"; return; fi
  say "dr-jax ${arguments[*]}"
  "$dr_jax" "${arguments[@]}" &
  child=$!
  trap 'stopped=1; kill -TERM "$child" 2>/dev/null || true' TERM INT HUP
  if [[ $runs == gs://* && $(index) == 0 ]]; then
    set -m # a process group, so that its sleep ends with it
    mirror &
    mirroring=$!
    set +m
  fi
  while :; do # a signal ends `wait`, not the run: wait again for its end
    stopped=0 rc=0
    wait "$child" || rc=$?
    ((stopped)) || break
  done
  if [[ -n $mirroring ]]; then
    kill -- "-$mirroring" 2>/dev/null || true
    push
  fi
  return "$rc"
}

supervise() { # the background part of `start`: leaves its exit code, however it ends
  trap 'echo "$?" >"$state/code.part" && mv "$state/code.part" "$state/code"' EXIT
  trap 'exit 143' TERM
  run "$@"
}

status() {
  if [[ -e $state/code ]]; then echo "ended $(cat "$state/code")"; return; fi
  if [[ -e $state/pid ]] && kill -0 "$(cat "$state/pid")" 2>/dev/null; then echo running; else echo absent; fi
}

start() {
  [[ $(status) != running ]] || { say "it runs already"; return; }
  mkdir -p "$state"
  rm -f "$state/code"
  setsid nohup launch/host.sh supervise "$@" >>"$state/log" 2>&1 </dev/null &
  echo $! >"$state/pid"
}

follow() { tail -n "${1:-+1}" --pid="$(cat "$state/pid")" -F "$state/log" 2>/dev/null; }

stop() {
  [[ $(status) == running ]] || return 0
  kill -TERM "$(cat "$state/pid")"
  for _ in $(seq 60); do
    [[ $(status) == running ]] || return 0
    sleep 1
  done
  say "it has not ended within 60 s"
}

cd "$(dirname "$0")/.."
state=.launch
dr_jax=.venv/bin/dr-jax
[[ -x $dr_jax ]] || dr_jax=dr-jax
if [[ ${1:-} == --dry-run ]]; then dry_run=1; shift; fi
case ${1:-} in
  install | run | start | supervise) [[ $# -ge 2 ]] || die "$1 of what? See launch/host.sh --help" ;;&
  install | run | start | supervise | follow | status | stop) "$@" ;;
  -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
