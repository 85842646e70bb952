#!/usr/bin/env bash
#SBATCH --job-name=etw_lightning
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
#
# One run on several nodes with 8 GPUs each, a process on each GPU; for other numbers give sbatch
# --nodes, --ntasks-per-node and --gpus-per-node. The folder of the run must be one that all nodes
# see. It is requeued at its time limit and when it is preempted, and goes on by itself.
#
#   bash slurm/nodes.sh --dry-run fit --config configs/muse_news.yaml --output_dir runs/news    # show
#   SLURM_NNODES=4 bash slurm/nodes.sh --dry-run fit ...                             # show four nodes
#   sbatch --nodes=4 slurm/nodes.sh fit --config configs/muse_news.yaml --output_dir runs/news
set -euo pipefail
[[ -f slurm/launch.sh ]] ||
  { echo "error: the job must be submitted from the folder that holds slurm/; this is $PWD." >&2; exit 2; }
source slurm/launch.sh
launch "$@"
