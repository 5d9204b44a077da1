"""Who may import whom: the layers of ARCHITECTURE.md.

Imports go down only; inside a layer they make no circle. The lower layers know nothing of event loops,
sockets and clocks, the core knows no device, and devices know the public names of vhostd only.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import vhostd
import vhostd.storage
from vhostd import author

ROOT = Path(__file__).parents[1]

# From the ground up: each folder of vhostd is a layer, and so is errors.py.
LAYERS = (
    *("errors", "wire", "host", "ring", "virtio", "storage", "vhost_user", "program"),
    *("frontend", "trace", "conformance", "fuzz", "ctl"),
)
# What devices import besides the names of `vhostd` itself and of `vhostd.storage`.
PUBLIC = (
    *("vhostd.ring.uring", "vhostd.vhost_user.gpu_messages", "vhostd.vhost_user.messages"),
    *("vhostd.host.accept", "vhostd.host.destination", "vhostd.host.helper", "vhostd.wire.packets"),
)
# No event loop, no clock and no socket is known here.
PURE = {
    "vhostd.errors",
    "vhostd.ring",
    "vhostd.vhost_user.gpu_messages",
    "vhostd.vhost_user.messages",
    "vhostd.virtio.vocabulary",
    "vhostd.wire.fds",
    "vhostd.wire.framing",
    "vhostd.wire.layout",
    "vhostd.wire.rows",
}
# What each of these imports where it is needed costs much, and few need it; it says why.
LATE = {
    "vhostd": {"vhostd.author"},
    "vhostd.program.start": {
        "vhostd.program.process",
        "vhostd.program.lean",
        "vhostd.program.main",
        "vhostd.program.log",
    },
    "vhostd.program.main": {"vhostd.program.metrics.metrics"},
    "vhostd.program.parser": {"difflib"},
    "vhostd.ctl.replay": {"vhostd.ctl.replaying"},
    "vhostd.ctl.run": {"vhostd.ctl.machine.running"},
    "vhostd.ctl.check": {"vhostd.ctl.checking"},
    "vhostd.ctl.trace": {"vhostd.ctl.tracing"},
    "vhostd.ctl.fuzz": {"vhostd.ctl.fuzzing"},
    "vhostd.ctl.installation.programs": {"vhostd.program.main", "vhostd.program.options"},
    "vhostd.program.activation": {"systemd.daemon"},
    "vhost_user_gpu.device": {"vhost_user_gpu.virgl.acceleration"},
    "vhost_user_input.evdev_node": {"evdev"},
}
ENTRANCE = {"vhostd", "vhostd.author"}  # above all layers: what authors import
NAMES = {name for name in vars(author) if not name.startswith("__")}
IMPURE = {"asyncio", "uvloop", "socket", "select", "selectors", "time"}


class Import(NamedTuple):
    """What one import names; `name` is empty for `import module`, `typing` if only checkers see it."""

    module: str
    name: str
    typing: bool

    @property
    def target(self) -> str:
        """The module that is imported in the end."""
        inner = f"{self.module}.{self.name}"
        return inner if inner in MODULES or layer(inner) else self.module


def imports_of(tree: ast.AST, *, typing: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            assert not node.level, "relative imports are not used here"
            yield from (Import(node.module, alias.name, typing) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for branch, only_typing in ((node.body, True), (node.orelse, typing)):
                yield from imports_of(ast.Module(branch, []), typing=only_typing)
        else:
            yield from imports_of(node, typing=typing)


CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+)?c?import\s+(.+)$", re.MULTILINE)


def imports_in(path: Path) -> list[Import]:
    text = path.read_text()
    if path.suffix in (".py", ".pyi"):
        return list(imports_of(ast.parse(text)))
    text = re.sub(r"\((.*?)\)", lambda match: " ".join(match[1].split()), text, flags=re.DOTALL)
    found = []
    for module, names in CIMPORT.findall(text):
        for name in names.split("#")[0].split(","):
            plain = name.split(" as ")[0].strip()
            found.append(Import(module, plain, typing=False) if module else Import(plain, "", typing=False))
    return found


def sources(root: Path) -> Iterator[tuple[str, Path]]:
    """All sources below `root` and the names of their modules."""
    for path in sorted(root.rglob("*.py*")):
        if path.suffix in (".py", ".pyi", ".pyx", ".pxd"):
            inner = path.relative_to(root).with_suffix("")
            parts = inner.parts[:-1] if inner.name == "__init__" else inner.parts
            yield ".".join(parts), path


CORE = [(f"vhostd.{name}" if name else "vhostd", path) for name, path in sources(ROOT / "vhostd")]
DEVICES = list(sources(ROOT / "devices"))
MODULES = {name for name, _ in CORE}


def layer(module: str) -> int:
    """From 1 on; 0 for what is in no layer, such as `vhostd` itself."""
    package, _, inner = module.partition(".")
    name = inner.partition(".")[0]
    return LAYERS.index(name) + 1 if package == "vhostd" and name in LAYERS else 0


def label(source: tuple[str, Path]) -> str:
    return str(source[1].relative_to(ROOT))


LAYERED = pytest.mark.parametrize("source", [each for each in CORE if each[0] not in ENTRANCE], ids=label)


@LAYERED
def test_imports_go_down(source: tuple[str, Path]) -> None:
    module, path = source
    assert layer(module), "the module has no layer"
    up = [each.target for each in imports_in(path) if layer(each.target) > layer(module)]
    assert not up


@LAYERED
def test_the_lower_layers_are_pure(source: tuple[str, Path]) -> None:
    module, path = source
    if any(module == pure or module.startswith(f"{pure}.") for pure in PURE):
        assert not IMPURE & {each.module.partition(".")[0] for each in imports_in(path)}


def test_imports_make_no_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for module, path in CORE:
        graph[module] |= {each.target for each in imports_in(path) if not each.typing} & MODULES - {module}
    assert list(TopologicalSorter(graph).static_order())


def test_the_front_end_stands_beside_the_session() -> None:
    """Neither knows the other, so that a test of one against the other means something."""
    shared = ("errors", "wire", "ring", "virtio.vocabulary", "vhost_user.messages", "host.signals")
    may_import = tuple(f"vhostd.{name}" for name in (*shared, "frontend"))
    for module, path in CORE:
        for each in imports_in(path):
            if module.startswith("vhostd.frontend"):
                assert each.target.startswith(may_import) or not layer(each.target)
            elif layer(module) <= layer("vhostd.program"):
                assert not each.target.startswith("vhostd.frontend"), module


@pytest.mark.parametrize("source", CORE, ids=label)
def test_the_core_knows_no_device(source: tuple[str, Path]) -> None:
    module, path = source
    devices = {name.partition(".")[0] for name, _ in DEVICES}
    assert not devices & {each.module.partition(".")[0] for each in imports_in(path)}
    if path.suffix == ".py" and module != "vhostd.virtio.vocabulary":
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "DeviceType":
                assert not node.attr.isupper(), "a type of device by its name"


@pytest.mark.parametrize("source", DEVICES, ids=label)
def test_devices_import_public_names_only(source: tuple[str, Path]) -> None:
    public = {"vhostd": {*NAMES}, "vhostd.storage": set(vhostd.storage.__all__)}
    if source[1].suffix == ".pyx":
        for package in public:
            interface = ROOT / package.replace(".", "/") / "__init__.pxd"
            public[package] |= {each.name for each in imports_in(interface)}
    for each in imports_in(source[1]):
        if each.module.partition(".")[0] == "vhostd":
            assert each.module in (*public, *PUBLIC)
            assert each.module in PUBLIC or each.name in public[each.module]


@pytest.mark.parametrize("source", DEVICES, ids=label)
def test_the_process_is_not_the_devices(source: tuple[str, Path]) -> None:
    """They say which signals they want, and the program takes them."""
    assert not {"gc", "signal"} & {each.module for each in imports_in(source[1])}


@pytest.mark.parametrize("source", [*CORE, *DEVICES], ids=label)
def test_modules_import_at_their_top(source: tuple[str, Path]) -> None:
    module, path = source
    if path.suffix == ".py":
        tree = ast.parse(path.read_text())
        top = {node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
        inner = ast.Module([node for node in tree.body if node not in top], [])
        late = {each.module for each in imports_of(inner) if not each.typing}
        assert late == LATE.get(module, set())


def test_what_only_checkers_see_is_nowhere_but_in_the_list_of_public_names() -> None:
    hidden = {each for _, path in [*CORE, *DEVICES] for each in imports_in(path) if each.typing}
    assert hidden == {Import("vhostd.author", "*", typing=True)}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_public_names_exist(name: str) -> None:
    assert getattr(vhostd, name)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'vhostd' has no attribute 'Vring'"):
        _ = vhostd.Vring  # type: ignore[attr-defined]  # as mypy says as well


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import socket", [Import("socket", "", typing=False)]),
        ("def f():\n from vhostd import log", [Import("vhostd", "log", typing=False)]),
        ("if TYPE_CHECKING:\n from vhostd.a import b", [Import("vhostd.a", "b", typing=True)]),
        (
            "if x:\n import a\nelse:\n import b",
            [Import("a", "", typing=False), Import("b", "", typing=False)],
        ),
    ],
)
def test_imports_are_found_wherever_they_stand(text: str, found: list[Import]) -> None:
    assert list(imports_of(ast.parse(text))) == found


def test_imports_are_found_in_cython(tmp_path: Path) -> None:
    source = tmp_path / "a.pyx"
    source.write_text(
        "from libc.errno cimport errno, EBADF  # two\nimport os\nfrom vhostd.x import (\n    y,\n)\n"
    )
    found = [(each.module, each.name) for each in imports_in(source)]
    assert found[:3] == [("libc.errno", "errno"), ("libc.errno", "EBADF"), ("os", "")]
    assert ("vhostd.x", "y") in found


def test_all_packages_are_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = {name for name in settings["tool"]["setuptools"]["packages"] if name.startswith("vhostd")}
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "vhostd").rglob("__init__.py")}
    assert named == {".".join(folder.parts) for folder in folders}
