"""Which part of a run is on which GPU."""
