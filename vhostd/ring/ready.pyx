# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Ready: what needs no waiting, for those who wait."""

cimport cython

from types import GenericAlias


@cython.final
@cython.no_gc
@cython.freelist(8)
cdef class Ready:
    """An awaitable that is done already: `await Ready(value)` is `value`, at once and without a future.

    For `__anext__` and the like, which must return an awaitable even when there is nothing to wait for.
    """

    cdef object value

    __class_getitem__ = classmethod(GenericAlias)

    def __cinit__(self, value):
        self.value = value

    def __await__(self):
        if False:
            yield  # makes this a generator: its result reaches `await` without a StopIteration being raised
        return self.value
