#!/usr/bin/env bash
#SBATCH --job-name=etw_lightning
#SBATCH --array=0-17
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --output=%x-%A_%a.out
#
# One run a task: every method with every seed and every lambda, each in a folder of its own. Run
# it from the repository's root. What follows the script's name goes to every run.
#
#   bash slurm/array.sh --dry-run                     # show the commands, run nothing
#   sbatch slurm/array.sh
#   METHODS=etw SEEDS=0 LAMBDAS="0.1 0.2" CONFIG=configs/muse_news.yaml OUTPUT=runs/news \
#     sbatch --array=0-1 slurm/array.sh --data.root /scratch/data
set -euo pipefail

read -ra methods <<<"${METHODS:-etw ga}"
read -ra seeds <<<"${SEEDS:-0 1 2}"
read -ra lambdas <<<"${LAMBDAS:-0.05 0.1 0.2}"
config=${CONFIG:-configs/tofu_forget10.yaml}
output=${OUTPUT:-runs/$(basename "$config" .yaml)_array}

fail() {
  echo "error: $1" >&2
  exit 2
}

for grid in METHODS:"${methods[*]-}" SEEDS:"${seeds[*]-}" LAMBDAS:"${lambdas[*]-}"; do
  values=${grid#*:}
  [[ -n $values ]] || fail "${grid%%:*} must hold at least one value; got none."
  twice=$(tr ' ' '\n' <<<"$values" | sort | uniq -d | tr '\n' ' ')
  [[ -z $twice ]] || fail "${grid%%:*} must hold each value once; got ${twice% } more than once."
done
last=$((${#methods[@]} * ${#seeds[@]} * ${#lambdas[@]} - 1))

# Fill `run` with the command of task $1: lambda changes fastest, the method slowest.
set_run() {
  local method=${methods[$1 / ${#lambdas[@]} / ${#seeds[@]}]}
  local seed=${seeds[$1 / ${#lambdas[@]} % ${#seeds[@]}]}
  local lambda=${lambdas[$1 % ${#lambdas[@]}]}
  # The grid comes last, so that nothing passed on can make two tasks share a folder.
  run=(python -m etw_lightning fit --config "$config" --config "configs/method/$method.yaml"
    ${extra[@]+"${extra[@]}"} --model.lambda "$lambda" --seed_everything "$seed"
    --output_dir "$output/${method}_seed${seed}_lambda$lambda")
}

is_dry=false
if [[ ${1-} == --dry-run ]]; then
  is_dry=true
  shift
fi
extra=("$@")

task=${SLURM_ARRAY_TASK_ID-}
if [[ -n $task || $is_dry == false ]]; then
  [[ $task =~ ^(0|[1-9][0-9]{0,5})$ && $task -le $last ]] ||
    fail "SLURM_ARRAY_TASK_ID must be 0 to $last; got '$task'. Submit with sbatch --array=0-$last slurm/array.sh"
  tasks=("$task")
else
  tasks=($(seq 0 "$last"))
fi

for task in "${tasks[@]}"; do
  set_run "$task"
  $is_dry || exec "${run[@]}"
  printf '%q ' "${run[@]}" | sed 's/ $//'
  echo
done
echo "# $((last + 1)) runs: sbatch --array=0-$last slurm/array.sh"
