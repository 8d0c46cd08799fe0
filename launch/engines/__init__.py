"""Where trials run: a class and a row of ``launch/engines/table.py`` each."""
