"""An installation in folders of the tests: programs that are only names, and `vhostctl` beside them."""

import os
import sys
from pathlib import Path

import pytest

from vhostd import ctl

PROGRAMS = ("vhost-user-blk", "vhost-user-console", "vhost-user-gpu", "vhost-user-input", "vhost-user-rng")
SHELLS = (
    "bash-completion/completions/{}",
    "zsh/site-functions/_{}",
    "fish/vendor_completions.d/{}.fish",
)


def put_programs(folder: Path, *names: str) -> Path:
    """Programs that can be found, and need not run."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*names, "vhostctl"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


class Site:
    """A folder with programs, and a prefix to install into."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self.programs = put_programs(folder / "bin", *PROGRAMS)
        self.prefix = folder / "prefix"
        self.home = folder / "home"
        self._patch = patch
        self._capture = capture
        self.called_from(self.programs)
        for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(self.home))

    def called_from(self, folder: Path) -> None:
        """Lets `vhostctl` be the one in a folder."""
        self._patch.setattr(sys, "argv", [str(folder / "vhostctl")])

    def run(self, *arguments: str | Path) -> tuple[int, list[str], list[str]]:
        """Runs `vhostctl`; its status, and what it printed and complained of."""
        reader, writer = os.pipe()
        kept = os.dup(2)
        os.dup2(writer, 2)
        os.close(writer)
        try:
            status = ctl.main(list(map(str, arguments)))
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            with open(reader) as stream:
                complaints = stream.read()
        return status, self._capture.readouterr().out.splitlines(), complaints.splitlines()

    def install(self, *arguments: str | Path) -> list[str]:
        """Installs below the prefix, which must work; the warnings."""
        status, _, complaints = self.run("install", f"--prefix={self.prefix}", *arguments)
        assert status == 0, complaints
        return complaints


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: the content of files, None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def files(folder: Path) -> set[str]:
    """The names of the files below a folder."""
    return {name for name, content in tree(folder).items() if content is not None}
