"""vhost-user-rng in a real guest."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.backend import Backend
from tests.guest.guest import Guest
from tests.guest.machine import vhost_user_options

pytestmark = pytest.mark.guest

PERIOD = 0.5  # seconds
LIMIT = 256  # bytes per period


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    directory = tmp_path_factory.mktemp("rng")
    with (
        Backend("vhost-user-rng", directory) as backend,
        Guest(options=vhost_user_options("vhost-user-rng-pci", backend.path, "rng")) as guest,
    ):
        yield guest


def test_the_guest_uses_it(guest: Guest) -> None:
    assert guest.call("rng_current").startswith("virtio_rng")


def test_bytes_are_evenly_spread(guest: Guest) -> None:
    """Chi-squared over 16 KiB: beyond these bounds once in a hundred thousand runs on either side."""
    size = 16384
    data = bytes.fromhex(guest.call("hwrng", count=size)["data"])
    assert len(data) == size
    expected = size / 256
    counts = Counter(data)
    chi_squared = sum((counts[byte] - expected) ** 2 / expected for byte in range(256))
    assert 164 < chi_squared < 363


def test_samples_differ(guest: Guest) -> None:
    samples = {guest.call("hwrng", count=32)["data"] for _ in range(20)}
    assert len(samples) == 20


def test_it_works_after_a_reboot(guest: Guest) -> None:
    guest.reboot()
    assert len(guest.call("hwrng", count=64)["data"]) == 128


def test_a_limit_holds(guest: Guest, tmp_path: Path) -> None:
    options = (f"--max-bytes={LIMIT}", f"--period={int(PERIOD * 1000)}")
    with Backend("vhost-user-rng", tmp_path, *options) as backend:
        guest.plug_vhost_user("vhost-user-rng-pci", "limited", backend.path)
        select = "until echo virtio_rng.1 > /sys/class/misc/hw_random/rng_current; do :; done 2>/dev/null"
        guest.call("run", argv=["sh", "-c", select])
        assert guest.call("rng_current") == "virtio_rng.1"
        begin = time.monotonic()
        guest.call("hwrng", count=LIMIT * 5)
        # What the driver had read ahead, and the period already begun, come at once.
        assert time.monotonic() - begin > PERIOD * 3
        guest.unplug("limited")
        assert guest.call("rng_current") == "virtio_rng.0"
