"""One descriptor pool for reflection: our services, health, and the private Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from everlearn_protos import oip


def reflection_pool(service_names: Iterable[str]) -> DescriptorPool:
    """A pool with the files of the named services and all that they import.

    `inference.*` comes from the private pool, even where tritonclient has put its own copy into the default one.
    Raises KeyError for a service that neither pool knows.
    """
    combined = DescriptorPool()
    added: set[str] = set()
    for name in service_names:
        pool = oip.pool() if name == oip.SERVICE else descriptor_pool.Default()
        _add(pool.FindFileContainingSymbol(name), combined, added)
    return combined


def _add(file: FileDescriptor, combined: DescriptorPool, added: set[str]) -> None:
    if file.name in added:
        return
    added.add(file.name)
    for dependency in file.dependencies:
        _add(dependency, combined, added)
    combined.AddSerializedFile(file.serialized_pb)
