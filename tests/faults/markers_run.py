"""Thousands of marked payloads through the real server, and a search for what is left of them, everywhere.

    python -m tests.faults.markers_run --payloads 1000

Valid, rejected and malformed ones, a kill and a segmentation fault in mid-batch; images, tensors, texts and features
(`marked` says which to what models). Looked through: the data folder with its log of writes, temporary files, logs, the
metrics, what a core file would be, every write to anything but a socket, and the memory of the server and all its
processes: those that decode images, and those in which torch learns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.marked import KINDS, MODEL_OF, Payloads, Sent
from tests.faults.markers import SIZE, Markers
from tests.faults.memory_scan import count_in_memory, family
from tests.ports import free_port
from tests.real_server import RealServer

from everlearn_client import Client

HEARTBEAT_S = 1.0
_LOOKS = 3
"""What stays behind stays for as long as nothing follows; on a busy machine a heartbeat may be late."""
HEAP = "heap, one heartbeat after durable"
WRITES = "writes by system call"
CORES = "core dumps"
SERVER = Path(__file__).parent / "raw_server.py"
_CALLS = "write,writev,pwrite64,pwritev,pwritev2"
_PLACES = dict.fromkeys(("data", "other", "traced"), "data folder") | {"tmp": "temporary files"}
_SHARED = Path("/dev/shm")


@dataclass
class Found:
    """What was sent, where one looked, and what was there."""

    sent: Sent
    hits: dict[str, Counter[str]] = field(default_factory=dict)
    not_here: dict[str, str] = field(default_factory=dict)
    """Places that this machine does not let one look through, and why."""
    allowed: int = 0
    """Labels and names of clients, found at rest: they stay."""
    processes: Counter[str] = field(default_factory=Counter)
    """Whose memory was looked through."""
    traced: Counter[str] = field(default_factory=Counter)
    """Whose writes were."""
    fleeting: list[dict[str, int]] = field(default_factory=list)
    """Hits in memory that were there one heartbeat after, and gone when more had come over the connection."""

    def note(self, place: str, hits: Counter[str]) -> None:
        """Adds hits in a place; a place without any is noted too."""
        self.hits.setdefault(place, Counter()).update(hits)

    @property
    def total(self) -> int:
        """Hits in all places."""
        return sum(sum(hits.values()) for hits in self.hits.values())

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        places = {place: dict(hits) for place, hits in self.hits.items()}
        return {
            "payloads": self.sent.total,
            "sent": {kind: dict(counts) for kind, counts in self.sent.counts.items()},
            "hits": self.total,
            "places": places,
            "allowed_strings_at_rest": self.allowed,
            "processes": dict(self.processes),
            "traced": dict(self.traced),
            "not_here": self.not_here,
            "fleeting": self.fleeting,
        }


def run(
    payloads: int,
    seed: int,
    *,
    fault: str = "none",
    arguments: Sequence[str] = (),
    kinds: Sequence[str] = KINDS,
    looks: Set[str] = frozenset({HEAP, CORES, WRITES}),
    deaths: Sequence[signal.Signals] = (signal.SIGKILL, signal.SIGSEGV),
) -> dict[str, Any]:
    """Sends so many payloads of each kind, and searches. `fault`: of raw_server.py; `looks`: what costs a server of its
    own and is to be done, files, logs and metrics aside; `deaths`: of servers in mid-batch."""
    with tempfile.TemporaryDirectory(prefix="markers-") as name:
        scene = _Scene(Path(name), seed, fault, arguments, kinds)
        try:
            with _unlimited_cores():
                scene.learn(payloads)
                for number in deaths if CORES in looks else ():
                    scene.die(number)
        finally:
            scene.close()
        if WRITES in looks:
            scene.trace_writes(max(payloads // 10, 8 * 4))
        scene.look_at_rest()
        return scene.found.told()


class _Scene:
    """A server in a folder of its own, and its models."""

    def __init__(self, folder: Path, seed: int, fault: str, arguments: Sequence[str], kinds: Sequence[str]) -> None:
        self.folder = folder
        self.markers, self.allowed = Markers(seed), Markers(seed + 1)
        self.payloads = Payloads(folder, self.markers, self.allowed, kinds)
        self.found = Found(self.payloads.sent)
        (folder / "cwd").mkdir()
        (folder / "tmp").mkdir()
        self._program = (str(SERVER), str(folder / "cwd"), fault)
        self._arguments = list(arguments)
        self._names = {kind: f"device-{self.allowed.make('client').text}" for kind in kinds}
        self._metrics = f"127.0.0.1:{free_port()}"
        self.server = self._server("data", self._program, ["--metrics-listen", self._metrics])
        self._other = self._server("other", self._program, [])

    def learn(self, payloads: int) -> None:
        """All kinds and outcomes; then the search in memory, one heartbeat after the last of each was durable."""
        with self.server:
            self._declare(self.server)
            for kind in self.payloads.kinds:
                with self.server.client(client_id=self._names[kind]) as client:
                    self.payloads.learned(client, kind, payloads)
                    self._await_student(client, kind)
                    self._look_into_memory(HEAP, partial(self.payloads.unmarked, client, kind))
            self.payloads.malformed(self.server.address, max(payloads // 5, 8))
            self._look_into_memory(HEAP)
            with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=120) as answer:
                self.found.note("metrics", self.markers.find(answer.read()))

    def die(self, number: signal.Signals) -> None:
        """In mid-batch: what a dead server leaves behind."""
        self._other.start()
        self._declare(self._other)
        self.payloads.interrupted(
            lambda kind: self._other.client(client_id=self._names[kind]),
            lambda: self._other.process.send_signal(number),
        )
        self._other.process.wait(timeout=120)
        self.look_at_rest()
        if reason := no_core_files():
            self.found.not_here[CORES] = reason
            return
        cores = [path for path in (self.folder / "cwd").iterdir() if path.name.startswith("core")]
        self.found.note(CORES, Counter({"a core file": len(cores)}) if cores else Counter())

    def close(self) -> None:
        """Ends the server that was to die, if it has not."""
        self._other.end()

    def trace_writes(self, payloads: int) -> None:
        """Everything that is written to anything but a socket or a pipe, as the kernel sees it."""
        if shutil.which("strace") is None or os.geteuid() != 0:
            self.found.not_here[WRITES] = "strace and root are needed"
            return
        trace = self.folder / "cwd" / "trace"
        tracer = ["strace", "-D", "-f", "-y", "--seccomp-bpf", "-qq", "-xx", "-s", "65536", "-e", f"trace={_CALLS}"]
        # strace hands its own place to the server, and watches from beside: the process stays the one that was started.
        launcher = (
            f"import os, sys; os.execvp('strace', {[*tracer, '-o', str(trace)]!r} + [sys.executable] + sys.argv[1:])"
        )
        server = self._server("traced", ("-c", launcher, *self._program), [])
        with server:
            self._declare(server)
            for kind in self.payloads.kinds:
                with server.client(client_id=self._names[kind]) as client:
                    self.payloads.learned(client, kind, payloads)
                    self._await_student(client, kind)
            self.payloads.malformed(server.address, 8)
            for pid in family(server.pid):
                self.found.traced[_name(pid) if _is_traced(pid) else f"{_name(pid)}: NOT TRACED"] += 1
        lines = [line for line in trace.read_text().splitlines() if not _is_to_a_child(line)]
        trace.unlink()
        if not lines:
            self.found.not_here[WRITES] = "strace saw nothing"
            return
        written = "\n".join(lines).replace("\\x", "")
        self.found.note(WRITES, self.markers.find_hex(written))
        self.found.allowed += sum(self.allowed.find_hex(written).values())

    def look_at_rest(self) -> None:
        """In every file of the server's, in temporary folders, and in files that live in memory."""
        for path in self.folder.rglob("*"):
            if path.is_file() and not self.payloads.is_ours(path):
                top = path.relative_to(self.folder).parts[0]
                place = _PLACES.get(top, "log" if path.suffix == ".log" else top)
                data = path.read_bytes()
                self.found.note(place, self.markers.find(data))
                self.found.allowed += sum(self.allowed.find(data).values()) if place == "data folder" else 0
        for path in _SHARED.rglob("*") if _SHARED.is_dir() else ():
            if path.is_file():
                self.found.note(str(_SHARED), self.markers.find(path.read_bytes()))

    def _declare(self, server: RealServer) -> None:
        for declaration in self.payloads.declarations():
            server.declare(declaration)

    @staticmethod
    def _await_student(client: Client, kind: str) -> None:
        """It learns beside the stream, and later: `durable` says nothing of it."""
        if kind != "student":
            return
        until_s = time.monotonic() + 300
        while not _has_met_all(client):
            assert time.monotonic() < until_s, "the student does not come to an end"
            time.sleep(0.2)

    def _look_into_memory(self, place: str, more: Callable[[], None] | None = None) -> None:
        """`more` comes over the same connection where something is left: gRPC's buffers keep what they hold until then.
        Seen once in some ten runs on a machine that is busy, and never caught in the act; told, and counted."""
        hits = self._what_stays(place)
        if hits and more is not None:
            before = dict(hits)
            more()
            hits = self._what_stays(place)
            if not hits:
                self.found.fleeting.append(before)
        self.found.note(place, hits)

    def _what_stays(self, place: str) -> Counter[str]:
        for _ in range(_LOOKS):
            time.sleep(HEARTBEAT_S)
            hits = self._in_memory(place)
            if not hits:
                break
        return hits

    def _in_memory(self, place: str) -> Counter[str]:
        pids = family(self.server.pid)
        hits = Counter[str]()
        try:
            for pid in pids:
                found = count_in_memory([pid], self.markers.find, overlap=2 * SIZE)
                hits.update({f"{what}, in {_name(pid)}": count for what, count in found.items()})
        except PermissionError:
            self.found.not_here[place] = "/proc/PID/mem of a hardened server or its children needs root"
            return Counter()
        self.found.processes |= Counter(_name(pid) for pid in pids)
        return hits

    def _server(self, folder: str, program: Sequence[str], arguments: Sequence[str]) -> RealServer:
        environment = {"TMPDIR": str(self.folder / "tmp")}
        told = [*self._arguments, *arguments]
        return RealServer(self.folder / folder, program=program, arguments=told, environment=environment)


def no_core_files() -> str:
    """Why a process that dies leaves no core file where it is looked for; empty where it could."""
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        return "the hard limit on core files is 0"
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    return "" if pattern.startswith("core") else f"core dumps go to {pattern}"


def _has_met_all(client: Client) -> bool:
    """Learned or missed: until then its pixels are kept."""
    status = client.models.get(MODEL_OF["student"]).status
    return bool(status.student.samples + status.student.missed >= status.sample_count)


def _name(pid: int) -> str:
    """The module that a process runs."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "ended"
    return words[words.index(b"-m") + 1].decode().rpartition(".")[2] if b"-m" in words else "server"


def _is_traced(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True  # it has ended
    return "TracerPid:\t0" not in status


def _is_to_a_child(line: str) -> bool:
    """Through a pipe or a socket: it comes to rest nowhere. `write(5<pipe:[123]>, ...`, its name in letters or not."""
    target = line.partition("<")[2].partition(">")[0]
    name = bytes.fromhex(target.replace("\\x", "")).decode(errors="replace") if "\\x" in target else target
    return name.startswith(("pipe:", "socket:", "UNIX", "TCP", "anon_inode:"))


@contextmanager
def _unlimited_cores() -> Iterator[None]:
    """Servers that are started in here could leave core files, were they not to forbid it themselves."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def main() -> None:
    """For the long run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--payloads", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", default="none", help="see raw_server.py")
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--unhardened", action="store_true")
    options = parser.parse_args()
    arguments = ["--unhardened"] if options.unhardened else []
    found = run(options.payloads, options.seed, fault=options.fault, arguments=arguments, kinds=options.kinds)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
