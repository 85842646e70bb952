"""Cluster jobs: what they ask for, what they start, and what a signal leads to."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from faults import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "slurm" / "array.sh"
SCRIPTS = ("single", "node", "nodes", "array")
STEP = ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=8"]
PROGRAM = ["python", "-m", "etw_lightning", "fit"]
LINES = [
    [*PROGRAM, "--config", "configs/quickstart.yaml", "--output_dir", "runs/x/etw_seed0"],
    [*PROGRAM, "--data.system_prompt", 'It\'s $HOME; `a` "b"', "--output_dir", "runs/x/my run"],
    [*PROGRAM, "--data.rows", '{"a": 1}', "--data.root=", "--output_dir", "runs/x/etw_seed2"],
]


def environment(**variables):
    """Return the caller's variables without those of a Slurm job, and the given ones."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return kept | {key: str(value) for key, value in variables.items()}


def bash(*args, **variables):
    """Run a script with these variables and no job of the caller's; no Slurm is needed."""
    return subprocess.run(
        ["bash", *map(str, args)],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Jobs note their lives beside folders of runs, which the repository is not the place for."""
    place = tmp_path / "here"
    place.mkdir()
    for name in ("slurm", "configs"):
        (place / name).symlink_to(ROOT / name)
    monkeypatch.chdir(place)


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.txt"
    path.write_text("".join(f"{shlex.join(words)}\n" for words in LINES))
    return path


def dry_run(plan, *args, **variables):
    """Return the printed commands as words, and the last line."""
    result = bash(SCRIPT, "--dry-run", plan, *args, **variables)
    assert (result.returncode, result.stderr) == (0, "")
    first, *commands, last = result.stdout.splitlines()
    assert first.startswith("# --job-name=etw_lightning --nodes=1 --ntasks-per-node=1 ")
    words = [shlex.split(line) for line in commands]
    assert all(line[: len(STEP)] == STEP for line in words)
    return [line[len(STEP) :] for line in words], last


#: Stand-ins that write down how they were called; ``srun`` starts its command and hands on
#: SIGUSR1, as the real one does.
TOOLS = {
    "srun": """
printf '%s\\n' srun "$@" >>"$LOG"
while [ "${1#--}" != "$1" ]; do shift; done
"$@" & child=$!
trap 'kill -USR1 $child' USR1
trap 'kill -KILL $child' TERM
while kill -0 $child 2>/dev/null; do wait $child; done
wait $child
""",
    "python": """
trap 'echo saved >>"$LOG"; exit 143' USR1
echo ready >>"$LOG"
[ -n "$STATUS" ] && exit $STATUS
for i in $(seq 600); do sleep .1; done
""",
    "scontrol": """
echo scontrol "$@" >>"$LOG"
exit $SCONTROL
""",
    "squeue": """
echo "$STATE"
""",
}


@pytest.fixture
def called(tmp_path):
    """Variables of a job whose program ends with status 3, and what it called, a word a line."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in TOOLS.items():
        tool = folder / name
        tool.write_text(f"#!/bin/bash{text}")
        tool.chmod(0o755)
    variables = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "LOG": tmp_path / "called",
        "STATUS": 3,
        "STATE": "RUNNING",
        "SCONTROL": 0,
        "SLURM_JOB_ID": 812,
        "SLURM_ARRAY_JOB_ID": 811,
    }
    return variables, tmp_path / "called"


@pytest.mark.parametrize("name", [*SCRIPTS, "launch"])
def test_bash_reads_it(name):
    assert bash("-n", ROOT / "slurm" / f"{name}.sh").returncode == 0


def test_it_shows_every_line_of_the_plan(plan):
    commands, last = dry_run(plan)
    assert commands == LINES
    assert last == f"# 3 runs: sbatch --array=0-2 slurm/array.sh {plan}"


@pytest.mark.parametrize("task", range(3))
def test_a_task_is_its_line_of_the_plan(plan, task):
    assert dry_run(plan, SLURM_ARRAY_TASK_ID=task)[0] == [LINES[task]]


def test_what_follows_reaches_every_run(plan):
    extra = ["--data.root", "/with a space"]
    commands, _ = dry_run(plan, *extra)
    assert commands == [[*words, *extra] for words in LINES]


@pytest.mark.parametrize("task", range(3))
def test_it_calls_the_printed_command_and_gives_its_status(plan, called, task):
    path, log = called
    result = bash(SCRIPT, plan, "--data.root", "a b", SLURM_ARRAY_TASK_ID=task, **path)
    assert (result.returncode, result.stdout, result.stderr) == (3, "", "")
    words = [*STEP, *LINES[task], "--data.root", "a b"]
    assert log.read_text().splitlines() == [*words, "ready"]


@pytest.mark.parametrize("task", [None, "3", "-1", "08", "x"])
def test_a_bad_task_runs_nothing(plan, called, task):
    path, log = called
    given = {} if task is None else {"SLURM_ARRAY_TASK_ID": task}
    result = bash(SCRIPT, plan, **path, **given)
    assert result.returncode == 2
    message = f"error: SLURM_ARRAY_TASK_ID must be 0 to 2; got '{task or ''}'. Submit with sbatch"
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert not log.exists()


@pytest.mark.parametrize("word", ["--output_dir", "--output_dir=x"])
def test_a_folder_for_all_runs_is_refused(plan, called, word):
    path, log = called
    result = bash(SCRIPT, plan, word, SLURM_ARRAY_TASK_ID=0, **path)
    assert result.returncode == 2
    assert result.stderr == f"error: {word} can't be given: each line of the plan has its own.\n"
    assert not log.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "the plan must be a file that 'python -m etw_lightning sweep plan' wrote; got '"),
        ("", "the plan {plan} must hold a command a line; it is empty."),
        ("rm -r x\n", "each line of {plan} must be 'python -m etw_lightning fit ...'; got 'rm"),
    ],
)
def test_a_bad_plan_runs_nothing(plan, called, text, message):
    path, log = called
    plan.unlink() if text is None else plan.write_text(text)
    result = bash(SCRIPT, plan, SLURM_ARRAY_TASK_ID=0, **path)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message.format(plan=plan)}")
    assert result.stderr.count("\n") == 1
    assert not log.exists()


def test_what_stands_in_a_plan_is_not_run_by_the_shell(plan, tmp_path):
    words = [*PROGRAM, "--output_dir", "runs/x", "--data.root", f"$(touch {tmp_path}/ran)"]
    plan.write_text(f"{' '.join(words[:-1])} '{words[-1]}'\n")
    assert dry_run(plan)[0] == [words]
    plan.write_text(f"{' '.join(words[:-1])} $(touch {tmp_path}/ran)\n")
    dry_run(plan)
    assert not (tmp_path / "ran").exists()


#: A run's words, as the scripts for one run take them.
RUN = ["fit", "--config", "configs/quickstart.yaml", "--output_dir", "runs/a b"]
#: What each of those scripts asks for when nothing else is said.
GRANTED = {"single": (1, 1), "node": (1, 8), "nodes": (2, 8)}


def one_run(name, *args, **variables):
    return bash(ROOT / "slurm" / f"{name}.sh", *args, **variables)


def shown(name, *args, **variables):
    """Return the resources, the command and the line for sbatch that a dry run prints, as words."""
    result = one_run(name, "--dry-run", *args, **variables)
    assert (result.returncode, result.stderr) == (0, "")
    resources, command, line = map(shlex.split, result.stdout.splitlines())
    assert (resources.pop(0), line.pop(0)) == ("#", "#")
    return resources, command, line


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_job_can_be_requeued_and_is_warned_in_time(name):
    text = (ROOT / "slurm" / f"{name}.sh").read_text()
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))
    assert {"requeue", "nodes", "ntasks-per-node", "gpus-per-node", "time", "mem"} <= set(asked)
    assert "ntasks" not in asked
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert asked["open-mode"] == "append"
    # Without "B:", which would signal this shell and not the program.
    name, _, seconds = asked["signal"].partition("@")
    assert name == "USR1"
    assert int(seconds) >= 300


@pytest.mark.parametrize("name", GRANTED)
def test_a_dry_run_shows_resources_and_command(name):
    nodes, tasks = GRANTED[name]
    resources, command, line = shown(name, *RUN)
    assert {f"--nodes={nodes}", f"--ntasks-per-node={tasks}", "--requeue"} <= set(resources)
    layout = ["--trainer.num_nodes", str(nodes), "--trainer.devices", str(tasks)]
    assert command == [*STEP, *PROGRAM[:-1], *RUN, *layout]
    assert line == ["sbatch", str(ROOT / "slurm" / f"{name}.sh"), *RUN]


def test_nodes_and_devices_follow_from_what_was_granted():
    granted = {"SLURM_NNODES": 4, "SLURM_NTASKS_PER_NODE": 2, "SLURM_CPUS_PER_TASK": 3}
    resources, command, line = shown("nodes", *RUN, **granted)
    assert {"--nodes=4", "--ntasks-per-node=2", "--gpus-per-node=2"} <= set(resources)
    assert command[2] == "--cpus-per-task=3"
    assert command[-4:] == ["--trainer.num_nodes", "4", "--trainer.devices", "2"]
    assert line[1:4] == ["--nodes=4", "--ntasks-per-node=2", "--gpus-per-node=2"]


@pytest.mark.parametrize(
    ("words", "granted", "message"),
    [
        ([], {}, "the command must be fit or evaluate, with its options; got ''."),
        (["sweep", *RUN[1:]], {}, "the command must be fit or evaluate, with its options; got 's"),
        (RUN[:-2], {}, "--output_dir must be given: a job that is requeued goes on in its folder"),
        ([*RUN[:-2], "--output_dir="], {}, "--output_dir must be given: a job that"),
        ([*RUN[:-1], "null"], {}, "--output_dir must be given: a job that"),
        ([*RUN[:-1], "--overwrite"], {}, "--output_dir must be given: a job that"),
        ([*RUN, "--config=gone.yaml"], {}, "--config must be a file; there is no 'gone.yaml' in /"),
        ([*RUN, "--trainer.devices", "2"], {}, "--trainer.devices can't be given: it follows"),
        ([*RUN, "--trainer.num_nodes=2"], {}, "--trainer.num_nodes=2 can't be given: it follows"),
        (RUN, {"SLURM_NTASKS": 3}, "--ntasks must be left out, --ntasks-per-node tells; got 3"),
        (RUN, {"SLURM_GPUS_ON_NODE": 4}, "--gpus-per-node and --ntasks-per-node must be equal; "),
    ],
)
@pytest.mark.parametrize("is_dry", [True, False])
def test_bad_words_and_resources_run_nothing(called, words, granted, message, is_dry):
    variables, log = called
    result = one_run("single", *["--dry-run"] * is_dry, *words, **variables, **granted)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
    assert not log.exists()


def test_outside_of_a_job_nothing_runs(called):
    variables, log = called
    result = one_run("single", *RUN, **{**variables, "SLURM_JOB_ID": ""})
    assert result.returncode == 2
    assert result.stderr.startswith("error: this is no Slurm job; submit it with sbatch, or show ")
    assert not log.exists()


def test_a_job_submitted_elsewhere_says_so(called, tmp_path):
    result = subprocess.run(
        ["bash", ROOT / "slurm" / "single.sh", *RUN],
        env=environment(**called[0]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: the job must be submitted from the folder that holds")


def test_a_line_without_a_folder_of_its_own_runs_nothing(plan, called):
    variables, log = called
    plan.write_text(f"{shlex.join([*PROGRAM, '--seed_everything', '1'])}\n")
    result = bash(SCRIPT, plan, SLURM_ARRAY_TASK_ID=0, **variables)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --output_dir must be given")
    assert not log.exists()


def test_a_task_of_the_array_is_one_process(plan, called):
    variables, log = called
    result = bash(SCRIPT, plan, SLURM_ARRAY_TASK_ID=0, SLURM_NTASKS_PER_NODE=2, **variables)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --nodes and --ntasks-per-node must be 1, each task of")
    assert not log.exists()


#: Variables of the job, and the id under which exactly it is requeued.
JOBS = [
    ({}, "812"),
    ({"SLURM_ARRAY_TASK_ID": 2}, "811_2"),
]


def words_of(job, plan):
    """Return the script and its words for a job: the array's, or a single one's."""
    is_array = "SLURM_ARRAY_TASK_ID" in job
    return (SCRIPT, plan) if is_array else (ROOT / "slurm" / "nodes.sh", *RUN)


@pytest.mark.parametrize("status", [143, 128 + signal.SIGUSR1])
@pytest.mark.parametrize(("job", "name"), JOBS)
def test_status_143_requeues_exactly_this_job(plan, called, job, name, status):
    """The other one is that of a program that the signal met before it could handle any."""
    variables, log = called
    result = bash(*words_of(job, plan), **{**variables, "STATUS": status}, **job)
    assert (result.returncode, result.stderr) == (143, "")
    assert log.read_text().splitlines()[-2:] == ["ready", f"scontrol requeue {name}"]
    assert log.read_text().count("scontrol") == 1


@pytest.mark.parametrize("status", [0, 1, 2, 137])
@pytest.mark.parametrize(("job", "name"), JOBS)
def test_any_other_status_is_passed_on(plan, called, job, name, status):
    variables, log = called
    result = bash(*words_of(job, plan), **{**variables, "STATUS": status}, **job)
    assert (result.returncode, result.stderr) == (status, "")
    assert "scontrol" not in log.read_text()


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED"])
def test_a_job_that_slurm_is_ending_stays_out_of_the_queue(called, state):
    variables, log = called
    result = one_run("single", *RUN, **{**variables, "STATUS": 143, "STATE": state})
    assert result.returncode == 143
    assert result.stderr == "job 812 is being ended by Slurm, so it is not requeued\n"
    assert "scontrol" not in log.read_text()


def test_a_job_that_gets_nowhere_is_put_back_twice(called):
    variables, log = called
    stopped = {**variables, "STATUS": 143}
    for life in (1, 2, 3):
        log.unlink(missing_ok=True)
        result = one_run("single", *RUN, **stopped)
        assert result.returncode == 143
        assert ("scontrol requeue" in log.read_text()) == (life < 3)
    assert result.stderr.startswith("error: this job was stopped 3 times in a row without a new")
    assert one_run("single", *RUN, **stopped).stderr == "", "submitted again, it counts anew"


def test_a_new_checkpoint_begins_the_count_anew(called, tmp_path):
    variables, log = called
    run = [*RUN[:-1], tmp_path / "run"]
    for life in range(6):
        log.unlink(missing_ok=True)
        (tmp_path / "run" / "checkpoints" / f"step-{life // 2:08}").mkdir(
            parents=True, exist_ok=True
        )
        one_run("single", *run, **{**variables, "STATUS": 143})
        assert "scontrol requeue" in log.read_text()
    one_run("single", *run, **{**variables, "STATUS": 0})
    assert not (tmp_path / "run.requeues").exists()


def test_a_folder_below_home_is_the_program_s(called, tmp_path):
    variables, log = called
    for life in range(4):
        log.unlink(missing_ok=True)
        (tmp_path / "my run" / "checkpoints" / f"step-{life:08}").mkdir(parents=True)
        stopped = {**variables, "STATUS": 143, "HOME": tmp_path}
        one_run("single", *RUN[:-2], "--output_dir=~/my run", **stopped)
        assert "scontrol requeue" in log.read_text()
    assert "--output_dir=~/my run" in log.read_text().splitlines()
    assert (tmp_path / "my run.requeues").exists()
    assert not (ROOT / "~").exists()


def test_scored_rows_begin_the_count_anew(called, tmp_path):
    variables, log = called
    run, scored = [*RUN[:-1], tmp_path / "run"], tmp_path / "run.scored"
    lives = [True, False, False, True, False, False, False]
    for number, has_scored in enumerate(lives, start=1):
        log.unlink(missing_ok=True)
        if has_scored:
            with scored.open("a") as stream:
                stream.write("scored\n")
        result = one_run("single", "evaluate", *run[1:], **{**variables, "STATUS": 143})
        assert ("scontrol requeue" in log.read_text()) == (number < len(lives)), number
    assert "and without a newly scored row, so it is not requeued" in result.stderr
    one_run("single", "evaluate", *run[1:], **{**variables, "STATUS": 0})
    assert not scored.exists()


def test_the_program_is_told_where_to_note_what_it_has_scored(called, tmp_path):
    variables, log = called
    tool = tmp_path / "bin" / "python"
    tool.write_text('#!/bin/bash\necho "noted in $ETW_SCORED" >>"$LOG"\n')
    run = [*RUN[:-1], f"{tmp_path}/run/"]
    assert one_run("single", *run, **variables).returncode == 0
    assert log.read_text().splitlines()[-1] == f"noted in {tmp_path}/run.scored"


def test_a_configuration_may_be_named(called):
    variables, log = called
    run = ["fit", "--config", "muse_news", "--config=strategy/fsdp", *RUN[3:]]
    assert one_run("single", *run, **variables).returncode == 3
    assert "muse_news" in log.read_text().splitlines()


def test_a_refused_requeue_says_what_to_do(called):
    variables, _ = called
    result = one_run("single", *RUN, **{**variables, "STATUS": 143, "SCONTROL": 1})
    assert result.returncode == 143
    assert result.stderr.startswith("error: job 812 can't be requeued; submit it again, it goes on")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(("job", "name"), JOBS)
def test_a_signal_lets_the_program_save_and_requeues(plan, called, job, name, number):
    variables, log = called
    process = subprocess.Popen(
        ["bash", *map(str, words_of(job, plan))],
        env=environment(**{**variables, "STATUS": ""}, **job),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + PATIENCE
    while not log.exists() or "ready" not in log.read_text():
        assert time.monotonic() < end, "the program did not start"
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (143, "", "")
    assert log.read_text().splitlines()[-3:] == ["ready", "saved", f"scontrol requeue {name}"]
