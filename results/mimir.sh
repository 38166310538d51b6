#!/usr/bin/env bash
# Does the penalty of MIMIR help? Pre-training × the same adversarial fine-tuning × the same attacks, as small as a CPU core
# does in a few minutes each: results/mimir.sh [ROW …]. Needs ROBUSTMIM_DATA (CIFAR-10). What is there is resumed; weights go
# to runs/mimir/, claims to results/mimir/. A ViT of 64 × 3, patch 4; 390 steps of 128 images, then 937 of 32, by N-FGSM or by
# TRADES of two steps.
# The three weights that are ours make the penalty's gradient a quarter as long as the reconstruction's, as measured after
# 234 steps of adversarial-mae; those of `text` and `code` are published.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
robustmim=${ROBUSTMIM:-robustmim}
wanted=("$@")
encoder="patch_size: 4, width: 64, depth: 3, heads: 2"
decoder="decoder_width: 48, decoder_depth: 1, decoder_heads: 2"
attacks='[{name: PGD-20, options: {steps: 20, step_size: 0.25}}, {name: APGD-T, attack: apgd-targeted, options: {steps: 20, targets: 3}}]'

# Name, seed, epochs of fine-tuning, target of the reconstruction (none: no pre-training), recipe and options of it. Fine-tuning
# is by $method.
row() {
  local name=$1 seed=$2 epochs=$3 target=$4
  shift 4
  if [ ${#wanted[@]} -gt 0 ] && [[ ! " ${wanted[*]} " == *" $name "* ]]; then return; fi
  local here=runs/mimir/$name-seed$seed out=results/mimir/$name-seed$seed finetuned=finetune
  local recipe=vit-micro-adversarial-cifar10 start=() attack=()
  if [ "$method" != n-fgsm ]; then
    out=results/mimir/$name-$method-seed$seed finetuned=finetune-$method
    attack=(--adversarial.method "$method" --adversarial.steps 2 --adversarial.step_size 0.625)
  fi
  if [ -e "$out/claim.json" ]; then return; fi
  if [ "$target" != none ]; then
    if [ ! -e "$here/pretrain/model.safetensors" ]; then
      $robustmim pretrain "$@" --model.options "{$encoder, $decoder, target: $target}" --run.epochs 1 \
        --run.evaluate_every 9 --run.seed "$seed" --out "$here/pretrain"
    fi
    recipe=finetune-mimir-micro-cifar10
    start=(--start_from "$here/pretrain" --optimizer.layer_decay 1)
  fi
  if [ ! -e "$here/$finetuned/model.safetensors" ]; then
    $robustmim train "$recipe" "${start[@]}" "${attack[@]}" --model.options "{$encoder}" --run.epochs "$epochs" --run.batch_size 32 \
      --run.ema 0.99 --run.evaluate_every 9 --validation.limit 2000 --adversarial.validation_images 128 \
      --run.seed "$seed" --out "$here/$finetuned"
  fi
  $robustmim evaluate standard --classifier "$here/$finetuned" --purifier none --checks.images 0 --attacks "$attacks" --out "$out" \
    || [ $? -eq 4 ]  # a finding of the checks, which the claim holds
}

code="{estimator: hsic-cca, weight: 1.0e-5, options: {}, x: attacked, z: tokens, batch: process"
each() {
  local seed=$1
  row adversarial-mae $seed 0.6 normalised adversarial-mae-micro-cifar10
  row mae $seed 0.6 normalised mae-micro-cifar10
  row cka $seed 0.6 normalised mimir-micro-cifar10 --information.weight 0.03
  row none $seed 0.6 none
  row code $seed 0.6 normalised mimir-micro-cifar10 --information "$code}" \
    --attack '{radius: 8/255, steps: 1, step_size: 10/255, target: attacked, mask: fresh, mask_ratio: 0.75, support: all, reduction: mean}'
  row spread-only $seed 0.6 normalised mimir-micro-cifar10 --information "${code/1.0e-5/1.2e-3}, pairing: other}"
  row unbiased-hsic $seed 0.6 normalised mimir-micro-cifar10 --information '{estimator: unbiased-hsic, weight: 2.5, options: {}}'
  row text $seed 0.6 pixels mimir-micro-cifar10 --information '{estimator: hsic, weight: 1.0e-5, options: {width: {rule: median}}}'
}

method=n-fgsm
for seed in 0 1; do
  each $seed
  # As long as pre-training and fine-tuning together.
  row none-longer $seed 0.93 none
done
method=trades
each 0
