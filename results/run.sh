#!/usr/bin/env bash
# Regenerate every result: results/run.sh [NAME …]. Needs ROBUSTMIM_DATA (CIFAR-10, ImageNet photographs) and, for the
# third-party ResNet-56, ROBUSTMIM_MODELS. Delete a folder to start it over; what is there is resumed.
# Each line: name, command and recipe, classifier, purifier, more options.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
resnet56="resnet56-4bfd9763.th --arch resnet56"
wanted=("$@")
case_of() {
  local name=$1 command=$2 classifier=$3 purifier=$4
  shift 4
  if [ ${#wanted[@]} -gt 0 ] && [[ ! " ${wanted[*]} " == *" $name "* ]]; then return; fi
  # shellcheck disable=SC2086  # the command brings its recipe, and the classifier may bring an option
  "${ROBUSTMIM:-robustmim}" $command --classifier $classifier --purifier "$purifier" --out "results/$name" "$@" ||
    [ $? -eq 4 ] # finished, with a red finding: a result like any other
}

case_of cifar10-fast-cnn-masked-conv "evaluate cifar10-linf" fast-cnn-cifar10 recommended-cifar10
case_of cifar10-resnet56-masked-conv "evaluate cifar10-linf" "$resnet56" recommended-cifar10
# The images that the recommended purifier was chosen on, beside those it was not.
case_of cifar10-resnet56-masked-conv-chosen-on "evaluate cifar10-linf" "$resnet56" recommended-cifar10 --data.skip 0 --limit 128 --only gray-box
case_of cifar10-fast-cnn-mae-patch4 "evaluate cifar10-linf" fast-cnn-cifar10 amrm-mae-patch4-cifar10 --limit 256
case_of cifar10-resnet56-mae-patch4 "evaluate cifar10-linf" "$resnet56" amrm-mae-patch4-cifar10 --limit 256
# The slowest one is attacked at one budget only.
slow='[{name: gray-box, attack: pgd, against: classifier, options: {steps: 20, step_size: 0.25}},
  {name: white-box, attack: pgd, options: {steps: 20, step_size: 0.25}, eot: 2, radii: [2/255]}]'
case_of cifar10-fast-cnn-mae-patch2 "evaluate cifar10-linf" fast-cnn-cifar10 amrm-mae-patch2-cifar10 --limit 256 --attacks "$slow"
case_of cifar10-resnet56-mae-patch2 "evaluate cifar10-linf" "$resnet56" amrm-mae-patch2-cifar10 --limit 256 --attacks "$slow"
case_of photographs-efficientnet-lite0 "evaluate imagenet-linf" efficientnet-lite0 recommended-photos
case_of cifar10-fast-cnn-adversarial "evaluate standard" fast-cnn-adversarial-cifar10 none --checks.images 0 --attacks '[{name: PGD-50, options: {steps: 50, step_size: 0.1}}, {name: APGD-CE, attack: apgd-ce, options: {steps: 50}}, {name: APGD-T, attack: apgd-targeted, options: {steps: 20, targets: 3}}]'
case_of gradient-modes-resnet56-masked-conv "evaluate gradient-modes" "$resnet56" recommended-cifar10
case_of gradient-modes-fast-cnn-masked-conv "evaluate gradient-modes" fast-cnn-cifar10 recommended-cifar10
# In front of MAEs half as many steps of each attack: their gradients cost several times as much.
modes="[{name: transfer, attack: pgd, against: classifier, options: {steps: 20}}"
for mode in "identity: identity" "exact: exact, clip: exact" "straight-through: straight-through" \
  "tanh, exact clips: tanh, clip: exact" "normalised: normalised"; do
  modes+=", {name: '${mode%%: *}', attack: pgd, options: {steps: 10}, eot: 2, gradient: {mode: ${mode#*: }}}"
done
case_of gradient-modes-fast-cnn-mae-patch4 "evaluate gradient-modes" fast-cnn-cifar10 amrm-mae-patch4-cifar10 --radii '[2/255]' --attacks "$modes]"
case_of gradient-modes-resnet56-mae-patch4 "evaluate gradient-modes" "$resnet56" amrm-mae-patch4-cifar10 --radii '[2/255]' --attacks "$modes]"
# The slowest one by half as many steps again, and four modes.
few="[{name: transfer, attack: pgd, against: classifier, options: {steps: 20}}"
for mode in "identity: identity" "exact: exact, clip: exact" "tanh, exact clips: tanh, clip: exact" "normalised: normalised"; do
  few+=", {name: '${mode%%: *}', attack: pgd, options: {steps: 5}, eot: 2, gradient: {mode: ${mode#*: }}}"
done
case_of gradient-modes-fast-cnn-mae-patch2 "evaluate gradient-modes" fast-cnn-cifar10 amrm-mae-patch2-cifar10 --radii '[2/255]' --attacks "$few]"
case_of gradient-modes-resnet56-mae-patch2 "evaluate gradient-modes" "$resnet56" amrm-mae-patch2-cifar10 --radii '[2/255]' --attacks "$few]"
# SOAP by more steps than its row of the table has: the identity needs no pass back through the descent.
case_of identity-fast-cnn-soap "evaluate purifier-table" fast-cnn-cifar10 soap-cifar10 --radii '[2/255]' --attacks '[{name: gray-box, attack: pgd, against: classifier, options: {steps: 20}}, {name: identity, attack: pgd, options: {steps: 20}}]'
# Everything that a purifier must face.
case_of adaptive-resnet56-masked-conv "evaluate adaptive-purifier" "$resnet56" recommended-cifar10 --radii '[4/255]'
# The same for four steps by the target alone: half of the passes forward, and none backward.
case_of adaptive-resnet56-target-only "evaluate adaptive-purifier" "$resnet56" target-only-short-cifar10 --radii '[4/255]'
# The nearest adversarial image: accuracy at every budget from one run.
case_of nearest-fast-cnn-adversarial "evaluate nearest" fast-cnn-adversarial-cifar10 none
# A purifier that holds? Trained through the classifier, judged by the suite for smooth purifiers; and the classifier alone.
# First, 50 minutes of a core each (what they logged is in training.jsonl): robustmim robustify masked-conv-one-pass-cifar10,
# robustmim robustify masked-conv-one-pass-robust-cifar10, robustmim robustify masked-conv-still-cifar10, and after it
# robustmim robustify guided-conv-cifar10.
case_of holds-resnet56-one-pass "evaluate adaptive-smooth" "$resnet56" one-pass-cifar10 --radii '[2/255]'
case_of holds-resnet56-still "evaluate adaptive-smooth" "$resnet56" still-cifar10 --radii '[2/255]'
# Told by a classifier that withstands attacks at this budget, which is measured alone beside it.
case_of holds-resnet56-guided "evaluate adaptive-smooth" "$resnet56" guided-cifar10 --radii '[2/255]'
case_of auto-attack-resnet56-guided "evaluate quick" "$resnet56" guided-cifar10 --data.skip 128 --limit 64 --radii '[2/255]' --checks.images 0 --attacks '[{name: AutoAttack, attack: auto-attack, gradient: {mode: exact}}]'
case_of holds-guide-alone "evaluate adaptive-smooth" fast-cnn-adversarial-small-cifar10 none --radii '[2/255]'
case_of holds-fast-cnn-adversarial-one-pass "evaluate adaptive-smooth" fast-cnn-adversarial-cifar10 one-pass-robust-cifar10 --radii '[8/255]'
case_of holds-fast-cnn-adversarial-alone "evaluate adaptive-smooth" fast-cnn-adversarial-cifar10 none --radii '[8/255]'
# The same at 8/255, told by two classifiers that answer as one, and those alone; and the second of the two. First, 82, 18, 40 and 6
# minutes of a core: robustmim train fast-cnn-trades-cifar10, robustmim train fast-cnn-pair-cifar10, robustmim robustify
# guided-conv-trades-cifar10, robustmim robustify guided-conv-robust-cifar10.
case_of holds-fast-cnn-adversarial-guided "evaluate adaptive-smooth" fast-cnn-adversarial-cifar10 guided-robust-cifar10 --radii '[8/255]'
case_of holds-pair-alone "evaluate adaptive-smooth" fast-cnn-pair-cifar10 none --radii '[8/255]'
case_of holds-trades-alone "evaluate adaptive-smooth" fast-cnn-trades-cifar10 none --radii '[8/255]'
# The two after three more passes together (robustmim train fast-cnn-pair-long-cifar10, 27 minutes of a core), alone, and asked by
# steps that carry their answer over.
case_of holds-pair-long-alone "evaluate adaptive-smooth" fast-cnn-pair-long-cifar10 none --radii '[8/255]'
case_of holds-fast-cnn-adversarial-anti-adversary "evaluate adaptive-guided" fast-cnn-adversarial-cifar10 anti-adversary-robust-cifar10 --radii '[8/255]'
# On the images that the training of masked-conv-still-robust-cifar10 was watched on.
case_of pgd-10-fast-cnn-adversarial-alone "evaluate quick" fast-cnn-adversarial-cifar10 none --data.skip 0 --limit 256 --radii '[8/255]' --checks.images 0 --attacks '[{name: PGD-10, attack: pgd, options: {steps: 10}}]'
case_of holds-resnet56-anti-adversary "evaluate adaptive-guided" "$resnet56" anti-adversary-cifar10 --draws 1 --checks.images 0
# A certificate, and what attacks in the same norm find on the same images.
case_of certify-fast-cnn-adversarial-sigma-0.12 "certify cifar10-sigma-0.12" fast-cnn-adversarial-cifar10 none
case_of certify-fast-cnn-adversarial-sigma-0.25 "certify cifar10-sigma-0.25" fast-cnn-adversarial-cifar10 none
case_of l2-fast-cnn-adversarial "evaluate cifar10-l2" fast-cnn-adversarial-cifar10 none --limit 200
# Is an image attacked? 20 steps instead of the recipe's 40 for every attack: those that know the detector go through the purifier.
case_of detect-fast-cnn-reconstruction "detect detect-cifar10" fast-cnn-cifar10 recommended-cifar10 --score reconstruction --steps 20
case_of detect-fast-cnn-descent "detect detect-cifar10" fast-cnn-cifar10 recommended-cifar10 --score descent --steps 20
case_of detect-fast-cnn-disagreement "detect detect-cifar10" fast-cnn-cifar10 recommended-cifar10 --score disagreement --steps 20
case_of detect-fast-cnn-attention "detect detect-cifar10" fast-cnn-cifar10 amrm-mae-patch4-cifar10 --score attention --steps 20
case_of detect-fast-cnn-amv "detect detect-cifar10" fast-cnn-cifar10 amrm-mae-patch4-cifar10 --score attention --statistic amv --steps 20
