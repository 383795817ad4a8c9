"""The Open Inference Protocol v2 (package `inference`, with Triton's extensions) in a descriptor pool of its own.

`tritonclient` registers the same names in protobuf's default pool; a second registration there raises TypeError in
whichever of the two is imported last. Therefore there is no generated code here, only a descriptor set.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

PACKAGE = "inference"
"""The wire path starts with it, so it may not be renamed."""
SERVICE = "inference.GRPCInferenceService"
"""Full name of the service, as health and reflection know it."""


@functools.cache
def pool() -> DescriptorPool:
    """The private pool with both files of the protocol; built on first use."""
    files = descriptor_pb2.FileDescriptorSet.FromString(Path(__file__).with_name("oip.binpb").read_bytes())
    private = DescriptorPool()
    for file in files.file:
        private.AddSerializedFile(file.SerializeToString())
    return private


@functools.cache
def message(name: str) -> Any:
    """The class of one message, such as `ModelInferRequest`. Raises KeyError where the protocol has none of that name.

    Any, because the class exists at run time only.

    >>> message("ModelReadyRequest")(name="digits").name
    'digits'
    """
    return message_factory.GetMessageClass(pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))


@functools.cache
def service() -> ServiceDescriptor:
    """The descriptor of GRPCInferenceService: its methods with their message types."""
    return pool().FindServiceByName(SERVICE)
