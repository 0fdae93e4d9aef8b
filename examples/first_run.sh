#!/usr/bin/env bash
# Try the main commands on a fresh machine, without network, in minutes: write data, train adapters, test zero-shot and
# few-shot, and predict heatmaps. The CLIP is ViT-builtin, which is part of the package. The images are photographs with drawn
# defects.
#   bash first_run.sh [FOLDER]
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  sed -n "2,/^set/{/^#/s/^# //p}" "$0"
  exit
fi
out=${1:-first_run}
clip=(--model AprilGan --model.backbone ViT-builtin)
data=(--data MVTecAD --data.root "$out/data" --data.category gravel --data.num_workers 0)

anomalib-aprilgan sample-data "$out/data"

echo "Training adapters on five categories ..."
anomalib fit "${clip[@]}" --model.adapter null --data AuxiliaryDataModule \
  --data.source MVTecAD --data.source.root "$out/data" --data.source.category brick \
  --data.categories "[brick,coffee,coins,grass,text]" --data.num_workers 0 \
  --trainer.max_epochs 3 --seed_everything 111 --default_root_dir "$out/training"
adapter=$out/training/AprilGan/AuxiliaryDataModule/latest/weights/lightning/model.ckpt

echo "Testing on the sixth, zero-shot ..."
anomalib test "${clip[@]}" --model.adapter "$adapter" "${data[@]}" --default_root_dir "$out/zero_shot"
echo "Testing on the sixth, 4-shot ..."
anomalib test "${clip[@]}" --model.adapter "$adapter" --model.k_shot 4 "${data[@]}" \
  --seed_everything 42 --default_root_dir "$out/few_shot"
echo "Predicting a folder ..."
anomalib predict "${clip[@]}" --model.adapter "$adapter" --model.class_name gravel \
  --data "$out/data/gravel/test/stain" --default_root_dir "$out/prediction"
echo "Heatmaps: $out/prediction/AprilGan/latest/images"
