"""vhostctl validate: a line for each fault, and a status for a CI."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.programs import environment, executable
from vhostd.conformance.schema import Kind
from vhostd.ctl import main, validate
from vhostd.ctl.libvirt.json_text import JSON_C, LIMIT
from vhostd.ctl.validate import check, lines
from vhostd.program.shipped import DESCRIPTIONS, shipped

GOOD = {"description": "a display", "type": "gpu", "binary": "/usr/bin/gpu"}
# As Debian 13 has them.
VIRTIOFSD = """{
  "description": "virtiofsd vhost-user-fs",
  "type": "fs",
  "binary": "/usr/libexec/virtiofsd",
  "features": [
      "migrate-precopy",
      "separate-options"
  ]
}
"""
QEMU_GPU = """{
  "description": "QEMU vhost-user-gpu",
  "type": "gpu",
  "binary": "/usr/lib/qemu/vhost-user-gpu"
}
"""


def run(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, list[str], str]:
    """The status, the lines printed, and the line on stderr."""
    status = main(["validate", *map(str, arguments)])
    printed, error = capfd.readouterr()
    assert error.count("\n") == status
    return status, printed.splitlines(), error.strip()


def file(folder: Path, content: Any, name: str = "50-a.json") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_what_is_shipped_is_valid(capfd: pytest.CaptureFixture[str]) -> None:
    files = sorted(shipped(*DESCRIPTIONS).glob("*-vhostd-*.json"))
    assert files
    assert run(capfd, *files) == (0, [], "")


def test_what_others_ship(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gpu = file(tmp_path, QEMU_GPU.encode(), "50-qemu-gpu.json")
    fs = file(tmp_path, VIRTIOFSD.encode(), "50-virtiofsd.json")
    assert run(capfd, gpu) == (0, [], "")
    assert run(capfd, "--lenient", gpu, fs) == (0, [], "")
    expected = [f'{fs}: description, $: QEMU\'s schema has no member "features": remove it']
    error = f"vhostctl: error: not valid: {fs} (libvirt does not mind: --lenient)"
    for options in ([], ["--strict"]):
        assert run(capfd, *options, gpu, fs) == (1, expected, error)


def test_a_line_for_each_fault(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = file(tmp_path, {"type": "blk", "binary": "disk", "tags": [5]})
    types = "9p, balloon, block, caif, console, crypto, fs, gpu, input, net, rng, rpmsg, rproc-serial, scsi"
    faults = [
        f'{path}: description, $.binary: "disk" is no absolute path',
        f'{path}: description, $.type: "blk" is none of {types}, vsock: did you mean "block"?',
        f'{path}: description, $: "description" is missing',
        f"{path}: description, $.tags[0]: 5 is not a string",
    ]
    assert run(capfd, path)[:2] == (1, faults)
    assert run(capfd, "--lenient", path)[:2] == (1, faults[:2])


def test_what_is_not_json_has_a_place(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = file(tmp_path, b'{\n  "type": gpu\n}\n')
    message = "it is not JSON: line 2, column 11: expecting value"
    assert run(capfd, path)[1] == [f"{path}: {message}"]


def test_lenient_is_as_libvirt(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = file(tmp_path, b'{"type": "sound", "type": "gpu", "binary": "/usr/bin/gpu", "version": NaN}')
    assert run(capfd, path)[:2] == (1, [f"{path}: it is not JSON: NaN is no value of JSON"])
    assert run(capfd, "--lenient", path)[0] == 0


@pytest.mark.parametrize("options", [[], ["--lenient"]])
def test_what_the_libvirt_of_this_host_does_not_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    path = file(tmp_path, json.dumps({**GOOD, "description": "écran"}, ensure_ascii=False).encode())
    for number, dialect in JSON_C.items():
        monkeypatch.setattr(validate, "json_dialect", lambda dialect=dialect: dialect)
        status, printed, _ = run(capfd, *options, path)
        assert (status, len(printed)) == ((1, 1) if number == 4 else (0, 0))
        assert all(line.endswith("'é' (write \\u00e9), which json-c 0.18 refuses") for line in printed)


def test_the_kind_is_seen_or_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capabilities = file(tmp_path, {"type": "gpu", "features": []})
    assert run(capfd, capabilities)[0] == 0
    assert run(capfd, "--kind=capabilities", capabilities)[0] == 0
    status, printed, _ = run(capfd, "--kind=description", "--lenient", capabilities)
    assert (status, printed) == (1, [f'{capabilities}: description, $: "binary" is missing'])


def test_stdin(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"type": "net"}\n')))
    assert run(capfd, "-") == (0, [], "")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"starting\n")))
    assert run(capfd, "-")[1] == ["-: it is not JSON: line 1, column 1: expecting value"]


def test_a_closed_stdin(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    expected = ["-: it cannot be read: stdin is closed"]
    assert run(capfd, "-") == (1, expected, "vhostctl: error: not valid: -")


def test_what_cannot_be_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good, missing = file(tmp_path, GOOD), tmp_path / "missing.json"
    status, printed, _ = run(capfd, missing, tmp_path, good, "a\0b")
    assert status == 1
    assert printed == [
        f"{missing}: it cannot be read: No such file or directory",
        f"{tmp_path}: it cannot be read: Is a directory",
        "a\\x00b: it cannot be read: embedded null byte",
    ]


def test_no_more_is_read_than_libvirt_takes(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "/dev/zero")[1] == ["/dev/zero: it is larger than 1 MiB, more than libvirt reads"]
    content = json.dumps(GOOD).encode().ljust(LIMIT)
    assert check("a", content, None, lenient=False).valid
    assert not check("a", content + b" ", None, lenient=True).valid


def test_a_json_document(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good, bad, none = (
        file(tmp_path, GOOD, "a"),
        file(tmp_path, {"type": "net", "x": 1}, "b"),
        file(tmp_path, b"", "c"),
    )
    status, printed, _ = run(capfd, "--json", good, bad, none)
    assert status == 1
    fault = {"place": "$", "message": 'QEMU\'s schema has no member "x": remove it', "tolerable": True}
    empty = {"place": None, "message": "it is not JSON: it is empty", "tolerable": False}
    assert json.loads("\n".join(printed)) == {
        "files": [
            {"file": str(good), "kind": "description", "valid": True, "faults": []},
            {"file": str(bad), "kind": "capabilities", "valid": False, "faults": [fault]},
            {"file": str(none), "kind": None, "valid": False, "faults": [empty]},
        ]
    }


# --- Anything at all ------------------------------------------------------------------------------------

ODD_TEXT = st.text(st.characters()) | st.sampled_from(["gpu", "\x1b[31m", "/usr/bin/it", "\ud800"])
ODD = st.dictionaries(
    st.sampled_from(["type", "binary", "description", "tags", "features"]) | ODD_TEXT,
    ODD_TEXT | st.integers() | st.none() | st.lists(ODD_TEXT),
)
CONTENTS = st.binary() | ODD.map(lambda members: json.dumps(members).encode())


@given(data=CONTENTS, kind=st.sampled_from([None, *Kind]), lenient=st.booleans())
def test_any_bytes_are_valid_or_have_faults_of_a_line(
    data: bytes, kind: Kind | None, *, lenient: bool
) -> None:
    checked = check("a", data, kind, lenient=lenient)
    assert checked.valid == (not checked.faults)
    assert all(line.isprintable() for line in lines(checked))
    assert json.loads(checked.model_dump_json())


@given(CONTENTS, st.sampled_from([None, *Kind]))
def test_what_is_valid_is_so_for_the_lenient(data: bytes, kind: Kind | None) -> None:
    if check("a", data, kind, lenient=False).valid:
        assert check("a", data, kind, lenient=True).valid


# --- The program ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [[], ["--strict", "--lenient", "a"], ["--kind=unit", "a"], ["--kin=description", "a"]]
)
def test_a_command_line_that_makes_no_sense(arguments: list[str]) -> None:
    done = subprocess.run(
        [executable("vhostctl"), "validate", *arguments], capture_output=True, env=environment(), timeout=60
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"vhostctl: error: ")
    assert done.stderr.count(b"\n") == 1


def test_a_pipe_from_a_program_of_ours() -> None:
    command = f"{executable('vhost-user-gpu')} --print-capabilities | {executable('vhostctl')} validate -"
    done = subprocess.run(["sh", "-c", command], capture_output=True, env=environment(), timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
