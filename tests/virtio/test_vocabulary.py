import pytest

from vhostd.virtio.vocabulary import DeviceType, Feature, mask

# Virtio 1.3, 5: the ids of the types that QEMU's vhost-user.json knows, as it spells them.
TYPES = {
    "net": 1,
    "block": 2,
    "console": 3,
    "rng": 4,
    "balloon": 5,
    "rpmsg": 7,
    "scsi": 8,
    "9p": 9,
    "rproc-serial": 11,
    "caif": 12,
    "gpu": 16,
    "input": 18,
    "vsock": 19,
    "crypto": 20,
    "fs": 26,
}
# Virtio 1.3, 6, and the two bits that vhost and vhost-user took for themselves.
FEATURES = {
    "LOG_ALL": 26,
    "INDIRECT_DESC": 28,
    "EVENT_IDX": 29,
    "PROTOCOL_FEATURES": 30,
    "VERSION_1": 32,
    "RING_RESET": 40,
}


def test_device_types_are_those_of_the_specifications() -> None:
    assert {kind.description_type: kind.value for kind in DeviceType} == TYPES


@pytest.mark.parametrize(
    ("spelled", "kind"), [("9p", DeviceType.NINEP), ("rproc-serial", DeviceType.RPROC_SERIAL)]
)
def test_a_type_is_found_as_it_is_spelled(spelled: str, kind: DeviceType) -> None:
    assert DeviceType.of(spelled) is kind


def test_a_type_that_is_not_known_is_told_of_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"no type 'lamp': .* DeviceType\.other\('lamp', ID\)"):
        DeviceType.of("lamp")


def test_a_device_may_be_of_another_type() -> None:
    lamp = DeviceType.other("desk-lamp", 63)
    assert (lamp, lamp.value, lamp.name, lamp.description_type) == (63, 63, "DESK_LAMP", "desk-lamp")
    assert lamp not in list(DeviceType)


def test_feature_bits_are_those_of_the_specifications() -> None:
    assert {feature.name: feature.value for feature in Feature} == FEATURES


@pytest.mark.parametrize(
    ("bits", "value"), [((), 0), ((0,), 1), ((3, 0), 9), ((Feature.VERSION_1,), 1 << 32)]
)
def test_mask_sets_its_bits(bits: tuple[int, ...], value: int) -> None:
    assert mask(*bits) == value


def test_mask_takes_a_bit_once_however_often_it_is_named() -> None:
    assert mask(5, 5) == 1 << 5
