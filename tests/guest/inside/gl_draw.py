"""Draws with OpenGL inside the guest: run by tests/guest/test_gpu_3d.py, and by tests/bench.

python -m tests.guest.inside.gl_draw show SCENE SEED...                  SIGUSR1 shows the next seed
python -m tests.guest.inside.gl_draw read SCENE SEED WIDTH HEIGHT        prints the pixels
python -m tests.guest.inside.gl_draw read-here SCENE SEED WIDTH HEIGHT   without the device
python -m tests.guest.inside.gl_draw race SECONDS                        prints frames per second
python -m tests.guest.inside.gl_draw contexts COUNT                      makes and frees contexts
"""

import base64
import signal
import sys
import time
import zlib
from collections.abc import Callable
from functools import partial

from tests.guest.agent_display import card_path
from tests.guest.inside.gl_scenes import SCENES
from tests.guest.inside.gles import Context, OffScreen, OnScreen, check, gl, read_pixels
from tests.guest.kms import Card, Mode

UNSEEN = (640, 480)
NEXT = {signal.SIGUSR1}


def show(scene: str, *seeds: str) -> None:
    """Shows pictures, one after the other."""
    signal.pthread_sigmask(signal.SIG_BLOCK, NEXT)
    screen, mode = on_screen()
    for seed in seeds:
        SCENES[scene](mode.width, mode.height, int(seed))
        check()
        screen.show()
        print(f"shown {seed} by {screen.renderer()}", flush=True)
        signal.sigwait(NEXT)


def read(scene: str, seed: str, width: str, height: str) -> None:
    """Prints a picture that the device's renderer drew."""
    print_picture(scene, int(seed), int(width), int(height), Card(card_path()))


def read_here(scene: str, seed: str, width: str, height: str) -> None:
    """Prints a picture that was drawn in the guest (see $LIBGL_ALWAYS_SOFTWARE)."""
    print_picture(scene, int(seed), int(width), int(height), None)


def print_picture(scene: str, seed: int, width: int, height: int, card: Card | None) -> None:
    """Prints who draws, and what: RGB, compressed, in Base64."""
    context = OffScreen(width, height, card)
    SCENES[scene](width, height, seed)
    pixels = read_pixels(width, height)
    check()
    print(context.renderer())
    print(base64.b64encode(zlib.compress(pixels)).decode())


def race(seconds: str) -> None:
    """Shows a turning cube; the screen's size is that of its first mode."""
    screen, mode = on_screen()
    print_rate(screen, mode.width, mode.height, float(seconds), screen.show)


def race_unseen(seconds: str) -> None:
    """Draws a turning cube off screen."""
    width, height = UNSEEN
    context = OffScreen(width, height, Card(card_path()))
    print_rate(context, width, height, float(seconds), partial(gl, "glFinish"))


def print_rate(context: Context, width: int, height: int, seconds: float, finish: Callable[[], None]) -> None:
    """Prints who draws, and frames per second."""
    print(context.renderer())
    frames, took, start = 0, 0.0, time.monotonic()
    while took < seconds:
        SCENES["cube"](width, height, frames)
        finish()
        took = time.monotonic() - start
        frames += 1
    check()
    print(frames / took)


def contexts(count: str) -> None:
    """Makes contexts, each of which draws something, and frees them."""
    card = Card(card_path())
    for seed in range(int(count)):
        context = OffScreen(64, 64, card)
        SCENES["cube"](64, 64, seed)
        gl("glFinish")
        check()
        context.close()


def on_screen() -> tuple[OnScreen, Mode]:
    """The first connector in the mode that it prefers."""
    card = Card(card_path())
    connector = card.connector(0)
    mode = connector.modes[0]
    return OnScreen(card, connector, mode), mode


COMMANDS: dict[str, Callable[..., None]] = {
    "show": show,
    "read": read,
    "read-here": read_here,
    "race": race,
    "race-unseen": race_unseen,
    "contexts": contexts,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
