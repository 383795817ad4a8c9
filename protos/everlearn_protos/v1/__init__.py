"""The service's own protocol, everlearn.v1: generated code."""
