"""`python -m vhost_user_net`: the program, also where it is not installed."""

from vhost_user_net import main

raise SystemExit(main())
