"""What the tests draw with OpenGL: pictures of pattern.py, and a cube."""

import math
from itertools import product

from tests.guest.inside.gles import GL_TRIANGLE_STRIP, GL_TRIANGLES, Program, gl, use_texture
from tests.guest.pattern import pattern

GL_COLOR_AND_DEPTH = 0x4100
GL_DEPTH_TEST, GL_BLEND = 0x0B71, 0x0BE2
GL_SRC_ALPHA, GL_ONE_MINUS_SRC_ALPHA = 0x0302, 0x0303

WHOLE = (-1, -1, 1, -1, -1, 1, 1, 1)
FLAT = "attribute vec2 a_place; void main() { gl_Position = vec4(a_place, 0., 1.); }"

# pattern.py's formula.
COMPUTED = """
precision highp float;
uniform float height, seed;
void main() {
    float x = floor(gl_FragCoord.x), y = height - 1. - floor(gl_FragCoord.y);
    float blue = 37. * seed + 7. + 16. * floor(x / 256.) + floor(y / 256.);
    gl_FragColor = vec4(mod(vec3(x, y, blue), 256.) / 255., 1.);
}
"""

LOOKED_UP = """
precision highp float;
uniform vec2 size;
uniform sampler2D picture;
void main() {
    gl_FragColor = texture2D(picture, vec2(gl_FragCoord.x, size.y - gl_FragCoord.y) / size);
}
"""

TURNED = """
attribute vec3 a_place;
uniform float angle;
varying vec3 v_place;
void main() {
    float c = cos(angle), s = sin(angle);
    vec3 at = vec3(c * a_place.x + s * a_place.z, a_place.y, c * a_place.z - s * a_place.x);
    at = vec3(at.x, c * at.y - s * at.z, s * at.y + c * at.z);
    v_place = a_place;
    gl_Position = vec4(at.xy, at.z / 4., 1.5 + at.z / 2.);
}
"""

COLOURED = """
precision highp float;
varying vec3 v_place;
uniform float alpha;
void main() { gl_FragColor = vec4(v_place / 2. + .5, alpha); }
"""


def computed(width: int, height: int, seed: int) -> None:
    """A picture of pattern.py that a shader computes."""
    program = Program(FLAT, COMPUTED)
    program.set("height", height)
    program.set("seed", seed)
    program.draw(GL_TRIANGLE_STRIP, WHOLE, size=2)


def looked_up(width: int, height: int, seed: int) -> None:
    """A picture of pattern.py that is a texture."""
    use_texture(width, height, pattern(width, height, seed, "RGBA"))
    look_up(width, height)


def look_up(width: int, height: int) -> None:
    """The texture that is used."""
    program = Program(FLAT, LOOKED_UP)
    program.set("size", width, height)
    program.draw(GL_TRIANGLE_STRIP, WHOLE, size=2)


class Cube:
    """A cube, and a glass one before it: depth, blending and colours between corners."""

    def __init__(self) -> None:
        self._program = Program(TURNED, COLOURED)

    def draw(self, seed: int) -> None:
        """Draws it, turned further with each seed."""
        gl("glClearColor", 0.1, 0.2, 0.3, 1.0)
        gl("glClear", GL_COLOR_AND_DEPTH)
        gl("glEnable", GL_DEPTH_TEST)
        gl("glEnable", GL_BLEND)
        gl("glBlendFunc", GL_SRC_ALPHA, GL_ONE_MINUS_SRC_ALPHA)
        for alpha, size in ((1.0, 0.5), (0.5, 0.7)):
            self._program.set("angle", math.tau * (seed + 1) / 64)
            self._program.set("alpha", alpha)
            self._program.draw(GL_TRIANGLES, [size * number for number in cube_places()], size=3)


def cube(width: int, height: int, seed: int) -> None:
    """A turned cube."""
    Cube().draw(seed)


def cube_places() -> list[float]:
    """The corners of the twelve triangles of a cube."""
    places: list[float] = []
    for axis, side in product(range(3), (-1, 1)):
        for first, second in ((-1, -1), (1, -1), (-1, 1), (1, -1), (-1, 1), (1, 1)):
            corner = [first, second]
            corner.insert(axis, side)
            places += corner
    return places


SCENES = {scene.__name__: scene for scene in (computed, looked_up, cube)}
