#!/usr/bin/env bash
# Two studies beyond the papers: the scale of AMRM-Pure's masks, and few steps: results/studies.sh. Needs ROBUSTMIM_DATA (CIFAR-10).
# What is not there is trained first, about a quarter of an hour of a core each; what is there is resumed.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
robustmim=${ROBUSTMIM:-robustmim} python=${PYTHON:-python}
trained() { [ -e "runs/$1/model.safetensors" ]; }
trained masked-conv-scales-cifar10 || $robustmim pretrain masked-conv-scales-cifar10
trained masked-conv-distilled-cifar10 || $robustmim robustify masked-conv-distilled-cifar10
$python tools/purifier_studies.py scales
$python tools/purifier_studies.py chart
$python tools/purifier_studies.py learn
$python tools/purifier_studies.py few-steps
