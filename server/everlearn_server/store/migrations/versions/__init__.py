"""Revisions, oldest first. A released one never changes; the next one is a new file."""
