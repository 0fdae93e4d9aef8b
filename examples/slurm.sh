#!/usr/bin/env bash
# Train adapters on two machines with four GPUs each, then score a folder of photographs with them:
#   IMAGES=path/to/images CLASS_NAME="metal nut" sbatch examples/slurm.sh [OPTIONS OF BOTH COMMANDS]
# Start it in a folder that all machines share, with the environment active. docs/cluster.md says what else is needed.
#SBATCH --job-name=aprilgan
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  sed -n "2,/^#SBATCH/{/^# /s/^# //p}" "$0"
  exit
fi
results=results/slurm-$SLURM_JOB_ID
distributed=(
  --trainer.accelerator gpu --trainer.strategy ddp
  --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE"
)
export HF_HUB_OFFLINE=1 # the machines that compute often have no network

# The paper's batches of 8 images are divided among the processes. Each process has a folder of its own, since anomalib
# would number a new one in each of them. The first process writes the checkpoint.
# shellcheck disable=SC2016 # each process has its own SLURM_PROCID
srun bash -c 'exec anomalib fit "${@:2}" --default_root_dir "$1/$SLURM_PROCID"' fit "$results" \
  --config "${CONFIG:-configs/train_on_visa.yaml}" --data.train_batch_size $((8 / SLURM_NTASKS)) "${distributed[@]}" "$@"

trained=$results/0/AprilGan/AuxiliaryDataModule/latest/weights/lightning/model.ckpt
srun anomalib predict --model AprilGan --model.adapter "$trained" --model.class_name "${CLASS_NAME:-object}" \
  --data "${IMAGES:-path/to/images}" --default_root_dir "$results" "${distributed[@]}" "$@"
