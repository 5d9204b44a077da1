from contextlib import closing

from vhostd.host.folder import Folder
from vhostd.host.grants import Grants
from vhostd.host.ioctls import Ioctl
from vhostd.host.removal import Removal


def test_together_they_are_all_that_the_parts_need() -> None:
    with closing(Folder("/")) as folder:
        removal = Removal(folder, "c")
    parts = [
        Grants(written=("a",), ioctls=(Ioctl(1),), system_calls=("fsync",)),
        Grants(sockets=((1, 5),)),
        Grants(written=("b",), removed=(removal,), ioctls=(Ioctl(2),)),
    ]
    assert Grants.together(parts) == Grants(
        written=("a", "b"),
        removed=(removal,),
        ioctls=(Ioctl(1), Ioctl(2)),
        system_calls=("fsync",),
        sockets=((1, 5),),
    )


def test_nothing_together_is_nothing() -> None:
    assert Grants.together([Grants(), Grants()]) == Grants()
