"""The files that an installation adds to the programs themselves.

programs, places      which programs there are, and where their files go
contents              which files there are: descriptions, units, manual pages and completions
commandline           what the programs' parsers declare, for manual pages and completions
placing, record       writes all files or none, and records what was written
reach                 whether libvirt and systemd can start a program where it is
"""
