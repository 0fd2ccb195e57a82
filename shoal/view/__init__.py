"""`shoal view`: run folders in a browser. Reads the folders only, never the process of a run."""
