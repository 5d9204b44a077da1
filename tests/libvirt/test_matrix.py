"""Every odd description and program that we know of: libvirtd itself does with them what the matrix says."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ctl import matrix
from tests.ctl.matrix import CASES, Case, Verdict
from tests.libvirt.domain import VIDEO, Domain, document
from tests.libvirt.host import HostProblem
from tests.libvirt.libvirtd import DESCRIPTIONS, Libvirtd
from vhostd.ctl.libvirt.host import json_dialect

LAUNCHED = "/run/launched"
# Tells which one it was, and ends. The domain fails without its display, which takes less time than to run.
LAUNCH = f'echo "${{0##*/}}" >>{LAUNCHED}'
VERDICTS = {(): Verdict.FATAL, (matrix.PROGRAM,): Verdict.USED, (matrix.OK_PROGRAM,): Verdict.NEXT}


@pytest.fixture(scope="module")
def bare(libvirtd: Libvirtd) -> Iterator[Libvirtd]:
    """libvirtd without any description."""
    folder = libvirtd.host.path(DESCRIPTIONS)
    ours = {path.name: path.read_bytes() for path in folder.iterdir()}
    matrix.remove(libvirtd.host.path("/"))
    yield libvirtd
    for name, content in ours.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_libvirt_does_what_the_matrix_says(bare: Libvirtd, case: Case) -> None:
    root = bare.host.path("/")
    launched = bare.host.path(LAUNCHED)
    launched.write_text("")
    launched.chmod(0o666)
    matrix.write(case, root, seen=Path("/"), launch=LAUNCH)
    try:
        with pytest.raises(HostProblem) as problem:
            Domain(bare, "case", document("case", VIDEO), paused=True)
    finally:
        matrix.remove(root)
    verdict = case.verdict_by(json_dialect().name)
    assert VERDICTS[tuple(launched.read_text().split())] == verdict, problem.value
