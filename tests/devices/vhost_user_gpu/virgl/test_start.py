"""How the program starts with --virgl: it says who renders, or why nobody can."""

import pytest

from tests.programs import Program, executable


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--render-node=/nonexistent/node"], "--render-node=/nonexistent/node: there is no such device"),
        (["--virgl", "--render-node=/dev/null"], "--render-node=/dev/null: that is no render node"),
    ],
    ids=["no node", "no GPU"],
)
def test_a_host_that_cannot_render_is_an_error_at_the_start(options: list[str], reason: str) -> None:
    with Program([executable("vhost-user-gpu"), "--socket-path=/nonexistent/x", *options]) as program:
        status, lines = program.ends()
    assert status == 1
    assert lines[-1].startswith(f"vhost-user-gpu: error: {reason}")


def test_the_log_says_at_the_start_who_renders() -> None:
    with Program([executable("vhost-user-gpu"), "--socket-path=/nonexistent/x", "--virgl"]) as program:
        assert "OpenGL" in program.hear("3D by ")
