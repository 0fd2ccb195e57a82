"""The Atropos protocol: a server for scored groups, the trainer's source, and environments as processes."""
