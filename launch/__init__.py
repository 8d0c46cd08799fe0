"""Many runs of the ordinary programs, on one machine or several (docs/scaling.md)."""
