"""What the site needs beyond ``docs/``: pages made from the code, and links that work there."""
