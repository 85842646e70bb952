"""What is used is what was saved: weights that are missing, unknown or of another shape."""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file

from etw_lightning.models import weight_fit
from etw_lightning.models.loading import check_stored, load_model
from etw_lightning.schema import InputError

HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
META = {"format": "pt"}


@pytest.fixture
def weights(tiny_model_dir):
    return load_file(tiny_model_dir / "model.safetensors")


@pytest.fixture
def stored(tiny_model_dir, tmp_path):
    """Copy the tiny model's folder with these weights and changes of its configuration."""

    def call(weights, name="model", **changes):
        folder = shutil.copytree(tiny_model_dir, tmp_path / name)
        save_file(weights, folder / "model.safetensors", META)
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return call


def refusals(folder, key="data.retain_model"):
    """Return what loading and looking at the headers alone are refused with."""
    found = []
    for look in (lambda: load_model(str(folder), key=key), lambda: check_stored(str(folder), key)):
        with pytest.raises(InputError) as error:
            look()
        found.append(str(error.value))
    return found


def without(weights, *parts):
    return {name: one for name, one in weights.items() if not any(part in name for part in parts)}


LAYER = "(model.layers.1.input_layernorm.weight, model.layers.1.mlp.down_proj.weight, "


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (lambda w: without(w, HEAD), {}, f"1 weight ({HEAD}) is missing"),
        (lambda w: without(w, "layers.1."), {}, f"9 weights {LAYER}"),
        (lambda w: w, {"num_hidden_layers": 1}, f"9 weights {LAYER}"),
        (lambda w: w, {"num_hidden_layers": 3}, "9 weights (model.layers.2.input_layernorm.weight"),
        (lambda w: w | {"stray": torch.zeros(2)}, {}, "1 weight (stray) is unknown to the model"),
        (
            lambda w: w | {HEAD: w[HEAD][:-2]},
            {},
            f"1 weight ({HEAD} (318, 32) for (320, 32)) is of another shape",
        ),
        (lambda w: w, {"intermediate_size": 48}, "6 weights (model.layers.0.mlp.down_proj.weight "),
        (
            lambda w: {"module." + name: one for name, one in without(w, HEAD).items()},
            {},
            "21 weights (",
        ),
        (
            lambda w: without(w, HEAD, EMBEDDINGS),
            {"tie_word_embeddings": True},
            f"2 weights ({HEAD}, {EMBEDDINGS}) are missing",
        ),
        (lambda w: w, {"attention_bias": True}, "8 weights (model.layers.0.self_attn.k_proj.bias"),
    ],
    ids=[
        "head",
        "layer",
        "one_layer_less",
        "one_layer_more",
        "stray",
        "shape",
        "width",
        "prefix_and_no_head",
        "tied_and_neither",
        "bias",
    ],
)
def test_weights_that_are_not_the_model_s(stored, weights, change, config, said):
    folder = stored(change(weights), **config)
    loaded, looked = refusals(folder)
    assert loaded == looked
    assert loaded.startswith(f"data.retain_model {str(folder)!r} does not hold the weights")
    assert said in loaded


def test_an_absent_head_has_a_way_out_of_its_own(stored, weights):
    ties = "set tie_word_embeddings to true in its config.json"
    assert ties in refusals(stored(without(weights, HEAD)))[0]
    assert ties not in refusals(stored(without(weights, HEAD, "norm"), "other"))[0]


@pytest.mark.parametrize(
    "prefix",
    [
        "base_model.model.",
        "module.",
        "_orig_mod.",
        "_forward_module.",
        "_forward_module.module.",
        "model._orig_mod.",
    ],
)
def test_known_prefixes_are_taken_off_with_a_line(stored, weights, tiny_model_dir, prefix):
    inner = prefix.startswith("model.")
    names = {
        name: name.replace("model.", prefix, 1) if inner else prefix + name for name in weights
    }
    folder = stored({names[name]: weight for name, weight in weights.items()})
    with pytest.warns(UserWarning, match="taken off the names of its weights"):
        assert check_stored(str(folder))
    with pytest.warns(UserWarning, match="taken off the names of its weights"):
        lm = load_model(str(folder), dtype="bfloat16")
    plain = load_model(str(tiny_model_dir), dtype="bfloat16")
    assert all(torch.equal(one, plain.state_dict()[n]) for n, one in lm.state_dict().items())
    assert lm.generation_config.to_dict() == plain.generation_config.to_dict()
    assert not lm.training
    lm.save_pretrained(folder.parent / "again")
    again = load_file(folder.parent / "again" / "model.safetensors")
    assert again.keys() == weights.keys()


def test_a_prefix_of_two_weights_of_one_name_is_left(stored, weights):
    other = {f"module.{name}": weight + 1 for name, weight in weights.items()}
    assert "21 weights (module.lm_head.weight, " in refusals(stored(weights | other))[0]


@pytest.mark.parametrize("lacking", [HEAD, EMBEDDINGS])
def test_a_tied_weight_is_stored_once(stored, weights, lacking, recwarn):
    kept = HEAD if lacking == EMBEDDINGS else EMBEDDINGS
    folder = stored(without(weights, lacking), tie_word_embeddings=True)
    assert check_stored(str(folder))
    lm = load_model(str(folder))
    assert lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
    assert torch.equal(lm.get_output_embeddings().weight, weights[kept])
    assert not recwarn.list


def test_tied_weights_stored_twice(stored, weights, recwarn):
    same = stored(weights | {HEAD: weights[EMBEDDINGS].clone()}, "same", tie_word_embeddings=True)
    lm = load_model(str(same))
    assert lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
    assert not recwarn.list

    differ = stored(weights, "differ", tie_word_embeddings=True)
    assert check_stored(str(differ))
    with pytest.warns(UserWarning, match="both are stored and differ; they are used as they are"):
        lm = load_model(str(differ))
    assert torch.equal(lm.get_output_embeddings().weight, weights[HEAD])
    assert torch.equal(lm.get_input_embeddings().weight, weights[EMBEDDINGS])
    assert lm.config.tie_word_embeddings is False


def test_what_an_old_library_stored_besides_is_no_weight(stored, weights, recwarn):
    old = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}
    folder = stored(weights | old)
    assert check_stored(str(folder))
    load_model(str(folder))
    assert not recwarn.list


# Buffers.


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
    """A mixture of experts whose router has a stored buffer, and experts stored one by one."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    )
    folder = tmp_path_factory.mktemp("routed")
    DeepseekV3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lacking", ["e_score_correction_bias", "experts.2.up_proj.weight"])
def test_a_buffer_and_an_expert_are_weights(routed, tmp_path, lacking):
    weights = load_file(routed / "model.safetensors")
    found = [name for name in weights if name.endswith(lacking)]
    assert found
    assert check_stored(str(routed))
    folder = shutil.copytree(routed, tmp_path / "model")
    save_file(without(weights, *found), folder / "model.safetensors", META)
    loaded, looked = refusals(folder)
    assert loaded == looked
    assert f"1 weight ({found[0]}) is missing" in loaded


# Several files.


@pytest.fixture
def sharded(tiny_model_dir, tmp_path):
    folder = tmp_path / "shards"
    load_model(str(tiny_model_dir)).save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def test_shards_are_one_model(sharded, tiny_model_dir):
    assert check_stored(str(sharded))
    assert (
        load_model(str(sharded)).num_parameters()
        == load_model(str(tiny_model_dir)).num_parameters()
    )


def test_a_weight_absent_from_its_shard(sharded):
    file = sorted(sharded.glob("*.safetensors"))[0]
    held = load_file(file)
    gone = held.pop(min(held))
    assert gone is not None
    save_file(held, file, META)
    for text in refusals(sharded):
        assert f"1 weight ({min(set(_names(sharded)) - _all(sharded))}) is missing" in text


def _names(folder):
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def _all(folder):
    return {name for file in folder.glob("*.safetensors") for name in load_file(file)}


def test_an_absent_shard(sharded):
    files = sorted(sharded.glob("*.safetensors"))
    files[1].unlink()
    for text in refusals(sharded):
        assert f"names {files[1].name}, which is not there (1 of {len(files)} files" in text


def test_a_weight_in_two_shards(sharded):
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    taken = load_file(first)
    name = min(taken)
    save_file(load_file(second) | {name: taken[name] + 1}, second, META)
    for text in refusals(sharded):
        assert f"{name} stands both in '{first}' and in {second.name} (1 weights do)" in text


def test_two_sets_of_files(sharded, tiny_model_dir):
    shutil.copy(tiny_model_dir / "model.safetensors", sharded)
    for text in refusals(sharded):
        assert "holds the weights twice, in model.safetensors and in model-00001-of-" in text


# Quantized folders: made by hand, as their methods' documentation lays them out.


def integers(*shape):
    return torch.zeros(shape, dtype=torch.int32)


def in_bytes(*shape):
    return torch.zeros(shape, dtype=torch.uint8)


def state_of(shape, blocksize):
    """Return what bitsandbytes stores beside 4 bits, with the entries that are read here."""
    told = json.dumps({"quant_type": "nf4", "shape": shape, "blocksize": blocksize})
    return torch.tensor(list(told.encode()), dtype=torch.uint8)


#: What a method puts in the place of a layer's weight of ``rows`` by ``columns``.
PACKED = {
    "gptq": lambda rows, columns: {
        ".qweight": integers(columns // 8, rows),
        ".qzeros": integers(1, rows // 8),
        ".scales": torch.ones(1, rows).half(),
        ".g_idx": integers(columns),
        ".bias": torch.zeros(rows).half(),
    },
    "awq": lambda rows, columns: {
        ".qweight": integers(columns, rows // 8),
        ".qzeros": integers(1, rows // 8),
        ".scales": torch.ones(1, rows).half(),
    },
    "bitsandbytes": lambda rows, columns: {
        ".weight": in_bytes(rows * columns // 2, 1),
        ".weight.absmax": torch.ones(rows * columns // 64),
        ".weight.quant_map": torch.ones(16),
        ".weight.quant_state.bitsandbytes__nf4": state_of([rows, columns], 64),
    },
    "compressed-tensors": lambda rows, columns: {
        ".weight_packed": integers(rows, columns // 8),
        ".weight_scale": torch.ones(rows, 1).bfloat16(),
        ".weight_shape": torch.tensor([rows, columns]),
    },
    "fp8": lambda rows, columns: {
        ".weight": torch.ones(rows, columns).to(torch.float8_e4m3fn),
        ".weight_scale_inv": torch.ones(-(-rows // 128), -(-columns // 128)),
    },
    "quark": lambda rows, columns: {
        ".weight": torch.ones(rows, columns).to(torch.float8_e4m3fn),
        ".weight_quantizer.scale": torch.tensor(1.0),
    },
}


@pytest.fixture(params=PACKED)
def quantized(request, stored, weights):
    """Store the tiny model as a quantizer would, with changes of weights and configuration."""
    settings = {"quant_method": request.param}
    if request.param in ("gptq", "awq"):
        settings |= {"bits": 4, "group_size": 128}
    if request.param == "fp8":
        settings |= {"weight_block_size": [128, 128]}

    def call(change=lambda found: found, **config):
        found = {}
        for name, weight in weights.items():
            if name.endswith("_proj.weight"):
                parts = PACKED[request.param](*weight.shape)
                found |= {name.removesuffix(".weight") + one: part for one, part in parts.items()}
            else:
                found[name] = weight.half()
        return stored(change(found), quantization_config=settings, **config)

    return call


@pytest.fixture(autouse=True)
def readers(monkeypatch):
    """Have weights looked at whose library is not there; ``test_a_library_that_reads`` has none."""
    monkeypatch.setattr(weight_fit, "_check_reader", lambda *_: None)


def test_quantized_weights_are_found_by_their_names_and_shapes(quantized, request):
    said = check_stored(str(quantized()))
    method = request.node.callspec.params["quantized"]
    assert said == (
        f"all that the model has, by the names in their files (quantized: {method}), and by the "
        "shapes that these were packed from"
    )


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (lambda w: without(w, "layers.1."), {}, f"9 weights {LAYER}"),
        (lambda w: w, {"num_hidden_layers": 1}, " unknown to the model"),
        (lambda w: w, {"num_hidden_layers": 3}, "9 weights (model.layers.2.input_layernorm.weight"),
        (lambda w: without(w, "1.mlp.up_proj"), {}, "1 weight (model.layers.1.mlp.up_proj.weight)"),
        (lambda w: without(w, HEAD), {}, f"1 weight ({HEAD}) is missing"),
        (lambda w: w | {"stray.qweight": integers(2)}, {}, "1 weight (stray.qweight) is unknown"),
        (lambda w: w, {"vocab_size": 328}, f"({HEAD} (320, 32) for (328, 32), {EMBEDDINGS} (320,"),
        (lambda w: w, {"model_type": "qwen2"}, "6 weights (model.layers.0.self_attn.k_proj.bias, "),
        (
            lambda w: w,
            {"intermediate_size": 128},
            "0.mlp.down_proj.weight (32, 64) for (32, 128), ",
        ),
        (
            lambda w: w,
            {"num_key_value_heads": 1},
            "0.self_attn.k_proj.weight (16, 32) for (8, 32)",
        ),
    ],
)
def test_quantized_weights_of_another_model(quantized, change, config, said, request):
    if "qwen2" in config.values() and "gptq" in request.node.callspec.id:
        pytest.skip("GPTQ gives every layer a bias")
    with pytest.raises(
        InputError, match=r"^data\.retain_model .* does not hold the weights"
    ) as error:
        check_stored(str(quantized(change, **config)), "data.retain_model")
    assert said in str(error.value)


#: By method, a tensor beside packed ones, what becomes of it, and what is said then.
BESIDE = [
    ("gptq", ".scales", lambda t: t[:, :4], "(1, 4) for (1, 64)"),
    ("awq", ".scales", None, "scales) is missing"),
    ("bitsandbytes", ".weight", lambda t: t[:8], "(8, 1) for (1024, 1)"),
    ("bitsandbytes", ".weight.absmax", lambda t: t[:4], "(4,) for (32,)"),
    ("bitsandbytes", ".weight.absmax", None, "absmax) is missing"),
    ("fp8", ".weight_scale_inv", lambda t: t.repeat(2, 1), "(2, 1) for (1, 1)"),
]


@pytest.mark.parametrize(("quantized", "beside", "change", "said"), BESIDE, indirect=["quantized"])
def test_tensors_beside_packed_ones_belong_to_them(quantized, beside, change, said):
    """bitsandbytes reads on behind the end of scales that are too few, and says nothing."""
    name = f"model.layers.1.mlp.gate_proj{beside}"

    def changed(weights):
        others = {key: one for key, one in weights.items() if key != name}
        return others if change is None else others | {name: change(weights[name]).contiguous()}

    for text in refusals(quantized(changed)):
        assert f"(model.layers.1.mlp.gate_proj{beside}" in text
        assert said in text


def test_a_method_that_tells_no_shapes_is_told(stored, weights):
    found = without(weights, "_proj") | {
        name: in_bytes(7) for name in weights if name.endswith("_proj.weight")
    }
    said = check_stored(str(stored(found, quantization_config={"quant_method": "hqq"})))
    assert "(quantized: hqq); the shapes of 14 can't be seen there and are not compared" in said


@pytest.mark.parametrize("quantized", ["gptq"], indirect=True)
def test_a_library_that_reads_packed_weights_must_be_there(quantized, monkeypatch):
    if find_spec("optimum") is not None:
        pytest.skip("optimum is there")
    monkeypatch.undo()
    for text in refusals(quantized()):
        assert text.endswith(
            "Loading a GPTQ quantized model requires optimum (`pip install optimum`)"
        )


@pytest.mark.parametrize("lacking", [None, "model.layers.1.mlp.up_proj.weight"])
def test_what_is_said_of_fp8_is_what_loading_says(stored, weights, lacking):
    """The one method that the library reads everywhere, by making floating-point numbers of it."""
    found = {}
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            parts = PACKED["fp8"](*weight.shape)
            found |= {name.removesuffix(".weight") + one: part for one, part in parts.items()}
        else:
            found[name] = weight
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    folder = stored(without(found, lacking) if lacking else found, quantization_config=settings)
    if lacking is None:
        assert "(quantized: fp8), and by the shapes" in check_stored(str(folder))
        assert torch.equal(load_model(str(folder)).lm_head.weight, weights[HEAD])
        return
    for text in refusals(folder):
        assert lacking in text


@pytest.fixture(scope="module")
def oss(tmp_path_factory):
    """Write a tiny GPT-OSS, whose experts are MXFP4 blocks and scales; return its tensors too."""
    from transformers import GptOssConfig, GptOssForCausalLM

    folder = tmp_path_factory.mktemp("oss")
    config = GptOssConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        vocab_size=320,
    )
    model = GptOssForCausalLM(config)
    config.quantization_config = {"quant_method": "mxfp4"}
    config.save_pretrained(folder)
    found = {}
    for name, weight in model.state_dict().items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, columns, rows = weight.shape
            found[f"{name}_blocks"] = in_bytes(experts, rows, columns // 32, 16)
            found[f"{name}_scales"] = in_bytes(experts, rows, columns // 32)
        else:
            found[name] = weight.bfloat16()
    return folder, found


def test_experts_in_blocks(oss):
    folder, weights = oss
    save_file(weights, folder / "model.safetensors", META)
    assert "(quantized: mxfp4), and by the shapes" in check_stored(str(folder))
    scales = "model.layers.1.mlp.experts.down_proj_scales"
    save_file(weights | {scales: in_bytes(4, 32, 2)}, folder / "model.safetensors", META)
    with pytest.raises(InputError, match=r"down_proj_scales \(4, 32, 2\) for \(4, 32, 1\)"):
        check_stored(str(folder))
    save_file(without(weights, "1.mlp.experts.down_proj_"), folder / "model.safetensors", META)
    with pytest.raises(
        InputError, match=r"2 weights \(model\.layers\.1\.mlp\.experts\.down_proj, "
    ):
        check_stored(str(folder))


# GGUF.


def write_gguf(path, tokenizer, architecture, tensors, **settings):
    """Write tensors and what describes their model; settings are named as the writer's methods."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in settings.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(320)))
    for name, weight in tensors.items():
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def named(weights, names, lacking, further):
    """Return the tensors of a file: the model's under other names but for some, and more."""
    found = {names[name]: one for name, one in weights.items() if names[name] not in lacking}
    return found | {name.replace("__", "."): one for name, one in further.items()}


def layer_names(parts):
    return {
        f"model.layers.{number}.{own}.weight": f"blk.{number}.{other}.weight"
        for number in range(2)
        for own, other in parts.items()
    }


@pytest.fixture
def gguf_file(tmp_path, weights, tiny_tokenizer):
    """Write the tiny Llama as a GGUF file, with these changes of its tensors."""
    names = {
        EMBEDDINGS: "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        HEAD: "output.weight",
    }
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    names |= layer_names(parts)

    def call(*lacking, num_layers=2, **further):
        return write_gguf(
            tmp_path / "model.gguf",
            tiny_tokenizer,
            "llama",
            named(weights, names, lacking, further),
            block_count=num_layers,
            context_length=512,
            embedding_length=32,
            feed_forward_length=64,
            head_count=4,
            head_count_kv=2,
            layer_norm_rms_eps=1e-6,
            vocab_size=320,
            rope_dimension_count=8,
        )

    return call


def test_a_whole_gguf_file(gguf_file, weights, capfd):
    path = gguf_file()
    assert check_stored(str(path))
    capfd.readouterr()
    lm = load_model(str(path))
    assert torch.equal(lm.state_dict()[HEAD], weights[HEAD])
    # No bar of the library's.
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("lacking", "num_layers", "further", "said"),
    [
        (["blk.1.ffn_up.weight"], 2, {}, "1 weight (model.layers.1.mlp.up_proj.weight) is missing"),
        ([], 3, {}, "9 weights (model.layers.2.input_layernorm.weight, "),
        ([], 1, {}, "9 weights (blk.1.attn_k.weight, blk.1.attn_norm.weight, "),
        (
            [],
            2,
            {"rope_freqs__weight": torch.ones(4)},
            "1 weight (rope_freqs.weight) is unknown to the model",
        ),
        (
            [],
            2,
            {"blk__0__attn_q__bias": torch.ones(32)},
            "1 weight (blk.0.attn_q.bias) is unknown",
        ),
    ],
)
def test_a_gguf_file_of_another_model(gguf_file, lacking, num_layers, further, said):
    for text in refusals(gguf_file(*lacking, num_layers=num_layers, **further)):
        assert said in text


@pytest.fixture
def converted(tmp_path, tiny_tokenizer):
    """Write a tiny LFM2, which the library reads by a list of conversions, as a GGUF file."""
    pytest.importorskip("gguf")
    from transformers import Lfm2Config, Lfm2ForCausalLM

    kinds = ["conv", "full_attention"]
    config = Lfm2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=320,
        layer_types=kinds,
        block_auto_adjust_ff_dim=False,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Lfm2ForCausalLM(config)
    parts = {
        "operator_norm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.out_proj": "attn_output",
        "self_attn.q_layernorm": "attn_q_norm",
        "self_attn.k_layernorm": "attn_k_norm",
        "feed_forward.w1": "ffn_gate",
        "feed_forward.w3": "ffn_up",
        "feed_forward.w2": "ffn_down",
        "ffn_norm": "ffn_norm",
        "conv.in_proj": "shortconv.in_proj",
        "conv.out_proj": "shortconv.out_proj",
        "conv.conv": "shortconv.conv",
    }
    names = {
        EMBEDDINGS: "token_embd.weight",
        "model.embedding_norm.weight": "token_embd_norm.weight",
    }
    names |= layer_names(parts)

    def call(*lacking, width=64, **further):
        weights = {
            name: one.squeeze(1) if name.endswith("conv.conv.weight") else one
            for name, one in model.state_dict().items()
            if name != HEAD
        }
        path = write_gguf(
            tmp_path / "model.gguf",
            tiny_tokenizer,
            "lfm2",
            named(weights, names, lacking, further),
            block_count=2,
            context_length=512,
            embedding_length=32,
            feed_forward_length=width,
            head_count=4,
            head_count_kv=[0 if kind == "conv" else 2 for kind in kinds],
            layer_norm_rms_eps=1e-5,
            shortconv_l_cache=config.conv_L_cache,
            rope_freq_base=1e6,
        )
        return path, model

    return call


def test_a_gguf_file_that_is_converted(converted):
    path, model = converted()
    assert check_stored(str(path))
    lm = load_model(str(path))
    assert all(torch.equal(one, model.state_dict()[n]) for n, one in lm.state_dict().items())


@pytest.mark.parametrize(
    ("lacking", "how", "said"),
    [
        (
            ["blk.1.ffn_up.weight"],
            {},
            "1 weight (model.layers.1.feed_forward.w3.weight) is missing",
        ),
        (
            ["blk.0.shortconv.conv.weight"],
            {},
            "1 weight (model.layers.0.conv.conv.weight) is missing",
        ),
        ([], {"blk__2__attn_q__weight": torch.ones(2, 2)}, " is unknown to the model"),
        ([], {"width": 48}, "6 weights (model.layers.0.feed_forward.w1.weight "),
    ],
)
def test_a_converted_gguf_file_of_another_model(converted, lacking, how, said):
    for text in refusals(converted(*lacking, **how)[0]):
        assert said in text


def test_a_listed_gguf_file_of_another_width(gguf_file):
    """A file of one model's metadata and another one's tensor."""
    up = "blk.1.ffn_up.weight"
    path = gguf_file(up, **{up.replace(".", "__"): torch.ones(48, 32)})
    for text in refusals(path):
        assert "1 weight (model.layers.1.mlp.up_proj.weight (48, 32) for (64, 32)) is of an" in text
