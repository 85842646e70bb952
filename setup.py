"""Puts ``configs`` into the package that is built, and README as it reads beside the package.

Everything else stands in pyproject.toml.
"""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
#: A link or picture of Markdown that leads to a file of the tree.
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:)([^)]*)\)")


def described() -> str:
    """Return README with its links into the tree as names of files.

    A package index shows it where no such file is.
    """
    head, text = (HERE / "README.md").read_text(encoding="utf-8").split("\n", 1)
    named = LINK.sub(lambda link: f"`{link[3]}`" if link[1] else f"{link[2]} (`{link[3]}`)", text)
    return f"{head}\n\nFiles that are named here are in the source archive.\n{named}"


class BuildWithConfigs(build_py):
    """Copies the configurations, which stand once, at the top of the repository.

    A package that is installed to be edited finds them there.
    """

    def run(self) -> None:
        """Build the package."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "etw_lightning" / "configs"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(HERE / "configs", target)


setup(
    cmdclass={"build_py": BuildWithConfigs},
    long_description=described(),
    long_description_content_type="text/markdown",
)
