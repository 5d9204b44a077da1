"""A lean event loop: all of it is there, and what was left out for those who want it, except TLS."""

import subprocess
import sys
from pathlib import Path

import pytest

ABSENT = ("ssl", "_ssl", "inspect", "ast", "dis", "subprocess", "locale", "gettext", "textwrap", "tokenize")
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
    # The loader of an editable installation may have loaded some before.
    code = (
        f"import sys; before = set(sys.modules); {LOADED}print({{*{ABSENT}}} & ({{*sys.modules}} - before))"
    )
    assert run(code) == "set()"


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("ssl", "ssl.create_default_context().verify_mode.name"),
        ("inspect", "inspect.signature(lambda x: x)"),
        ("subprocess", "subprocess.run(['true']).returncode"),
        ("gettext", "gettext.NullTranslations"),
        ("selectors", "selectors.PollSelector"),
        ("string", "string.Formatter().format('{}', 5), string.Template('$x').pattern"),
        ("traceback", "traceback.StackSummary"),
        ("asyncio.sslproto", "asyncio.sslproto.SSLProtocol.__doc__"),
        ("asyncio.staggered", "asyncio.staggered.staggered_race.__name__"),
    ],
)
def test_whoever_imports_it_later_gets_it(module: str, use: str) -> None:
    assert run(f"{LOADED}import {module}; print({use})") == run(f"import {module}; print({use})")


@pytest.mark.parametrize("callable", ["main", "functools.partial(main)", "print", "C().method", "len", "C"])
def test_asyncio_tells_a_coroutine_function_as_ever(callable: str) -> None:
    code = f"""
import asyncio, functools
async def main(): pass
class C:
    async def method(self): pass
print(asyncio.iscoroutinefunction({callable}))
"""
    assert run(LOADED + code) == run(code)


def test_a_name_that_a_stand_in_lacks_is_the_real_one() -> None:
    code = """
from vhostd.program.lean import StandIn
import sys
sys.modules["json"] = one = StandIn("json", dumps=5)
import json
print(json is one, json.dumps, json.loads("[1]"), sys.modules["json"] is one)
"""
    assert run(code) == "True 5 [1] False"


@pytest.mark.parametrize(("style", "form"), [("{", "{msg:>5}"), ("$", "$msg"), ("%", "%(msg)s")])
def test_logging_knows_its_styles(style: str, form: str) -> None:
    code = f"""
import logging
formatter = logging.Formatter({form!r}, style={style!r})
print(formatter.format(logging.makeLogRecord(dict(msg="yes"))))
"""
    assert run(LOADED + code) == run(code)


def test_uvloop_s_debug_mode_says_where_a_callback_comes_from() -> None:
    code = f"""{LOADED}
def fail(): raise ValueError("no")
async def main():
    asyncio.get_running_loop().call_soon(fail)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
told = []
loop = uvloop.new_event_loop()
loop.set_debug(True)
loop.set_exception_handler(lambda loop, context: told.append(context))
loop.run_until_complete(main())
print(told[0]["exception"], "call_soon" in "".join(map(str, told[0]["source_traceback"])))
loop.close()
"""
    plain = code.replace(LOADED, "import asyncio, uvloop, socket, sys; ")
    assert run(code) == run(plain)


def test_a_task_that_failed_is_shown() -> None:
    code = f"""{LOADED}
async def fail(): raise ValueError("no")
async def main():
    task = asyncio.ensure_future(fail())
    await asyncio.wait([task])
    print(repr(task), task.exception())
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""
    assert "exception=ValueError('no')" in run(code)


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
