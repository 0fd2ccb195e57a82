"""The Python half of the SLURM scripts in `slurm/`: what they start on a node, and `shoal slurm`."""
