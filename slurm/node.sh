#!/usr/bin/env bash
#SBATCH --job-name=etw_lightning
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
#
# One run on one node with 8 GPUs, a process on each. It is requeued at its time limit and when it is
# preempted, and goes on by itself. For fewer GPUs give sbatch --ntasks-per-node and --gpus-per-node.
#
#   bash slurm/node.sh --dry-run fit --config configs/muse_news.yaml --output_dir runs/news     # show
#   sbatch slurm/node.sh fit --config configs/muse_news.yaml --output_dir runs/news
set -euo pipefail
[[ -f slurm/launch.sh ]] ||
  { echo "error: the job must be submitted from the folder that holds slurm/; this is $PWD." >&2; exit 2; }
source slurm/launch.sh
launch "$@"
