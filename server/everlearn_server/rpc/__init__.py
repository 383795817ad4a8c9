"""The wire: one file a service. Servicers translate; they contain no `try` and no logic."""
