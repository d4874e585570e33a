#!/usr/bin/env bash
# Pretrains on every worker of a Cloud TPU VM, from your own machine:
#
#   launch/tpu.sh NAME ZONE CONFIG WORKDIR [--config.field=value …]
#
# NAME and ZONE are the TPU's (gcloud compute tpus tpu-vm list). The working tree
# is copied to ~/gptjax on all workers, the requirements and jax[tpu] are
# installed there, once, and all run the same pretrain, which finds its peers.
# CONFIG is a path in the repository. WORKDIR must be one folder to all workers:
# Filestore, or a mounted bucket (gcsfuse --rename-dir-limit=100000, as folders are
# renamed when they are whole); a TPU of one worker may use its own disk.
# After a preemption the same command goes on from the newest checkpoint. Start it
# in tmux: the training ends when the connection does.
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

on_workers() { # COMMAND: on all at once, since each waits for the others
    gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" \
        --worker all --batch-size all --command "$1"
}

parcel=$(mktemp -d)
trap 'rm -rf "$parcel"' EXIT
echo "Copying the working tree to all workers of $name"
# git is left behind: of it the workers need what environment.json says.
revision=$(git rev-parse HEAD 2>/dev/null) || revision=
[ -z "$revision" ] || [ -z "$(git status --porcelain)" ] || revision+=+
echo "$revision" >"$parcel/revision"
tar czf "$parcel/gptjax.tgz" --exclude __pycache__ \
    gptjax configs launch requirements.txt -C "$parcel" revision
gcloud compute tpus tpu-vm scp "$parcel/gptjax.tgz" "$name:gptjax.tgz" \
    --zone "$zone" --worker all

# The workers' own Python is often too old: uv brings a newer one.
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
on_workers "cd ~/gptjax && exec .venv/bin/python -m gptjax pretrain --multihost$flags"
