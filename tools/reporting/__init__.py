"""The parts of ``tools.report``: read runs, combine their curves, draw, write the page."""
