#!/usr/bin/env bash
# The cifar10-*-masked-conv*, -mae-* and photographs-efficientnet-lite0 folders were made by the version of commit 551b59d, whose
# evaluation had no `attacks`; delete one to make it anew with the lines below.
# Regenerate every result: results/run.sh [NAME …]. Needs ROBUSTMIM_DATA (CIFAR-10, ImageNet photographs) and, for the
# third-party ResNet-56, ROBUSTMIM_MODELS. Delete a folder to start it over; what is there is resumed.
# Each line: name, data recipe, classifier, purifier, more options.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
resnet56="resnet56-4bfd9763.th --arch resnet56"
evaluate() {
  local name=$1 recipe=$2 classifier=$3 purifier=$4
  shift 4
  # shellcheck disable=SC2086  # the classifier may bring an option
  "${ROBUSTMIM:-robustmim}" evaluate "$recipe" --classifier $classifier --purifier "$purifier" --out "results/$name" "$@"
}
wanted=("$@")
case_of() {
  local name=$1
  if [ ${#wanted[@]} -gt 0 ] && [[ ! " ${wanted[*]} " == *" $name "* ]]; then return; fi
  evaluate "$@"
}

case_of cifar10-fast-cnn-masked-conv cifar10-linf fast-cnn-cifar10 recommended-cifar10
case_of cifar10-resnet56-masked-conv cifar10-linf "$resnet56" recommended-cifar10
# The images that the recommended purifier was chosen on, beside those it was not.
case_of cifar10-resnet56-masked-conv-chosen-on cifar10-linf "$resnet56" recommended-cifar10 --data.skip 0 --limit 128 --only gray-box
case_of cifar10-fast-cnn-mae-patch4 cifar10-linf fast-cnn-cifar10 amrm-mae-patch4-cifar10 --limit 256
case_of cifar10-resnet56-mae-patch4 cifar10-linf "$resnet56" amrm-mae-patch4-cifar10 --limit 256
case_of cifar10-fast-cnn-mae-patch2 cifar10-linf fast-cnn-cifar10 amrm-mae-patch2-cifar10 --limit 256
case_of cifar10-resnet56-mae-patch2 cifar10-linf "$resnet56" amrm-mae-patch2-cifar10 --limit 256
# photographs-white-box is unfinished: the same line goes on with it.
case_of photographs-white-box imagenet-linf efficientnet-lite0 recommended-photos
case_of cifar10-fast-cnn-adversarial standard fast-cnn-adversarial-cifar10 none --checks.images 0 --attacks '[{name: PGD-50, options: {steps: 50, step_size: 0.1}}, {name: APGD-CE, attack: apgd-ce, options: {steps: 50}}, {name: APGD-T, attack: apgd-targeted, options: {steps: 20, targets: 3}}]'
case_of gradient-modes-resnet56-masked-conv gradient-modes "$resnet56" recommended-cifar10
case_of gradient-modes-fast-cnn-masked-conv gradient-modes fast-cnn-cifar10 recommended-cifar10
