"""The package for Debian 13: built, installed where nothing else of ours is, tried, and removed."""

import gzip
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debian.chroot import ENVIRONMENT, Chroot
from tests.programs import PROGRAMS, connect, get_features, listens_at, needed_options
from vhostd import __version__

CHECKOUT = Path(__file__).parents[2]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
PATIENCE = 20.0


@pytest.fixture(scope="module")
def chroots() -> Path:
    made = subprocess.run(
        [CHECKOUT / "contrib/debian-chroot.sh"], stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(made.stdout.strip())


@pytest.fixture(scope="module")
def package(chroots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("debian")
    subprocess.run([CHECKOUT / "contrib/debian-package.sh", output], check=True)
    (built,) = output.glob("*.deb")
    return built


@pytest.fixture(scope="module")
def bare(chroots: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chroot]:
    """A copy of the chroot that has what the package depends on."""
    root = tmp_path_factory.mktemp("chroot") / "root"
    subprocess.run(["cp", "-a", chroots / "bare", root], check=True)
    yield Chroot(root)
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def before(bare: Chroot) -> dict[str, str]:
    """What is in it before the package comes."""
    return bare.state()


@pytest.fixture(scope="module")
def debian(bare: Chroot, before: dict[str, str], package: Path) -> Chroot:
    """Debian with the package, which has needed nothing but its dependencies."""
    shutil.copy(package, bare.root / "var/cache/apt")
    said = bare.run(
        "apt-get", "install", "--yes", "--no-install-recommends", f"/var/cache/apt/{package.name}"
    )
    assert re.search(r"^0 upgraded, 1 newly installed, 0 to remove", said, re.MULTILINE), said
    return bare


@pytest.fixture(scope="module")
def owned(debian: Chroot) -> set[str]:
    """The files of the package."""
    listed = debian.run("dpkg", "--listfiles", "vhostd").splitlines()
    return {name for name in listed if not (debian.root / name[1:]).is_dir()}


def field(package: Path, name: str) -> str:
    shown = subprocess.run(
        ["dpkg-deb", "--field", package, name], stdout=subprocess.PIPE, text=True, check=True
    )
    return shown.stdout.strip()


# --- The package itself ---------------------------------------------------------------------------------


def test_its_version_is_the_project_s(package: Path) -> None:
    assert field(package, "Version").partition("-")[0] == __version__


def test_it_depends_on_what_the_project_does(package: Path) -> None:
    depends = re.split(r"[ ,(]+", field(package, "Depends"))
    names = {re.split("[^a-z-]", need)[0] for need in PROJECT["dependencies"]}
    in_debian = {"systemd-python": "python3-systemd"}
    assert {in_debian.get(name, f"python3-{name}") for name in names} <= set(depends)
    assert "libseccomp2" in depends


def test_lintian_finds_nothing(chroots: Path, package: Path) -> None:
    build = Chroot(chroots / "build")
    place = build.root / "tmp" / package.name
    shutil.copy(package, place)
    try:
        # Whatever is new in Debian itself closes a bug there; this is not.
        new = "--suppress-tags=initial-upload-closes-no-bugs"
        assert build.run("lintian", "--allow-root", "--pedantic", "-I", new, f"/tmp/{package.name}") == ""
    finally:
        place.unlink()


def test_no_file_is_another_package_s_as_well(debian: Chroot, owned: set[str]) -> None:
    """Of those that describe or are back-ends, and are there on a host with QEMU."""
    neighbours = list((debian.root / "srv").glob("*.deb"))
    assert len(neighbours) == 3
    for neighbour in neighbours:
        listed = subprocess.run(
            ["dpkg-deb", "--contents", neighbour], stdout=subprocess.PIPE, text=True, check=True
        )
        theirs = {line.split()[5].removeprefix(".") for line in listed.stdout.splitlines()}
        assert "/usr/share/" in theirs, "paths are written alike"
        assert not theirs & owned


# --- What is there once it is installed -----------------------------------------------------------------


@pytest.mark.parametrize("program", [*PROGRAMS, "vhostctl"])
def test_a_program_is_there(debian: Chroot, owned: set[str], program: str) -> None:
    """In /usr/bin, where AppArmor's profile lets libvirtd start it."""
    assert f"/usr/bin/{program}" in owned
    assert debian.run(program, "--version") == f"{program} {__version__}\n"
    with gzip.open(debian.root / f"usr/share/man/man1/{program}.1.gz", "rt") as page:
        assert f'"vhostd {__version__}"' in page.readline()
    for completion in (
        f"bash-completion/completions/{program}",
        f"zsh/vendor-completions/_{program}",
        f"fish/vendor_completions.d/{program}.fish",
    ):
        assert f"/usr/share/{completion}" in owned


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_is_described(debian: Chroot, program: str) -> None:
    kind = PROGRAMS[program]
    path = debian.root / f"usr/share/qemu/vhost-user/50-vhostd-{kind}.json"
    document = json.loads(path.read_text())
    assert (document["type"], document["binary"]) == (kind, f"/usr/bin/{program}")
    assert json.loads(debian.run(program, "--print-capabilities"))["type"] == kind


def test_vhostctl_finds_nothing_wrong(debian: Chroot) -> None:
    said = debian.run("vhostctl", "list")
    for program in PROGRAMS:
        assert f"/usr/bin/{program}" in said


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_serves(debian: Chroot, program: str) -> None:
    path = debian.root / f"run/{program}.sock"
    options = needed_options(program, "/run")
    if program == "vhost-user-console":
        options = ["--port=socket=/run/console.sock"]  # no chroot has pseudo-terminals
    command = debian.command(program, f"--socket-path=/run/{program}.sock", *options)
    # The kernel knows the socket by the name that the program gave it.
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE) as process:
        try:
            while not listens_at(Path(f"/run/{program}.sock")):
                assert process.poll() is None, process.communicate()[1]
                os.sched_yield()
            with connect(path) as sock:
                assert get_features(sock)
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("program", PROGRAMS)
def test_systemd_understands_its_units(debian: Chroot, owned: set[str], program: str) -> None:
    for suffix in ("service", "socket"):
        assert f"/usr/lib/systemd/system/{program}@.{suffix}" in owned
    said = debian.run(
        "systemd-analyze", "--man=no", "verify", f"{program}@name.service", f"{program}@name.socket"
    )
    assert said == ""


def test_nothing_is_enabled(debian: Chroot, owned: set[str]) -> None:
    links = [path for path in (debian.root / "etc/systemd").rglob("*") if path.is_symlink()]
    assert not [link for link in links if "vhost" in link.name]
    assert not [name for name in owned if name.startswith("/etc/")]


# --- Upgrades -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def newer(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same package with a later version."""
    folder = tmp_path_factory.mktemp("newer")
    subprocess.run(["dpkg-deb", "--raw-extract", package, folder / "tree"], check=True)
    control = folder / "tree/DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*$", "Version: 99.0-1", control.read_text()))
    built = folder / "vhostd_99.0-1_amd64.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", folder / "tree", built], check=True)
    return built


def test_an_upgrade_ends_no_running_disk(debian: Chroot, newer: Path) -> None:
    shutil.copy(newer, debian.root / "var/cache/apt")
    path = debian.root / "run/upgraded.sock"
    command = debian.command("vhost-user-blk", "--socket-path=/run/upgraded.sock", "--ram=1M")
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE) as process:
        try:
            while not listens_at(Path("/run/upgraded.sock")):
                assert process.poll() is None, process.communicate()[1]
                os.sched_yield()
            with connect(path) as served:
                features = get_features(served)
                debian.run("dpkg", "--install", f"/var/cache/apt/{newer.name}")
                assert "99.0-1" in debian.run("dpkg-query", "--show", "vhostd")
                assert get_features(served) == features
            with connect(path) as served_next:
                assert get_features(served_next) == features
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


# --- And once it is gone --------------------------------------------------------------------------------


def test_nothing_is_left(debian: Chroot, before: dict[str, str]) -> None:
    """The last of all; the programs have run before."""
    assert debian.state() != before
    debian.run("apt-get", "purge", "--yes", "vhostd")
    after = debian.state()
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert not changed
