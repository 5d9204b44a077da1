"""Odd descriptions and programs, and what libvirt makes of each: for our model, and for libvirtd.

A case is `10-case.json` beside a good `90-ok.json`, both of type gpu. Its verdict says what happens when a
domain with a vhost-user video device is started by a libvirtd that runs as root, on a host without /dev/dri.
"""

import json
import os
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

SHARE = "usr/share/qemu/vhost-user"
ETC = "etc/qemu/vhost-user"
CASE = "10-case.json"
OK = "90-ok.json"
PROGRAM, OK_PROGRAM = "case", "ok"  # files in the folder of programs
RELATIVE = b"@RELATIVE@"  # in a content: where the case's program is, without the first slash
PLACE = b"@PROGRAM@"  # and with it
LIMIT = 1 << 20  # bytes that libvirt reads of a description
NESTED = 32  # values within values that its parser takes

GPU = b'{"type": "gpu", "binary": "@PROGRAM@"}'
NO_FEATURES = """echo '{"type": "gpu", "features": []}'"""
LAUNCH = ":"


class Verdict(Enum):
    """What the start of the domain comes to."""

    USED = "the case's own program is launched"
    NEXT = "the case is passed over, and the program of 90-ok.json is launched"
    FATAL = "the start fails, and nothing is launched"


@dataclass(frozen=True)
class Placed:
    """What is put into a folder of descriptions; a link's content is its target."""

    content: bytes = GPU
    folder: str = ETC
    name: str | bytes = CASE
    kind: str = "file"  # or link, folder, fifo, socket
    mode: int = 0o644
    size: int = 0  # in bytes, to which white space fills it up


@dataclass(frozen=True)
class Case:
    """`program` is a body for sh, run for --print-capabilities; without one there is no such file."""

    name: str
    verdict: Verdict
    placed: tuple[Placed, ...] = (Placed(),)
    program: str | None = NO_FEATURES
    program_mode: int = 0o755
    program_is_folder: bool = False
    refused_by: tuple[str, ...] = ()  # parsers of JSON, some of which libvirt reads it with

    def verdict_by(self, parser: str) -> Verdict:
        """With this parser, by its name; with one that refuses it, it is no JSON."""
        if parser not in self.refused_by:
            return self.verdict
        return Verdict.FATAL if self.program == NO_FEATURES else Verdict.NEXT

    def __str__(self) -> str:
        return self.name


def describing(name: str, verdict: Verdict, content: bytes | str, *refused_by: str) -> Case:
    """The content is the description's; the program is a good one."""
    placed = Placed(content if isinstance(content, bytes) else content.encode())
    return Case(name, verdict, (placed,), refused_by=refused_by)


def placing(name: str, verdict: Verdict, *placed: Placed) -> Case:
    """The files are odd ones; the program is a good one."""
    return Case(name, verdict, placed)


def running(name: str, verdict: Verdict, program: str, *refused_by: str) -> Case:
    """The description is a good one; the program does this for --print-capabilities."""
    return Case(name, verdict, program=program, refused_by=refused_by)


def printing(name: str, verdict: Verdict, output: str, *refused_by: str) -> Case:
    """The description is a good one; the program prints what printf(1) makes of this."""
    return running(name, verdict, f"printf '{output}'", *refused_by)


def gpu(**members: object) -> bytes:
    """A good description with some members more, or others."""
    return json.dumps({"type": "gpu", "binary": "@PROGRAM@", **members}).encode()


USED, NEXT, FATAL = Verdict

UNKNOWN_TYPES = ["sound", "snd", "gpio", "i2c", "rtc", "spi", "can", "media", "video", "bt", "mem", "test"]
OTHER_TYPES = ["9p", "balloon", "block", "caif", "console", "crypto", "fs", "input", "net", "rng", "rpmsg"]
OTHER_TYPES += ["rproc-serial", "scsi", "vsock"]

DESCRIPTIONS = [
    # --- Type ---
    *(describing(f"unknown type {kind}", FATAL, gpu(type=kind)) for kind in UNKNOWN_TYPES),
    *(describing(f"known type {kind}", NEXT, gpu(type=kind)) for kind in OTHER_TYPES),
    describing("type in capitals", FATAL, gpu(type="GPU")),
    describing("type with a space", FATAL, gpu(type="gpu ")),
    describing("type empty", FATAL, gpu(type="")),
    describing("type null", FATAL, gpu(type=None)),
    describing("type number", FATAL, gpu(type=16)),
    describing("type array", FATAL, gpu(type=["gpu"])),
    describing("type object", FATAL, gpu(type={"gpu": True})),
    describing("no type", FATAL, '{"binary": "@PROGRAM@"}'),
    describing("type within another object", FATAL, '{"backend": {"type": "gpu", "binary": "@PROGRAM@"}}'),
    describing("member Type", FATAL, '{"Type": "gpu", "binary": "@PROGRAM@"}'),
    # --- Binary ---
    describing("no binary", NEXT, '{"type": "gpu"}'),
    describing("input without binary", NEXT, '{"type": "input"}'),
    describing("binary empty", NEXT, gpu(binary="")),
    describing("binary null", NEXT, gpu(binary=None)),
    describing("binary number", NEXT, gpu(binary=5)),
    describing("binary array", NEXT, gpu(binary=["@PROGRAM@"])),
    describing("binary missing", NEXT, gpu(binary="/nowhere/vhost-user-gpu")),
    describing("binary a folder", NEXT, gpu(binary="/usr")),
    describing("binary with an argument", NEXT, gpu(binary="@PROGRAM@ --verbose")),
    describing("binary relative, not in PATH", NEXT, gpu(binary="vhost-user-nowhere")),
    describing("binary relative to the root folder", USED, gpu(binary="@RELATIVE@")),
    describing("binary with dots", USED, gpu(binary="/usr/..@PROGRAM@")),
    describing("binary with escapes", USED, '{"type": "g\\u0070u", "binary": "\\u002F@RELATIVE@"}'),
    describing(
        "binary cut by an escaped NUL", USED, '{"type": "gpu\\u0000x", "binary": "@PROGRAM@\\u0000x"}'
    ),
    # --- Other members ---
    describing("no description", USED, GPU),
    describing("description number", USED, gpu(description=5)),
    describing("extra members", USED, gpu(vendor="acme", version=[1, 2], features=["virgl"])),
    describing("tags of a wrong type", USED, gpu(tags="fast")),
    # --- JSON ---
    describing("not JSON", FATAL, "type = gpu\n"),
    describing("array", FATAL, "[]"),
    describing("array of descriptions", FATAL, b"[" + GPU + b"]"),
    describing("string", FATAL, '"gpu"'),
    describing("number", FATAL, "5"),
    describing("null", FATAL, "null"),
    describing("empty object", FATAL, "{}"),
    describing("white space", FATAL, " \n"),
    describing("cut", FATAL, '{"type": "gpu", "binary": "@PROGRAM@"'),
    describing("trailing comma", FATAL, '{"type": "gpu", "binary": "@PROGRAM@",}'),
    describing("missing comma", FATAL, '{"type": "gpu" "binary": "@PROGRAM@"}'),
    describing("single quotes", FATAL, "{'type': 'gpu', 'binary': '@PROGRAM@'}"),
    describing("bare names", FATAL, '{type: "gpu", binary: "@PROGRAM@"}'),
    describing("comment of C", FATAL, b"/* ours */ " + GPU),
    describing("comment of C++", FATAL, b"// ours\n" + GPU),
    describing("comment of sh", FATAL, b"# ours\n" + GPU),
    describing("comment at the end", FATAL, GPU + b" // ours"),
    describing("two documents", FATAL, GPU + GPU),
    describing("text behind it", FATAL, GPU + b" end"),
    describing("brace behind it", FATAL, GPU + b"}"),
    describing("lines around it", USED, b"\n\t" + GPU + b"\r\n\n"),
    describing("NUL and text behind it", USED, GPU + b"\0end"),
    describing("NUL before it", FATAL, b"\0" + GPU),
    describing(
        "duplicate key, the last is known", USED, '{"type": "sound", "type": "gpu", "binary": "@PROGRAM@"}'
    ),
    describing("duplicate key, the last is unknown", FATAL, '{"type": "gpu", "type": "sound"}'),
    describing("duplicate binary", USED, '{"type": "gpu", "binary": "/nowhere", "binary": "@PROGRAM@"}'),
    describing("NaN", USED, gpu(version=float("nan"))),
    describing("Infinity", USED, gpu(version=float("-inf"))),
    describing("nan in lower case", FATAL, '{"type": "gpu", "binary": "@PROGRAM@", "version": nan}'),
    describing("constant in capitals", FATAL, '{"type": "gpu", "binary": "@PROGRAM@", "old": True}'),
    describing(
        "number with a zero before it", FATAL, '{"type": "gpu", "binary": "@PROGRAM@", "version": 012}'
    ),
    describing("number of 30 digits", USED, gpu(version=10**29), "json-c 0.17", "json-c 0.18", "json-c 0.19"),
    describing("greatest integer", USED, gpu(version=(1 << 64) - 1, least=-(1 << 63))),
    describing("letter beyond ASCII, escaped", USED, gpu(description="écran 🖥")),
    describing("letter beyond ASCII in a name", USED, '{"type": "gpu", "binary": "@PROGRAM@", "é": 1}'),
    describing("tab in a string", USED, GPU[:-1] + b', "x": "a\tb"}', "json-c 0.18", "json-c 0.19"),
    describing("tab in a name", USED, GPU[:-1] + b', "a\tb": 1}', "json-c 0.19"),
    describing("control characters, escaped", USED, gpu(description="a\tb\x01\x7f")),
    describing("DEL", USED, GPU[:-1] + b', "x": "\x7f"}'),
    describing("hexadecimal number", FATAL, '{"type": "gpu", "binary": "@PROGRAM@", "version": 0x10}'),
    describing("unknown escape", FATAL, '{"type": "gpu", "binary": "@PROGRAM@", "description": "\\x41"}'),
    describing(
        "half of a surrogate pair", USED, '{"type": "gpu", "binary": "@PROGRAM@", "description": "\\ud800"}'
    ),
    describing("nested 32 deep", USED, gpu(x="@")[:-4] + b"[" * (NESTED - 1) + b"]" * (NESTED - 1) + b"}"),
    describing("nested 33 deep", FATAL, gpu(x="@")[:-4] + b"[" * NESTED + b"]" * NESTED + b"}"),
    describing("nested 100,000 deep", FATAL, b"[" * 100_000),
    # --- Bytes ---
    describing("byte order mark", FATAL, b"\xef\xbb\xbf" + GPU),
    describing("UTF-16", FATAL, gpu().decode().encode("utf-16")),
    describing("UTF-16 without a mark", FATAL, gpu().decode().encode("utf-16-le")),
    describing("Latin-1", FATAL, gpu(description="@")[:-3] + b'caf\xe9"}'),
    describing("no text at all", FATAL, bytes(range(256))),
    describing(
        "UTF-8", USED, '{"type": "gpu", "binary": "@PROGRAM@", "description": "écran 🖥"}', "json-c 0.18"
    ),
]

FILES = [
    placing("good", USED, Placed()),
    placing("unknown type behind the good one", FATAL, Placed(gpu(type="sound"), name="95-case.json")),
    placing("README", FATAL, Placed(b"Descriptions of vhost-user back-ends\n", name="README")),
    placing("editor's copy", USED, Placed(name="10-case.json~")),
    placing("copy of the package manager's", USED, Placed(name="10-case.json.dpkg-dist")),
    placing("no suffix", USED, Placed(name="10-case")),
    placing("name behind the other", NEXT, Placed(name="95-case.json")),
    placing("name in capitals, which come behind digits", NEXT, Placed(name="A-case.json")),
    placing("name of two bytes", USED, Placed(name="10-é.json")),
    placing("name that is no UTF-8", USED, Placed(name=b"10-\xff.json")),
    placing("name with a line break", USED, Placed(name="10-\n.json")),
    placing("dot file", NEXT, Placed(b"junk", name=".10-case.json")),
    placing("folder", NEXT, Placed(kind="folder")),
    placing("fifo", NEXT, Placed(kind="fifo")),
    placing("socket", NEXT, Placed(kind="socket")),
    placing(
        "link to a file",
        USED,
        Placed(folder=f"{ETC}/10-case.d", name="real.json"),
        Placed(b"10-case.d/real.json", kind="link"),
    ),
    placing("link to a folder", NEXT, Placed(b"../vhost-user", kind="link")),
    placing("link to a device", NEXT, Placed(b"/dev/null", kind="link")),
    placing("link to nothing", FATAL, Placed(b"nowhere.json", kind="link")),
    placing("link to itself", FATAL, Placed(CASE.encode(), kind="link")),
    placing("dot link to nothing", NEXT, Placed(b"nowhere.json", name=".10-case.json", kind="link")),
    placing("nobody may read it", USED, Placed(mode=0)),
    placing("size at the limit", USED, Placed(size=LIMIT)),
    placing("size above the limit", FATAL, Placed(size=LIMIT + 1)),
    placing("zero size", NEXT, Placed(b"")),
    placing("masked", NEXT, Placed(folder=SHARE), Placed(b"")),
    placing("junk, masked", NEXT, Placed(b"junk", folder=SHARE), Placed(b"")),
    placing("masked by a link to a device", USED, Placed(folder=SHARE), Placed(b"/dev/null", kind="link")),
    placing("mask that is less specific", USED, Placed(b"", folder=SHARE), Placed()),
    placing("junk, replaced", USED, Placed(b"junk", folder=SHARE), Placed()),
    placing("replaced by junk", FATAL, Placed(folder=SHARE), Placed(b"junk")),
    placing("in the distribution's folder", USED, Placed(folder=SHARE)),
    placing(
        "link to nothing, masked", FATAL, Placed(b"nowhere.json", folder=SHARE, kind="link"), Placed(b"")
    ),
]

PROGRAMS = [
    Case("program missing", NEXT, program=None),
    Case("program not executable", NEXT, program_mode=0o644),
    Case("program a folder", NEXT, program=None, program_is_folder=True),
    running("exit status 1", NEXT, f"{NO_FEATURES}; exit 1"),
    running("exit by a signal", NEXT, f"{NO_FEATURES}; kill -9 $$"),
    running("nothing at all", NEXT, "exit 0"),
    running("stdout closed", NEXT, "exec >&-"),
    running("text on stderr", USED, f"echo 'using defaults' >&2; {NO_FEATURES}"),
    running("JSON on stderr", NEXT, f"{NO_FEATURES} >&2"),
    running("reads stdin", USED, f"read -r line || {NO_FEATURES}"),
    running("wants no further arguments", USED, f"[ $# = 1 ] && {NO_FEATURES}"),
    running("is in the root folder", USED, f'[ "$PWD" = / ] && {NO_FEATURES}'),
    running("much on stderr", USED, f"head -c 300000 /dev/zero >&2; {NO_FEATURES}"),
    running("much white space", USED, f"{NO_FEATURES}; head -c 300000 /dev/zero | tr '\\0' ' '"),
    printing("garbage", NEXT, "vhost-user-gpu 1.0"),
    printing("log line before", NEXT, 'starting\\n{"type": "gpu", "features": []}\\n'),
    printing("text behind", NEXT, '{"type": "gpu", "features": []}\\ndone\\n'),
    running("two documents in the output", NEXT, f"{NO_FEATURES}; {NO_FEATURES}"),
    printing("no line break", USED, '{"type": "gpu", "features": []}'),
    printing("many lines", USED, '\\n{\\n  "type": "gpu",\\r\\n  "features": [\\n  ]\\n}\\n\\n'),
    printing("byte order mark in the output", NEXT, '\\357\\273\\277{"type": "gpu", "features": []}'),
    printing("UTF-8 in the output", USED, '{"features": [], "description": "écran"}', "json-c 0.18"),
    printing("bytes that are no UTF-8", NEXT, '{"type": "gpu", "features": [], "x": "\\377"}'),
    printing("NUL behind", USED, '{"type": "gpu", "features": []}\\000end'),
    printing("trailing comma in the output", NEXT, '{"type": "gpu", "features": [],}'),
    printing("capabilities array", NEXT, "[]"),
    printing("capabilities string", NEXT, '"gpu"'),
    printing("capabilities null", NEXT, "null"),
    printing("no features", NEXT, '{"type": "gpu"}'),
    printing("features null", NEXT, '{"type": "gpu", "features": null}'),
    printing("features string", NEXT, '{"type": "gpu", "features": "virgl"}'),
    printing("features object", NEXT, '{"type": "gpu", "features": {"virgl": true}}'),
    printing("features twice, the last is none", NEXT, '{"features": [], "features": 5}'),
    printing("features unknown", USED, '{"type": "gpu", "features": ["3d", "vulkan"]}'),
    printing("features with other values", USED, '{"type": "gpu", "features": [null, 5, ["virgl"], {}]}'),
    printing("features empty strings", USED, '{"type": "gpu", "features": ["", ""]}'),
    printing("feature virgl", USED, '{"type": "gpu", "features": ["virgl"]}'),
    printing("feature render-node", FATAL, '{"type": "gpu", "features": ["render-node"]}'),
    printing("type of another", USED, '{"type": "input", "features": []}'),
    printing("unknown type in the output", USED, '{"type": "sound", "features": []}'),
    printing("no type in the output", USED, '{"features": []}'),
    printing("more members", USED, '{"type": "gpu", "features": [], "version": 1}'),
    printing(
        "capabilities nested too deep", NEXT, '{"features": [], "x": ' + "[" * NESTED + "]" * NESTED + "}"
    ),
]

CASES = [*DESCRIPTIONS, *FILES, *PROGRAMS]


def write(
    case: Case, root: Path, *, seen: Path | None = None, programs: str = "run/matrix", launch: str = LAUNCH
) -> None:
    """Makes the case's files, 90-ok.json and both programs below `root`, which libvirt sees at `seen`.

    A program that is not asked for its capabilities runs `launch`, lines for sh; $0 ends in `case` or `ok`.
    """
    place = (seen or root) / programs
    folder = root / programs
    folder.mkdir(parents=True, exist_ok=True)
    _write_program(folder / OK_PROGRAM, NO_FEATURES, 0o755, launch)
    if case.program is not None:
        _write_program(folder / PROGRAM, case.program, case.program_mode, launch)
    elif case.program_is_folder:
        (folder / PROGRAM).mkdir()
    good = json.dumps({"type": "gpu", "binary": str(place / OK_PROGRAM)}).encode()
    for each in (Placed(good, name=OK), *case.placed):
        _put(each, root, str(place / PROGRAM).encode())


def remove(root: Path, programs: str = "run/matrix") -> None:
    """Empties the folders that cases are written to below `root`."""
    for folder in (SHARE, ETC, programs):
        if (root / folder).exists():
            _empty(root / folder)


def _write_program(path: Path, body: str, mode: int, launch: str) -> None:
    script = f'#!/bin/sh\nif [ "$1" = --print-capabilities ]; then\n{body}\nexit\nfi\n{launch}\n'
    path.write_text(script)
    path.chmod(mode)


def _put(placed: Placed, root: Path, program: bytes) -> None:
    folder = root / placed.folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / os.fsdecode(placed.name)
    content = placed.content.replace(PLACE, program).replace(RELATIVE, program[1:])
    match placed.kind:
        case "file":
            path.write_bytes(content.ljust(placed.size))
            path.chmod(placed.mode)
        case "link":
            path.symlink_to(os.fsdecode(placed.content))
        case "folder":
            path.mkdir()
            (path / "inner.json").write_bytes(b"junk")
        case "fifo":
            os.mkfifo(path)
        case "socket":
            os.mknod(path, stat.S_IFSOCK | 0o644)  # whose path may be longer than bind(2) takes


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            _empty(path)
            path.rmdir()
        else:
            path.unlink()
