"""Triton's kernels for rows of logits, interpreted on a processor, against float64 and plain."""

import math
import os
import subprocess
import sys

import pytest
import torch

from etw_lightning.kernels import fused_rows
from etw_lightning.kernels.head import linear_scores
from etw_lightning.kernels.logits import LogitTransform

ABSENT = "the package triton, which PyTorch's CUDA wheels for Linux bring along, is absent"
#: Blocks of 64 in which 333 tokens are no whole number.
NUM, VOCABULARY, BLOCK = 6, 333, 64
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
TRANSFORMS = {
    "as they are": None,
    "scaled": LogitTransform(scale=-0.5),
    "capped": LogitTransform(cap=5.0),
    "scaled and capped": LogitTransform(scale=1.7, cap=30.0),
}


@pytest.fixture
def fused(monkeypatch):
    """The kernels: on CUDA as they are, elsewhere interpreted."""
    pytest.importorskip("triton", reason=ABSENT)
    assert CUDA or os.environ["TRITON_INTERPRET"] == "1", "Triton reads it as it is imported"
    monkeypatch.setattr(fused_rows, "_BLOCK", BLOCK)
    return fused_rows


@pytest.fixture
def rows():
    """Logits with an even row, a near-certain one and one whose label is all but impossible."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(NUM, VOCABULARY, generator=generator)
    labels = torch.tensor([0, 64, 63, 332, 200, 7])
    logits[0] = 1.5
    logits[1] -= 30
    logits[1, 64] = 5.0
    logits[2, 63] = -90.0
    logits[3, 332] = logits[3, 128] = logits[3].max() + 1
    return logits.to(DEVICE), labels.to(DEVICE)


def exact(logits, labels, temperature, transform):
    """Return log-probabilities, entropies and the gradient of the first, by autograd, float64."""
    wide = logits.double().requires_grad_()
    changed = wide if transform is None else transform.change(wide)
    logps = changed.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    incoming = torch.linspace(-2, 3, len(labels), dtype=torch.float64, device=logits.device)
    (gradient,) = torch.autograd.grad((logps * incoming).sum(), wide)
    tempered = (changed.detach() / temperature).log_softmax(-1)
    return logps.detach(), -(tempered.exp() * tempered).sum(-1), gradient, incoming.float()


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
@pytest.mark.parametrize("num_tokens", [VOCABULARY, 65, 64, 3])
def test_scores_and_gradients_are_float64_s(fused, rows, transform, temperature, num_tokens):
    logits, labels = rows[0][:, :num_tokens].contiguous(), rows[1] % num_tokens
    before = logits.clone()
    scored = fused.score_rows(logits, labels, temperature, transform)
    assert torch.equal(logits, before)
    logps, entropies, gradient, incoming = exact(logits, labels, temperature, transform)
    torch.testing.assert_close(scored.logps.double(), logps, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(scored.entropies.double(), entropies, rtol=2e-6, atol=3e-6)
    given = (logits, labels, incoming, scored.largest, scored.largest_shares, transform)
    apart = fused.slope_rows(*given, torch.full_like(logits, math.nan))
    assert torch.equal(logits, before)
    torch.testing.assert_close(apart.double(), gradient, rtol=1e-5, atol=1e-6)
    narrow = fused.slope_rows(*given, torch.empty_like(logits, dtype=torch.bfloat16))
    # Eight bits, the last of which the interpreter cuts off.
    torch.testing.assert_close(narrow.double(), gradient, rtol=2**-7, atol=1e-6)
    assert fused.slope_rows(*given, logits) is logits
    assert torch.equal(logits, apart)


def test_near_certain_rows_keep_their_digits(fused, rows):
    """1 - 1e-10 of the whole is one token: rounding 1 + x would leave an entropy of 0."""
    logits, labels = rows[0][1:2], rows[1][1:2]
    scored = fused.score_rows(logits, labels, 1.0, None)
    logps, entropies, _, _ = exact(logits, labels, 1.0, None)
    assert 0 < entropies < 1e-6
    torch.testing.assert_close(scored.entropies.double(), entropies, rtol=2e-6, atol=0)
    torch.testing.assert_close(scored.logps.double(), logps, rtol=2e-6, atol=0)


def test_a_temperature_near_0_leaves_the_likeliest(fused, rows):
    scored = fused.score_rows(*rows, 1e-30, None)
    expected = [math.log(VOCABULARY), 0, 0, math.log(2), 0, 0]
    torch.testing.assert_close(scored.entropies.cpu(), torch.tensor(expected))


def test_what_is_no_number_is_told(fused, rows):
    """Wherever it stands: the guard looks at losses."""
    logits, labels = rows
    logits[0, 3] = logits[1, 332] = math.nan
    logits[4, 100] = -math.inf
    scored = fused.score_rows(logits, labels, 1.0, None)
    assert scored.logps.isnan().tolist() == [True, True, False, False, False, False]
    assert scored.entropies[4].isfinite()


def test_no_rows_are_no_scores(fused):
    logits, labels = torch.empty(0, 5, device=DEVICE), torch.empty(0, dtype=torch.long)
    assert [len(one) for one in fused.score_rows(logits, labels.to(DEVICE), None, None)] == [0] * 5


SETTINGS = {
    "float32": {},
    "no entropies": {"entropy": False},
    "capped": {"transform": LogitTransform(cap=2.0)},
    "cut and scaled, warm": {"transform": LogitTransform(scale=0.4, size=301), "temperature": 2.0},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("room", [0, 1 << 28])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_is_the_plain_one_s(fused, monkeypatch, settings, room, has_bias, dtype):
    monkeypatch.setattr("etw_lightning.kernels.head._ROOM", room)
    generator = torch.Generator().manual_seed(1)
    shapes = [(11, 8), (VOCABULARY, 8), *[(VOCABULARY,)] * has_bias]
    made = [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]
    labels = torch.randint(300, (11,), generator=generator).to(DEVICE)
    scale = torch.linspace(-1, 2, 11, device=DEVICE)
    found = []
    for way in (True, False):
        leaves = [one.clone().requires_grad_() for one in made]
        head = (leaves[1], labels, *leaves[2:])
        scores = linear_scores(leaves[0], *head, chunk_size=4, fused=way, **settings)
        (scores.logps * scale).sum().backward()
        found.append([scores.logps, scores.entropies, *(one.grad for one in leaves)])
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(*found, strict=True):
        if one is None:
            assert other is None
            continue
        assert one.dtype == other.dtype
        is_score = one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=bound, atol=1e-5 if is_score else 4e-2)


#: Compiles both kernels; a process that interprets others can't.
COMPILING = """
import triton
from triton.backends.compiler import GPUTarget
from etw_lightning.kernels import fused_rows
numbers, pointer = ["i32"] * 2, "*fp32"
kernels = {
    fused_rows._score_kernel: [pointer, "*i64", *[pointer] * 4, *numbers, *["fp32"] * 3],
    fused_rows._slope_kernel: [pointer, "*i64", *[pointer] * 3, "*bf16", "i32", *numbers]
    + ["fp32"] * 2,
}
settings = {"has_cap": True, "has_entropy": True, "is_tempered": True, "lowest": -1e30}
settings |= {"small": 0.2, "block": 4096}
for kernel, types in kernels.items():
    names = kernel.arg_names
    fixed = {name: value for name, value in settings.items() if name in names}
    signature = dict(zip(names, types + ["constexpr"] * len(fixed), strict=True))
    constants = {(names.index(name),): value for name, value in fixed.items()}
    source = triton.compiler.ASTSource(kernel, signature, constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert ".target sm_90" in made.asm["ptx"]
"""


def test_the_kernels_compile_for_cuda_s_devices(tmp_path):
    """No device is needed for that; the interpreter takes what the compiler refuses."""
    pytest.importorskip("triton", reason=ABSENT)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(fused_rows, "triton", None)
    assert fused_rows.missing(torch.device("cuda")) == ABSENT
    monkeypatch.setattr(fused_rows, "triton", object())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert fused_rows.missing(torch.device("cuda")) == ""
    assert fused_rows.missing(torch.device("cpu")) == "the device is cpu, not cuda"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert fused_rows.missing(torch.device("cpu")) == ""


def test_float64_is_refused():
    """Before a kernel is asked for."""
    hidden = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="fused must be False for float64"):
        linear_scores(hidden, hidden, torch.tensor([0, 1]), fused=True)
