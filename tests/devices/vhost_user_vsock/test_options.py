"""The options, and what does not go together."""

import resource
from pathlib import Path

import pytest

from tests.devices.vhost_user_vsock.rig import make
from vhost_user_vsock.device import Vsock
from vhostd.errors import SetupError, UsageError


@pytest.mark.parametrize("cid", ["0", "1", "2", "4294967295", "4294967296", "-3", "x", ""])
def test_a_reserved_cid_is_refused(cid: str) -> None:
    with pytest.raises(UsageError, match="no CID of a guest"):
        make(f"--guest-cid={cid}", "--forward-cid=1")


def test_the_config_space_has_the_cid(tmp_path: Path) -> None:
    device = make("--guest-cid=4294967294", f"--uds-path={tmp_path / 'vm'}")
    assert device.read_config() == b"\xfe\xff\xff\xff\0\0\0\0"
    device.close()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "--uds-path or --forward-cid is needed"),
        (["--uds-path=a", "--forward-cid=1"], "only one of --uds-path and --forward-cid"),
        (["--uds-path=a", "--socket-path=a"], "another socket than the front-end's"),
        (["--forward-cid=1", "--uds-mode=0600"], "need --uds-path"),
        (["--uds-path=a", "--forward-listen=1"], "needs --forward-cid"),
        (["--uds-path=a", "--guest-cid=7", "--sibling=7=b"], "the guest's own CID"),
        (["--uds-path=a", "--sibling=8=b", "--sibling=8=c"], "another guest"),
        (["--uds-path=a", "--sibling=8"], "not a CID and a path"),
        (["--uds-path=a", "--sibling=2=b"], "no CID"),
        (["--uds-path=a", "--tx-buffer-size=1K"], "from 4K to 64M"),
        (["--uds-path=a", "--tx-buffer-size=1G"], "from 4K to 64M"),
        (["--uds-path=a", "--max-connections=4000"], "at most"),
    ],
)
def test_what_does_not_go_together(options: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        make(*options)


def test_there_are_fds_for_all_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (428, 428))
    with pytest.raises(SetupError, match="the limit is 428"):
        make(f"--uds-path={tmp_path / 'vm'}", "--max-connections=45")
    make(f"--uds-path={tmp_path / 'vm'}", "--max-connections=44").close()


def test_stale_sockets_are_replaced_and_all_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "vm"
    first = make(f"--uds-path={path}", "--uds-mode=0660")
    assert path.stat().st_mode & 0o777 == 0o660
    with pytest.raises(SetupError, match="in use"):
        make(f"--uds-path={path}")
    for listener in first._places.listeners:
        listener.close()  # as when the program was killed
    second: Vsock = make(f"--uds-path={path}")
    assert {file.name for file in tmp_path.iterdir()} == {"vm", "vm_seqpacket"}
    second.close()
    assert not list(tmp_path.iterdir())
    first.close()
