"""`python -m tests.conformance.mutant NAME ARGUMENTS...`: a program with a planted fault (faults.py)."""

import sys
from importlib import import_module

from tests.conformance.faults import fault


def main() -> int:
    """Starts the fault's program with these arguments."""
    _, name, *arguments = sys.argv
    mutant = fault(name)
    program = f"vhost_user_{'blk' if mutant.program == 'block' else mutant.program}"
    sys.argv = [program, *arguments]
    mutant.plant()
    status: int = import_module(program).main()
    return status


if __name__ == "__main__":
    raise SystemExit(main())
