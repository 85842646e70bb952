"""Fixtures shared by all tests."""

import gc
import os
from pathlib import Path

import pytest
from _pytest.doctest import DoctestModule
from hypothesis import HealthCheck, settings

# A second thread that waits for a busy core makes a step ten to a hundred times slower, and a
# process forked from one that has run several can hang.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Triton, where it is, reads as it is imported whether kernels are to run on a processor.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy machine is no fault of an example.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

#: What the tokenizer's merges are learnt from: not the quickstart corpus, which may be tuned.
_TEXTS = (
    "Where was she born, and what is the name of the town by the river?",
    "The town of Quillmere lies by a river and has an old mill.",
    "What do the people there say of the author of the first book?",
    "Question: Who wrote it? Answer: Nobody in the town knows the answer to that question.",
    "The author was born in the year 1958 and has written of the river and the mill.",
)


def pytest_collection():
    """Look for no garbage while libraries are imported: again and again, it takes a sixth of it."""
    gc.disable()


@pytest.hookimpl(wrapper=True)
def pytest_collect_file():
    """Look for no doctest here: the option that asks for those of the package looks everywhere."""
    found = yield
    return [one for one in found if not isinstance(one, DoctestModule)]


def pytest_collection_finish():
    """Leave what has been imported and collected out of every search for garbage to come.

    What tests leave is little, and was searched for in a tenth of their time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the benchmark data and reference logs; skips where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ETW_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("no benchmark data: set ETW_DATA to the folder that holds tofu/ and muse_news/")
    return folder


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> Path:
    """Folder of a byte-level BPE of 320 entries, with a chat template."""
    from etw_lightning.benchmarks.quickstart import save_tokenizer, train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(_TEXTS, vocab_size=320), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tokenizer_dir):
    """The tokenizer of ``tiny_model_dir``; a test that changes one loads its own."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_dir)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory, tiny_tokenizer) -> Path:
    """Folder of a random Llama, 2 layers x 32, with its tokenizer.

    Its weights are wide enough for predictions of very different entropies.
    """
    import torch
    from small_models import llama_config, special_tokens
    from transformers import LlamaForCausalLM

    wide = {"initializer_range": 0.3, "tie_word_embeddings": False, "max_position_embeddings": 512}
    config = llama_config(len(tiny_tokenizer), 32, **wide, **special_tokens(tiny_tokenizer))
    folder = tmp_path_factory.mktemp("tiny_model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def classifier_dir(tmp_path_factory, tiny_tokenizer):
    """Folder of a random classifier; ``clean`` is not its first label."""
    import torch
    from small_models import llama_config
    from transformers import LlamaForSequenceClassification

    labels = ("noise", "Clean", "word salad")
    config = llama_config(
        len(tiny_tokenizer),
        16,
        1,
        inner=16,
        heads=2,
        initializer_range=0.5,
        pad_token_id=tiny_tokenizer.pad_token_id,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    folder = tmp_path_factory.mktemp("classifier")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
