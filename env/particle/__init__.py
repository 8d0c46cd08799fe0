"""The N-dimensional particle of Implicit Behavioral Cloning (section 4.1).

``env.py`` is the environment, ``sim.py`` the physics, ``oracle.py`` the scripted expert, and
``picture.py`` draws images for videos.
"""
