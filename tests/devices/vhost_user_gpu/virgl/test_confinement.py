"""What the renderer keeps of the system, and what not."""

import subprocess
import sys

import pytest

from tests.programs import environment

TRY = """
import errno, os, socket, sys
from vhost_user_gpu.virgl.confinement import confine_renderer

confine_renderer()
try:
    {deed}
except OSError as error:
    print(errno.errorcode[error.errno])
else:
    print("done")
"""


@pytest.mark.parametrize(
    ("deed", "outcome"),
    [
        ("os.open('/etc/ld.so.cache', os.O_RDONLY)", "done"),
        ("os.listdir('/usr/lib')", "done"),
        ("os.open('/etc/passwd', os.O_RDONLY)", "EACCES"),
        ("os.listdir('/home')", "EACCES"),
        ("os.open('/usr/lib/new', os.O_WRONLY | os.O_CREAT)", "EACCES"),
        ("os.fork()", "EPERM"),
        ("os.kill(os.getppid(), 0)", "EPERM"),
        ("socket.socket(socket.AF_INET, socket.SOCK_STREAM)", "EPERM"),
        ("socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect('/run/x')", "EPERM"),
    ],
)
def test_the_sandbox(deed: str, outcome: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRY.format(deed=deed)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == (outcome, 0), done.stderr
