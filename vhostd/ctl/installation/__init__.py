"""What belongs to a system besides the programs themselves, and how it gets there.

programs, places      what there is, and where files for it go
contents              which files those are: descriptions, units,
commandline           and, from what the programs' parsers declare, manual pages and completions
placing, record       all of them or none, and what was written
reach                 who can start a program where it is
"""
