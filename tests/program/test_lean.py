"""The event loop without TLS: everything else of it is there, and TLS for those who want it."""

import subprocess
import sys
from pathlib import Path

import pytest

LOADED = (
    "from vhostd.program.lean import load_event_loop; load_event_loop(); "
    "import asyncio, uvloop, socket, sys; "
)


def run(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.strip()


def test_nothing_of_it_is_loaded_or_left() -> None:
    names = ("ssl", "_ssl")
    assert run(f"{LOADED}print([name in sys.modules for name in {names}])") == "[False, False]"


def test_whoever_imports_ssl_later_gets_it() -> None:
    assert run(f"{LOADED}import ssl; print(ssl.create_default_context().verify_mode.name)") == "CERT_REQUIRED"


def test_the_loop_serves_sockets_and_children(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    code = f"""{LOADED}
async def main():
    async def echo(reader, writer):
        writer.write(await reader.readexactly(3))
        writer.close()
    server = await asyncio.start_unix_server(echo, {path!r})
    reader, writer = await asyncio.open_unix_connection({path!r})
    writer.write(b"yes")
    answer = await reader.read()
    child = await asyncio.create_subprocess_exec("true")
    return answer, await child.wait()
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    print(runner.run(main()))
"""
    assert run(code) == "(b'yes', 0)"


@pytest.mark.parametrize("loop", ["uvloop.new_event_loop", "asyncio.SelectorEventLoop"])
def test_whoever_asks_for_tls_is_told(loop: str) -> None:
    code = f"""{LOADED}
async def main():
    try:
        await asyncio.open_unix_connection(sock=socket.socketpair()[0], ssl=True, server_hostname="x")
    except (NotImplementedError, RuntimeError) as error:
        return error
with asyncio.Runner(loop_factory={loop}) as runner:
    print(runner.run(main()))
"""
    assert any(word in run(code) for word in ("without TLS", "ssl is not available", "ssl module"))


@pytest.mark.parametrize("before", ["import ssl", "from vhostd import Device"])
def test_a_program_that_has_tls_keeps_it(before: str) -> None:
    code = f"{before}; {LOADED}import ssl; print(asyncio.sslproto.ssl is ssl is sys.modules['ssl'])"
    assert run(code) == "True"
