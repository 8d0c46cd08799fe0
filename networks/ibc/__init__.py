"""Energy networks of Implicit Behavioral Cloning, their explicit twins, and fast evaluation."""
