"""vhost-user-blk in a real guest: what Linux writes is what it reads, whatever happens in between."""

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.guest.backend import Backend
from tests.guest.guest import Guest
from tests.guest.in_flight import PACKED, SPLIT, stops_in_flight
from tests.guest.machine import CHECKOUT, vhost_user_options
from tests.guest.modules import load_modules
from tests.loop_device import loop_device

pytestmark = pytest.mark.guest

MIB = 1 << 20
SECTOR = 512
PARTITION = f"{sys.executable} {Path(__file__).parent}/inside/partition.py"
SIZE = 256 * MIB
QUEUES = 4
SERIAL = "twenty-characters-01"  # as many as there can be
PROGRAM = "vhost-user-blk"
FIO_TIMEOUT = 40.0

# Long requests among short ones, in every queue: they end in another order than they began in.
MIXED = ("--rw=randwrite", "--bssplit=4k/97:512k/3", "--offset_increment=32M")

BLOCK = 4096
WRITTEN = 300  # blocks, at least, before the front-end is killed
WRITER = f"""
import os
disk = os.open("/dev/vda", os.O_WRONLY | os.O_DSYNC)
for number in range(16000):
    os.pwrite(disk, number.to_bytes(8, "little") * {BLOCK // 8}, number * {BLOCK})
    print(number, flush=True)
"""

# The program's words for requests that the one before had not finished.
DONE_AGAIN = "are done again"
TRIES = 5
LOOKS, LOOK = 40, 10  # how often it is looked whether requests are in flight, and after how many each time

# The kernel's words for requests that failed, and for answers to requests that it did not make.
COMPLAINT = re.compile(r"I/O error|is not a head|EXT4-fs error|blocked for more than")


def shell(guest: Guest, command: str, timeout: float = 20.0) -> str:
    """Runs a command in the guest, which must succeed, and returns what it printed."""
    done = guest.call("run", argv=["sh", "-e", "-c", command], timeout=timeout)
    assert done["status"] == 0, f"{command}: {done['output']}"
    return str(done["output"]).strip()


class Machine:
    """A guest with the disk vda, its vhost-user-blk program, and the image on this side.

    The disk may have more `properties`, the guest more `options`, and the program more of its own. QEMU
    connects to what `front` makes of the program's socket.
    """

    def __init__(
        self,
        directory: Path,
        stack: ExitStack,
        properties: str = "",
        options: Sequence[str] = (),
        program_options: Sequence[str] = (),
        front: Callable[[Path], Path] = lambda path: path,
    ) -> None:
        self.directory = directory
        self.record = PACKED if "packed=on" in properties else SPLIT  # of a descriptor in the inflight area
        self.image = directory / "image"
        with self.image.open("wb") as image:
            image.truncate(SIZE)
        self.backend = stack.enter_context(
            Backend(
                PROGRAM,
                directory,
                f"--blk-file={self.image}",
                f"--serial={SERIAL}",
                f"--num-queues={QUEUES}",
                "--physical-block-size=4096",
                "--log-level=debug",
                *program_options,
            )
        )
        options = [
            *options,
            *("-smp", str(QUEUES)),  # Linux takes no more queues than it has processors
            *("-chardev", f"socket,id=disk-chardev,path={front(self.backend.path)},reconnect-ms=50"),
            *("-device", f"vhost-user-blk-pci,chardev=disk-chardev,id=disk,num-queues={QUEUES}{properties}"),
        ]
        self.guest = stack.enter_context(Guest(options=options))

    def shell(self, command: str, timeout: float = 20.0) -> str:
        """Runs a command in the guest, which must succeed, and returns what it printed."""
        return shell(self.guest, command, timeout)

    def attribute(self, path: str) -> str:
        """What a file below /sys/block/vda says."""
        return str(self.guest.call("read_file", path=f"/sys/block/vda/{path}")).strip()

    def digest(self, offset: int, size: int) -> str:
        """The SHA-256 of a part of the disk, in whole MiB, as the guest reads it from the device."""
        assert offset % MIB == size % MIB == 0
        return self.shell(
            f"dd if=/dev/vda bs=1M skip={offset // MIB} count={size // MIB} iflag=direct status=none | "
            "sha256sum"
        ).split()[0]

    def fill(self, offset: int, size: int) -> str:
        """Writes random bytes, in whole MiB; returns their SHA-256 when they are on the disk."""
        assert offset % MIB == size % MIB == 0
        self.shell(
            f"dd if=/dev/urandom of=/dev/vda bs=1M seek={offset // MIB} count={size // MIB} "
            "oflag=direct conv=fsync status=none"
        )
        return self.digest(offset, size)

    def file_digest(self, offset: int, size: int) -> str:
        """The SHA-256 of a part of the image."""
        with self.image.open("rb") as image:
            image.seek(offset)
            return hashlib.sha256(image.read(size)).hexdigest()

    def allocated(self) -> int:
        """The bytes that the image takes on this side's disk."""
        with self.image.open("rb") as image:
            os.fsync(image)  # what is not yet allocated becomes so
        return self.image.stat().st_blocks * SECTOR

    def resize(self, size: int) -> None:
        """Resizes the image, tells the program, and waits until the guest knows."""
        os.truncate(self.image, size)
        self.backend.process.send_signal(signal.SIGHUP)
        self.guest.call("wait_disk", name="vda", attributes={"size": str(size // SECTOR)})

    @contextmanager
    def mounted(self) -> Iterator[str]:
        """An ext4 file system on the disk, checked afterwards; gives its mount point."""
        load_modules(self.guest, self.directory / "modules", "crc32c_generic", "ext4")
        self.shell("mkdir -p /mnt && mount -t ext4 /dev/vda /mnt")
        yield "/mnt"
        self.shell("umount /mnt")
        self.check_file_system()

    def check_file_system(self) -> None:
        """Expects the file system to be clean, as the guest and as this side see it."""
        self.shell("fsck.ext4 -fn /dev/vda")
        subprocess.run(["/sbin/fsck.ext4", "-fn", self.image], check=True, capture_output=True)

    def start_fio(self, *options: str, filename: str = "/dev/vda") -> int:
        """Starts verified I/O of 4 processes, each on a processor and thus a queue of its own."""
        argv = [
            *("fio", "--name=verified", f"--filename={filename}", "--direct=1", "--eta=never"),
            *("--ioengine=libaio", "--iodepth=16", f"--numjobs={QUEUES}", "--group_reporting"),
            *(f"--cpus_allowed=0-{QUEUES - 1}", "--cpus_allowed_policy=split"),
            *("--verify=crc32c", "--verify_fatal=1", *options),
        ]
        return int(self.guest.call("start", argv=argv))

    def finish_fio(self, pid: int) -> None:
        """Expects fio to have read what it wrote."""
        done = self.guest.call("finish", pid=pid, timeout=FIO_TIMEOUT)
        assert done["status"] == 0, done["output"]
        assert "err= 0" in done["output"]

    def requests(self) -> tuple[int, int]:
        """How many reads and writes the guest has done (Linux: Documentation/block/stat.rst)."""
        numbers = self.attribute("stat").split()
        return int(numbers[0]), int(numbers[4])

    def wait_requests(self, reads: int, writes: int) -> None:
        """Waits until the guest has done so many of both in total."""
        while True:
            reads_done, writes_done = self.requests()
            if reads_done >= reads and writes_done >= writes:
                return

    def complaints(self) -> list[str]:
        """What the guest's kernel found wrong since boot."""
        return [line for line in self.guest.call("kernel_log") if COMPLAINT.search(line)]


@pytest.fixture(scope="module")
def the_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with ExitStack() as stack:
        yield Machine(tmp_path_factory.mktemp("blk"), stack)


@pytest.fixture
def machine(the_machine: Machine) -> Iterator[Machine]:
    """The machine of all tests, whose kernel has nothing new to complain of afterwards."""
    before = the_machine.complaints()
    yield the_machine
    assert [line for line in the_machine.complaints() if line not in before] == []


def test_what_the_guest_sees(machine: Machine) -> None:
    expected = {
        "size": str(SIZE // SECTOR),
        "serial": SERIAL,
        "ro": "0",
        "removable": "0",
        "queue/logical_block_size": "512",
        "queue/physical_block_size": "4096",
        "queue/write_cache": "write back",
        "cache_type": "write back",
    }
    assert {path: machine.attribute(path) for path in expected} == expected
    assert machine.shell("ls /sys/block/vda/mq").split() == [str(queue) for queue in range(QUEUES)]
    assert int(machine.attribute("queue/discard_max_bytes")) >= MIB
    assert int(machine.attribute("queue/write_zeroes_max_bytes")) >= MIB


def test_the_guest_may_switch_the_write_cache(machine: Machine) -> None:
    for mode in ("write through", "write back"):
        machine.shell(f"echo '{mode}' > /sys/block/vda/cache_type")
        assert machine.attribute("queue/write_cache") == mode
        assert machine.attribute("cache_type") == mode  # asks the device
        assert machine.fill(0, MIB) == machine.file_digest(0, MIB)


def test_a_file_system(machine: Machine) -> None:
    """A tree is the same when it is read again from the disk, and the file system is whole."""
    machine.shell("mkfs.ext4 -q -F /dev/vda")
    manifest = "find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
    with machine.mounted() as directory:
        machine.shell(f"cp -r {CHECKOUT}/vhostd {CHECKOUT}/tests {directory}")
        before = machine.shell(f"cd {directory} && {manifest}")
        assert int(machine.shell(f"find {directory} -type f | wc -l")) > 100
    machine.shell("echo 3 > /proc/sys/vm/drop_caches")
    with machine.mounted() as directory:
        assert machine.shell(f"cd {directory} && {manifest}") == before


def test_deleted_files_give_their_space_back(machine: Machine) -> None:
    machine.shell("mkfs.ext4 -q -F /dev/vda")
    with machine.mounted() as directory:
        machine.shell(f"dd if=/dev/urandom of={directory}/file bs=1M count=16 conv=fsync status=none")
        before = machine.allocated()
        machine.shell(f"rm {directory}/file && sync && fstrim {directory}")
        assert before - machine.allocated() > 15 * MIB


def test_all_queues_under_load(machine: Machine) -> None:
    before = interrupts(machine)
    machine.finish_fio(machine.start_fio("--rw=randrw", "--bs=4k", "--size=4M", "--offset_increment=4M"))
    after = interrupts(machine)
    assert len(after) == QUEUES
    assert all(after[queue] - before[queue] > 10 for queue in after), (before, after)


def interrupts(machine: Machine) -> dict[str, int]:
    """How many interrupts each of the disk's queues has had in the guest."""
    device = machine.shell("basename $(readlink -f /sys/block/vda/device)")
    lines = machine.guest.call("read_file", path="/proc/interrupts").splitlines()
    return {
        line.split()[-1]: sum(int(count) for count in line.split()[1 : 1 + QUEUES])
        for line in lines
        if f" {device}-req." in line
    }


def test_big_and_odd_requests(machine: Machine) -> None:
    options = ("--rw=randrw", "--bsrange=512-512k", "--size=8M", "--offset_increment=8M")
    machine.finish_fio(machine.start_fio(*options))


def test_discard(machine: Machine) -> None:
    digest = machine.fill(0, 16 * MIB)
    edges = [machine.digest(start * MIB, MIB) for start in (3, 12)]
    before = machine.allocated()
    machine.shell(f"blkdiscard --offset {4 * MIB} --length {8 * MIB} /dev/vda")
    assert before - machine.allocated() == 8 * MIB
    assert machine.digest(4 * MIB, 8 * MIB) == zeros(8 * MIB)
    assert [machine.digest(start * MIB, MIB) for start in (3, 12)] == edges
    assert machine.file_digest(0, 16 * MIB) == machine.digest(0, 16 * MIB) != digest


def zeros(size: int) -> str:
    """The SHA-256 of so many zeros."""
    return hashlib.sha256(bytes(size)).hexdigest()


@pytest.mark.parametrize(
    ("command", "frees"),
    [
        ("blkdiscard --zeroout --offset {offset} --length {length} /dev/vda", False),
        ("fallocate --zero-range --keep-size --offset {offset} --length {length} /dev/vda", False),
        ("fallocate --punch-hole --offset {offset} --length {length} /dev/vda", True),
    ],
    ids=["zeroout", "zero-range", "punch-hole"],
)
def test_write_zeroes(machine: Machine, command: str, frees: bool) -> None:  # noqa: FBT001
    """They need not be sent; and only what is punched out may lose its place on this side's disk."""
    machine.fill(0, 8 * MIB)
    edges = [machine.digest(start * MIB, MIB) for start in (1, 6)]
    before = machine.allocated()
    machine.shell(command.format(offset=2 * MIB, length=4 * MIB))
    assert machine.digest(2 * MIB, 4 * MIB) == machine.file_digest(2 * MIB, 4 * MIB) == zeros(4 * MIB)
    assert [machine.digest(start * MIB, MIB) for start in (1, 6)] == edges
    assert before - machine.allocated() == (4 * MIB if frees else 0)


def test_growth(machine: Machine) -> None:
    before = machine.fill(SIZE - MIB, MIB)
    machine.resize(SIZE + 16 * MIB)
    assert any(
        f"new size: {(SIZE + 16 * MIB) // SECTOR} " in line for line in machine.guest.call("kernel_log")
    )
    digest = machine.fill(SIZE, 16 * MIB)
    assert machine.file_digest(SIZE, 16 * MIB) == digest
    assert machine.digest(SIZE - MIB, MIB) == before


def test_beyond_the_end(the_machine: Machine) -> None:
    """Requests for what is no longer there fail, and the next ones do not.

    Linux asks for them in a partition only, because it compares requests with the size of what they are for.
    It is told of a partition that ends where the disk ended before it shrank.
    """
    machine = the_machine
    size = machine.image.stat().st_size
    machine.fill(size - 2 * MIB, MIB)
    machine.shell(f"{PARTITION} /dev/vda 1 0 {size}")
    machine.resize(size - MIB)
    before = machine.digest(size - 2 * MIB, MIB)
    for offset, length in ((size - MIB, 4096), (size - SECTOR, SECTOR), (size - MIB - 4096, 8192)):
        for command in (
            f"dd if=/dev/vda1 of=/dev/null iflag=direct,skip_bytes skip={offset} bs={length} count=1",
            f"dd if=/dev/zero of=/dev/vda1 oflag=direct,seek_bytes seek={offset} bs={length} count=1",
            f"blkdiscard --offset {offset} --length {length} /dev/vda1",
            f"blkdiscard --zeroout --offset {offset} --length {length} /dev/vda1",
        ):
            done = machine.guest.call("run", argv=command.split())
            assert done["status"] == 1, command
            assert "Input/output error" in done["output"], command
    assert machine.image.stat().st_size == size - MIB
    assert machine.digest(size - 2 * MIB, MIB) == machine.file_digest(size - 2 * MIB, MIB) == before
    machine.shell(f"{PARTITION} /dev/vda 1 0 0")
    machine.resize(size)


def test_growth_while_the_program_is_away(machine: Machine) -> None:
    size = machine.image.stat().st_size + MIB
    machine.backend.process.send_signal(signal.SIGSTOP)  # it is still that size for this one
    os.truncate(machine.image, size)
    machine.backend.restart(end=signal.SIGKILL)
    machine.guest.call("wait_disk", name="vda", attributes={"size": str(size // SECTOR)})


def test_stop_and_continue(machine: Machine) -> None:
    reads, writes = machine.requests()
    fio = machine.start_fio("--rw=randwrite", "--bs=4k", "--size=8M", "--offset_increment=8M")
    for done in range(1000, 5000, 1000):
        machine.wait_requests(reads, writes + done)
        machine.guest.qmp.execute("stop")
        machine.guest.qmp.execute("cont")
    machine.finish_fio(fio)


@pytest.mark.parametrize("options", [("--cache=direct",), ("--cache=writethrough",), ("--aio=threads",)])
def test_other_ways_to_the_image(machine: Machine, options: tuple[str, ...]) -> None:
    """They are taken at a restart of the program, which the guest does not notice."""
    machine.backend.restart(*options)
    machine.finish_fio(machine.start_fio(*MIXED, "--size=4M"))
    machine.backend.restart()


def test_the_program_may_be_replaced(machine: Machine) -> None:
    """It finishes what it has begun, and the next one goes on with what came after that."""
    interrupt_the_program(machine, signal.SIGTERM)


@pytest.mark.parametrize(
    "options",
    [(), ("--cache=direct",), ("--aio=threads",), ("--aio=sync",)],
    ids=lambda options: "".join(options),
)
def test_the_program_may_be_killed(machine: Machine, options: tuple[str, ...]) -> None:
    """What it had begun and not finished the next one does again; the guest does not notice."""
    machine.backend.restart(*options)
    kill_the_program(machine, *options)
    machine.backend.restart()


def test_the_program_may_be_killed_under_a_file_system(machine: Machine) -> None:
    machine.shell("mkfs.ext4 -q -F /dev/vda")
    with machine.mounted() as directory:
        reads, writes = machine.requests()
        pattern = ("--rw=randwrite", "--bs=4k", "--size=8M", "--offset_increment=8M", "--fsync=32")
        fio = machine.start_fio(*pattern, filename=f"{directory}/file")
        for done in range(500, 4000, 500):
            machine.wait_requests(reads, writes + done)
            machine.backend.restart(end=signal.SIGKILL)
        machine.finish_fio(fio)


def test_the_program_may_be_killed_again_and_again(machine: Machine) -> None:
    """While a file system writes, flushes, and reads again what it has written; also just after a start."""
    machine.shell("mkfs.ext4 -q -F /dev/vda")
    with machine.mounted() as directory:
        reads, writes = machine.requests()
        pattern = ("--rw=randwrite", "--bs=4k", "--size=8M", "--offset_increment=8M", "--fsync=32")
        both = ("--verify_backlog=64", "--verify_backlog_batch=64")
        fio = machine.start_fio(*pattern, *both, filename=f"{directory}/file")
        for done in range(500, 3000, 500):
            machine.wait_requests(reads + done, writes + done)
            machine.backend.restart(end=signal.SIGKILL)
            machine.backend.restart(end=signal.SIGKILL)
        machine.finish_fio(fio)
        machine.shell(f"echo 3 > /proc/sys/vm/drop_caches && sha256sum {directory}/file")


def kill_the_program(machine: Machine, *options: str) -> None:
    """Kills the program in the midst of I/O, and expects requests to be done again.

    What a shortcut does is in flight for a moment only. So it may be tried again.
    """
    before = machine.backend.log().count(DONE_AGAIN)
    for _ in range(TRIES):
        interrupt_the_program(machine, signal.SIGKILL, *options)
        if machine.backend.log().count(DONE_AGAIN) > before:
            return
    raise AssertionError(f"no request was in flight at any of {TRIES} times six kills")


def interrupt_the_program(machine: Machine, end: signal.Signals, *options: str) -> None:
    """Restarts the program in the midst of verified writes and reads."""
    reads, writes = machine.requests()
    fio = machine.start_fio(*MIXED, "--size=24M")
    for done in (300, 900, 1500, 2100):
        machine.wait_requests(reads, writes + done)
        if end == signal.SIGKILL:
            stop_in_flight(machine, reads, writes + done)
        machine.backend.restart(*options, end=end)
    for done in (300, 1200):
        machine.wait_requests(reads + done, writes)
        machine.backend.restart(*options, end=end)
    machine.finish_fio(fio)


def stop_in_flight(machine: Machine, reads: int, writes: int) -> None:
    """Stops the program as soon as it is seen with requests in flight; it goes on if it never is."""
    for more in range(0, LOOKS * LOOK, LOOK):
        machine.wait_requests(reads, writes + more)
        if stops_in_flight(machine.backend.process, machine.record):
            return


@pytest.mark.parametrize("restart", [Guest.reboot, Guest.reset])
def test_restart(machine: Machine, restart: Callable[[Guest], None]) -> None:
    digest = machine.fill(0, 4 * MIB)
    restart(machine.guest)
    assert machine.digest(0, 4 * MIB) == digest


def test_other_disks(tmp_path: Path) -> None:
    """One that may only be read, and one in memory.

    They are there from the start: QEMU 10.0, without KVM, may crash or stand still when devices are plugged
    into a running guest with several processors, and unplugged.
    """
    image = tmp_path / "image"
    image.write_bytes(os.urandom(MIB))
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    read_only = (f"--blk-file={image}", "--read-only", "--logical-block-size=4096", "--serial=read-only")
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    with (
        Backend(PROGRAM, folders[0], *read_only) as first,
        Backend(PROGRAM, folders[1], "--ram=64M", "--num-queues=2") as second,
        Guest(
            options=[
                *("-smp", "2"),
                *vhost_user_options("vhost-user-blk-pci,num-queues=1", first.path, "first"),
                *vhost_user_options("vhost-user-blk-pci,num-queues=2", second.path, "second"),
            ]
        ) as guest,
    ):
        attributes = {
            "size": str(MIB // SECTOR),
            "serial": "read-only",
            "ro": "1",
            "queue/logical_block_size": "4096",
            "queue/physical_block_size": "4096",
        }
        guest.call("wait_disk", name="vda", attributes=attributes)
        guest.call("wait_disk", name="vdb", attributes={"size": str(64 * MIB // SECTOR)})
        assert shell(guest, "ls /sys/block/vda/mq") == "0"
        assert shell(guest, "ls /sys/block/vdb/mq").split() == ["0", "1"]
        assert shell(guest, "sha256sum < /dev/vda").split()[0] == digest
        done = guest.call("run", argv=["dd", "if=/dev/zero", "of=/dev/vda", "bs=4k", "count=1"])
        assert done["status"] == 1
        assert "Operation not permitted" in done["output"] or "Read-only" in done["output"]
        assert shell(guest, "sha256sum < /dev/vdb").split()[0] == zeros(64 * MIB)
        shell(guest, "dd if=/dev/urandom of=/dev/vdb bs=1M count=64 oflag=direct status=none")
        shell(guest, "dd if=/dev/vda of=/dev/vdb bs=1M iflag=direct oflag=direct conv=notrunc status=none")
        assert shell(guest, f"head -c {MIB} /dev/vdb | sha256sum").split()[0] == digest
        assert shell(guest, "sha256sum < /dev/vdb").split()[0] != zeros(64 * MIB)
        shell(guest, "blkdiscard /dev/vdb")
        assert shell(guest, "sha256sum < /dev/vdb").split()[0] == zeros(64 * MIB)
    assert hashlib.sha256(image.read_bytes()).hexdigest() == digest


def test_an_image_of_any_size(tmp_path: Path) -> None:
    """Behind its end the guest reads zeroes, up to a whole sector, and may write there."""
    image = tmp_path / "image"
    begun = os.urandom(MIB + 77)
    image.write_bytes(begun)
    whole = begun + bytes(SECTOR - 77)
    with (
        Backend(PROGRAM, tmp_path, f"--blk-file={image}") as backend,
        Guest(options=vhost_user_options("vhost-user-blk-pci", backend.path, "disk")) as guest,
    ):
        guest.call("wait_disk", name="vda", attributes={"size": str(len(whole) // SECTOR)})
        assert shell(guest, "sha256sum < /dev/vda").split()[0] == hashlib.sha256(whole).hexdigest()
        assert image.read_bytes() == begun
        last = f"seek={MIB // SECTOR} bs={SECTOR} count=1 oflag=direct conv=fsync status=none"
        shell(guest, f"head -c {SECTOR} /dev/vda | dd of=/dev/vda {last}")
        assert image.read_bytes() == begun[:MIB] + begun[:SECTOR]
        beyond = guest.call("run", argv=["dd", "if=/dev/zero", "of=/dev/vda", f"seek={len(whole)}", "bs=1"])
        assert "No space left" in beyond["output"]
    assert image.stat().st_size == len(whole)


@pytest.fixture
def device_of_large_blocks(tmp_path: Path) -> Iterator[str]:
    """A block device of 4096-byte blocks on this side, which only root can have."""
    file = tmp_path / "backing"
    with file.open("wb") as backing:
        backing.truncate(64 * MIB)
    with loop_device(file) as device:
        yield device


def test_small_blocks_on_a_device_of_large_ones(device_of_large_blocks: str, tmp_path: Path) -> None:
    """Past the page cache: what is a part of the device's block is read, modified and written."""
    device = device_of_large_blocks
    fio = (
        "fio --name=verified --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --eta=never "
        "--bssplit=512/60:1536/20:4k/20 --size=4M --verify=crc32c --verify_fatal=1 --filename="
    )
    with (
        Backend(
            PROGRAM, tmp_path, f"--blk-file={device}", "--cache=direct", "--logical-block-size=512"
        ) as backend,
        Guest(options=vhost_user_options("vhost-user-blk-pci", backend.path, "disk")) as guest,
    ):
        blocks = {"queue/logical_block_size": "512", "queue/physical_block_size": "4096"}
        guest.call("wait_disk", name="vda", attributes=blocks)
        shell(guest, f"{fio}/dev/vda", FIO_TIMEOUT)
        load_modules(guest, tmp_path / "modules", "crc32c_generic", "ext4")
        shell(guest, "mkfs.ext4 -q -F -b 1024 /dev/vda && mkdir -p /mnt && mount -t ext4 /dev/vda /mnt")
        shell(guest, f"cp -r {CHECKOUT}/vhostd /mnt")
        shell(guest, f"{fio}/mnt/file", FIO_TIMEOUT)
        shell(guest, "umount /mnt && fsck.ext4 -fn /dev/vda && echo 3 > /proc/sys/vm/drop_caches")
        read = shell(guest, "sha256sum < /dev/vda").split()[0]
        assert [line for line in guest.call("kernel_log") if COMPLAINT.search(line)] == []
    subprocess.run(["blockdev", "--flushbufs", device], check=True)
    assert hashlib.sha256(Path(device).read_bytes()).hexdigest() == read
    subprocess.run(["/sbin/fsck.ext4", "-fn", device], check=True, capture_output=True)


def test_memory_that_is_not_shared(tmp_path: Path) -> None:
    """A DIMM that was plugged in without share=on: what lies there fails, and nothing else does."""
    image = tmp_path / "image"
    image.write_bytes(b"x" * MIB)
    with (
        Backend(PROGRAM, tmp_path, f"--blk-file={image}") as backend,
        Guest(
            options=[
                *("-m", "512M,slots=1,maxmem=1G"),
                *vhost_user_options("vhost-user-blk-pci", backend.path, "disk"),
            ]
        ) as guest,
    ):
        read = "dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>&1"
        shell(guest, read)
        blocks = "ls -d /sys/devices/system/memory/memory*"
        before = shell(guest, blocks).split()
        shell(guest, "echo online_movable >/sys/devices/system/memory/auto_online_blocks")
        size = 128 * MIB
        guest.qmp.execute("object-add", {"qom-type": "memory-backend-ram", "id": "more", "size": size})
        guest.qmp.execute("device_add", {"driver": "pc-dimm", "id": "dimm", "memdev": "more"})
        shell(guest, f"until [ $({blocks} | wc -l) -gt {len(before)} ]; do :; done")
        (block,) = {*shell(guest, blocks).split()} - {*before}
        shell(guest, f"until grep -q online {block}/state; do :; done")
        failed = guest.call("run", argv=["sh", "-c", read])
        assert failed["status"] != 0
        assert "I/O error" in failed["output"] or "Input/output error" in failed["output"]
        assert "is share=on missing from a memory backend?" in backend.log()
        shell(guest, f"echo offline >{block}/state")
        shell(guest, read)
        assert "is broken" not in backend.log()


def test_a_second_writer_is_refused(machine: Machine, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name(PROGRAM)
    command = [str(program), f"--socket-path={tmp_path}/socket", f"--blk-file={machine.image}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert str(machine.image) in line


def test_the_front_end_may_be_killed_under_load(tmp_path: Path) -> None:
    """What the guest was told is on the disk is there, for the next guest of the same program as well."""
    image = tmp_path / "image"
    image.write_bytes(bytes(64 * MIB))
    with Backend(PROGRAM, tmp_path, f"--blk-file={image}") as backend:
        options = vhost_user_options("vhost-user-blk-pci", backend.path, "disk")
        with Guest(options=options) as guest:
            writer = guest.call("start", argv=[sys.executable, "-c", WRITER])
            guest.call("wait_output", pid=writer, text=f"\n{WRITTEN}\n")
            os.kill(guest.pid, signal.SIGKILL)
        expected = b"".join(number.to_bytes(8, "little") * (BLOCK // 8) for number in range(WRITTEN + 1))
        assert image.read_bytes()[: len(expected)] == expected
        with Guest(options=options) as guest:
            done = guest.call("run", argv=["sh", "-c", f"head -c {len(expected)} /dev/vda | sha256sum"])
            assert done["output"].split()[0] == hashlib.sha256(expected).hexdigest()
