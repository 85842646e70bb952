"""What a process makes once for all tests that it runs: the parser of the command line."""

import sys
from typing import Any

#: Attributes that making a parser sets, by kind of command line and by command.
_made: dict[tuple[Any, ...], dict[str, Any]] = {}


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
        key = (type(self), *sys.argv[1:2])
        if key not in _made:
            before = set(vars(self))
            make(self, *given)
            _made[key] = {name: value for name, value in vars(self).items() if name not in before}
        vars(self).update(_made[key])
        # These are of one run.
        self.parser._instantiators = None

    setup_parser.makes = make
    UnlearningCLI.setup_parser = setup_parser
