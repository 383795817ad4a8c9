"""The vendored protocol: the same wire as tritonclient's, and no clash with it in one process."""

from __future__ import annotations

import subprocess
import sys

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from everlearn_protos import oip

OURS = "from everlearn_protos.oip import message; message('ModelInferRequest')(model_name='a')"
THEIRS = "import tritonclient.grpc; from tritonclient.grpc import service_pb2; service_pb2.ModelInferRequest()"


@pytest.mark.parametrize("order", [(OURS, THEIRS), (THEIRS, OURS)], ids=["ours first", "theirs first"])
def test_tritonclient_imports_beside_us_in_either_order(order: tuple[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", "; ".join(order)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_same_symbols_in_the_default_pool_would_clash() -> None:
    # The control of the test above: what a second registration in one pool does.
    code = (
        "from google.protobuf import descriptor_pb2, descriptor_pool; import tritonclient.grpc; "
        "f = descriptor_pb2.FileDescriptorProto(name='other.proto', package='inference'); "
        "f.message_type.add(name='ServerLiveRequest'); "
        "descriptor_pool.Default().AddSerializedFile(f.SerializeToString())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "TypeError" in done.stderr


def test_nothing_of_ours_is_in_the_default_pool() -> None:
    code = (
        f"{OURS}\nfrom google.protobuf import descriptor_pool\n"
        "try: descriptor_pool.Default().FindMessageTypeByName('inference.ModelInferRequest')\n"
        "except KeyError: print('private')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "private"


@pytest.mark.parametrize("name", ["grpc_service.proto", "model_config.proto"])
def test_the_vendored_files_are_what_tritonclient_ships(name: str) -> None:
    import tritonclient.grpc.service_pb2  # noqa: F401  # registers its files in the default pool

    theirs = descriptor_pb2.FileDescriptorProto()
    descriptor_pool.Default().FindFileByName(name).CopyToProto(theirs)
    ours = descriptor_pb2.FileDescriptorProto()
    oip.pool().FindFileByName(name).CopyToProto(ours)
    assert _without_json_names(ours) == _without_json_names(theirs)


def _without_json_names(file: descriptor_pb2.FileDescriptorProto) -> str:
    return "\n".join(line for line in str(file).splitlines() if "json_name:" not in line)


def test_an_unknown_message_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        oip.message("NoSuchMessage")
