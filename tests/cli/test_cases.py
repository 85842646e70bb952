"""Inputs from users' reports whose numbers were wrong, and the right ones.

The first two are of the small trained model beside the benchmark data, with Llama 3's chat
template. The numbers are those of its own logits, computed with nothing of ours, prompt and answer
encoded one by one.
"""

import json
import math

import pytest
import torch
from chat_templates import FAMILIES, encoder_of
from safetensors.torch import load_file, save_file
from small_models import llama_config
from small_tokenizers import make_tokenizer

from etw_lightning.data.encode import Encoder
from etw_lightning.metrics.memorisation import exact_memorisation
from etw_lightning.metrics.text import rouge_scores
from etw_lightning.models.loading import LabelScorer, load_tokenizer
from etw_lightning.schema import EvalSet, Example
from etw_lightning.scoring.batches import build_batches, make_records, pad_rows, score_batch

HEAD = "lm_head.weight"
PROBABILITY = {"forget": 0.4906, "retain": 0.3787}


@pytest.fixture
def model_dir(data_dir, tmp_path):
    """Copy the trained model, with Llama 3's chat template and these changes of its files."""
    source = data_dir.parent / "oracle" / "model_a"
    if not source.is_dir():
        pytest.skip("no trained model: it lies beside the benchmark data, in oracle/")

    def call(change=lambda weights: weights, **changes):
        folder = tmp_path / "model"
        folder.mkdir()
        settings = {"tokenizer_config": {"chat_template": FAMILIES["Llama 3"].template}}
        for path in source.glob("*.json"):
            found = json.loads(path.read_text()) | settings.get(path.stem, {})
            (folder / path.name).write_text(json.dumps(found | changes.get(path.stem, {})))
        weights = change(load_file(source / "model.safetensors"))
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return folder

    return call


@pytest.fixture
def evaluated(data_dir, command, home, configs, tmp_path):
    """Evaluate a model on 4 rows of TOFU's forget10 and 8 of its retain90; give the outcome."""
    rows = tmp_path / "rows"
    rows.mkdir()
    for name, split, count in (("forget", "forget10", 4), ("retain", "retain90", 8)):
        lines = (data_dir / "tofu" / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (rows / f"{name}.jsonl").write_text("".join(lines[:count]))

    def call(folder, *flags):
        given = (f"--model.pretrained={folder}", f"--data.root={rows}", "--trainer.accelerator=cpu")
        place = tmp_path / "out"
        config = f"--config={configs / 'own_data.yaml'}"
        outcome = command("evaluate", config, *given, *flags, f"--output_dir={place}")
        if outcome.status:
            return outcome, {}
        return outcome, json.loads((place / "results.json").read_text())["metrics"]

    return call


def values(found, name):
    return {part: round(found[f"{part}_{name}"]["value"], 4) for part in PROBABILITY}


# c1: weights that are not the model's.


def without(part):
    return lambda weights: {name: one for name, one in weights.items() if part not in name}


def prefixed(weights):
    return {f"base_model.model.{name}": one for name, one in weights.items()}


@pytest.mark.parametrize("change", [lambda weights: weights, prefixed], ids=["whole", "prefixed"])
def test_a_whole_model_has_its_probabilities(model_dir, evaluated, change):
    _, found = evaluated(model_dir(change), "--metrics=probability")
    assert values(found, "probability") == PROBABILITY


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (without(HEAD), {}, f"1 weight ({HEAD}) is missing"),
        (without("layers.3."), {}, "9 weights (model.layers.3.input_layernorm.weight, "),
        (lambda weights: weights, {"num_hidden_layers": 3}, "are unknown to the model"),
    ],
    ids=["head", "layer", "config"],
)
def test_a_part_of_a_model_is_refused(model_dir, evaluated, change, config, said):
    outcome, _ = evaluated(model_dir(change, config=config), "--metrics=probability")
    assert outcome.status == 2
    assert said in outcome.err


# c2: the end of a turn is no end token.


def test_a_generation_ends_at_the_end_of_a_turn(model_dir, evaluated):
    """``eos_token`` is the padding, so is the model's: texts ran on to 60 tokens (.4968, .2407)."""
    pad = {"eos_token": "<|pad|>"}
    folder = model_dir(
        tokenizer_config=pad, special_tokens_map=pad, generation_config={"eos_token_id": 4}
    )
    _, found = evaluated(folder, "--metrics=rouge", "--data.max_new_tokens=60")
    assert values(found, "rougeL_recall")["forget"] == 0.3079
    assert values(found, "rougeL_f1")["forget"] == 0.2825


# c3 and c4: a tiny model that has been taught some rows says them, and nothing else of them counts.

DIGITS = (
    ("In which year was Hina Ameen born?", "1975"),
    ("How many novels has she written?", "12 novels"),
    ("On which page does the story end?", "311"),
    ("What is her house number?", "8"),
    ("What was her father's trade?", "A florist."),
)
UNSEEN = (("And the colour of it?", "PURPLE"), ("Whose is it?", "KATE QUIRK"))


def taught(encoder, examples, *, whole=False):
    """Train a tiny model on rows until it knows their labels; or all their tokens."""
    rows = [encoder.encode(example) for example in examples]
    ids, mask = pad_rows([row.input_ids for row in rows], encoder.pad_id)
    labels, _ = pad_rows([row.input_ids if whole else row.labels for row in rows], -100)
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = LlamaForCausalLM(llama_config(len(encoder.tokenizer), 64, max_position_embeddings=256))
        optimizer = torch.optim.AdamW(lm.parameters(), lr=5e-3)
        for _ in range(150):
            lm(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    lm.generation_config.eos_token_id = encoder.tokenizer.eos_token_id
    return LabelScorer(lm.eval())


def make_examples(pairs):
    return tuple(
        Example(f"forget/{number}", answer, question)
        for number, (question, answer) in enumerate(pairs)
    )


def records_of(scorer, encoder, examples):
    eval_set = EvalSet("forget", examples, max_new_tokens=16)
    return make_records(
        eval_set,
        [
            score
            for batch in build_batches(eval_set, encoder, 8)
            for score in score_batch(scorer, batch, encoder.tokenizer)
        ],
    )


@pytest.mark.parametrize("digits", ["threes", pytest.param("single", marks=pytest.mark.slow)])
def test_what_was_taught_of_digits_is_generated(tmp_path, digits):
    """The space before a number was in neither part: a model sure of its labels said others."""
    encoder = Encoder(load_tokenizer(str(make_tokenizer(tmp_path, digits=digits))), "plain")
    examples = make_examples(DIGITS)
    for record in records_of(taught(encoder, examples), encoder, examples):
        assert torch.tensor(record.token_logps).exp().min() > 0.95
        assert record.generation == record.answer


def test_an_empty_thinking_block_is_no_answer(tmp_path):
    """Qwen 3's: counted, .6 of rows never seen were memorised and a perfect answer had .754."""
    encoder = encoder_of(FAMILIES["Qwen 3"], tmp_path)
    seen, unseen = make_examples(DIGITS), make_examples(UNSEEN)
    scorer = taught(encoder, seen, whole=True)
    for record in records_of(scorer, encoder, seen):
        assert rouge_scores(record.answer, record.generation)["rougeL_f1"] == 1
    found = records_of(scorer, encoder, unseen)
    assert exact_memorisation(found).value == 0
    assert sum(math.exp(-record.answer_loss) for record in found) / len(found) < 5e-5
