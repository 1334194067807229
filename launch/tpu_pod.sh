#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs a command on every host of a Cloud TPU slice; all hosts must run the same one.
#   launch/tpu_pod.sh NAME ZONE -m launch.train --config=configs/score_sde/fashion_mnist.py \
#       --workdir=gs://bucket/run --distributed
# Without --distributed each host works by itself. launch.sample, likelihood, evaluate, complete,
# interpolate and segment have the flag too. The repository must lie in ~/scorejax on every host,
# installed by `make install PYTHON=python3.11` and `.venv/bin/pip install 'jax[tpu]'`; the workdir
# must lie in a bucket that all hosts may write to (see docs/start.md), or on a file system that all mount.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: launch/tpu_pod.sh NAME ZONE ARGUMENTS-OF-PYTHON..." >&2
  exit 2
fi
name=$1 zone=$2
shift 2
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd ~/scorejax && .venv/bin/python $(printf '%q ' "$@")"
