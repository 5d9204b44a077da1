"""The specification, executable: each clause that a front-end can observe is a check of any back-end.

check.py     what a check is: its number, level, section, and the words of its page
verdict.py   how it ends
groups/      the checks, a file for each part of the specification
subject.py   the back-end that is checked: how it is started and reached
trial.py     what one check does with it: connections, memory, rings
ring.py      a ring of the device, and what a driver sees of it
exchange.py  one valid request for each type of device, for what has to see a ring work
each_format.py  a check that is done with split rings and with packed ones
launch.py    the back-end's program once more, for how it starts and ends
runner.py    one check after the other, each with its verdict
report.py    what was found, for people and programs; document.py is the JSON document
page.py      CONFORMANCE.md, made of the checks
schema.py    QEMU's schema for what programs say of themselves, and for their descriptions
"""
