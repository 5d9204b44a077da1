"""An event loop without TLS, which no program uses, and which is an eighth of the time that loading it takes.

asyncio does without the module ssl where Python has none. uvloop wants names of it, but calls none of them
before somebody asks for TLS. So both are loaded while something else stands in for ssl; whoever imports that
later gets the real one. A device that wants an event loop with TLS imports ssl beside its manifest.
"""

import sys
from importlib import import_module
from types import ModuleType


class NoTLS(Exception):
    """No exception, and no context, is ever of this type."""

    def __init__(self, *_: object) -> None:
        raise NotImplementedError("the event loop was loaded without TLS: import ssl beside the manifest")


TYPES = (
    *("SSLContext", "MemoryBIO", "create_default_context"),
    *("SSLError", "SSLWantReadError", "SSLSyscallError", "SSLZeroReturnError", "CertificateError"),
)
NUMBERS = ("SSL_ERROR_WANT_READ", "SSL_ERROR_WANT_WRITE", "SSL_ERROR_SYSCALL")


def load_event_loop() -> None:
    """Imports asyncio and uvloop, without ssl if nobody has imported that."""
    if "ssl" in sys.modules:
        return
    for name, ssl in (("asyncio", None), ("uvloop", _stand_in())):
        sys.modules["ssl"] = ssl  # type: ignore[assignment]  # None: there is no such module
        try:
            import_module(name)
        finally:
            del sys.modules["ssl"]


def _stand_in() -> ModuleType:
    """What uvloop looks for when it is loaded."""
    module = ModuleType("ssl")
    vars(module).update(dict.fromkeys(TYPES, NoTLS) | dict.fromkeys(NUMBERS, 0))
    return module
