"""`python -m vhost_user_input`: the program, also where it is not installed."""

from vhost_user_input import main

raise SystemExit(main())
