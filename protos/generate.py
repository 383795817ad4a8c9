"""Regenerates the committed gRPC code from the `.proto` files, or, with `--check`, fails naming what is stale.

`make protos` runs it. The generator is pinned (dependency group `protos`), because code from a newer one crashes at
import beside the protobuf that `tritonclient` needs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from google.longrunning import operations_proto_pb2
from grpc_tools import protoc  # type: ignore[import-not-found, import-untyped]  # in the group `protos` only

ROOT = Path(__file__).parent
PACKAGE = ROOT / "everlearn_protos"


def generate(out: Path) -> list[Path]:
    """Writes all generated files below `out`; returns their paths relative to it. Raises SystemExit if protoc fails."""
    # protoc finds its plug-ins (protoc-gen-mypy) on PATH only.
    os.environ["PATH"] = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
    common = Path(operations_proto_pb2.__file__).parents[2]
    with tempfile.TemporaryDirectory() as aliased:
        # The package ships operations.proto under another file name than the one its descriptor is registered as.
        alias = Path(aliased) / "google" / "longrunning" / "operations.proto"
        alias.parent.mkdir(parents=True)
        alias.write_bytes((common / "google" / "longrunning" / "operations_proto.proto").read_bytes())
        builtin = Path(protoc.__file__).parent / "_proto"
        _generate_ours(out, [f"-I{ROOT}", f"-I{builtin}", f"-I{aliased}", f"-I{common}"])
    _generate_oip(out)
    return sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file() and _is_generated(path))


def _generate_ours(out: Path, includes: list[str]) -> None:
    ours = [str(path) for path in sorted((PACKAGE / "v1").glob("*.proto"))]
    outputs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    if protoc.main(["protoc", *includes, *outputs, *ours]) != 0:
        raise SystemExit("protoc failed")


def _generate_oip(out: Path) -> None:
    # The Open Inference Protocol lives in a private descriptor pool (see everlearn_protos/oip): a descriptor set,
    # no code.
    vendored = sorted((PACKAGE / "oip").glob("*.proto"))
    if not vendored:
        return
    binpb = out / "everlearn_protos" / "oip" / "oip.binpb"
    binpb.parent.mkdir(parents=True, exist_ok=True)
    arguments = [f"-I{PACKAGE / 'oip'}", f"--descriptor_set_out={binpb}", *[path.name for path in vendored]]
    if protoc.main(["protoc", *arguments]) != 0:
        raise SystemExit("protoc failed on the Open Inference Protocol")


def _is_generated(path: Path) -> bool:
    return ("_pb2" in path.name and path.suffix in {".py", ".pyi"}) or path.name == "oip.binpb"


def stale() -> list[str]:
    """Generated files that differ from a fresh generation, or are left over from a deleted `.proto`."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        produced = generate(fresh)
        wrong = [
            str(path)
            for path in produced
            if not (ROOT / path).exists() or (ROOT / path).read_bytes() != (fresh / path).read_bytes()
        ]
        committed = {path.relative_to(ROOT) for path in PACKAGE.rglob("*") if _is_generated(path)}
        return sorted(wrong + [str(path) for path in committed - set(produced)])


def main() -> None:
    """Command line: `python protos/generate.py [--check]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the committed code is stale")
    if parser.parse_args().check:
        wrong = stale()
        if wrong:
            raise SystemExit("stale, run `make protos`: " + ", ".join(wrong))
        return
    for path in generate(ROOT):
        print(path)


if __name__ == "__main__":
    main()
