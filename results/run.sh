#!/usr/bin/env bash
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

case_of cifar10-fast-cnn-masked-conv cifar10-linf fast-cnn-cifar10 recommended-cifar10 --white_box_radii '[2/255, 8/255]'
case_of cifar10-resnet56-masked-conv cifar10-linf "$resnet56" recommended-cifar10 --white_box_radii '[2/255, 8/255]'
# The images that the recommended purifier was chosen on, beside those it was not.
case_of cifar10-resnet56-masked-conv-chosen-on cifar10-linf "$resnet56" recommended-cifar10 --data.skip 0 --limit 128 --white_box_radii '[]'
case_of cifar10-fast-cnn-mae-patch4 cifar10-linf fast-cnn-cifar10 amrm-mae-patch4-cifar10 --limit 256 --white_box_radii '[2/255]' --white_box_images 256
case_of cifar10-resnet56-mae-patch4 cifar10-linf "$resnet56" amrm-mae-patch4-cifar10 --limit 256 --white_box_radii '[2/255]' --white_box_images 256
case_of cifar10-fast-cnn-mae-patch2 cifar10-linf fast-cnn-cifar10 amrm-mae-patch2-cifar10 --limit 256 --white_box_radii '[2/255]' --white_box_images 256
case_of cifar10-resnet56-mae-patch2 cifar10-linf "$resnet56" amrm-mae-patch2-cifar10 --limit 256 --white_box_radii '[2/255]' --white_box_images 256
case_of photographs-efficientnet-lite0 imagenet-linf efficientnet-lite0 recommended-photos
