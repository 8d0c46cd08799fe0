"""robomimic's tasks, simulated by robosuite 1.5 as robosuite 1.4 recorded them.

``env.py`` the environment, ``sim.py`` the simulation, ``obs.py`` what is observed, ``replay.py``
recorded states and actions, ``shapes.py`` objects whose size is random, ``fast.py`` the control
loop in C++, ``control.py`` and ``experts*.py`` the scripted experts, ``robomimic_args.py`` how
files of demonstrations describe all this.
"""
