#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster that has JobSet: fills in launch/jobset.yaml, applies it, follows the first host.
# The JobSet restarts every host when one is lost, and the run goes on from the bucket; deleting it ends the run, saved.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/gke.sh --image IMAGE --bucket gs://BUCKET/PATH [options] CONFIG [key.sub=value …]

  --image IMAGE           of launch/Dockerfile, pushed where the cluster finds it
  --bucket gs://…         where runs are kept
  --name NAME             of the run and of the JobSet (default: the config's file name)
  --accelerator NAME      tpu-v5p-slice (default), tpu-v5-lite-podslice, tpu-v6e-slice
  --topology TOPOLOGY     4x4x4, 8x8, … (default: 2x2x1)
  --chips N               of one host (default: 4)
  --account NAME          the pods' Kubernetes service account (default: default)
  --spot                  on preemptible nodes
  --secret VARIABLE=NAME  read an environment variable of the run from Secret Manager, in the pods (again for more)
  --inputs gs://…         files (a model, questions) that are laid over the checkout
  --dry-run               print the manifest and what would be run
TEXT
}

wrong() { echo "launch: $* (see launch/gke.sh --help)" >&2; exit 2; }

# shellcheck disable=SC2034 # used by name, in manifest
image='' bucket='' name='' accelerator=tpu-v5p-slice topology=2x2x1 chips=4 account=default spot=false secrets='' inputs='' dry_run=0
words=()
while (($#)); do
  case $1 in
    -h | --help) usage; exit ;;
    --spot) spot=true ;;
    --dry-run) dry_run=1 ;;
    --image | --bucket | --name | --accelerator | --topology | --chips | --account | --secret | --inputs)
      [[ $# -ge 2 ]] || wrong "$1 needs a value"
      if [[ $1 == --secret ]]; then
        [[ $2 =~ ^[A-Za-z_][A-Za-z0-9_]*=[A-Za-z0-9_-]+$ ]] || wrong "--secret needs VARIABLE=NAME-OF-SECRET"
        secrets+="${secrets:+ }$2"
      else
        [[ $2 =~ ^[A-Za-z0-9_./:@-]+$ ]] || wrong "$1 $2 has letters that it cannot have"
        printf -v "${1#--}" %s "$2"
      fi
      shift ;;
    -*) wrong "$1 is not known" ;;
    *) words+=("$1") ;;
  esac
  shift
done
[[ -n $image && $bucket == gs://?* && ${#words[@]} -ge 1 ]] || wrong "--image, --bucket gs://… and CONFIG are needed"
[[ $topology =~ ^[0-9]+(x[0-9]+)+$ && $chips =~ ^[1-9][0-9]*$ ]] || wrong "--topology $topology --chips $chips: 4x4x4 and 4, say"
all=$((${topology//x/ * }))
((all % chips == 0)) || wrong "$topology has $all chips, which are no hosts of $chips"
stem=$(basename "${words[0]}" .toml)
name=${name:-$(tr '_.' '--' <<<"$stem")}
args=''
for word in "${words[@]}"; do # as JSON strings, which are YAML
  word=${word//\\/\\\\}
  args+="${args:+, }\"${word//\"/\\\"}\""
done

manifest() {
  local text key
  text=$(<"$(dirname "$0")/jobset.yaml")
  for key in NAME IMAGE BUCKET INPUTS SECRETS ACCOUNT ACCELERATOR TOPOLOGY CHIPS; do
    local variable=${key,,}
    text=${text//@$key@/"${!variable}"}
  done
  text=${text//@HOSTS@/$((all / chips))}
  if [[ $spot == true ]]; then text=${text//@SPOT@/true}; else text=$(grep -v '@SPOT@\|tolerations:\|key: cloud.google.com/gke-spot' <<<"$text"); fi
  echo "${text//@ARGS@/"[$args]"}"
}

selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
if ((dry_run)); then
  manifest
  echo "# kubectl apply --filename - with the above, then"
  echo "# kubectl logs --follow --selector=$selector --pod-running-timeout=24h"
  echo "# to end it, saved: kubectl delete jobset $name"
  exit
fi
manifest | kubectl apply --filename -
echo "launch: to end it, saved: kubectl delete jobset $name" >&2
until kubectl wait pod --selector="$selector" --for=condition=Ready --timeout=24h; do sleep 10; done
kubectl logs --follow --selector="$selector"
