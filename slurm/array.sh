#!/usr/bin/env bash
#SBATCH --job-name=etw_lightning
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
#
# One run a task: task N runs line N, from 0, of the plan that `sweep plan` wrote. Run it from the
# folder the plan was made in; `sweep plan` prints the line for sbatch, with the tasks that are left.
# A task is requeued at its time limit and when it is preempted, and goes on in its run's own folder.
# What follows the plan goes to every run; a setting that changes results belongs into the plan
# (`sweep plan --set key=value`), or `sweep report` takes the run for another one.
#
#   python -m etw_lightning sweep plan --config configs/sweep/tofu_forget10.yaml
#   bash slurm/array.sh --dry-run runs/tofu_forget10_sweep/plan.txt       # show all, run nothing
#   sbatch --array=0-17 slurm/array.sh runs/tofu_forget10_sweep/plan.txt
set -euo pipefail
[[ -f slurm/launch.sh ]] ||
  { echo "error: the job must be submitted from the folder that holds slurm/; this is $PWD." >&2; exit 2; }
source slurm/launch.sh

is_dry=false
if [[ ${1-} == --dry-run ]]; then
  is_dry=true
  shift
fi
plan=${1-}
[[ -f $plan ]] ||
  fail "the plan must be a file that 'python -m etw_lightning sweep plan' wrote; got '$plan'."
shift
for word in "$@"; do
  [[ $word != --output_dir* ]] || fail "$word can't be given: each line of the plan has its own."
done

mapfile -t lines <"$plan"
[[ ${#lines[@]} -gt 0 ]] || fail "the plan $plan must hold a command a line; it is empty."
for line in "${lines[@]}"; do
  [[ $line == "python -m etw_lightning fit "* ]] ||
    fail "each line of $plan must be 'python -m etw_lightning fit ...'; got '${line:0:60}'."
done
last=$((${#lines[@]} - 1))

task=${SLURM_ARRAY_TASK_ID-}
if [[ -n $task || $is_dry == false ]]; then
  [[ $task =~ ^(0|[1-9][0-9]{0,5})$ && $task -le $last ]] ||
    fail "SLURM_ARRAY_TASK_ID must be 0 to $last; got '$task'. Submit with sbatch --array=0-$last slurm/array.sh $plan"
  numbers=("$task")
else
  numbers=($(seq 0 "$last"))
fi

read_resources
[[ $nodes -eq 1 && $tasks -eq 1 ]] ||
  fail "--nodes and --ntasks-per-node must be 1, each task of the array is a run; got $nodes and $tasks."
$is_dry && show_resources
for number in "${numbers[@]}"; do
  # xargs takes the quotes off as a shell does, and runs nothing of what it finds.
  mapfile -t run < <(xargs -n1 printf '%s\n' <<<"${lines[number]}")
  check_words "${run[@]:3}" "$@"
  set_step "${run[@]:3}" "$@"
  $is_dry || run_step
  show_words "${step_words[@]}"
done
echo "# $((last + 1)) runs: sbatch --array=0-$last slurm/array.sh $plan"
