import json
from pathlib import Path

import pytest

from tests.numbers import numbers
from vhostd.virtio.vocabulary import DeviceType, Feature, mask

SCHEMA = Path(__file__).parents[2] / "share/vhost-user/vhost-user.schema.json"
# Virtio 1.3, 5: all ids; as QEMU's vhost-user.json spells them, or else as Linux does (virtio_ids.h).
TYPES = {
    "net": 1,
    "block": 2,
    "console": 3,
    "rng": 4,
    "balloon": 5,
    "iomem": 6,
    "rpmsg": 7,
    "scsi": 8,
    "9p": 9,
    "mac80211-wlan": 10,
    "rproc-serial": 11,
    "caif": 12,
    "memory-balloon": 13,
    "gpu": 16,
    "clock": 17,
    "input": 18,
    "vsock": 19,
    "crypto": 20,
    "signal-dist": 21,
    "pstore": 22,
    "iommu": 23,
    "mem": 24,
    "sound": 25,
    "fs": 26,
    "pmem": 27,
    "rpmb": 28,
    "mac80211-hwsim": 29,
    "video-encoder": 30,
    "video-decoder": 31,
    "scmi": 32,
    "nitro-sec-mod": 33,
    "i2c-adapter": 34,
    "watchdog": 35,
    "can": 36,
    "param-serv": 38,
    "audio-policy": 39,
    "bt": 40,
    "gpio": 41,
    "rdma": 42,
    "camera": 43,
    "ism": 44,
    "spi": 45,
}
# Virtio 1.3, 6, and the two bits that vhost and vhost-user took for themselves.
FEATURES = {
    "LOG_ALL": 26,
    "INDIRECT_DESC": 28,
    "EVENT_IDX": 29,
    "PROTOCOL_FEATURES": 30,
    "VERSION_1": 32,
    "ACCESS_PLATFORM": 33,
    "RING_PACKED": 34,
    "IN_ORDER": 35,
    "RING_RESET": 40,
}


def test_device_types_are_those_of_the_specifications() -> None:
    assert {kind.description_type: kind for kind in DeviceType.known()} == TYPES


def test_every_type_of_a_description_is_known() -> None:
    for spelled in json.loads(SCHEMA.read_text())["$defs"]["type"]["enum"]:
        assert DeviceType.of(spelled).description_type == spelled


@pytest.mark.parametrize(
    ("spelled", "kind"), [("9p", DeviceType.NINEP), ("rproc-serial", DeviceType.RPROC_SERIAL)]
)
def test_a_type_is_found_as_it_is_spelled(spelled: str, kind: DeviceType) -> None:
    found = DeviceType.of(spelled)
    assert (found, found.name) == (kind, kind.name)


def test_a_type_that_is_not_known_is_told_of_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"no device type 'lamp': .* DeviceType\.other\('lamp', ID\)"):
        DeviceType.of("lamp")


def test_a_device_may_be_of_another_type() -> None:
    lamp = DeviceType.other("desk-lamp", 63)
    assert (lamp, lamp.name, lamp.description_type) == (63, "DESK_LAMP", "desk-lamp")
    assert lamp not in list(DeviceType.known())


def test_a_number_that_nobody_knows_is_its_own_name() -> None:
    strange = DeviceType(63)
    assert (strange, strange.name, strange.description_type) == (63, "63", "63")
    assert DeviceType(34).name == "I2C_ADAPTER"
    assert DeviceType(DeviceType.other("lamp", 63)).name == "LAMP"


def test_what_is_no_number_is_no_type() -> None:
    with pytest.raises(ValueError, match=r"invalid literal .* 'rng'"):
        DeviceType("rng")  # type: ignore[arg-type]  # as somebody might who takes it for `of`


def test_feature_bits_are_those_of_the_specifications() -> None:
    assert numbers(Feature) == FEATURES


@pytest.mark.parametrize(
    ("bits", "value"), [((), 0), ((0,), 1), ((3, 0), 9), ((Feature.VERSION_1,), 1 << 32)]
)
def test_mask_sets_its_bits(bits: tuple[int, ...], value: int) -> None:
    assert mask(*bits) == value


def test_mask_takes_a_bit_once_however_often_it_is_named() -> None:
    assert mask(5, 5) == 1 << 5
