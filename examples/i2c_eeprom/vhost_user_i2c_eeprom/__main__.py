"""`python -m vhost_user_i2c_eeprom`: the program, also where it is not installed."""

from vhost_user_i2c_eeprom import main

raise SystemExit(main())
