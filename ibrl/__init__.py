"""The console command ``ibrl``: one name in front of the programs (see commands.py)."""
