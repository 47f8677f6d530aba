#!/usr/bin/env bash
# Trains on this machine with all of its GPUs: makes the environment when it is not there, then one process for all of them.
# The same command goes on with a run that was interrupted; on a preemptible machine let its start script run it.
# Keys come from the environment, or from Secret Manager: export DR_JAX_SECRETS="SERPER_API_KEY=serper-key".
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/gpu_host.sh [--runs DIR|gs://BUCKET/PATH] [--dry-run] CONFIG [key.sub=value …]

  --runs PLACE   where runs are kept (default: runs); with a bucket another machine can go on with the run
  --dry-run      print what would be run

Ctrl-C and SIGTERM save the run. More of the environment: launch/host.sh --help
TEXT
}

cd "$(dirname "$0")/.."
dry_run=() words=()
while (($#)); do
  case $1 in
    -h | --help) usage; exit ;;
    --dry-run) dry_run=(--dry-run) ;;
    --runs) [[ $# -ge 2 ]] || { usage >&2; exit 2; }; export DR_JAX_RUNS=$2; shift ;;
    -*) echo "launch: $1 is not known (see launch/gpu_host.sh --help)" >&2; exit 2 ;;
    *) words+=("$1") ;;
  esac
  shift
done
((${#words[@]})) || { usage >&2; exit 2; }
if ((${#dry_run[@]} == 0)) && ! nvidia-smi --query-gpu=name,memory.total --format=csv,noheader; then
  echo "launch: no NVIDIA GPU answers here" >&2
  exit 2
fi
launch/host.sh "${dry_run[@]}" install cuda,gcs
exec launch/host.sh "${dry_run[@]}" run "${words[@]}"
