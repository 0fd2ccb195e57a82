"""What runs inside the sandbox. No file here imports the rest of Shoal, and any Python from 3.9 can run them."""
