"""Own rows as a benchmark like any other: every number, every model that is given."""

import math
import zlib

import numpy as np
import pytest
from by_hand import ByHand
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import ks_2samp

#: What stands for a number that is missing.
MISSING = "\u2013"


def auc(members, others):
    """Return how often a member has the lower score; half for a tie."""
    pairs = [(a < b) + 0.5 * (a == b) for a in members for b in others]
    return sum(pairs) / len(pairs)


def lowest(values, share=0.4):
    kept = sorted(values)[: int(share * len(values))]
    return -float(np.mean(kept))


def test_evaluate_gives_every_number_of_own_rows_and_uses_the_other_models(
    run, own, rows, retain_model_dir, tiny_model_dir
):
    others = [f"--data.retain_model={retain_model_dir}", f"--data.target_model={tiny_model_dir}"]
    out, results, records = run("evaluate", *own, *others, "--data.holdout_split=unseen")
    ours, theirs = ByHand(tiny_model_dir), ByHand(retain_model_dir)
    value = {name: metric["value"] for name, metric in results["metrics"].items()}
    beside = {
        role: {name: metric["value"] for name, metric in found.items()}
        for role, found in results["others"].items()
    }
    near = pytest.approx

    # Probabilities, of this, of the target (the same weights here) and of the retain model.
    for name in ("forget", "retain"):
        wanted = np.mean(np.exp(-np.array(ours.losses(rows[name]))))
        assert value[f"{name}_probability"] == near(wanted, rel=1e-4)
        assert beside["target"][f"{name}_probability"] == value[f"{name}_probability"]
        wanted = np.mean(np.exp(-np.array(theirs.losses(rows[name]))))
        assert beside["retain"][f"{name}_probability"] == near(wanted, rel=1e-4)

    # Truth ratios and forget quality.
    def ratios(model):
        found = []
        for row in rows["forget"]:
            wrong = np.mean([model.loss(row, one) for one in row["perturbed_answer"]])
            found.append(math.exp(model.loss(row, row["paraphrased_answer"]) - wrong))
        return found

    mine, retain = ratios(ours), ratios(theirs)
    assert value["forget_quality"] == near(ks_2samp(mine, retain).pvalue, rel=1e-9)
    wanted = np.mean([min(one, 1 / one) for one in mine])
    assert value["forget_truth_ratio_closer_to_one"] == near(wanted, rel=1e-4)

    # Membership: scores of both sets, by each attack's formula.
    def scores(model, part, attack):
        found = []
        for row in rows[part]:
            logps, plus = model.logps(row, row["answer"])
            found.append(
                {
                    "loss": -logps.mean(),
                    "zlib": -logps.mean() / len(zlib.compress(row["answer"].encode())),
                    "min_k": lowest(logps),
                    "min_k_plus_plus": lowest(plus),
                }[attack]
            )
        return found

    def attacked(model, attack):
        return auc(scores(model, "forget", attack), scores(model, "unseen", attack))

    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        assert value[f"mia_{attack}"] == near(attacked(ours, attack))
        assert beside["retain"][f"mia_{attack}"] == near(attacked(theirs, attack))
        wanted = 100 * (attacked(ours, attack) / attacked(theirs, attack) - 1)
        assert value[f"mia_{attack}_relative_difference"] == near(wanted)
    own_auc, retain_auc = 1 - attacked(ours, "min_k"), 1 - attacked(theirs, "min_k")
    assert value["privleak"] == near(100 * (own_auc - retain_auc) / retain_auc)

    # Texts: ROUGE by its library, repetition and distinct n-grams by counting.
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for name in ("forget", "retain"):
        said = [record.generation for record in records[name]]
        found = [
            scorer.score(row["answer"], text)["rougeL"].recall
            for row, text in zip(rows[name], said, strict=True)
        ]
        assert value[f"{name}_rougeL_recall"] == near(np.mean(found))
        assert value[f"{name}_empty_generations"] == np.mean([not text.split() for text in said])
        assert {f"{name}_repetition_{n}" for n in range(1, 5)} <= set(value)

    # The honest table speaks of the same numbers, and the verdict of them.
    judged = results["judgement"]
    assert list(judged["models"]) == ["target", "this model", "retain"]
    mine = judged["models"]["this model"]
    for name in ("forget_probability", "forget_quality", "privleak", "retain_stutter"):
        assert mine[name] == near(value[name])
    assert mine["forget_repetition"] == near(value["forget_repetition_4"])
    assert judged["models"]["retain"]["forget_probability"] == near(
        beside["retain"]["forget_probability"]
    )
    assert f"\n{judged['verdict']}\n" in out

    # Every model has its column in one table, and nothing is left out without its reason.
    lines = [line.split() for line in out.splitlines()]
    (heading,) = [line for line in lines if line[:2] == ["metric", "n"]]
    assert heading[-2:] == ["target", "retain"]
    (shown,) = [line for line in lines if line and line[0] == "forget_probability"]
    assert MISSING not in shown
    assert all(
        reason.startswith(("slow:", "needs data.annotations", "needs gibberish_classifier"))
        for reason in results["left_out"].values()
    )
    assert len(value) > 50


@pytest.mark.parametrize("names", ["repetition", "mia_loss,mia_min_k", "privleak"])
def test_single_metrics_of_own_rows_are_defined(run, own, retain_model_dir, names):
    more = [f"--data.retain_model={retain_model_dir}", "--data.holdout_split=unseen"]
    _, results, _ = run("evaluate", *own, *more, "--metrics", names)
    assert {name.split("_repetition")[0] for name in results["metrics"]} >= {
        "repetition": {"forget", "retain"},
        "privleak": {"privleak"},
    }.get(names, set(names.split(",")))
    # What stands beside is of the same numbers.
    assert set(results["others"].get("retain", {})) <= set(results["metrics"])


@pytest.mark.parametrize("name", ["forget", "retain"])
def test_a_misspelled_file_is_what_a_run_blames(command, own, home, name):
    result = command(
        "fit", *own, f"--data.{name}_split=mispelt.csv", f"--output_dir={home / 'out'}"
    )
    assert result.status == 2
    assert "mispelt.csv" in result.err
    assert "metrics" not in result.err
    assert result.err.count("\n") == 1


def test_membership_without_holdout_rows_says_which_key_gives_them(command, own, home):
    result = command("evaluate", *own, "--metrics", "mia_loss", f"--output_dir={home / 'out'}")
    assert (result.status, result.err) == (
        2,
        "error: metrics: mia_loss needs data.holdout_split; give it, or leave mia_loss out of "
        "--metrics.\n",
    )
    result = command(
        "evaluate", *own, "--data.benchmark=tofu", "--data.holdout_split=unseen",
        f"--output_dir={home / 'out'}",
    )  # fmt: skip
    assert result.status == 2
    assert "data.holdout_split is 'unseen', but only own rows" in result.err


def test_raw_text_has_its_numbers_beside_questions(run, own, home, rows, write_rows):
    write_rows(home / "prose.jsonl", [{"text": row["answer"]} for row in rows["retain"]])
    _, results, _ = run("evaluate", *own, "--data.retain_split=prose")
    found = set(results["metrics"])
    assert {"retain_probability", "forget_probability", "forget_repetition_1"} <= found
    assert not {name for name in found if name.startswith("retain_r")}
    _, results, _ = run(
        "evaluate", *own, "--data.forget_split=prose", "--data.retain_split=prose", into="raw"
    )
    assert results["left_out"]["rouge"] == (
        "needs questions in data.forget_split or data.retain_split, as raw text is not continued"
    )
    assert results["left_out"]["truth_ratio"] == (
        "needs a paraphrased_answer and perturbed_answer in each row"
    )


def test_fit_without_a_callback_shows_numbers_of_all_models(run, own, rows, retain_model_dir):
    none = "--trainer.callbacks=[]"
    out, results, records = run("fit", *own, none, f"--data.retain_model={retain_model_dir}")
    assert results["metrics"]["forget_probability"]["n"] == 4
    table = results["table"]
    assert list(table) == ["target", "unlearned", "retain"]
    losses = ByHand(retain_model_dir).losses(rows["retain"])
    wanted = np.mean(np.exp(-np.array(losses)))
    assert table["retain"]["retain_probability"] == pytest.approx(wanted, rel=1e-4)
    after = [math.exp(-record.answer_loss) for record in records["retain"]]
    assert table["unlearned"]["retain_probability"] == pytest.approx(np.mean(after))
    # No line is empty, and the scores of the retain set are among them.
    [shown] = [line for line in out.splitlines() if "retain probability" in line]
    numbers = [f"{table[name]['retain_probability']:.4f}" for name in table]
    assert shown.split()[-3:] == numbers
    assert "model utility" not in out
    lines = out[: out.index("verdict: ")].splitlines()
    assert not any(line.count(MISSING) == 3 for line in lines)

    _, results, _ = run("fit", *own, none, "--data.target_model", retain_model_dir, into="given")
    assert list(results["table"]) == ["target", "start", "unlearned"]
    given = results["table"]["target"]["retain_probability"]
    assert given == pytest.approx(wanted, rel=1e-4)
    compared = ("forget_quality", "d_times_n", "n", "forget_quality_floor")
    assert results["table"]["start"] == table["target"] | dict.fromkeys(compared)


def test_fine_tuning_on_own_rows_shows_a_number_too(run, own):
    _, results, _ = run(
        "fit", *own, "--trainer.callbacks=[]", "--model.forget=null", "--data.split=retain",
        "--data.forget_split=null", "--data.retain_split=null",
    )  # fmt: skip
    assert set(results["metrics"]) == {"retain_probability", "retain_rougeL_recall"}
    assert results["metrics"]["retain_probability"]["direction"] == "up"


def test_rows_of_chat_go_all_the_way(run, own, home, rows, write_rows):
    def chat(row):
        said = (row["question"], row["answer"], "And then?", row["answer"])
        roles = ("user", "assistant")
        return {"messages": [{"role": roles[n % 2], "content": t} for n, t in enumerate(said)]}

    for name in ("forget", "retain"):
        write_rows(home / f"{name}.jsonl", [chat(row) for row in rows[name]])
    for which, n in (("last", 4), ("all", 8)):
        _, results, records = run("fit", *own, f"--data.which_turns={which}", into=which)
        assert results["metrics"]["forget_probability"]["n"] == n
        assert len(records["forget"]) == n
    assert [record.id for record in records["forget"][:2]] == ["forget/0/turn0", "forget/0/turn1"]
