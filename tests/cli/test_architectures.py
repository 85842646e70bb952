"""Models of other kinds from the command line: right, or one line that says why not."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, CTRLConfig, Gemma2Config, GPT2Config, LlamaConfig

from etw_lightning import unlearn
from etw_lightning.models.loading import check_stored, load_model
from etw_lightning.schema import InputError

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
WIDTHS = {"hidden_size": 16, "intermediate_size": 32, "head_dim": 8}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512}


@pytest.fixture
def save(tiny_model_dir, tiny_tokenizer, tmp_path_factory):
    """Save a random model of a configuration beside the tiny model's tokenizer."""

    def call(config, **fields):
        folder = tmp_path_factory.mktemp("kind") / "model"
        ignored = shutil.ignore_patterns("*.safetensors", "config.json", "generation_config.json")
        shutil.copytree(tiny_model_dir, folder, ignore=ignored)
        special = {name: getattr(tiny_tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = config(vocab_size=len(tiny_tokenizer), **special, **fields)
            AutoModelForCausalLM.from_config(made).save_pretrained(folder)
        return f"--model.pretrained={folder}"

    return call


@pytest.fixture
def training_args(tofu_args):
    """``fit`` without a callback: nothing but training."""
    return [*tofu_args, "--trainer.callbacks=[]"]


@pytest.mark.parametrize("subcommand", ["fit", "check"])
def test_rows_beyond_dynamic_frequencies_are_refused_in_training(
    refused, training_args, save, subcommand
):
    """What was in a batch with them would decide what is said of a row."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = save(LlamaConfig, **SMALL, **WIDTHS, rope_parameters=rope, max_position_embeddings=16)
    text = refused(subcommand, *training_args[1:], model)
    assert "LlamaForCausalLM has 15 of which the rotary frequencies don't depend on" in text
    assert "Set data.max_length to at most 15" in text


@pytest.mark.parametrize("subcommand", ["fit", "check"])
def test_rows_beyond_learned_positions_are_refused_before_the_first_step(
    refused, training_args, save, subcommand
):
    model = save(GPT2Config, **{**GPT2, "n_positions": 16})
    text = refused(subcommand, *training_args[1:], model, is_warned=True)
    assert "GPT2LMHeadModel has 16. Set data.max_length to at most 16" in text


@pytest.mark.parametrize("subcommand", ["fit", "check"])
def test_a_class_that_can_not_recompute_is_one_line(refused, training_args, save, subcommand):
    model = save(CTRLConfig, n_embd=16, n_layer=2, n_head=2, dff=32, n_positions=512)
    flag = "--model.gradient_checkpointing=true"
    text = refused(subcommand, *training_args[1:], model, flag)
    assert text.startswith("model.gradient_checkpointing can't be had of CTRLLMHeadModel")


def test_a_soft_cap_is_trained_and_scored_through(command, tofu_args, save, home, retain_model_dir):
    model = save(Gemma2Config, **SMALL, **WIDTHS, final_logit_softcapping=5.0, sliding_window=8)
    folder = home.parent / "capped"
    outcome = command(
        *tofu_args, model, f"--data.retain_model={retain_model_dir}", f"--output_dir={folder}"
    )
    assert outcome.status == 0, outcome.err
    assert (folder / "results.json").is_file()


@pytest.mark.parametrize(
    ("flags", "is_said"),
    [([], True), (["--model.dropout=off"], False), (["--model.dropout=as_configured"], False)],
)
def test_dropout_is_named(command, training_args, save, home, recwarn, flags, is_said):
    model = save(GPT2Config, **GPT2)
    folder = home.parent / "run"
    outcome = command(*training_args, model, *flags, f"--output_dir={folder}")
    assert outcome.status == 0, outcome.err
    said = [str(one.message) for one in recwarn if "attn_pdrop 0.1" in str(one.message)]
    assert len(said) == is_said


@pytest.fixture(scope="module")
def packed(tiny_model_dir, tmp_path_factory):
    """Folder of the tiny model in 4 bits, as its library saves it."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    folder = tmp_path_factory.mktemp("packed") / "model"
    ignored = shutil.ignore_patterns("*.safetensors", "config.json")
    shutil.copytree(tiny_model_dir, folder, ignore=ignored)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    lm = AutoModelForCausalLM.from_pretrained(tiny_model_dir, quantization_config=how)
    lm.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("subcommand", ["fit", "check"])
def test_packed_weights_are_scored_and_not_trained(refused, training_args, packed, subcommand):
    """Only what is not packed would move, and a model that can't be saved would come of it."""
    assert check_stored(str(packed)).endswith("and by the shapes that these were packed from")
    text = refused(subcommand, *training_args[1:], f"--model.pretrained={packed}")
    assert text.startswith("model.pretrained: its weights are quantized (bitsandbytes), and what")


def test_a_packed_model_in_memory_is_not_trained(packed, tiny_tokenizer):
    rows = ["Mara Venn wrote The Salt Road."]
    with pytest.raises(InputError, match=r"^model must have weights that train; got a quantized"):
        unlearn(load_model(str(packed)), tiny_tokenizer, rows, rows)


def test_packed_weights_of_another_width_are_refused(packed, tmp_path):
    """The library takes the width of what was packed, whatever the configuration says."""
    folder = shutil.copytree(packed, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    for look in (check_stored, load_model):
        with pytest.raises(InputError, match=r"down_proj\.weight \(32, 64\) for \(32, 128\)"):
            look(str(folder))
