"""`python -m tests.conformance.mutant NAME ARGUMENTS...`: a program with a planted fault (faults.py)."""

import sys
from importlib import import_module

from tests.conformance.faults import fault

MODULES = {  # where the program of a type has another name than its type
    "block": "vhost_user_blk",
    "net": "tests.conformance.devices.net",
    "vsock": "tests.conformance.devices.vsock",
}


def main() -> int:
    """Starts the fault's program with these arguments."""
    _, name, *arguments = sys.argv
    mutant = fault(name)
    module = MODULES.get(mutant.program, f"vhost_user_{mutant.program}")
    sys.argv = [module.rpartition(".")[2], *arguments]
    mutant.plant()
    status: int = import_module(module).main()
    return status


if __name__ == "__main__":
    raise SystemExit(main())
