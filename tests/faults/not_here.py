"""What cannot be tested on this machine says so, and is counted."""

from __future__ import annotations


class NotHereError(Exception):
    """A tool or a privilege is lacking; the text says which."""
