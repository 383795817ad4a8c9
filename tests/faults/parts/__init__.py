"""What can go wrong, a file each: see `python -m tests.faults`."""
