"""Alembic's environment for the store: run from its one connection, never from a command line."""
