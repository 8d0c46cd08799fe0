"""The N-dimensional particle of Implicit Behavioral Cloning (section 4.1).

``env.py`` the environment, ``sim.py`` the physics, ``oracle.py`` the scripted expert,
``picture.py`` images for videos.
"""
