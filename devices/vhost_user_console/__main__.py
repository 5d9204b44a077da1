"""`python -m vhost_user_console`: the program, also where it is not installed."""

from vhost_user_console import main

raise SystemExit(main())
