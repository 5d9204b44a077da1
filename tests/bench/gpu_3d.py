"""How many frames a second a guest draws with OpenGL: vhost-user-gpu --virgl beside others, in the same run.

    .venv/bin/python -m tests.bench.gpu_3d [--rounds N] [--seconds N] [--json FILE]
    .venv/bin/python -m tests.bench.gpu_3d --opengl-display gtk,gl=on   # without a GPU, with an X server

A turning cube of 640x480 pixels is drawn on the screen, and off screen. It is drawn by

- vhost-user-gpu --virgl;
- QEMU's virtio-gpu-gl, in QEMU's process, which needs a display with OpenGL;
- QEMU's own vhost-user-gpu --virgl, in C, which needs a GPU that exports dmabufs;
- Mesa's llvmpipe inside the guest, and vhost-user-gpu shows it.

What does not run here is left out, with its reason. All guests are there at once, and draw in turn.
"""

import argparse
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.bench.measure import Figure, alternate, save, table
from tests.guest.guest import CommandFailed, Guest, GuestProblem
from tests.guest.machine import vhost_user_options
from tests.programs import Program, executable

NAME = "vhost-user-gpu"
QEMUS = "/usr/lib/qemu/vhost-user-gpu"
SIZE = "xres=640,yres=480"
DRAW = [sys.executable, "-m", "tests.guest.inside.gl_draw"]
WORKLOADS = {"on screen": "race", "off screen": "race-unseen"}
ROUNDS, SECONDS = 5, 3.0
OURS, SOFTWARE = "--virgl", "llvmpipe in the guest"

Boot = Callable[[ExitStack], Guest]


def with_program(program: str, options: Sequence[str], stack: ExitStack) -> Guest:
    """A guest whose display is a vhost-user program."""
    socket_path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "gpu.sock"
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(socket_path))
    listener.listen()
    command = [program, f"--fd={listener.fileno()}", *options]
    stack.enter_context(Program(command, fds=[listener.fileno()], stderr=subprocess.DEVNULL))
    devices = vhost_user_options(f"vhost-user-gpu-pci,{SIZE}", socket_path, "gpu")
    return stack.enter_context(Guest(options=devices, memory="1G"))


def with_qemu(display: str, stack: ExitStack) -> Guest:
    """A guest whose display is in QEMU."""
    return stack.enter_context(Guest(f"virtio-gpu-gl-pci,{SIZE}", display=display, memory="1G"))


def draw(guest: Guest, workload: str, seconds: float) -> tuple[str, float]:
    """Who draws, and frames per second. Raises GuestProblem, CommandFailed."""
    done = guest.call("run", argv=[*DRAW, workload, str(seconds)], timeout=20 * seconds)
    if done["status"]:
        raise CommandFailed(done["output"])
    renderer, rate = done["output"].strip().splitlines()[-2:]
    return renderer, float(rate)


def started(boots: dict[str, Boot], stack: ExitStack) -> dict[str, Guest]:
    """The guests in which something was drawn by who should draw; says why others are left out."""
    guests = {}
    for name, boot in boots.items():
        try:
            guest = boot(stack)
            renderer, _ = draw(guest, "race", seconds=1.0)
            if renderer.startswith("virgl") == (name == SOFTWARE):
                raise GuestProblem(f"{renderer} draws")
        except (GuestProblem, CommandFailed, OSError, AssertionError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        print(f"{name}: {renderer}", file=sys.stderr)
        guests[name] = guest
    return guests


def measured(guests: dict[str, Guest], rounds: int, seconds: float) -> list[Figure]:
    """Our frame rates, beside each of the others."""
    found = []
    for what, workload in WORKLOADS.items():
        subjects = {name: partial(rate, guest, workload, seconds) for name, guest in guests.items()}
        rates = alternate(subjects, rounds)
        for name, baseline in rates.items():
            if name != OURS:
                found.append(
                    Figure(f"{NAME} {OURS}", f"{what}, beside {name}", "frames/s", rates[OURS], baseline)
                )
    return found


def rate(guest: Guest, workload: str, seconds: float) -> float:
    """Frames per second."""
    return draw(guest, workload, seconds)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which medians are taken: %(default)s")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one drawing: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--program", default=executable(NAME), help="default: %(default)s")
    parser.add_argument("--baseline", default=QEMUS, help="QEMU's program: %(default)s")
    parser.add_argument("--opengl-display", default="egl-headless", help="for QEMU's device: %(default)s")
    options = parser.parse_args()
    boots: dict[str, Boot] = {
        OURS: partial(with_program, options.program, ["--virgl"]),
        "virtio-gpu-gl": partial(with_qemu, options.opengl_display),
        "C": partial(with_program, options.baseline, ["--virgl"]),
        SOFTWARE: partial(with_program, options.program, []),
    }
    with ExitStack() as stack:
        found = measured(started(boots, stack), options.rounds, options.seconds)
    print(table(found))
    if options.json is not None:
        save(options.json, found, rounds=options.rounds, seconds=options.seconds)


if __name__ == "__main__":
    main()
