"""The tiny model, loaded once and copied for each test that changes it."""

import copy

import pytest

from etw_lightning.models.loading import load_model


@pytest.fixture(scope="module")
def loaded(tiny_model_dir):
    return load_model(str(tiny_model_dir))


@pytest.fixture
def lm(loaded):
    return copy.deepcopy(loaded)


def said_of(name, logs, loss, said="It was Rome.", matches=(1, 0)):
    """Return what a model says of a set: the logarithms of its truth ratios, about one loss."""
    from etw_lightning.schema import Record

    losses = [loss + 0.1 * (3 * row % 4) for row in range(len(logs))]
    return [
        Record(
            name, f"{name}/{row}", "It was Rome in 1990.", f"Question {row}?", answer_loss=own,
            paraphrase_loss=2 + log, perturbed_losses=(2.0, 2.0), token_logps=(-own, -2 * own),
            token_entropies=(0.5, 0.1), token_matches=matches, token_spans=((0, 6), (6, 11)),
            generation=said,
        )
        for row, (log, own) in enumerate(zip(logs, losses, strict=True))
    ]  # fmt: skip


@pytest.fixture
def leave_run():
    """Leave a finished run of TOFU's shape: forget rows by their truth ratios, others by a loss."""
    import json

    from etw_lightning.metrics import model_utility
    from etw_lightning.scoring.retain_results import save_records

    kept = ("retain", "real_authors", "world_facts")

    def call(run, logs, loss=0.5, *, retain=None, target=None, said="It was Rome.", **numbers):
        n = len(logs)
        retain = [0.1 * row for row in range(n)] if retain is None else retain
        target = [5 + 0.1 * row for row in range(n)] if target is None else target
        # Truth ratios, the losses of kept and of forget rows, what is said and reproduced.
        models = {"": (logs, loss, loss, said, (1, 0)),
                  "before": (target, 0.3, 0.1, "It was Rome in 1990.", (1, 1)),
                  "retain_model": (retain, 0.3, 1.0, "It was Oslo.", (1, 0))}  # fmt: skip
        for folder, (given, own, of_forget, words, matches) in models.items():
            sets = {name: said_of(name, [-1.0, -0.5, 0.0], own) for name in kept}
            forget = said_of("forget", given, of_forget, words, matches)
            holdout = said_of("holdout", given[::-1], 1.1)
            save_records(run.folder / folder, {**sets, "forget": forget, "holdout": holdout})
            if folder == "":
                utility = model_utility(sets).value
            if folder == "before":
                start = model_utility(sets).value
        results = {
            "finished": True, "command": "fit", "config_hash": run.key, "git_commit": "abc",
            "metrics": {name: {"value": value} for name, value in
                        {"model_utility": utility, **numbers}.items()},
            "history": [{"epoch": 0, "metrics": {"model_utility": {"value": start}}}],
            "judgement": {}, "provenance": {"rouge_tokenizer": "published"},
        }  # fmt: skip
        (run.folder / "results.json").write_text(json.dumps(results))
        (run.folder / "config.yaml").write_text("data: {benchmark: tofu}\n")

    return call
