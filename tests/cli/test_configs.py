"""Every shipped configuration parses, alone or on top of another, and leaves nothing to chance."""

import importlib
import inspect
import itertools
from pathlib import Path

import pytest
import yaml
from torch.nn.parallel import DistributedDataParallel

from etw_lightning.benchmarks.muse import MUSE
from etw_lightning.benchmarks.tofu import TOFU

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
#: Files that are laid over a complete run.
OVERLAYS = {"budget"}
COMPLETE = sorted({path.stem for path in CONFIGS.glob("*.yaml")} - OVERLAYS)
METHODS = sorted(path.stem for path in CONFIGS.glob("method/*.yaml"))
STRATEGIES = sorted(path.stem for path in CONFIGS.glob("strategy/*.yaml"))
MODELS = sorted(path.stem for path in CONFIGS.glob("model/*.yaml"))
DATA = sorted(path.stem for path in CONFIGS.glob("data/*.yaml"))
#: What is laid over a run, one of each kind.
KINDS = {"method": METHODS, "strategy": STRATEGIES, "model": MODELS, "data": DATA}
OTHERS = (STRATEGIES, MODELS, DATA)
#: Without runs that push nothing down: some fine-tune, one is for ``evaluate`` only.
UNLEARNING = [
    name
    for name in COMPLETE
    if name
    not in (
        "tofu_finetune",
        "tofu_small_finetune",
        "tofu_smollm2_finetune",
        "tofu_smollm2_400_finetune",
        "wmdp",
    )
]

#: What a method settles besides its classes.
NUMBERS = {
    "weighting",
    "forget",
    "retain",
    "forget_weight",
    "retain_weight",
    "reduction",
    "reference",
}
#: What a method says of surgery, if it is one of it: all of it.
SURGERY = {"surgery", "surgery_average", "surgery_geometry"}
#: Files that are cases or pairs of classes which have files of their own.
CASES = {
    "gru",
    "gu",
    "etw_altpo",
    "etw_npo",
    "etw_palu",
    "etw_pdu",
    "ga_kl",
    "idk_dpo",
    "idk_nll",
    "imp",
    "sat",
    "sce",
    "scn",
}

#: Published run -> where the target model, the retain model and another tokenizer come from.
HUB = {
    "muse_books": (
        "muse-bench/MUSE-Books_target",
        "muse-bench/MUSE-Books_retrain",
        "meta-llama/Llama-2-7b-hf",
    ),
    "muse_news": (
        "muse-bench/MUSE-News_target",
        "muse-bench/MUSE-News_retrain",
        "meta-llama/Llama-2-7b-hf",
    ),
    **{
        f"tofu_forget{share}": (
            "open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
            f"open-unlearning/tofu_Llama-3.2-1B-Instruct_{rest}",
            None,
        )
        for share, rest in (("01", "retain99"), ("05", "retain95"), ("10", "retain90"))
    },
    "tofu_finetune": ("meta-llama/Llama-3.2-1B-Instruct", None, None),
}


def crossed(runs, files):
    """Return all pairs; those that are not needed for each of both to be in one are slow."""
    longest = range(max(len(runs), len(files)))
    kept = {(runs[place % len(runs)], files[place % len(files)]) for place in longest}
    return [
        pytest.param(*pair, marks=() if pair in kept else pytest.mark.slow)
        for pair in itertools.product(runs, files)
    ]


def written(name):
    """Return what stands in a file."""
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


@pytest.fixture
def resolved(command, home):
    """Return the whole configuration that files and flags give, as the run would save it."""

    def parse(*files, flags=()):
        options = [f"--config={CONFIGS / file}.yaml" for file in files]
        result = command("fit", *options, *flags, "--print_config")
        assert (result.status, result.err) == (0, "")
        return yaml.safe_load(result.out)

    return parse


def classes_of(model):
    """Return the parts of a ``model:`` block that are classes, by key."""
    found = {key: model[key] for key in ("weighting", "forget", "retain") if model.get(key)}
    for key, part in list(found.items()):
        for name, value in part.get("init_args", {}).items():
            if isinstance(value, dict):
                found[f"{key}.{name}"] = value
    return found


def given_and_taken(part):
    """Return the arguments a file writes for a class, and those the class takes."""
    module, name = part["class_path"].rsplit(".", 1)
    kind = getattr(importlib.import_module(module), name)
    return set(part.get("init_args", {})), set(inspect.signature(kind).parameters)


def bare(arguments):
    """Return the arguments of a class, without empty lists of arguments of those inside."""
    inside = {name: value for name, value in arguments.items() if isinstance(value, dict)}
    for name, value in inside.items():
        kept = {key: one for key, one in value.items() if key != "init_args" or one}
        arguments = {**arguments, name: kept}
    return arguments


def test_the_runs_of_the_readme_are_there():
    published = {"quickstart", "muse_news", "muse_books", "tofu_finetune"}
    assert published | {f"tofu_forget{share}" for share in ("01", "05", "10")} <= set(COMPLETE)
    assert {"etw", "ga", "npo", "rmu"} <= set(METHODS)


@pytest.mark.parametrize("name", COMPLETE)
def test_one_file_is_a_run(resolved, name, tmp_path, command):
    config = resolved(name)
    assert config["model"]["pretrained"]
    names = [entry["class_path"].rsplit(".", 1)[-1] for entry in config["trainer"]["callbacks"]]
    assert names, "a run that is not evaluated shows nothing"
    assert config["trainer"]["gradient_clip_val"] == 1.0
    assert config["trainer"]["gradient_clip_algorithm"] in (None, "norm")
    assert config["collapse"]["action"] == "warn"
    if {"ForgetQuality", "PrivLeak"} & set(names):
        assert config["data"]["retain_model"] or config["data"]["retain_results"]
    # What a run saves repeats it.
    saved = tmp_path / "config.yaml"
    saved.write_text(yaml.safe_dump(config))
    again = command("fit", "--config", saved, "--print_config")
    assert yaml.safe_load(again.out) == config


@pytest.mark.parametrize(("name", "method"), crossed(UNLEARNING, METHODS))
def test_a_method_on_top_of_a_run(resolved, name, method):
    config = resolved(name, f"method/{method}")
    model, wanted = config["model"], written(f"method/{method}")
    assert wanted.pop("data", {}).items() <= config["data"].items()
    for key, value in wanted["model"].items():
        if value is None or not isinstance(value, dict):
            assert model[key] == value
            continue
        assert model[key]["class_path"] == value["class_path"]
        assert bare(model[key].get("init_args", {})) == bare(value.get("init_args", {}))


def test_a_budget_on_top_of_a_run(resolved):
    config = resolved("quickstart", "method/etw", "budget")
    names = [entry["class_path"].rsplit(".", 1)[-1] for entry in config["trainer"]["callbacks"]]
    assert "RetainBudget" in names


@pytest.mark.parametrize(("name", "model"), crossed(COMPLETE, MODELS))
def test_a_model_on_top_of_a_run(resolved, name, model):
    config = resolved(name, f"model/{model}")
    assert config["model"]["pretrained"] == written(f"model/{model}")["model"]["pretrained"]


def leaves(block, at=""):
    """Return the keys a file sets and their values; a class is one value."""
    found = {}
    for key, value in block.items():
        place = f"{at}.{key}".lstrip(".")
        if isinstance(value, dict) and at == "" and key in ("model", "data", "trainer"):
            found |= leaves(value, place)
        else:
            found[place] = value
    return found


def held(config, key):
    """Return the value of a key of a whole configuration."""
    for part in key.split("."):
        config = config[part]
    return config


def test_files_of_one_kind_hold_no_key_of_another():
    keys = {
        kind: {key for name in names for key in leaves(written(f"{kind}/{name}"))}
        for kind, names in KINDS.items()
    }
    assert all(keys.values())
    for one, other in itertools.combinations(KINDS, 2):
        assert not keys[one] & keys[other], (one, other)


def test_files_of_data_settle_the_same_keys():
    """Laid over any other they leave nothing of it."""
    first, *others = [set(leaves(written(f"data/{name}"))) for name in DATA]
    assert all(first == other for other in others)
    of_run = {
        key for name in UNLEARNING for key in leaves(written(name)) if key.startswith("data.")
    }
    shared = {"data.anchor", "data.batch_size", "data.eval_batch_size", "data.template",
              "data.system_prompt", "data.template_kwargs", "data.tokenizer"}  # fmt: skip
    assert of_run <= first | shared


@pytest.fixture(scope="module")
def reader():
    """What a command's words mean, by its own parser, in this process."""
    from etw_lightning.commands.run_reader import RunReader

    return RunReader().read


def check_together(reader, names):
    """Lay files of all kinds over a run; each is there whole."""
    files = [f"{kind}/{name}" for kind, name in names.items()]
    config = reader(["fit", *(f"--config={CONFIGS / file}.yaml" for file in ("own_data", *files))])
    for file in files:
        for key, value in leaves(written(file)).items():
            found = held(config, key)
            if not isinstance(value, dict) or "class_path" not in value:
                assert found == value or key == "trainer.callbacks"
                continue
            assert found["class_path"] == value["class_path"]
            wanted = bare(value.get("init_args", {}))
            assert wanted.items() <= bare(found.get("init_args", {})).items()
    wanted = written(f"data/{names['data']}")["trainer"]["callbacks"]
    classes = [one["class_path"] for one in config["trainer"]["callbacks"]]
    assert classes == [one["class_path"] for one in wanted]


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, marks=() if place < max(map(len, OTHERS)) else pytest.mark.slow)
        for place in range(len(METHODS))
    ],
)
def test_a_file_of_each_kind_makes_a_run(reader, place):
    pytest.importorskip("deepspeed")
    check_together(reader, {kind: names[place % len(names)] for kind, names in KINDS.items()})


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_any_file_goes_with_any_other(reader, strategy):
    """All pairs: each method with each strategy, and data files in turn behind both."""
    pytest.importorskip("deepspeed")
    shift = STRATEGIES.index(strategy)
    for place, method in enumerate(METHODS):
        for model in MODELS:
            data = DATA[(place + shift) % len(DATA)]
            names = {"method": method, "strategy": strategy, "model": model, "data": data}
            check_together(reader, names)
    seen = {DATA[(place + other) % len(DATA)] for other in range(len(STRATEGIES)) for place in [0]}
    assert seen == set(DATA)


def test_a_later_flag_wins(resolved):
    flags = ["--model.lambda", "0.7", "--model.weighting.temperature", "2"]
    model = resolved("tofu_forget10", "method/etw", flags=flags)["model"]
    assert model["forget_weight"] == 0.7
    assert model["weighting"]["init_args"]["temperature"] == 2.0


@pytest.mark.parametrize("method", METHODS)
def test_a_method_writes_all_its_numbers(method):
    config = written(f"method/{method}")
    model = config["model"]
    assert NUMBERS <= set(model) <= NUMBERS | {"train_only"} | SURGERY
    assert SURGERY & set(model) in (set(), SURGERY)
    parts = classes_of(model)
    for key, part in parts.items():
        given, taken = given_and_taken(part)
        assert given == taken, key
    labels = {part["class_path"].rsplit(".", 1)[-1].lower() for part in parts.values()}
    assert method in labels | CASES, "a method's file and class are one word"
    needs_answers = labels & {"dpo", "altpo", "idknll", "jensun", "flat"}
    assert config.get("data", {}).keys() == ({"alternative"} if needs_answers else set())


#: Numbers of each method as they are published, or ours where its file says so: lambda, the retain
#: term's weight (None without one), and the numbers of its classes.
PUBLISHED = {
    "altpo": (1, 1, {"beta": 0.1}),
    "annotated": (1, 1, {}),
    "atwu": (
        1,
        1,
        {"beta": 5, "budget": 0.2, "budget_weight": 10, "entropy_weight": 1, "ridge": 1}
        | {"rate": 0.05, "every": 5},
    ),
    "ceu": (1, None, {"skip_first": 1}),
    "dpo": (1, 1, {"beta": 0.1}),
    "etw": (0.1, 1, {"temperature": 1, "floor": 0}),
    "etw_altpo": (0.05, 1, {"temperature": 1, "floor": 0, "beta": 0.1}),
    "etw_npo": (1, 1, {"temperature": 1, "floor": 0, "beta": 0.1}),
    "etw_palu": (
        0.01,
        1,
        {"temperature": 1, "floor": 0, "top_share": 0.25, "top_k": 1, "preservation": 1},
    ),
    "etw_pdu": (0.006, 1, {"temperature": 1, "floor": 0}),
    "flat": (1, None, {}),
    "ga": (1, 1, {}),
    "ga_kl": (1, 1, {}),
    "gru": (1, 1, {}),
    "gu": (0.125, 1, {"beta": 4.5, "delta": 0}),
    "idk_dpo": (1, 1, {"beta": 0.1}),
    "idk_nll": (1, 1, {}),
    "imp": (0.1, 1, {"beta1": 0, "beta2": 1}),
    "jensun": (1, 1, {}),
    "me": (0.1, 1, {}),
    "mixture": (0.1, 1, {"temperature": 1, "floor": 0, "share": 0.5}),
    "npo": (1, 1, {"beta": 0.1}),
    "palu": (1, 1, {"top_k": 1, "preservation": 1}),
    "pdu": (1, 100, {}),
    "product": (0.1, 1, {"temperature": 1, "floor": 0, "beta1": 0, "beta2": 1}),
    "random": (0.1, 1, {"temperature": 1, "floor": 0, "seed": 0}),
    "rmu": (1, 1200, {"layer": 7, "steering_coefficient": 6.5, "seed": 0}),
    "sat": (0.1, 1, {"beta1": 5, "beta2": 0}),
    "satimp": (0.1, 1, {"beta1": 5, "beta2": 1}),
    "sce": (1, 1, {}),
    "scn": (1, 1, {}),
    "simnpo": (0.125, 1, {"beta": 4.5, "delta": 0}),
    "surprisal": (0.1, 1, {}),
    "tnpo": (1, 1, {"beta": 4}),
    "tpo": (1, None, {"beta": 0.19, "preservation": 1}),
    "undial": (1, None, {"strength": 10}),
    "wga": (1, 1, {"beta": 1}),
    "wtnpo": (1, 1, {"beta": 4, "alpha": 1.5}),
}


def numbers_of(part):
    """Return all numbers below a class's arguments, by name."""
    found = {}
    for name, value in part.get("init_args", {}).items():
        if isinstance(value, dict):
            found |= numbers_of(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_its_published_numbers(method):
    """A new method's numbers are to be looked up twice: for its file, and for this table."""
    model = written(f"method/{method}")["model"]
    retain_weight = None if model["retain"] is None else model["retain_weight"]
    numbers = {}
    for key in ("weighting", "forget", "retain"):
        numbers |= numbers_of(model[key] or {})
    assert (model["forget_weight"], retain_weight, numbers) == PUBLISHED[method]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_says_in_a_sentence_where_its_numbers_come_from(method):
    lines = (CONFIGS / f"method/{method}.yaml").read_text().splitlines()
    comment = " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))
    assert lines[0].startswith("# ")
    assert comment.endswith(".")
    assert "arXiv:" in comment or "ours" in comment or "as there" in comment or "as of" in comment


@pytest.mark.parametrize("name", UNLEARNING)
def test_a_run_writes_all_numbers_of_its_method(name):
    model = written(name)["model"]
    assert set(model) >= NUMBERS
    for key, part in classes_of(model).items():
        given, taken = given_and_taken(part)
        assert given == taken, key


@pytest.mark.parametrize("name", HUB)
def test_models_come_from_the_hub_by_their_published_names(resolved, name):
    config = resolved(name)
    data = config["data"]
    found = (config["model"]["pretrained"], data["retain_model"], data["tokenizer"])
    assert found == HUB[name]
    assert data["root"] is None
    assert data["hub"] is None


def test_data_comes_from_the_hub_by_its_published_names():
    assert TOFU().source.hub == "locuslab/TOFU"
    assert MUSE(corpus="news").source.hub == "muse-bench/MUSE-News"
    assert MUSE(corpus="books").source.hub == "muse-bench/MUSE-Books"


def test_there_is_a_file_for_each_strategy():
    offload = "deepspeed_zero3_offload"
    known = ["ddp", "deepspeed_zero2", "deepspeed_zero3", offload, "fsdp", "single"]
    assert known == STRATEGIES


@pytest.mark.parametrize(("name", "strategy"), crossed(COMPLETE, STRATEGIES))
def test_a_strategy_on_top_of_a_run(resolved, name, strategy):
    """Only parsed: most of them need devices that are not here."""
    # It says on import what it runs on, which is no part of the configuration.
    pytest.importorskip("deepspeed")
    wanted = written(f"strategy/{strategy}")
    config = resolved(name, f"strategy/{strategy}")
    trainer = config["trainer"]
    assert trainer["callbacks"] == resolved(name)["trainer"]["callbacks"]
    for key, value in wanted["trainer"].items():
        if isinstance(value, dict):
            given, taken = given_and_taken(value)
            if value["class_path"].endswith(".DDPStrategy"):
                # It hands these on.
                taken |= set(inspect.signature(DistributedDataParallel).parameters)
            assert given <= taken
            assert value["class_path"] == trainer[key]["class_path"]
            assert value["init_args"].items() <= trainer[key]["init_args"].items()
        else:
            assert trainer[key] == value
    for key, value in wanted.get("model", {}).items():
        assert config["model"][key] == value


def test_only_the_offload_file_moves_weights_to_the_cpu():
    moved = {
        name: [key for key, value in arguments.items() if key.startswith("offload") and value]
        for name in STRATEGIES
        if isinstance(strategy := written(f"strategy/{name}")["trainer"]["strategy"], dict)
        and (arguments := strategy["init_args"])
    }
    assert [name for name, keys in moved.items() if keys] == ["deepspeed_zero3_offload"]
