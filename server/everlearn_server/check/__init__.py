"""Verifies a data folder, or a backup, without changing a byte of it. `folder.check` is the way in."""
