"""Client of an everlearn server: grpcio, numpy and protobuf, never torch."""
