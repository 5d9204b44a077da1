"""`python -m vhost_user_blk`: the program, also where it is not installed."""

from vhost_user_blk import main

raise SystemExit(main())
