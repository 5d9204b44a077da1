CAPGET: int
CAPSET: int
CONNECT: int
FALLOCATE: int
FSTATFS: int
MMAP: int
PRCTL: int
STATX: int
UNLINKAT: int

def syscall(number: int, *arguments: int | bytes | bytearray) -> int: ...
