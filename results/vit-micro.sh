#!/usr/bin/env bash
# MIMIR's chain for a ViT of 96 × 4, in about three hours of a CPU core: results/vit-micro.sh [ROW …]. Needs ROBUSTMIM_DATA
# (CIFAR-10). Pre-training by MIMIR, by MAE and by adversarial MAE for twelve passes, and none; then PGD-AT, after MIMIR TRADES
# too, for three passes, all alike: 781 steps of 64 images a pass, two steps of attack. Weights go to runs/vit-micro/, claims to
# results/vit-micro/; what is there is resumed.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
robustmim=${ROBUSTMIM:-robustmim}
wanted=("$@")
attacks='[{name: PGD-20, attack: pgd, options: {steps: 20, step_size: 0.25}}, {name: APGD-CE, attack: apgd-ce, options: {steps: 50}},
  {name: APGD-T, attack: apgd-targeted, options: {steps: 30, targets: 4}}, {name: Square, attack: square, options: {queries: 300}}]'

# What pre-trained, its recipe (none: nothing did), the method of fine-tuning.
row() {
  local name=$1 pretraining=$2 method=$3
  if [ ${#wanted[@]} -gt 0 ] && [[ ! " ${wanted[*]} " == *" $name "* ]]; then return; fi
  local here=runs/vit-micro out=results/vit-micro/$name-$method
  local recipe=vit-micro-adversarial-cifar10 start=()
  if [ "$pretraining" != none ]; then
    [ -e "$here/$name/model.safetensors" ] || $robustmim pretrain "$pretraining" --run.epochs 12 --out "$here/$name"
    recipe=finetune-mimir-micro-cifar10
    start=(--start_from "$here/$name" --optimizer.layer_decay 1)
  fi
  if [ ! -e "$here/$name-$method/model.safetensors" ]; then
    $robustmim train "$recipe" "${start[@]}" --adversarial.method "$method" --adversarial.steps 2 --adversarial.step_size 0.625 \
      --run.epochs 3 --run.batch_size 64 --run.ema 0.995 --run.evaluate_every 1 --validation.limit 2000 \
      --adversarial.validation_images 256 --out "$here/$name-$method"
  fi
  if [ ! -e "$out/claim.json" ]; then
    $robustmim evaluate standard --classifier "$here/$name-$method" --purifier none --attacks "$attacks" --out "$out" \
      || [ $? -eq 4 ]  # a finding of the checks, which the claim holds
  fi
}

row mimir mimir-micro-cifar10 pgd-at
row none none pgd-at
row adversarial-mae adversarial-mae-micro-cifar10 pgd-at
row mae mae-micro-cifar10 pgd-at
row mimir mimir-micro-cifar10 trades
# MIMIR-Pure: the same autoencoder before the classifier whose encoder it has, as both ship.
if [ ${#wanted[@]} -eq 0 ] || [[ " ${wanted[*]} " == *" mimir-pure "* ]]; then
  $robustmim evaluate purifier-table --classifier vit-mimir-micro-cifar10 --purifier mimir-pure-cifar10 --radii '[8/255]' \
    --out results/vit-micro/mimir-pure || [ $? -eq 4 ]
fi
