"""vhostctl install: what is written where, all of it or nothing, and what it warns of."""

import json
import os
import stat
from pathlib import Path

import pytest

from tests.ctl.staging import SHELLS, Site, files, put_programs, tree
from tests.programs import PROGRAMS
from vhostd.ctl.description import load
from vhostd.ctl.installation import contents, reach
from vhostd.ctl.installation.record import Record, digest

TYPES = {kind: name.removeprefix("vhost-user-") for name, kind in PROGRAMS.items()}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Site:
    return Site(tmp_path, monkeypatch, capfd)


def everything(types: dict[str, str], descriptions: str, units: str, share: str) -> set[str]:
    """The names of all files of programs of these types, and of vhostctl."""
    names = {"vhostctl"}
    found = set()
    for kind, short in types.items():
        names.add(f"vhost-user-{short}")
        found |= {f"{units}/vhost-user-{short}@.{suffix}" for suffix in ("service", "socket")}
        found.add(f"{descriptions}/50-vhostd-{kind}.json")
    for name in names:
        found |= {f"{share}/{place.format(name)}" for place in SHELLS}
        found.add(f"{share}/man/man1/{name}.1")
    return found


# --- What is written, and where -------------------------------------------------------------------------


def test_a_package_is_staged(site: Site, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    site.called_from(put_programs(staged / "usr/bin", *PROGRAMS))
    before = files(staged)
    status, printed, complaints = site.run("install", "--prefix=/usr", f"--destdir={staged}")
    expected = everything(TYPES, "usr/share/qemu/vhost-user", "usr/lib/systemd/system", "usr/share")
    assert (status, complaints) == (0, [])
    assert files(staged) - before == expected
    assert set(printed) == {f"/{name}" for name in expected}
    for kind, short in TYPES.items():
        description = load(staged / f"usr/share/qemu/vhost-user/50-vhostd-{kind}.json")
        assert (description.type, description.binary) == (kind, Path(f"/usr/bin/vhost-user-{short}"))
        service = (staged / f"usr/lib/systemd/system/vhost-user-{short}@.service").read_text()
        assert f"\nExecStart=/usr/bin/vhost-user-{short} " in service
    assert not [name for name, content in tree(staged).items() if content and str(staged).encode() in content]


def test_the_administrator_s_is_the_default(site: Site, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    assert site.run("install", f"--destdir={staged}")[0] == 0
    share = "usr/local/share"
    assert files(staged) == everything(TYPES, "etc/qemu/vhost-user", "etc/systemd/system", share)
    description = load(staged / "etc/qemu/vhost-user/50-vhostd-gpu.json")
    assert description.binary == site.programs / "vhost-user-gpu"


def test_a_user_s_own(site: Site) -> None:
    assert site.run("install", "--user")[0] == 0
    expected = everything(TYPES, ".config/qemu/vhost-user", ".config/systemd/user", ".local/share")
    assert files(site.home) == expected | {".local/share/vhostd/installed.json"}
    service = (site.home / ".config/systemd/user/vhost-user-gpu@.service").read_text()
    assert f"ExecStart={site.programs}/vhost-user-gpu " in service
    assert "DynamicUser" not in service


def test_what_was_written_is_recorded(site: Site) -> None:
    site.install()
    record = Record.load(site.prefix / "share/vhostd/installed.json")
    assert record
    expected = everything(TYPES, "share/qemu/vhost-user", "lib/systemd/system", "share")
    assert {str(path.relative_to(site.prefix)) for path in record.files} == expected
    assert all(digest(path.read_bytes()) == known for path, known in record.files.items())
    folders = [site.prefix, *(path for path in site.prefix.rglob("*") if path.is_dir())]
    assert set(record.folders) == set(folders)


def test_some_types(site: Site) -> None:
    site.install("--types", "gpu", "rng")
    chosen = {kind: TYPES[kind] for kind in ("gpu", "rng")}
    expected = everything(chosen, "share/qemu/vhost-user", "lib/systemd/system", "share")
    record = {"share/vhostd/installed.json"}
    assert files(site.prefix) == expected | record
    site.install("--types", "block")
    chosen["block"] = "blk"
    expected = everything(chosen, "share/qemu/vhost-user", "lib/systemd/system", "share")
    assert files(site.prefix) == expected | record
    later = Record.load(site.prefix / "share/vhostd/installed.json")
    assert later
    assert len(later.files) == len(expected)


def test_only_programs_that_are_there(site: Site) -> None:
    (site.programs / "vhost-user-blk").unlink()
    site.install()
    assert not [name for name in files(site.prefix) if "blk" in name or "block" in name]
    status, _, complaints = site.run("install", f"--prefix={site.prefix}", "--types", "block")
    assert status == 2
    assert complaints == [
        "vhostctl: error: --types: no program here is of type 'block'; "
        f"there are {', '.join(sorted(set(TYPES) - {'block'}))}"
    ]


def test_no_program_at_all(site: Site) -> None:
    for name in PROGRAMS:
        (site.programs / name).unlink()
    status, printed, complaints = site.run("install", f"--prefix={site.prefix}")
    assert (status, printed) == (1, [])
    assert complaints == [f"vhostctl: error: there is none of vhostd's back-end programs in {site.programs}"]


def test_a_dry_run_writes_nothing(site: Site) -> None:
    status, would, _ = site.run("install", f"--prefix={site.prefix}", "--dry-run")
    assert status == 0
    assert not site.prefix.exists()
    status, did, _ = site.run("install", f"--prefix={site.prefix}")
    assert (status, did) == (0, would)


def test_others_may_read_it_whatever_the_umask_is(site: Site) -> None:
    before = os.umask(0o077)
    try:
        site.install()
    finally:
        os.umask(before)
    for path in [site.prefix, *site.prefix.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path


def test_a_path_that_no_file_can_name(site: Site, tmp_path: Path) -> None:
    site.called_from(put_programs(tmp_path / "two\nlines", *PROGRAMS))
    status, _, complaints = site.run("install", f"--prefix={site.prefix}")
    assert status == 1
    assert len(complaints) == 1
    assert "no file can name" in complaints[0]


def test_a_prefix_that_no_file_can_name(site: Site, tmp_path: Path) -> None:
    prefix = tmp_path / os.fsdecode(b"\xff")
    status, _, complaints = site.run("install", f"--prefix={prefix}")
    assert status == 1
    assert len(complaints) == 1
    assert complaints[0].startswith("vhostctl: error: no file can name")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--user", "--prefix=/usr"),
        ("--prefix=/usr",),
        ("--prefix=",),
        ("--destdir=",),
        ("--user", "--destdir=/nonexistent"),
        ("--types",),
        ("--types", "sound"),
        ("--pre=/usr",),
        ("gpu",),
    ],
)
def test_a_command_line_that_makes_no_sense(site: Site, arguments: tuple[str, ...]) -> None:
    status, printed, complaints = site.run("install", *arguments)
    assert (status, printed, len(complaints)) == (2, [], 1)


# --- All or nothing -------------------------------------------------------------------------------------


def test_a_type_that_libvirt_does_not_know_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One such file would keep every domain with a vhost-user GPU or a shared folder from starting."""
    shipped = site.home / "shipped"
    shipped.mkdir(parents=True)
    wrong = {"description": "a sound card", "type": "sound", "binary": "/usr/bin/vhost-user-rng"}
    (shipped / "50-vhostd-sound.json").write_text(json.dumps(wrong))
    monkeypatch.setattr(contents, "DESCRIPTIONS", (str(shipped),))
    status, printed, complaints = site.run("install", f"--prefix={site.prefix}")
    assert (status, printed, len(complaints)) == (1, [], 1)
    assert "50-vhostd-sound.json: at $.type: " in complaints[0]
    assert not site.prefix.exists()


TARGET = "share/qemu/vhost-user/50-vhostd-gpu.json"
FOREIGN = {
    "a file": lambda path: path.write_text("mine"),
    "an empty file, which masks one": lambda path: path.touch(),
    "a link": lambda path: path.symlink_to("/dev/null"),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_ours_stays(site: Site, make: object) -> None:
    path = site.prefix / TARGET
    path.parent.mkdir(parents=True)
    make(path)  # type: ignore[operator]
    before = tree(site.prefix)
    status, printed, complaints = site.run("install", f"--prefix={site.prefix}")
    assert (status, printed) == (1, [])
    assert complaints[-1] == (
        f"vhostctl: error: {path} is not of this program: move it away first; nothing was installed"
    )
    assert tree(site.prefix) == before


def test_what_is_as_it_is_to_be_is_adopted(site: Site) -> None:
    site.install()
    (site.prefix / "share/vhostd/installed.json").unlink()
    before = tree(site.prefix)
    site.install()
    assert tree(site.prefix).items() >= before.items()


def test_our_own_older_files_are_replaced(site: Site) -> None:
    site.install()
    path, record_path = site.prefix / TARGET, site.prefix / "share/vhostd/installed.json"
    now = tree(site.prefix)
    path.write_text("what an older version wrote")
    record = Record.load(record_path)
    assert record
    record.files[path] = digest(path.read_bytes())
    record_path.write_bytes(record.dump())
    site.install()
    assert tree(site.prefix) == now


@pytest.mark.parametrize("changed", [False, True])
def test_a_program_that_is_gone(site: Site, *, changed: bool) -> None:
    """Its files go with the next installation, but not what somebody has made of them."""
    site.install()
    path = site.prefix / "share/man/man1/vhost-user-blk.1"
    if changed:
        path.write_text("changed")
    (site.programs / "vhost-user-blk").unlink()
    site.install("--types", "gpu")
    left = {name for name in files(site.prefix) if "blk" in name or "block" in name}
    assert left == ({str(path.relative_to(site.prefix))} if changed else set())
    kept = {kind: short for kind, short in TYPES.items() if kind != "block"}
    expected = everything(kept, "share/qemu/vhost-user", "lib/systemd/system", "share")
    assert files(site.prefix) - left == expected | {"share/vhostd/installed.json"}
    record = Record.load(site.prefix / "share/vhostd/installed.json")
    assert record
    assert (path in record.files) == changed


def test_what_was_changed_since_stays(site: Site) -> None:
    site.install()
    path = site.prefix / TARGET
    path.write_text("changed")
    before = tree(site.prefix)
    status, _, complaints = site.run("install", f"--prefix={site.prefix}")
    assert status == 1
    assert f"{path} was changed since it was installed: move it away first" in complaints[-1]
    assert tree(site.prefix) == before


@pytest.mark.parametrize("already", [False, True], ids=["first", "again"])
def test_a_failure_at_any_file_leaves_all_as_it_was(
    site: Site, monkeypatch: pytest.MonkeyPatch, *, already: bool
) -> None:
    if already:
        site.install("--types", "rng")
        record = Record.load(site.prefix / "share/vhostd/installed.json")
        assert record
        for path in record.files:  # so that each is written anew
            path.write_bytes(b"older")
            record.files[path] = digest(b"older")
        (site.prefix / "share/vhostd/installed.json").write_bytes(record.dump())
    before = tree(site.prefix)
    replace = os.replace
    total = len(everything(TYPES, "", "", "")) + 1
    for failing in range(total):
        left = iter(range(failing + 1))

        def fail(source: str, target: Path, left: object = left, failing: int = failing) -> None:
            if next(left, None) == failing:  # type: ignore[call-overload]
                raise PermissionError(13, "Permission denied", str(target))
            replace(source, target)

        monkeypatch.setattr(os, "replace", fail)
        status, printed, complaints = site.run("install", f"--prefix={site.prefix}")
        monkeypatch.setattr(os, "replace", replace)
        assert (status, printed) == (1, []), failing
        assert complaints[-1].startswith(f"vhostctl: error: {site.prefix}/")
        assert complaints[-1].endswith(
            ": Permission denied (be root, or install with --user); nothing was installed"
        )
        assert tree(site.prefix) == before, failing
    assert site.run("install", f"--prefix={site.prefix}")[0] == 0


def test_a_file_in_the_place_of_a_folder(site: Site) -> None:
    (site.prefix / "share").mkdir(parents=True)
    (site.prefix / "share/zsh").touch()
    before = tree(site.prefix)
    status, _, complaints = site.run("install", f"--prefix={site.prefix}")
    assert status == 1
    assert f"{site.prefix}/share/zsh" in complaints[-1]
    assert tree(site.prefix) == before


def test_a_record_that_is_none(site: Site) -> None:
    path = site.prefix / "share/vhostd/installed.json"
    path.parent.mkdir(parents=True)
    path.write_text("[")
    status, _, complaints = site.run("install", f"--prefix={site.prefix}")
    assert status == 1
    assert complaints[-1].startswith(f"vhostctl: error: {path} is no record of an installation: ")
    assert files(site.prefix) == {"share/vhostd/installed.json"}


# --- Warnings -------------------------------------------------------------------------------------------


def test_a_place_where_nobody_looks(site: Site) -> None:
    warnings = site.install()
    folder = site.prefix / "share/qemu/vhost-user"
    assert f"vhostctl: warning: libvirt does not look for descriptions in {folder}" in warnings
    folder = site.prefix / "lib/systemd/system"
    assert f"vhostctl: warning: systemd does not look for units in {folder}" in warnings


def test_a_program_in_a_closed_folder(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "launcher", lambda: reach.Account("libvirt-qemu", -1, frozenset()))
    site.programs.chmod(0o700)
    (warning,) = [line for line in site.install() if "is closed to" in line]
    closed = Path(warning.removeprefix("vhostctl: warning: ").partition(" is closed to libvirt-qemu,")[0])
    assert site.programs.is_relative_to(closed)
    assert warning.endswith(": " + ", ".join(PROGRAMS))


def test_programs_that_services_do_not_see(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "obstacle", lambda program, account: None)
    monkeypatch.setattr(reach, "HIDDEN_FROM_SERVICES", (site.programs,))
    expected = f"vhostctl: warning: the systemd services see nothing in {site.programs}, where programs are"
    assert [line for line in site.install() if line.startswith(expected)]


@pytest.mark.parametrize("enabled", [False, True])
def test_a_gpu_that_apparmor_would_stop(
    site: Site, monkeypatch: pytest.MonkeyPatch, *, enabled: bool
) -> None:
    monkeypatch.setattr(reach, "confinement_is_on", lambda: enabled)
    warnings = [line for line in site.install() if "AppArmor" in line]
    assert len(warnings) == enabled
    if enabled:
        assert warnings[0].endswith(f"start what is in /usr/bin, not {site.programs}/vhost-user-gpu")


def test_root_has_no_libvirt_of_its_own(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for uid, expected in ((0, 1), (1000, 0)):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        status, _, complaints = site.run("install", "--user")
        assert (status, len(complaints)) == (0, expected)
