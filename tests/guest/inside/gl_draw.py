"""Draws with OpenGL inside the guest: run by tests/guest/test_gpu_3d.py, and by tests/bench.

python -m tests.guest.inside.gl_draw show SCENE SEED...                  SIGUSR1 shows the next seed
python -m tests.guest.inside.gl_draw read SCENE SEED WIDTH HEIGHT        prints the pixels
python -m tests.guest.inside.gl_draw read-here SCENE SEED WIDTH HEIGHT   without the device
python -m tests.guest.inside.gl_draw read-2d SEED WIDTH HEIGHT           looks a 2D picture up, and prints it
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
from tests.guest.inside.gl_scenes import SCENES, Cube, look_up
from tests.guest.inside.gles import Context, OffScreen, OnScreen, check, gl, read_pixels
from tests.guest.kms import Card, Mode
from tests.guest.pattern import pattern

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


def read_2d(seed: str, width: str, height: str) -> None:
    """Prints a 2D picture that was drawn without OpenGL, as OpenGL sees it."""
    size, card = (int(width), int(height)), Card(card_path())
    context, picture = OffScreen(*size, card), card.create_buffer(*size)
    picture.write(pattern(*size, int(seed), "BGRX"))
    context.use_picture(card, picture)
    look_up(*size)
    print_pixels(context, *size)


def print_picture(scene: str, seed: int, width: int, height: int, card: Card | None) -> None:
    """Prints who draws, and what: RGB, compressed, in Base64."""
    context = OffScreen(width, height, card)
    SCENES[scene](width, height, seed)
    print_pixels(context, width, height)


def print_pixels(context: Context, width: int, height: int) -> None:
    """Prints who has drawn, and what."""
    pixels = read_pixels(width, height)
    check()
    print(context.renderer())
    print(base64.b64encode(zlib.compress(pixels)).decode())


def race(seconds: str) -> None:
    """Shows a turning cube; the screen's size is that of its first mode."""
    screen, _ = on_screen()
    print_rate(screen, float(seconds), screen.show)


def race_unseen(seconds: str) -> None:
    """Draws a turning cube off screen."""
    print_rate(OffScreen(*UNSEEN, Card(card_path())), float(seconds), partial(gl, "glFinish"))


def print_rate(context: Context, seconds: float, finish: Callable[[], None]) -> None:
    """Prints who draws, and frames per second, without the first, for which shaders are compiled."""
    print(context.renderer())
    cube, frames, took = Cube(), 0, 0.0
    cube.draw(0)
    finish()
    start = time.monotonic()
    while took < seconds:
        frames += 1
        cube.draw(frames)
        finish()
        took = time.monotonic() - start
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
    "read-2d": read_2d,
    "race": race,
    "race-unseen": race_unseen,
    "contexts": contexts,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
