from vhostd.grants import Grants


def test_together_they_are_all_that_the_parts_need() -> None:
    parts = [
        Grants(written=("a",), ioctls=(1,)),
        Grants(),
        Grants(written=("b",), cleared=("c",), ioctls=(2,)),
    ]
    assert Grants.together(parts) == Grants(written=("a", "b"), cleared=("c",), ioctls=(1, 2))


def test_nothing_together_is_nothing() -> None:
    assert Grants.together([Grants(), Grants()]) == Grants()
