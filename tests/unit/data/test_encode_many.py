"""Rows encoded together, in batches and by several processes, are the rows encoded one by one."""

import os
import signal
import sys
from types import SimpleNamespace

import chat_templates
import pytest
from chat_templates import FAMILIES
from toy import text

from etw_lightning.benchmarks.chat import read_chat
from etw_lightning.benchmarks.source import Source
from etw_lightning.benchmarks.tofu import TOFU
from etw_lightning.data import encode_many as module
from etw_lightning.data.encode import Encoder
from etw_lightning.data.encode_many import cut_many, encode_each, encode_many
from etw_lightning.data.joined_text import Window, tokenise
from etw_lightning.schema import Conventions, Example, InputError

TEMPLATES = ("chat", "plain")


@pytest.fixture(scope="module")
def tofu(data_dir):
    """The first rows of every kind of TOFU's splits."""
    benchmark = TOFU(Source(root=data_dir, limits={"retain90": 700, "full": 60}))
    return [row for name in ("forget10", "retain90", "full") for row in benchmark.examples(name)]


def others():
    """Rows of other forms: raw, verbatim, of odd spaces and scripts, and with equal questions."""
    return [
        Example("a/0", text(1, 9)),
        Example("a/1", " goes on here.", "The town", verbatim=True),
        Example("a/2", "  1958 ", "When\n?  "),
        Example("a/3", "«Так», 12", "Кто?"),
        Example("a/4", "1958", "When\n?  "),
        Example("a/5", text(2, 200), "How long is it?"),
    ]


def said_or_made(encode, examples, encoder):
    try:
        return encode(examples, encoder)
    except InputError as error:
        return str(error)


def test_a_text_longer_than_the_tokenizers_own_length_is_no_warning(tokenizer_dir, monkeypatch):
    """The model's length is checked where rows are cut."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir, model_max_length=8)
    said = []
    for name in ("warning", "warning_advice", "warning_once"):
        for one in ("tokenization_utils_base", "tokenization_utils_tokenizers"):
            logger = logging.get_logger(f"transformers.{one}")
            monkeypatch.setattr(logger, name, lambda text, *rest: said.append(text), raising=False)
    encoder, raw = Encoder(tokenizer, "plain", 64), [Example("a/0", text(2, 200))]
    assert encode_each(others(), encoder)
    assert encoder.encode_prompt(others()[2])
    assert len(encoder.chunk(raw, "a")) == len(encoder.chunk_spans(raw)) > 1
    assert list(tokenise(tokenizer, Window(0, text(2, 200))).ids)
    assert said == []
    tokenizer(text(2, 200))
    assert said, "which it would say otherwise"


def one_by_one(examples, encoder):
    return [encoder.encode(example) for example in examples]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("max_length", [512, 200])
def test_rows_of_tofu(tofu, template, max_length, tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, template, max_length)
    expected = one_by_one(tofu, encoder)
    assert encode_each(tofu, encoder) == expected
    assert any(row.num_lost for row in expected) == (max_length < 512)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("conventions", [Conventions(), Conventions.peer()])
def test_rows_of_other_forms(template, conventions, tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, template, 64, conventions=conventions)
    rows = encode_each(others(), encoder)
    assert rows == one_by_one(others(), encoder)
    assert rows[-1].num_lost > 0


@pytest.mark.parametrize("which", ["last", "all"])
def test_chats(which, tiny_tokenizer):
    said = ["Who?", text(3, 4), "When?", " In 1958 ", "Where?", text(5, 7)]
    chats = []
    for size in (2, 4, 6):
        roles = ("user", "assistant") * 3
        pairs = zip(roles, said[:size], strict=False)
        messages = [{"role": role, "content": words} for role, words in pairs]
        chats.append(read_chat({"messages": messages}, f"mine/{size}", which=which))
    encoder = Encoder(tiny_tokenizer)
    assert encode_each(chats, encoder) == one_by_one(chats, encoder)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_templates(name, tmp_path):
    try:
        encoder = chat_templates.encoder_of(FAMILIES[name], tmp_path)
    except InputError:
        pytest.skip("refused")
    rows = [row for row in others() if row.question is not None]
    rows += [Example(f"b/{number}", answer, "Who is she?") for number, answer in enumerate("18x")]
    for some in (rows, rows[::-1]):
        assert said_or_made(encode_each, some, encoder) == said_or_made(one_by_one, some, encoder)


def test_other_answers_take_the_places_of_theirs(tiny_tokenizer):
    encoder, rows = Encoder(tiny_tokenizer), others()[2:5]
    answers = ["No.", "I do not know.", "No."]
    expected = [encoder.encode(row, answer) for row, answer in zip(rows, answers, strict=True)]
    assert encode_each(rows, encoder, answers) == expected


def test_the_first_row_that_is_refused_is_named(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, max_length=40, truncation="error")
    long = [Example(f"a/{number}", text(0, 90), "What?") for number in range(9)]
    rows = [*others()[2:5], *long]
    for place, bad in enumerate(long):
        with pytest.raises(InputError, match=f"^Row {bad.id} loses"):
            encode_each(rows[:3] + long[place:], encoder)


def test_what_is_held_of_a_batch_is_let_go(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer)
    encode_each(others(), encoder)
    assert not encoder._ahead
    assert not encoder._shown


def many(count):
    return [Example(f"many/{n}", text(n, 1 + n % 9), f"What of {n % 40}?") for n in range(count)]


@pytest.fixture
def by_two(monkeypatch):
    monkeypatch.setattr(module, "TOGETHER", 16)
    monkeypatch.setattr(module, "_num_processes", lambda _: 2)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")
def test_two_processes_give_the_rows_of_one_in_their_order(by_two, tiny_tokenizer):
    encoder, seen = Encoder(tiny_tokenizer), []
    own, encode_all = os.getpid(), encoder.encode_all
    encoder.encode_all = lambda rows: seen.append(os.getpid()) or encode_all(rows)
    assert list(encode_many(iter(many(300)), encoder, 300, "")) == one_by_one(many(300), encoder)
    # In this process nothing was encoded.
    assert own not in seen


@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")
def test_a_row_that_another_process_refuses_is_named(by_two, tiny_tokenizer):
    rows = many(100)
    rows[70] = Example("many/70", text(0, 90), "What?")
    encoder = Encoder(tiny_tokenizer, max_length=40, truncation="error")
    with pytest.raises(InputError, match=r"^Row many/70 loses"):
        list(encode_many(iter(rows), encoder, 100, ""))


@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")
def test_a_process_that_is_killed_ends_the_run_with_a_line(by_two, tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer)
    encoder.encode_all = lambda rows: os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(InputError, match="was ended from outside, perhaps for want of memory"):
        list(encode_many(iter(many(100)), encoder, 100, ""))


def test_few_rows_are_read_ahead_of_what_is_asked_for(by_two, tiny_tokenizer):
    read = []

    def rows():
        for row in many(1000):
            read.append(row.id)
            yield row

    given = encode_many(rows(), Encoder(tiny_tokenizer), 1000, "")
    next(given)
    # Two batches for each process wait, while one more is asked for.
    assert len(read) == 16 * 5
    given.close()


@pytest.mark.parametrize(
    ("total", "cores", "on_gpu", "expected"),
    [(100_000, 16, False, 8), (100_000, 2, False, 2), (100_000, 16, True, 1), (3000, 16, False, 1)],
)
def test_processes_are_as_many_as_pay(total, cores, on_gpu, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: on_gpu)
    assert module._num_processes(total) == expected


def test_a_process_pays_for_2048_rows_or_a_million_characters(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: False)
    assert [module._num_processes(total) for total in (4095, 4096)] == [1, 2]
    of_text = module._TEXT_WORTH_A_PROCESS
    assert [module._num_processes(total, of_text) for total in (2**21 - 1, 2**21)] == [1, 2]


def test_without_a_terminal_a_line_at_once_and_one_a_minute(monkeypatch, capfd, tiny_tokenizer):
    monkeypatch.setattr(module, "TOGETHER", 10)
    monkeypatch.setattr(module, "_num_processes", lambda _: 1)
    monkeypatch.setattr(module, "_by_processes", None)
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    list(encode_many(iter(many(100)), Encoder(tiny_tokenizer), 100, "encoding mine"))
    assert capfd.readouterr().err.splitlines() == [
        "encoding mine: 100 rows; the next start finds them",
        "encoding mine: 30 of 100 (30 %), 75 s",
        "encoding mine: 60 of 100 (60 %), 150 s",
        "encoding mine: 90 of 100 (90 %), 225 s",
    ]


def test_a_text_is_never_more_than_all_of_it(monkeypatch, capfd, tiny_tokenizer):
    """Windows are counted whole, though the last may be short, and joints are not in the total."""
    monkeypatch.setattr(module, "WIDTH", 4096)
    clock = iter(range(0, 1000, 60))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    for size, said in ((5000, ["4096 of 5000 (81 %), 60 s"]), (4096, []), (0, [])):
        encoder = Encoder(tiny_tokenizer, max_length=64)
        list(cut_many(["ab" * 2500], encoder, "book", size, "encoding book"))
        lines = capfd.readouterr().err.splitlines()
        assert lines[1:] == [f"encoding book: {line}" for line in said]


def test_a_process_that_encodes_ends_with_its_parent_and_leaves_it_the_signals(monkeypatch):
    """Here in this process: what a copy does, no test of this one sees."""
    parents, slept, ended, ignored, started = iter([7, 7, 1]), [], [], [], []
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setattr(module.os, "getppid", lambda: next(parents))
    monkeypatch.setattr(module.os, "_exit", ended.append)
    monkeypatch.setattr(module.time, "sleep", slept.append)
    monkeypatch.setattr(module.signal, "signal", lambda *given: ignored.append(given))

    class Thread:
        def __init__(self, target, daemon):
            assert daemon, "or the process would wait for it"
            self.start = lambda: started.append(target)

    monkeypatch.setattr(module.threading, "Thread", Thread)
    module._begin(7)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert ignored == [
        (number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    ]
    (watch,) = started
    watch()
    assert (slept, ended) == ([1.0, 1.0], [1])
    monkeypatch.setattr(module, "_WORK", [str.upper])
    assert module._work("a") == "A"


def test_what_is_not_asked_for_any_more_is_not_worked_on(monkeypatch):
    class Pool:
        def __init__(self, *given):
            asked.append((given[0], given[2:]))

        def submit(self, work, part):
            asked.append(part)
            return SimpleNamespace(result=lambda: part)

        def shutdown(self, **settings):
            asked.append(settings)

    asked = []
    monkeypatch.setattr(module, "ProcessPoolExecutor", Pool)
    given = module._by_processes(str, iter("abcdefgh"), 2)
    assert next(given) == "a"
    given.close()
    begun = (2, (module._begin, (os.getpid(),)))
    assert asked == [begun, *"abcde", {"cancel_futures": True}]
    assert module._WORK == []


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_batch_takes_two_calls_of_the_tokenizer(template, tiny_tokenizer):
    class Spy:
        def __getattr__(self, name):
            return getattr(tiny_tokenizer, name)

        def __call__(self, texts, **settings):
            asked.append(len(texts))
            return tiny_tokenizer(texts, **settings)

    asked = []
    encoder = Encoder(tiny_tokenizer, template)
    expected = one_by_one(many(40), encoder)
    encoder.tokenizer = Spy()
    assert encode_each(many(40), encoder) == expected
    assert asked == [40, 40], "their prompts, then all of them"


def test_on_a_terminal_a_bar(monkeypatch, capfd, tiny_tokenizer):
    monkeypatch.setattr(module, "_num_processes", lambda _: 1)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    list(encode_many(iter(many(9)), Encoder(tiny_tokenizer), 9, "encoding mine"))
    shown = capfd.readouterr().err
    assert "encoding mine" in shown
    assert "100%" in shown
