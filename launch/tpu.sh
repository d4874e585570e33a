#!/usr/bin/env bash
# Pretrains on all workers of a Cloud TPU VM; you run it on your own machine:
#
#   launch/tpu.sh NAME ZONE CONFIG WORKDIR [--config.field=value …]
#
# NAME and ZONE are those of the TPU (gcloud compute tpus tpu-vm list). The script copies
# the working tree to ~/gptjax on all workers, installs the requirements and jax[tpu]
# there, once, and runs the same `pretrain` on each worker; the workers find each other.
# CONFIG is a path in the repository. WORKDIR has to be one folder that all workers share:
# Filestore, or a mounted bucket: complete folders are renamed, which gcsfuse does with
# --rename-dir-limit=100000 or in a bucket with a hierarchical namespace. A TPU with one worker may use its own disk.
# After a preemption, the same command continues from the newest checkpoint. Run it in
# tmux: the training ends when the connection ends.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -lt 4 ]; then
    echo 'usage: launch/tpu.sh NAME ZONE CONFIG WORKDIR [--config.field=value …]' >&2
    exit 2
fi
name=$1 zone=$2 config=$3 workdir=$4
shift 4
if ! command -v gcloud >/dev/null; then
    echo 'No gcloud: install the Google Cloud CLI, then gcloud auth login' >&2
    exit 2
fi
if [ ! -f "${config%%:*}" ]; then
    echo "CONFIG $config: no such file in the repository" >&2
    exit 2
fi

on_workers() { # COMMAND: runs it on all workers at once, as they wait for each other
    gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" \
        --worker all --batch-size all --command "$1"
}

parcel=$(mktemp -d)
trap 'rm -rf "$parcel"' EXIT
echo "Copying the working tree to all workers of $name"
# .git is not copied. The workers need only the revision, for environment.json.
revision=$(git rev-parse HEAD 2>/dev/null) || revision=
[ -z "$revision" ] || [ -z "$(git status --porcelain)" ] || revision+=+
echo "$revision" >"$parcel/revision"
tar czf "$parcel/gptjax.tgz" --exclude __pycache__ \
    gptjax configs launch requirements.txt -C "$parcel" revision
gcloud compute tpus tpu-vm scp "$parcel/gptjax.tgz" "$name:gptjax.tgz" \
    --zone "$zone" --worker all

# The workers' own Python is often too old, so uv installs a newer one.
echo 'Installing the requirements there (minutes the first time)'
on_workers 'set -eu
mkdir -p ~/gptjax
cd ~/gptjax
rm -rf gptjax configs launch
tar xzf ~/gptjax.tgz
export PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || python3 -m pip install --quiet --user uv
bash -euo pipefail -c ". launch/environment.sh
need launch/tpu-requirements.txt requirements.txt"'

echo "Pretraining $config on all workers"
flags=$(printf ' %q' --config "$config" --workdir "$workdir" "$@")
on_workers "cd ~/gptjax && exec .venv/bin/python -m gptjax pretrain$flags"
