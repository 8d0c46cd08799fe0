"""robomimic's tasks, simulated by robosuite 1.5 as robosuite 1.4 recorded them.

``env.py`` is the environment, ``sim.py`` the simulation, ``obs.py`` the observations,
``replay.py`` recorded states and actions, ``shapes.py`` objects of random size, ``fast.py`` the
control loop in C++. ``control.py`` and ``experts*.py`` are the scripted experts.
``robomimic_args.py`` is the description of all this in demonstration files.
"""
