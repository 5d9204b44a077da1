CAPGET: int
CAPSET: int
CONNECT: int
FALLOCATE: int
FSTATFS: int
INOTIFY_ADD_WATCH: int
INOTIFY_INIT1: int
MMAP: int
PRCTL: int
STATX: int
TIMERFD_CREATE: int
TIMERFD_SETTIME: int
UNLINKAT: int

def syscall(number: int, *arguments: int | bytes | bytearray) -> int: ...
