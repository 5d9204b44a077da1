"""Loads argparse, asyncio and uvloop without the modules that they import and no program uses.

TLS, the inspection of source code, child processes, translations, text wrapping and the tokenizer are a
quarter of what loading them takes. While they are loaded, something else stands in for these modules. It has
the few names that are looked up at that time. Whoever asks it for another name gets that of the real module,
which is loaded then. Whoever imports one of these modules later gets the real one. Only TLS does not come
later: a device that wants an event loop with TLS imports ssl beside its manifest.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from types import GeneratorType, ModuleType
from typing import Any

CO_COROUTINE = 0x80  # inspect.CO_COROUTINE
TLS_TYPES = (
    *("SSLContext", "SSLSocket", "MemoryBIO", "create_default_context"),
    *("SSLError", "SSLWantReadError", "SSLSyscallError", "SSLZeroReturnError", "CertificateError"),
)
TLS_NUMBERS = ("SSL_ERROR_WANT_READ", "SSL_ERROR_WANT_WRITE", "SSL_ERROR_SYSCALL")


class NoTLS(Exception):
    """No exception, and no context, is ever of this type."""

    def __init__(self, *_: object, **__: object) -> None:
        raise NotImplementedError("the event loop was loaded without TLS: import ssl beside the manifest")


class StandIn(ModuleType):
    """A module with some names of the real one, which it loads when another name is looked up."""

    def __init__(self, name: str, **names: object) -> None:
        super().__init__(name)
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # which the import system looks for
            raise AttributeError(name)
        self.leave()
        return getattr(import_module(self.__name__), name)

    def leave(self) -> None:
        """Lets the next import find the real module."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


class Later:
    """Something that is made when it is called, or looked into."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._make()(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._make(), name)


def load_event_loop() -> None:
    """Imports argparse, asyncio and uvloop. What has been imported before is used as it is."""
    stand_ins = [each for each in _stand_ins() if each.__name__ not in sys.modules]
    sys.modules.update({each.__name__: each for each in stand_ins})
    try:
        for name in ("argparse", "asyncio", "uvloop"):
            import_module(name)
    finally:
        for each in stand_ins:
            each.leave()


def _stand_ins() -> list[StandIn]:
    return [
        *_for_tls(),
        StandIn("inspect", isgenerator=_is_generator, iscoroutinefunction=_is_coroutine_function),
        StandIn("subprocess", PIPE=-1, STDOUT=-2, DEVNULL=-3, SubprocessError=RuntimeError),
        StandIn("gettext", gettext=str, ngettext=_singular_or_plural),
        StandIn("selectors"),  # which only asyncio's own loop needs, and socket.sendfile
        StandIn(
            "traceback",  # of which uvloop takes these, for its debug mode
            **{name: _later("traceback", name) for name in ("StackSummary", "walk_stack", "format_list")},
        ),
        StandIn(
            "string",  # which logging takes for formats with braces or dollars
            Template=_later("string", "Template"),
            Formatter=lambda: Later(lambda: import_module("string").Formatter()),
        ),
        StandIn("textwrap"),  # which traceback needs for groups of exceptions
        StandIn("tokenize"),  # which linecache needs when the lines of a traceback are shown
        StandIn("asyncio.staggered"),  # which is for connections to hosts of several addresses
    ]


def _later(module: str, name: str) -> Later:
    """A name of a module that is loaded when the name is used."""
    return Later(lambda: getattr(import_module(module), name))


def _for_tls() -> list[StandIn]:
    """None if the program has TLS already."""
    if "ssl" in sys.modules:
        return []
    names: dict[str, object] = {**dict.fromkeys(TLS_TYPES, NoTLS), **dict.fromkeys(TLS_NUMBERS, 0)}
    return [StandIn("ssl", **names), StandIn("asyncio.sslproto", SSLProtocol=NoTLS)]


def _is_generator(thing: object) -> bool:
    return isinstance(thing, GeneratorType)


def _is_coroutine_function(thing: Callable[..., object]) -> bool:
    """What inspect says, which has to be loaded only for what is no plain function or method."""
    code = getattr(thing, "__code__", None)
    if code is None:
        return bool(import_module("inspect").iscoroutinefunction(thing))
    return bool(code.co_flags & CO_COROUTINE)


def _singular_or_plural(singular: str, plural: str, count: int) -> str:
    return singular if count == 1 else plural
