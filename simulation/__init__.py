"""Many sites on one machine, run with the same client and server code."""
