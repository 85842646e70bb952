"""Finished runs on disk, as ``fit`` leaves them, without a model."""

import json
import math

from etw_lightning.judging.judgement import judge
from etw_lightning.runs.results import model_row
from etw_lightning.schema import Record
from etw_lightning.scoring.retain_results import save_records

#: A row that would be markup, a script, a formula, a control sequence, if it were not text.
HOSTILE = "<script>alert(1)</script> [x](javascript:y) | \x1b[31m &amp; {{ 7*7 }} </td>"


def record(dataset, row, loss, said, answer="It was Rome in 1990."):
    logps = tuple(-loss * (1 + part / 4) for part in range(3))
    return Record(
        dataset, f"{dataset}/{row}", answer, f"Question {row}?",
        answer_loss=loss, paraphrase_loss=loss + 0.1 * row, perturbed_losses=(loss + 0.4, 1.0),
        token_logps=logps, token_entropies=(0.5, 2.0, 0.1), token_matches=(1, 0, 1),
        token_spans=((0, 6), (6, 11), (20, 20)), generation=said,
    )  # fmt: skip


def model(loss, said, n=6):
    sets = {
        name: [record(name, row, loss + 0.03 * row, said) for row in range(n)]
        for name in ("forget", "retain", "real_authors", "world_facts")
    }
    sets["forget"][1] = record("forget", 1, loss, HOSTILE, "It was <b>Rome</b> in 1990.")
    return sets


def make_run(folder, loss=1.5, seed=0, method="ETW", said="in in in", **changed):
    """Write a run's folder; ``changed`` goes into ``results.json``."""
    models = {"target": model(0.1, "It was Rome in 1990."), "unlearned": model(loss, said),
              "retain": model(1.2, "It was Oslo.")}  # fmt: skip
    rows = {name: model_row(sets, models["retain"]) for name, sets in models.items()}
    judged = judge(models, "unlearned", rows)
    save_records(folder, models["unlearned"])
    save_records(folder / "before", models["target"])
    save_records(folder / "retain_model", models["retain"])

    def metric(name, direction="up"):
        return {"value": rows["unlearned"][name], "direction": direction, "n": 6, "interval": None}

    numbers = {"forget_quality": metric("forget_quality"), "model_utility": metric("model_utility"),
               "forget_probability": metric("forget_probability", "down")}  # fmt: skip
    results = {
        "finished": True, "command": "fit", "metrics": numbers, "table": rows,
        "judgement": judged.to_json(), "seed": seed, "git_commit": "0" * 40,
        "versions": {"torch": "2"}, "steps": 4, "seconds": 1.5, "config_hash": "abc",
        "history": [{"epoch": 0, "step": 0, "metrics": numbers},
                    {"epoch": 1, "step": 4, "metrics": numbers}],
        "provenance": {"data": {}, "template": {"hash": "t"}, "model": {"name": "m"}},
        **changed,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    weighting = {"class_path": f"etw_lightning.weighting.{method}", "init_args": {}}
    config = {"model": {"pretrained": "quickstart:target", "weighting": weighting,
                        "forget": {"class_path": "etw_lightning.forget.GA"},
                        "forget_weight": 0.1, "lr": 1e-5},
              "data": {"benchmark": "quickstart", "forget_split": "forget", "template": "chat"},
              "seed_everything": seed}  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder


def is_near(text, value):
    return math.isclose(float(text), value, rel_tol=1e-9, abs_tol=1e-12)
