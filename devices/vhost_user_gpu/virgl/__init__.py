"""3D: the guest's GL, executed by libvirglrenderer in a process of its own.

    this program                                     the renderer
    card.py      checks the guest's commands         renderer.py  executes requests, one after the other
    remote.py    sends requests, takes replies  ---> library.pyx  libvirglrenderer
    arena.py     long requests, in shared memory     messages.py  what both say
    regions.py   the guest's memory, as files
    launcher.py  starts renderers  ----------------> spawner.py   starts and ends them, outside of the sandbox

Only the renderer loads libvirglrenderer, a GL driver and its compiler. Its crash costs the guest its 3D until the
driver is reset. It never costs the 2D pictures, nor this program.
"""
