"""`python -m vhost_user_gpu`: the program, also where it is not installed."""

from vhost_user_gpu import main

raise SystemExit(main())
