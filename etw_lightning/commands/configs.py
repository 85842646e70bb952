"""``configs``: lists the shipped configurations, prints one, copies them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from etw_lightning.commands.refusals.options import Options
from etw_lightning.files.config_files import about, find_config, shipped, shipped_folder
from etw_lightning.notices import hanging
from etw_lightning.schema import InputError

__all__ = ["configs", "parser"]


def configs(args: Sequence[str]) -> int:
    """Run ``configs``.

    Args:
        args: Words after ``configs``.

    Returns:
        0.

    Raises:
        InputError: If there is none of a name, or a file would be replaced.
    """
    options = parser().parse_args(list(args))
    if options.copy is not None:
        if options.name is not None:
            raise InputError("configs: --copy copies all configurations; leave the name out.")
        _copy(Path(options.copy).expanduser())
    elif options.name is not None:
        found = find_config(options.name, "configs")
        if found.note:
            sys.stderr.write(f"note: {found.note}\n")
        sys.stdout.write(found.path.read_text(encoding="utf-8"))
    else:
        width = max(map(len, shipped()))
        for name, path in shipped().items():
            line = f"{name:{width}}  {about(path)}"
            if sys.stdout.isatty():
                line = hanging(line, shutil.get_terminal_size().columns, width + 2)
            sys.stdout.write(f"{line}\n")
    return 0


def _copy(folder: Path) -> None:
    """Copy all configurations; none is copied if one of them is there already."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"configs: --copy must be a folder; {str(folder)!r} is a file.")
    home = shipped_folder()
    places = {path: folder / path.relative_to(home) for path in shipped().values()}
    there = next((place for place in places.values() if place.exists()), None)
    if there is not None:
        raise InputError(
            f"configs: {str(there)!r} is there already, so nothing was copied; give another folder."
        )
    try:
        for path, place in places.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    except OSError as error:
        raise InputError(
            f"configs: {str(folder)!r} can't be written ({error.strerror or error}); give another "
            "folder."
        ) from error
    sys.stdout.write(
        f"{len(places)} files are in {str(folder)!r}; a file of the current folder, or of a folder "
        "'configs' there, takes the place of the shipped one of its name\n"
    )


def parser() -> Options:
    """Return the command's options."""
    parser = Options("configs", __doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this one, as method/npo")
    parser.add_argument("--copy", metavar="DIR", help="copy all of them into a folder, to edit")
    return parser
