"""Block pushing in pybullet (Implicit Behavioral Cloning, sections 4.2 and 4.3).

An xArm6 with a cylindrical tool, moved in the plane by end-effector displacements, pushes
blocks into target zones. ``env.py`` is the environment, ``tasks.py`` the tasks, ``sim.py`` the
physics, ``oracles.py`` the scripted experts, and ``camera.py`` the images.
"""
