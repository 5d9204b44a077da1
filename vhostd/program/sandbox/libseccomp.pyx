# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""libseccomp, which is loaded when it is asked for: a program without a sandbox needs none."""

import os

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "<dlfcn.h>":
    enum:
        RTLD_NOW
    void *dlopen(const char *name, int flags)
    void *dlsym(void *library, const char *name)
    const char *dlerror()

# seccomp.h
ALLOW, FAIL = 0x7FFF_0000, 0x0005_0000
GREATER_EQUAL, MASKED_EQUAL = 5, 7
UNKNOWN = -1

cdef struct Comparison:  # struct scmp_arg_cmp
    unsigned int argument
    int operation
    uint64_t first
    uint64_t second

cdef enum:
    TSYNC = 4
    MOST = 6  # arguments of a system call

ctypedef void *(*Init)(uint32_t action)
ctypedef void (*Release)(void *context)
ctypedef int (*Load)(void *context)
ctypedef int (*SetAttribute)(void *context, int attribute, uint32_t value)
ctypedef int (*Resolve)(const char *name)
ctypedef int (*AddRule)(void *context, uint32_t action, int number, unsigned int count, const Comparison *array)


cdef class Rules:
    """The rules of a filter; what no rule is about gets the action `default`.

    Raises OSError if there is no such library.
    """

    cdef void *_context
    cdef Release _release
    cdef Load _load
    cdef SetAttribute _set_attribute
    cdef Resolve _resolve
    cdef AddRule _add_rule

    def __cinit__(self, str name, uint32_t default):
        cdef void *library = loaded(name)
        self._release = <Release> function(library, b"seccomp_release")
        self._load = <Load> function(library, b"seccomp_load")
        self._set_attribute = <SetAttribute> function(library, b"seccomp_attr_set")
        self._resolve = <Resolve> function(library, b"seccomp_syscall_resolve_name")
        self._add_rule = <AddRule> function(library, b"seccomp_rule_add_array")
        self._context = (<Init> function(library, b"seccomp_init"))(default)
        if self._context is NULL:
            raise MemoryError

    def __dealloc__(self):
        if self._context is not NULL:
            self._release(self._context)

    def number(self, str name):
        """A system call's number; UNKNOWN if nobody knows the call, below if this architecture has none."""
        return self._resolve(name.encode())

    def add(self, uint32_t action, int number, *conditions):
        """Adds a rule for the calls whose arguments meet all conditions; raises OSError.

        A condition is an argument, MASKED_EQUAL, a mask and a value; or an argument, GREATER_EQUAL, a value, 0.
        """
        cdef Comparison comparisons[MOST]
        cdef unsigned int i
        if len(conditions) > MOST:
            raise ValueError("a system call has six arguments")
        for i in range(len(conditions)):
            argument, operation, first, second = conditions[i]
            comparisons[i] = Comparison(argument, operation, first, second)
        check(self._add_rule(self._context, action, number, len(conditions), comparisons))

    def load(self):
        """Puts the filter in force for all threads of the process, for good; raises OSError."""
        check(self._set_attribute(self._context, TSYNC, 1))
        check(self._load(self._context))


def load_library(str name):
    """Loads a shared library, for good; raises OSError."""
    loaded(name)


cdef void *loaded(str name) except NULL:
    cdef void *library = dlopen(name.encode(), RTLD_NOW)
    if library is NULL:
        raise OSError(dlerror().decode())
    return library


cdef void *function(void *library, const char *name) except NULL:
    cdef void *found = dlsym(library, name)
    if found is NULL:
        raise OSError(dlerror().decode())
    return found


cdef int check(int result) except -1:
    """Raises OSError for a result of libseccomp's that is -errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return 0
