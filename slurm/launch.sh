# Sourced by the scripts beside it: checks their words, starts the program, puts the job back in the
# queue. Resources stand in those scripts alone, everything else in the program.
#
# The program ends with status 143 once it has written a checkpoint, and the same command goes on
# from there. What makes it do so:
#   - before the time limit: SIGUSR1 by --signal. Without `B:` it goes to the processes that srun
#     started and not to this shell, so the program is started by srun on a single GPU too.
#   - at preemption: SIGTERM to those processes and, as the cluster is set up, to this shell too.
# This shell outlives both, or nobody would be left to requeue: it waits for srun and hands on what
# it got as SIGUSR1, because srun kills its processes at once when it gets SIGTERM itself.

fail() {
  echo "error: $1" >&2
  exit 2
}

# Prints the value of an option that the calling script asks Slurm for.
asked() {
  sed -n "s/^#SBATCH --$1=//p" "$0"
}

# Sets nodes, tasks (of each node) and cpus (of each task): what was granted, or will be asked for.
read_resources() {
  nodes=${SLURM_NNODES:-$(asked nodes)}
  tasks=${SLURM_NTASKS_PER_NODE:-$(asked ntasks-per-node)}
  cpus=${SLURM_CPUS_PER_TASK:-$(asked cpus-per-task)}
  local all=$((nodes * tasks))
  [[ ${SLURM_NTASKS:-$all} -eq $all ]] ||
    fail "--ntasks must be left out, --ntasks-per-node tells; got $SLURM_NTASKS tasks on $nodes nodes of $tasks."
  [[ ${SLURM_GPUS_ON_NODE:-$tasks} -eq $tasks ]] ||
    fail "--gpus-per-node and --ntasks-per-node must be equal; got $SLURM_GPUS_ON_NODE and $tasks."
}

# Refuses words of the program that can't be right; sets folder, the run's.
check_words() {
  [[ ${1-} == fit || ${1-} == evaluate ]] ||
    fail "the command must be fit or evaluate, with its options; got '${1-}'."
  local before='' word
  folder=''
  for word in "$@"; do
    case $word in
    --config=*) check_file "${word#*=}" ;;
    --output_dir=*) folder=${word#*=} ;;
    esac
    case $before in
    --config) check_file "$word" ;;
    --output_dir) folder=$word ;;
    esac
    before=$word
  done
  # As the program takes it: a shell leaves it alone behind an equals sign.
  [[ $folder != "~/"* ]] || folder=$HOME/${folder#"~/"}
  [[ -n $folder && $folder != null && $folder != --* ]] ||
    fail "--output_dir must be given: a job that is requeued goes on in its folder; got '$folder'."
}

check_file() {
  # Names of configurations that come with the program are its own matter.
  [[ -f $1 || $1 != *.yaml ]] || fail "--config must be a file; there is no '$1' in $PWD."
}

# Prints what Slurm is asked for.
show_resources() {
  sed -n 's/^#SBATCH //p' "$0" | sed -e "s/^--nodes=.*/--nodes=$nodes/" \
    -e "s/^\(--[a-z]*-per-node\)=.*/\1=$tasks/" -e "s/^--cpus-per-task=.*/--cpus-per-task=$cpus/" |
    paste -sd' ' | sed 's/^/# /'
}

# Prints words as a shell reads them.
show_words() {
  printf '%q ' "$@" | sed 's/ $//'
  echo
}

# Sets step_words: the whole command. A process that fails takes the others along.
set_step() {
  step_words=(srun --kill-on-bad-exit=1 "--cpus-per-task=$cpus" python -m etw_lightning "$@")
}

# Runs step_words to the end, whatever signals come, and exits with their status.
run_step() {
  local job=${SLURM_JOB_ID-} step='' status=0
  [[ -n $job ]] || fail "this is no Slurm job; submit it with sbatch, or show it with --dry-run."
  [[ -z ${SLURM_ARRAY_TASK_ID-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  # The program adds a line to it whenever something has been scored for good.
  export ETW_SCORED=${folder%/}.scored
  trap '[[ -z $step ]] || kill -USR1 "$step" 2>/dev/null || true' INT TERM USR1
  "${step_words[@]}" &
  step=$!
  # A signal ends the waiting, not what is waited for.
  while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done
  wait "$step" || status=$?
  # SIGUSR1 itself has ended it, before there was anything to handle it; SIGTERM's own status is 143.
  [[ $status -ne 138 ]] || status=143
  if [[ $status -ne 143 ]]; then
    rm -f "$(requeues_file)" "$ETW_SCORED"
  elif has_progress; then
    requeue "$job"
  fi
  exit "$status"
}

# Beside the run's folder, which holds nothing of this script's.
requeues_file() {
  echo "${folder%/}.requeues"
}

# Notes the run's newest checkpoint and how much has been scored for good; says so and fails where
# three lives in a row have added to neither. A run that is stopped before it has done anything would
# else go round for ever.
has_progress() {
  local newest='' scored=0 before=0: lives=0 now file
  file=$(requeues_file)
  newest=$(cd "$folder/checkpoints" 2>/dev/null && printf '%s\n' step-* | sort | tail -n 1) || true
  [[ ! -f $ETW_SCORED ]] || scored=$(($(wc -l <"$ETW_SCORED")))
  [[ ! -f $file ]] || read -r lives before <"$file" || true
  now=$scored:$newest
  if [[ $now == "$before" ]]; then lives=$((lives + 1)); else lives=0; fi
  if [[ $lives -ge 3 ]]; then
    rm -f "$file"
    echo "error: this job was stopped $lives times in a row without a new checkpoint in" \
      "$folder/checkpoints and without a newly scored row, so it is not requeued; ask for more" \
      "time, or for earlier checkpoints with --checkpoints.every_n_steps, and submit it again: it" \
      "goes on from what there is." >&2
    return 1
  fi
  mkdir -p "$(dirname "$file")"
  echo "$lives $now" >"$file"
}

# Puts the job back in the queue, unless Slurm is ending it: one that was cancelled would come back,
# one that was preempted is put back by Slurm.
requeue() {
  local state
  state=$(squeue --noheader --jobs="$1" --format=%T 2>/dev/null) || state=
  if [[ $state == COMPLETING || $state == CANCELLED ]]; then
    echo "job $1 is being ended by Slurm, so it is not requeued" >&2
  elif ! scontrol requeue "$1"; then
    echo "error: job $1 can't be requeued; submit it again, it goes on from its checkpoint." >&2
  fi
}

# Does all a script for one run does: [--dry-run] fit|evaluate ...
launch() {
  local is_dry=false word
  if [[ ${1-} == --dry-run ]]; then
    is_dry=true
    shift
  fi
  check_words "$@"
  for word in "$@"; do
    [[ ! $word =~ ^--trainer\.(devices|num_nodes)(=|$) ]] ||
      fail "$word can't be given: it follows from what Slurm grants; see sbatch --nodes, --ntasks-per-node."
  done
  read_resources
  set_step "$@" --trainer.num_nodes "$nodes" --trainer.devices "$tasks"
  $is_dry || run_step
  show_resources
  show_words "${step_words[@]}"
  local other=()
  [[ $nodes == "$(asked nodes)" ]] || other+=("--nodes=$nodes")
  [[ $tasks == "$(asked ntasks-per-node)" ]] ||
    other+=("--ntasks-per-node=$tasks" "--gpus-per-node=$tasks")
  echo "# $(show_words sbatch "${other[@]}" "$0" "$@")"
}
