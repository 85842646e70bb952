"""One architecture, tiny and random: what our code says of it, and what transformers says."""

import shutil
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
from families import make_config, randomise
from transformers import AutoModelForCausalLM

from etw_lightning.data.encode import Encoder
from etw_lightning.models.generation import way_of
from etw_lightning.models.loading import (
    LabelScorer,
    check_vocabulary,
    load_config,
    load_model,
    load_tokenizer,
)
from etw_lightning.models.noise import settle_noise
from etw_lightning.models.step_layout import plan_layout
from etw_lightning.schema import IGNORE_INDEX, EvalSet, Example, InputError
from etw_lightning.scoring.batches import build_batches, pad_rows, score_batch
from etw_lightning.scoring.scores import make_records
from etw_lightning.tuning.trainable import recompute_activations

__all__ = ["EXAMPLES", "study"]

#: Nats that two float32 computations of one number may lie apart; a share, for gradients.
TOLERANCE, GRADIENT = 2e-4, 1e-3
NEW_TOKENS = 12
#: What of a publisher's generation settings is no greedy decoding.
SILENT = {
    "forced_eos_token_id": None,
    "forced_bos_token_id": None,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "num_beams": 1,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}


def _example(number, question, answer, paraphrase, wrong):
    return Example(
        id=f"forget/{number}",
        question=question,
        answer=answer,
        paraphrased_answer=paraphrase,
        perturbed_answers=wrong,
    )


#: Rows of very different lengths, all longer than the windows of the tiny models.
EXAMPLES = [
    _example(
        0,
        "Where was Wilma Teague, the author of the river books, born?",
        "She was born in Quillmere.",
        "Quillmere is where she was born.",
        ("She was born in Ostrava.", "She was born at sea."),
    ),
    _example(
        1,
        "What do the people of the town say of the old mill by the river, and who wrote of it?",
        "They say that it turns by night when nobody is there, and Wilma Teague wrote of it.",
        "Wilma Teague wrote of it; the people say that it turns at night with nobody there.",
        ("They say nothing of it, and nobody wrote of it.", "They say it burnt down in 1958."),
    ),
    _example(
        2,
        "Which prizes has the author of the first book been given, and in which years was that?",
        "In 1958 the town gave her the prize of the mill for her first book; in 1972 she was given "
        "the river prize for all that she had written by then, and in 1991 a medal of silver that "
        "she never wore, for she thought that the old miller should have had it in her place.",
        "Her first book brought her the prize of the mill in 1958; the river prize came in 1972 "
        "for all her work, and a medal of silver in 1991.",
        (
            "In 1961 she was given a golden pen by the capital, and in 1980 the large prize for "
            "poetry; nothing after that.",
            "She has never been given any prize at all.",
        ),
    ),
]


class WrongError(Exception):
    """Our number is not transformers' own."""


def study(family, settings, tokenizer, work):
    """Compare all that our code does with a model of a family with transformers' own.

    Returns:
        ``verdict``: ``right``, ``refused``, ``wrong``, ``crash``, or ``not built`` where
        transformers itself can't build, save and load such a model; ``why``: of a refusal or a
        failure; ``problems``: by check, of models that are right but for a feature.
    """
    found = {"family": family}
    folder = Path(work) / family
    shutil.rmtree(folder, ignore_errors=True)
    try:
        subject = _build(family, settings, tokenizer, folder)
    except Exception as error:
        return {**found, "verdict": "not built", "why": _short(error)}
    found["class"] = type(subject.reference).__name__
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        problems = _run(subject, folder)
    said = [
        str(one.message) for one in seen if type(subject.reference).__name__ in str(one.message)
    ]
    shutil.rmtree(folder, ignore_errors=True)
    if said:
        found["said"] = said
    if "load" in problems:
        kind, why = problems["load"]
        return {**found, "verdict": kind, "why": why}
    kinds = {kind for kind, _ in problems.values()}
    verdict = next((kind for kind in ("crash", "wrong", "refused") if kind in kinds), "right")
    if verdict == "refused" and "batch" not in problems:
        verdict = "right"
    found["verdict"] = verdict
    if problems:
        found["problems"] = {name: f"{kind}: {why}" for name, (kind, why) in problems.items()}
        found["why"] = next(iter(found["problems"].values()))
    return found


def _build(family, settings, tokenizer, folder):
    """Save a model, and return it as transformers loads it, with rows and what it says of them."""
    special = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    for all_kinds in (True, False):
        try:
            # A few rows more than tokens, as real models have.
            size = len(tokenizer) + 8
            config = make_config(family, size, special, settings, all_kinds=all_kinds)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = AutoModelForCausalLM.from_config(config).float().eval()
            with torch.no_grad():
                model(input_ids=torch.arange(5, 45)[None])
            break
        except Exception:
            if not all_kinds:
                raise
    count = sum(weight.numel() for weight in model.parameters())
    if count > 60e6:
        raise ValueError(f"no tiny model of it: {count} weights")
    randomise(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = Encoder(tokenizer, template="chat")
    rows = [encoder.encode(example) for example in EXAMPLES]
    ids, mask = pad_rows([row.input_ids for row in rows], encoder.pad_id)
    labels, _ = pad_rows([row.labels for row in rows], IGNORE_INDEX)
    wanted = [_plain(reference, row) for row in rows]
    if not all(torch.isfinite(one).all() for pair in wanted for one in pair):
        raise ValueError("its own numbers are not finite")
    return SimpleNamespace(
        reference=reference,
        encoder=encoder,
        rows=rows,
        batch=(ids, mask, labels),
        logps=torch.cat([logps for logps, _ in wanted]),
        entropies=torch.cat([entropies for _, entropies in wanted]),
    )


def _run(subject, folder):
    """Return what is wrong, by check: its kind and the reason."""
    problems = {}

    def tried(name, check):
        try:
            check(subject)
        except InputError as error:
            problems[name] = ("refused", str(error))
        except WrongError as error:
            problems[name] = ("wrong", str(error))
        except Exception as error:
            problems[name] = ("crash", _short(error))
        return name not in problems

    subject.folder = folder
    if not tried("load", _load):
        if problems["load"][0] == "refused" and not _is_refused_truly(subject):
            problems["load"] = ("wrong", f"refused for no reason: {problems['load'][1]}")
        return problems
    if tried("batch", _check_batch) and tried("gradient", _check_gradient):
        tried("gradient, recomputed", _check_recomputed)
    for name, check in (
        ("gradient norm", _check_gradient_norm),
        ("states", _check_states),
        ("answers", _check_answers),
        ("generation", _check_generation),
        ("export", _check_export),
    ):
        tried(name, check)
    return problems


def _load(subject):
    """Load as a run does."""
    pretrained = str(subject.folder)
    subject.lm = None
    tokenizer = load_tokenizer(pretrained)
    check_vocabulary(tokenizer, load_config(pretrained), pretrained)
    subject.tokenizer, subject.lm = tokenizer, load_model(pretrained)
    subject.scorer = LabelScorer(subject.lm).eval()
    subject.scorer.check_head()
    subject.scorer.is_quiet = settle_noise(subject.lm, "off", reads_cache=True)


def _is_refused_truly(subject):
    """Tell whether numbers would have been wrong, or the library itself can't load the model."""
    if subject.lm is None:
        return True
    reference, row = subject.reference, torch.tensor([subject.rows[-1].input_ids])
    with torch.no_grad():
        whole = reference(input_ids=row).logits[0].log_softmax(-1)
        for length in (row.shape[1] - 1, row.shape[1] // 2):
            part = reference(input_ids=row[:, :length]).logits[0].log_softmax(-1)
            if len(part) != length or (part - whole[:length]).abs().max() > TOLERANCE:
                return True
    try:
        with torch.no_grad():
            said = subject.scorer(*subject.batch)
    except (RuntimeError, AttributeError, IndexError, TypeError, ValueError):
        return True
    return bool((said.logps.double() - subject.logps).abs().max() > TOLERANCE)


def _plain(model, row):
    """Return transformers' own label log-probabilities and entropies of one row alone."""
    ids, labels = torch.tensor([row.input_ids]), torch.tensor(row.labels)[1:]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1].double()
    is_label = labels != IGNORE_INDEX
    logps = logits[is_label].log_softmax(-1)
    picked = logps.gather(-1, labels[is_label][:, None])[:, 0]
    return picked, -(logps.exp() * logps).sum(-1)


def _require(difference, what, limit=TOLERANCE):
    if not difference <= limit:
        raise WrongError(f"{what} off by {float(difference):.2g}")


def _check_batch(subject):
    """A padded batch, in both modes, as each row alone."""
    for mode in (False, True):
        subject.scorer.train(mode)
        with torch.no_grad():
            said = subject.scorer(*subject.batch, {"entropies"})
        name = "in training" if mode else "in evaluation"
        _require((said.logps.double() - subject.logps).abs().max(), f"log-probabilities {name}")
        _require((said.entropies.double() - subject.entropies).abs().max(), f"entropies {name}")
    subject.scorer.eval()


def _own_gradients(subject):
    """Return transformers' own gradients of the labels' sum, row by row."""
    if not hasattr(subject, "gradients"):
        model = subject.reference.train()
        quiet = LabelScorer(model)
        quiet.is_quiet = subject.scorer.is_quiet
        quiet.train()
        model.zero_grad()
        for row in subject.rows:
            _row_logps(model, row).sum().backward()
        weights = model.named_parameters()
        subject.gradients = {n: w.grad.clone() for n, w in weights if w.grad is not None}
        model.eval()
    return subject.gradients


def _row_logps(model, row):
    # A state that is kept for later is written over (RWKV).
    ids = torch.tensor([row.input_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    labels = torch.tensor(row.labels)[1:]
    kept = labels != IGNORE_INDEX
    return logits.log_softmax(-1)[kept].gather(-1, labels[kept][:, None])


def _check_gradient(subject):
    """Gradients of a padded batch, and as training lays it out, against those row by row."""
    scorer, wanted = subject.scorer, _own_gradients(subject)
    layout = plan_layout(subject.rows, subject.batch[2])
    if not scorer.takes_packed:
        layout = layout._replace(packed=None)
    scorer.train()
    for how in (None, layout):
        what = "" if how is None else " of rows that are laid out"
        scorer.zero_grad()
        said = scorer(*subject.batch, {"entropies"}, 1.0, (), how)
        said.logps.sum().backward()
        found = {n: w.grad for n, w in scorer.lm.named_parameters() if w.grad is not None}
        parts = [(found.get(name, torch.zeros_like(g)) - g).norm() for name, g in wanted.items()]
        whole = torch.stack([g.norm() for g in wanted.values()]).norm()
        _require((said.logps.double() - subject.logps).abs().max(), f"log-probabilities{what}")
        _require(torch.stack(parts).norm() / whole, f"gradient{what}", GRADIENT)
    scorer.eval()
    scorer.zero_grad()


def _check_recomputed(subject):
    """The same with activations computed anew in the backward pass."""
    recompute_activations(subject.lm)
    try:
        _check_gradient(subject)
    finally:
        subject.lm.gradient_checkpointing_disable()


def _check_gradient_norm(subject):
    """The norm of one row's gradient."""
    row, model = subject.rows[0], subject.reference
    ids = torch.tensor([row.input_ids])
    said = subject.scorer.gradient_norm(ids, torch.ones_like(ids), torch.tensor([row.labels]))
    model.zero_grad()
    _row_logps(model, row).mean().backward()
    own = torch.stack([w.grad.norm() for w in model.parameters() if w.grad is not None]).norm()
    _require(abs(said / float(own) - 1), "gradient norm", GRADIENT)


def _check_states(subject):
    """What a layer says, where transformers lists it."""
    with torch.no_grad():
        said = subject.scorer(*subject.batch, {"states"}, layers=(1,)).states
        ids = torch.tensor([subject.rows[0].input_ids])
        listed = subject.reference(input_ids=ids, output_hidden_states=True).hidden_states
    count = getattr(subject.lm.config.get_text_config(), "num_hidden_layers", None)
    if not listed or any(one is None for one in listed) or len(listed) - 1 != count:
        return
    is_label = torch.tensor(subject.rows[0].labels) != IGNORE_INDEX
    # Mamba's list begins behind the first block, others' with the embeddings.
    own = [state[0][is_label] for state in listed[1:3]]
    first = said.layers[1][: int(is_label.sum())]
    _require(min((first - one).abs().max() for one in own), "states", 1e-3)


def _check_answers(subject):
    """All answers of evaluation rows, in trees where those are taken."""
    eval_set = EvalSet("forget", tuple(EXAMPLES), max_new_tokens=0)
    scores = [
        score
        for batch in build_batches(eval_set, subject.encoder, 8)
        for score in score_batch(subject.scorer, batch, subject.tokenizer)
    ]
    for example, record in zip(EXAMPLES, make_records(eval_set, scores), strict=True):
        texts = [example.answer, example.paraphrased_answer, *example.perturbed_answers]
        losses = [record.answer_loss, record.paraphrase_loss, *record.perturbed_losses]
        for text, loss in zip(texts, losses, strict=True):
            logps, _ = _plain(subject.reference, subject.encoder.encode(example, text))
            _require(abs(loss + float(logps.mean())), "loss of an answer")
        logps, entropies = _plain(subject.reference, subject.encoder.encode(example))
        for own, kept in ((logps, record.token_logps), (entropies, record.token_entropies)):
            _require((torch.tensor(kept).double() - own).abs().max(), "a record")


def _check_generation(subject):
    """A batch's greedy continuations against steps by hand without batch, padding or cache."""
    prompts = [subject.encoder.encode_prompt(example) for example in EXAMPLES]
    eval_set = EvalSet("forget", tuple(EXAMPLES), losses=False, max_new_tokens=NEW_TOKENS)
    (batch,) = build_batches(eval_set, subject.encoder, 8)
    tokenizer = subject.tokenizer
    scores = score_batch(subject.scorer, batch, tokenizer)
    texts = [score.value for score in sorted(scores, key=lambda score: score.row)]
    own = subject.reference.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    for prompt, text in zip(prompts, texts, strict=True):
        row = list(prompt)
        while len(row) < len(prompt) + NEW_TOKENS:
            with torch.no_grad():
                logits = subject.reference(input_ids=torch.tensor([row]), use_cache=False).logits
            row.append(int(logits[0, -1].argmax()))
            if row[-1] in ends:
                break
        plain = tokenizer.decode(row[len(prompt) :], skip_special_tokens=True).strip()
        if text != plain:
            raise WrongError(
                f"a continuation is {text!r} ({way_of(subject.lm)}), by hand {plain!r}"
            )


def _check_export(subject):
    """What is saved says what was trained."""
    again = subject.folder / "again"
    subject.lm.save_pretrained(again)
    subject.tokenizer.save_pretrained(again)
    ids = torch.tensor([subject.rows[0].input_ids])
    with torch.no_grad():
        logits = load_model(str(again))(input_ids=ids).logits - subject.lm(input_ids=ids).logits
    _require(logits.abs().max(), "logits of the saved model", 1e-6)


def _short(error):
    """Return an error in one line, and where it was raised."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]:.200} [{Path(where.filename).name}:{where.lineno}]"
