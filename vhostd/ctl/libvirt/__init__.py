"""What libvirt makes of the files and programs on a host.

folders, image        the files in the folders that libvirt reads, here or in an image
json_text, discovery  what libvirt makes of each file
answer, judgement     what libvirt asks a program, and its decision by the answer
hazards, host         what libvirt does not check, and the start of a domain may fail on
"""
