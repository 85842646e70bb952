"""What a process makes once for all tests that it runs, and hands on to those it forks."""

import functools
import gc
import importlib
import importlib.metadata
import sys
from typing import Any

from jsonargparse import Namespace, _actions, _subcommands
from jsonargparse._namespace import add_clash_mark

#: Slow to import; a forked process finds them there.
_IMPORTED = (
    "etw_lightning.commands.cli",
    "rouge_score.rouge_scorer",
    "torch.utils.tensorboard",
    "transformers.models.llama.modeling_llama",
)
#: Attributes that making the parser of a command sets.
_made: dict[tuple[str, ...], dict[str, Any]] = {}


def keep_parsers():
    """Make the parser of each command once a process; those that are forked later have it too.

    Making it takes as long as all else that is done before a run begins. Reading leaves it as it
    was, which a sweep relies on as well.
    """
    from etw_lightning.commands.cli import UnlearningCLI

    if hasattr(UnlearningCLI.setup_parser, "makes"):
        return
    make = UnlearningCLI.setup_parser

    def setup_parser(self, *given):
        key = tuple(sys.argv[1:2])
        if key not in _made:
            before = set(vars(self))
            make(self, *given)
            _made[key] = {name: value for name, value in vars(self).items() if name not in before}
        vars(self).update(_made[key])
        # These are of one run.
        self.parser._instantiators = None

    setup_parser.makes = make
    UnlearningCLI.setup_parser = setup_parser
    _keep_actions()
    _keep_found()
    _keep_keys()
    _keep_installed()


def _keep_actions():
    """Tell a large parser's options apart once: they are asked for hundreds of times a command."""
    tell_apart, kept = _actions.filter_non_parsing_actions, {}

    def told_apart(actions):
        if not isinstance(actions, list) or len(actions) < 100:
            return tell_apart(actions)
        held, number, found = kept.get(id(actions), (None, 0, []))
        if held is not actions or number != len(actions):
            found = tell_apart(actions)
            kept[id(actions)] = actions, len(actions), found
        return list(found)

    _put_in_place(tell_apart, told_apart, "jsonargparse")


def _keep_found():
    """Look for an option of a large parser once: each is asked for again and again a command."""
    find, kept = _subcommands.find_action_and_subcommand, {}

    def found(parser, dest, exclude=None):
        actions = parser._actions
        if len(actions) < 100:
            return find(parser, dest, exclude)
        held, number, known = kept.get(id(actions), (None, 0, {}))
        if held is not actions or number != len(actions):
            known = {}
            kept[id(actions)] = actions, len(actions), known
        if (dest, exclude) not in known:
            known[dest, exclude] = find(parser, dest, exclude)
        return known[dest, exclude]

    _put_in_place(find, found, "jsonargparse")


def _keep_keys():
    """Take a key that is one word as it is: most are, of ten thousand that are split a command."""
    split = Namespace._parse_key

    def parse_key(self, key):
        if isinstance(key, str) and key.isidentifier():
            return add_clash_mark(key), self, ""
        return split(self, key)

    Namespace._parse_key = parse_key


def _keep_installed():
    """Ask what is installed once: it stays so, and its description is read for each answer."""
    from lightning.pytorch.trainer.connectors import callback_connector

    load = callback_connector._load_external_callbacks
    callback_connector._load_external_callbacks = functools.cache(load)
    version = importlib.metadata.version
    _put_in_place(version, functools.cache(version), "etw_lightning")


def _put_in_place(function, other, package):
    """Let another function be called wherever modules of a package have this one by its name."""
    for name, module in list(sys.modules.items()):
        if name.startswith(package) and vars(module).get(function.__name__) is function:
            setattr(module, function.__name__, other)


def prepare_fork(*commands):
    """Have all at hand that forked processes would import and make, each for itself.

    Args:
        commands: Of the command line, whose parsers they use.
    """
    for name in _IMPORTED:
        importlib.import_module(name)
    keep_parsers()
    typed = sys.argv
    try:
        for command in commands:
            sys.argv = ["etw_lightning", command]
            importlib.import_module("etw_lightning.commands.run_reader").RunReader()
    finally:
        sys.argv = typed
    # What lies here is not looked through in a child, which would copy its pages.
    gc.collect()
    gc.freeze()
