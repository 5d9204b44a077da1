"""`python -m vhost_user_rng`: the program, also where it is not installed."""

from vhost_user_rng import main

raise SystemExit(main())
