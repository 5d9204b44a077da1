"""`python -m vhost_user_vsock`: the program, also where it is not installed."""

from vhost_user_vsock import main

raise SystemExit(main())
