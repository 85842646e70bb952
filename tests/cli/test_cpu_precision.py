"""The precision of a run on CPUs follows the processor, with a line, unless it was typed."""

import json

import pytest

from etw_lightning.runs import cpu_precision
from etw_lightning.runs.cpu_precision import processor_flags, settle_precision

X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 avx512f {}\nbogomips\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\n"


@pytest.fixture
def processor(tmp_path, monkeypatch):
    """Have this machine's processor be another one."""

    def be(content):
        path = tmp_path / "cpuinfo"
        if content is not None:
            path.write_text(content)
        monkeypatch.setattr(cpu_precision, "_CPUINFO", path)

    return be


@pytest.fixture
def no_devices(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)


@pytest.mark.parametrize(
    ("content", "is_changed"),
    [
        (X86.format(""), True),
        (X86.format("avx512_bf16"), False),
        (X86.format("amx_bf16 amx_tile"), False),
        (X86.format("avx512_vbmi amx_int8"), True),
        (ARM.format(""), True),
        (ARM.format("bf16"), False),
        ("nothing known\n", False),
        (None, False),
    ],
)
def test_what_the_processor_computes_decides(content, is_changed, processor, no_devices):
    processor(content)
    for accelerator in ("cpu", "auto"):
        trainer = {"precision": "bf16-mixed", "accelerator": accelerator}
        change = settle_precision(trainer, ["fit", "--config=a.yaml"])
        assert (change is not None) == is_changed
        assert trainer["precision"] == ("32-true" if is_changed else "bf16-mixed")


@pytest.mark.parametrize(
    ("trainer", "typed"),
    [
        ({"precision": "bf16-mixed", "accelerator": "cpu"}, ["--trainer.precision=bf16-mixed"]),
        ({"precision": "bf16-mixed", "accelerator": "cpu"}, ["--trainer.precision", "bf16-mixed"]),
        ({"precision": "bf16-mixed", "accelerator": "cpu"}, ["--trainer", '{"precision": "bf16"}']),
        ({"precision": "bf16-mixed", "accelerator": "gpu"}, []),
        ({"precision": "bf16-true", "accelerator": "cpu"}, []),
        ({"precision": "32-true", "accelerator": "cpu"}, []),
        ({"precision": None, "accelerator": "cpu"}, []),
    ],
)
def test_everything_else_stays_as_it_was_asked_for(trainer, typed, processor, no_devices):
    processor(X86.format(""))
    before = dict(trainer)
    assert settle_precision(trainer, typed) is None
    assert trainer == before


def test_a_gpu_at_hand_computes_in_bfloat16(processor, monkeypatch):
    processor(X86.format(""))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    trainer = {"precision": "bf16-mixed", "accelerator": "auto"}
    assert settle_precision(trainer, []) is None
    assert settle_precision({**trainer, "accelerator": "cpu"}, []) is not None


def test_the_flags_are_read_whole(processor):
    processor(X86.format("avx512_bf16"))
    assert processor_flags() == {"fpu", "avx2", "avx512f", "avx512_bf16"}


@pytest.fixture
def run(command, home, tofu_dir, tiny_model_dir):
    (home / "wide.yaml").write_text("trainer:\n  precision: bf16-mixed\n")

    def run_it(verb, *words):
        return command(
            verb,
            "--config=wide.yaml",
            f"--model.pretrained={tiny_model_dir}",
            *("--data.benchmark=tofu", f"--data.root={tofu_dir}", "--data.forget_split=forget10"),
            *("--trainer.accelerator=cpu", "--data.max_new_tokens=2", "--output_dir=run"),
            *words,
        )

    return run_it


@pytest.mark.parametrize("verb", ["fit", "evaluate"])
def test_a_run_says_so_and_its_results_too(verb, run, home, processor):
    processor(X86.format(""))
    words = {
        "fit": ["--trainer.max_epochs=1", "--no_save_model"],
        "evaluate": ["--metrics=probability"],
    }[verb]
    outcome = run(verb, *words)
    assert outcome.status == 0, outcome.err
    line = (
        "trainer.precision: 32-true, not bf16-mixed: this CPU has no bfloat16 instructions "
        "(avx512_bf16, amx_bf16); --trainer.precision keeps it\n"
    )
    assert outcome.out.count(line) == 1
    results = json.loads((home / "run" / "results.json").read_text())
    assert results["changed"]["trainer.precision"]["asked"] == "bf16-mixed"
    assert results["changed"]["trainer.precision"]["used"] == "32-true"
    assert results["provenance"]["precision"] == "32-true"


@pytest.mark.parametrize(
    ("flag", "words"), [("avx512_bf16", []), ("", ["--trainer.precision=bf16-mixed"])]
)
def test_a_run_that_can_or_must_computes_in_bfloat16(flag, words, run, home, processor):
    processor(X86.format(flag))
    outcome = run("evaluate", "--metrics=exact_memorisation", *words)
    assert outcome.status == 0, outcome.err
    results = json.loads((home / "run" / "results.json").read_text())
    assert results["provenance"]["precision"] == "bf16-mixed"
    assert "changed" not in results
    assert "trainer.precision" not in outcome.out
