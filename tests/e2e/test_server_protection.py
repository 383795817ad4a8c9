"""`client.info().protection` says what holds where the server runs: every word of it against what the system tells."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
from PIL import Image
from tests import tiny
from tests.faults.not_here import NotHereError
from tests.faults.process_walls import AS_ANOTHER_GROUP, Walls, environment_of, landlock_here, seccomp_is_here, walls_of
from tests.real_server import RealServer

from everlearn.runtime.hardening import wipes

WARNING = "raw data may stay behind"
SERVER = ("-c", AS_ANOTHER_GROUP, "-m", "everlearn_server.cli")
WITH_SWAP = """
from pathlib import Path
from everlearn.runtime import hardening
from everlearn_server import cli
hardening._SWAPS = Path({swaps!r})
cli.main()
"""


class Told:
    """What a server that has decoded an image says of itself, and what the system says of it."""

    def __init__(self, server: RealServer) -> None:
        stream = io.BytesIO()
        Image.fromarray(tiny.images(1, 0)[0]).save(stream, "PNG")
        server.declare(tiny.declaration(tiny.write_backbone(server.folder.parent)))
        with server.client(client_id="one") as client:
            client.learn("tiny", [([stream.getvalue()], ["a"])])
            self.protection: Mapping[str, str] = dict(client.info().protection)
        self.pid = server.pid
        self.log = server.log
        self.walls = walls_of(server.pid)
        self.children = psutil.Process(server.pid).children(recursive=True)

    def decoder(self) -> Walls | None:
        """A process that decodes images, forked from another; None where there is none."""
        forked = [process.pid for process in self.children if process.ppid() != self.pid]
        return walls_of(forked[0]) if forked else None


@contextmanager
def told(folder: Path, *arguments: str) -> Iterator[Told]:
    """While it runs."""
    with RealServer(folder / "data", program=SERVER, arguments=arguments) as server:
        yield Told(server)


def held_by(pid: int) -> list[Path]:
    """Folders of temporary files on whose descriptor this process has a lock, as the kernel's list has it."""
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    inodes = {int(words[5].rpartition(":")[2]) for words in lines if words[1] == "FLOCK" and words[4] == str(pid)}
    folders = [
        *Path("/dev/shm").glob("everlearn-tmp-*"),
        *Path(os.environ.get("TMPDIR", "/tmp")).glob("everlearn-tmp-*"),
    ]
    return [folder for folder in folders if folder.stat().st_ino in inodes]


def kind_of(folder: Path) -> str:
    """Of the file system."""
    mounts = {words[1]: words[2] for words in map(str.split, Path("/proc/mounts").read_text().splitlines())}
    return next(mounts[str(at)] for at in (folder, *folder.parents) if str(at) in mounts)


def test_a_server_says_what_protects_raw_data_and_all_of_it_holds(tmp_path: Path) -> None:
    with told(tmp_path) as server:
        said = server.protection
        assert set(said) == {"heap", "core_dumps", "temporary_files", "swap", "image_decoding"}
        assert said["core_dumps"] == "off"
        assert server.walls.lacks({"Max core file size": 0, "is_dumpable": False}) == {}
        (folder,) = held_by(server.pid)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert said["temporary_files"] == ("private, in RAM" if kind_of(folder) == "tmpfs" else "private, on disk")
        swaps = [line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()[1:]]
        if not swaps:
            assert said["swap"] == "none that is not encrypted"
        decoder = server.decoder()
        assert decoder is not None
        assert said["image_decoding"].startswith("in processes of its own, behind ")
        assert ("seccomp" in said["image_decoding"], decoder.is_filtered) == (seccomp_is_here(),) * 2
        assert (f"Landlock {landlock_here()}" in said["image_decoding"]) == (landlock_here() > 0)
        assert (WARNING in server.log) == (said["swap"] != "none that is not encrypted")
        assert said["heap"] == "wiped when freed"
        # Last, for only root may look: the environment that the C library has read, and where children write.
        assert wipes(environment_of(server.pid))
        assert {environment_of(child.pid)["TMPDIR"] for child in server.children} == {str(folder)}
        assert all(wipes(environment_of(child.pid)) for child in server.children)
    assert not folder.exists()
    if server.walls.is_dumpable is None:
        raise NotHereError("whether root's processes may be dumped is seen where they can belong to another group")


def test_control_a_server_that_is_not_hardened_says_so_too_and_warns(tmp_path: Path) -> None:
    with told(tmp_path, "--unhardened", "--image-decoding", "here") as server:
        said = server.protection
        assert said["heap"] == "not wiped when freed"
        assert said["core_dumps"] == "possible"
        assert said["temporary_files"] == "shared folder"
        assert said["image_decoding"] == "in the server itself"
        assert server.walls.is_dumpable is not False
        assert held_by(server.pid) == []
        assert server.decoder() is None
        assert WARNING in server.log
        assert "asked for with --unhardened" in server.log
        assert not wipes(environment_of(server.pid))


def test_swap_that_is_not_encrypted_is_warned_of_by_name(tmp_path: Path) -> None:
    swaps = tmp_path / "swaps"
    swaps.write_text("Filename\tType\tSize\tUsed\tPriority\n/dev/everlearn-none1\tpartition\t1048572\t0\t-2\n")
    program = ("-c", WITH_SWAP.format(swaps=str(swaps)))
    with RealServer(tmp_path / "data", program=program) as server, server.client() as client:
        said = dict(client.info().protection)
        assert said["swap"] == "/dev/everlearn-none1"
        assert (said["heap"], said["core_dumps"]) == ("wiped when freed", "off")
        (line,) = [line for line in server.log.splitlines() if WARNING in line]
    assert "/dev/everlearn-none1" in line
    assert "this system lacks something" in line
