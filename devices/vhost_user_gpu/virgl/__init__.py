"""3D: the guest's GL, executed by libvirglrenderer in a process of its own.

    this program                                    the renderer
    card.py      checks the guest's commands        renderer.py  executes requests in their order
    adoption.py  2D pictures that contexts use
    engine.py    has a renderer when one is needed  library.pyx  libvirglrenderer
    remote.py    sends requests, takes replies      messages.py  what both say, in packets.py
    arena.py     long requests, in shared memory    egl.pyx      textures as dmabufs
    regions.py   the guest's memory, as files       the spawner, which is not in the sandbox
    launcher.py  has renderers started              spawner.py   starts them and ends them

Only the renderer loads libvirglrenderer, a GL driver and its compiler. Its crash costs the guest its 3D
until the driver is reset. It never costs the 2D pictures, nor this program.
"""
