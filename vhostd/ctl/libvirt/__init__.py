"""What libvirt makes of the files and programs on a host.

folders, image        what is in the folders that it reads, here or in an image
json_text, discovery  what it makes of each file
answer, judgement     what it asks a program, and decides by the answer
hazards, host         what it overlooks, and the start of a domain then fails on
"""
