#!/usr/bin/env bash
# The table purifier × attack: results/table.sh [CLASSIFIER [PURIFIER …]], with CLASSIFIER fast-cnn-cifar10, resnet56 or
# fast-cnn-adversarial-cifar10. Needs ROBUSTMIM_DATA (CIFAR-10) and, for the ResNet-56, ROBUSTMIM_MODELS. What is there is resumed.
# Purifiers of many passes are attacked by fewer steps and draws, as their claims say; those of them that take no sign and round
# nothing, by their own gradient alone, which a smooth one differs from at clips only.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
cheap="none gaussian-noise jpeg median total-variation reconstruction-cifar10 ce-pure-cifar10 diffpure-unet-cifar10 \
  diffusion-maskdit-micro-cifar10 recommended-cifar10 target-only-cifar10 target-only-short-cifar10 \
  amrm-rmasked-conv-cifar10 amrm-mae-patch4-cifar10 amrm-rmae-patch4-cifar10 \
  amrm-maskdit-micro-cifar10 amrm-rmaskdit-micro-cifar10 scoreopt-noised-unet-cifar10 scoreopt-image-unet-cifar10 \
  adbm-unet-cifar10 nim-cifar10 dmae-cifar10"
# Trained through the ResNet-56 at 2/255: there, and before a classifier that they have not met, at the same budget. Before the
# adversarially trained one, what carries over the answer of a better one.
maps="still-cifar10 guided-cifar10"
dear="amrm-mae-patch2-cifar10 soap-cifar10"
dear_and_smooth="adp-cifar10 addt-unet-cifar10 coup-unet-cifar10 diffpure-ddpm-unet-cifar10 diffpure-sde-unet-cifar10"
two='{name: gray-box, attack: pgd, against: classifier, options: {steps: 20}},
  {name: full gradient, attack: pgd, options: {steps: 5}, gradient: {mode: exact, clip: exact}}'
three="$two, {name: smooth gradient, attack: pgd, options: {steps: 5}, gradient: {mode: tanh}}"
classifiers=${1:-fast-cnn-cifar10 resnet56 fast-cnn-adversarial-cifar10}
purifiers=${*:2}
for classifier in $classifiers; do
  which=(--classifier "$classifier") budget=2/255
  [ "$classifier" = resnet56 ] && which=(--classifier resnet56-4bfd9763.th --arch resnet56)
  [ "$classifier" = fast-cnn-adversarial-cifar10 ] && budget=8/255
  own=$maps
  [ "$classifier" = fast-cnn-adversarial-cifar10 ] && own=anti-adversary-robust-cifar10
  for purifier in ${purifiers:-$cheap $own $dear $dear_and_smooth}; do
    more=()
    [[ " $dear " == *" $purifier "* ]] && more=(--attacks "[$three]")
    [[ " $dear_and_smooth " == *" $purifier "* ]] && more=(--attacks "[$two]")
    out=results/table/$classifier--$purifier
    if [ ! -e "$out/claim.json" ]; then
      "${ROBUSTMIM:-robustmim}" evaluate purifier-table "${which[@]}" --purifier "$purifier" --radii "[$budget]" "${more[@]}" \
        --out "$out" || [ $? -eq 4 ]  # a finding of the checks, which the claim holds
    fi
  done
done
