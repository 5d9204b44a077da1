"""AF_VSOCK forwarding where the kernel has a loopback: what test_forwarding.py tests, once."""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.devices.vhost_user_vsock import test_forwarding as tests


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Runs a test's coroutine."""

    async def awaited() -> None:
        await main()

    asyncio.run(awaited())


def main() -> None:
    assert tests.has_loopback()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        begin = time.monotonic()
        for kind in tests.KINDS:
            tests.test_a_guest_reaches_an_af_vsock_server(path, run, kind)
        tests.test_an_af_vsock_client_reaches_the_guest(path, run)
        tests.test_nobody_listens_there(path, run)
    print(f"all is well, after {time.monotonic() - begin:.1f} s")


if __name__ == "__main__":
    main()
