"""A real server that starts in a tenth of the time: forked from a process that has imported everything already.

The code that runs is `everlearn-server`'s own, from its command line on; only the 1.4 CPU seconds of importing it are
paid once. It is what makes a hundred kills fit into a commit's tests.

    python -m tests.faults.forked      reads {"argv", "log", "fault", "environment"}, a line each, on standard input,
                                       writes {"pid"} for each, and {"ended", "status"} when one of them ends
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tests.real_server import RealServer

from everlearn.runtime.hardening import wiping

ROOT = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1  # prctl(2)


class ForkedServer(RealServer):
    """As RealServer, with one fault of faulty_server.py built in, or none. `fault` may change between starts."""

    fault = ""
    by_exec = False
    """A process of its own from its first byte, without a fault."""

    namespace = ""
    """Of its network; empty for everybody's."""

    def launch(self) -> subprocess.Popen[bytes]:
        """Forks a server off."""
        if self.by_exec:
            return super().launch()
        assert self._process is None or self._process.poll() is not None, "it runs already"
        self._ready.unlink(missing_ok=True)
        argv = ["everlearn-server", "--data", str(self.folder), "--listen", self.address]
        argv += ["--ready-file", str(self._ready), *self.arguments]
        request = {"argv": argv, "log": str(self._log), "fault": self.fault, "namespace": self.namespace}
        request["environment"] = self.environment
        self._process = _nursery().start(request)  # type: ignore[assignment]  # what RealServer asks of a Popen it has
        return self.process

    def start(self) -> float:
        """Starts it; returns the seconds until it listens. No call is made: its client would share the connections of
        a test's own clients, and wait for their next attempt."""
        started_s = time.monotonic()
        self.launch()
        self.await_ready()
        return time.monotonic() - started_s


class Forked:
    """What RealServer asks of a process."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid

    @property
    def returncode(self) -> int | None:
        """As Popen's: negative for a signal."""
        return self._nursery.ended.get(self.pid)

    def poll(self) -> int | None:
        """Exit status, None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end. Raises subprocess.TimeoutExpired."""
        with self._nursery.moved:
            if not self._nursery.moved.wait_for(lambda: self.returncode is not None, timeout):
                raise subprocess.TimeoutExpired("everlearn-server", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)


class Nursery:
    """The process that forks, as its user sees it."""

    def __init__(self) -> None:
        self.ended: dict[int, int] = {}
        self.moved = threading.Condition()
        self._started: list[int] = []
        # With the environment for which a server would replace itself at its start: a fork cannot.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forked"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **wiping(os.environ)},
        )
        threading.Thread(target=self._listen, name="nursery", daemon=True).start()

    def start(self, request: Mapping[str, object]) -> Forked:
        """One more server."""
        assert self._process.stdin is not None
        with self.moved:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            assert self.moved.wait_for(lambda: bool(self._started), 60), "the forking process gives no answer"
            return Forked(self, self._started.pop())

    def close(self) -> None:
        """Ends it, and all that it has forked."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            with self.moved:
                if "pid" in told:
                    self.ended.pop(told["pid"], None)  # numbers come again: a long run meets one that has ended
                    self._started.append(told["pid"])
                else:
                    self.ended[told["ended"]] = told["status"]
                self.moved.notify_all()


_made: list[Nursery] = []


def _nursery() -> Nursery:
    if not _made:
        _made.append(Nursery())
        atexit.register(_made[0].close)
    return _made[0]


# -- the process that forks ---------------------------------------------------------------------------------------


def main() -> None:
    """Forks a server a line; ends with its standard input."""
    from everlearn_server import cli, command  # noqa: F401  # all that a server imports, once

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    heard, told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    children, rest = set[int](), b""
    while True:
        for readable in select.select([0, heard], [], [])[0]:
            if readable == heard:
                os.read(heard, 4096)
                _bury(children)
                continue
            data = os.read(0, 1 << 16)
            if not data:
                for pid in children:
                    os.kill(pid, signal.SIGKILL)
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                pid = _fork(json.loads(line))
                children.add(pid)
                _say({"pid": pid})


def _fork(request: Mapping[str, object]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        _serve(request)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    else:
        status = 0
    sys.stdout.flush()
    sys.stderr.flush()
    # Not exit(): ONNX Runtime would join a thread that stayed behind in the parent.
    os._exit(status)


def _serve(request: Mapping[str, object]) -> None:
    from everlearn_server import cli

    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    log = os.open(str(request["log"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(request["environment"])  # type: ignore[call-overload]  # a mapping of strings, as RealServer's is
    if request["namespace"]:
        with Path("/run/netns", str(request["namespace"])).open() as place:
            assert ctypes.CDLL(None).setns(place.fileno(), 0) == 0
    sys.argv = list(request["argv"])  # type: ignore[call-overload]  # a list of strings
    if request["fault"]:
        from tests.faults import faulty_server

        faulty_server.build_in(str(request["fault"]))
    cli.main()


def _bury(children: set[int]) -> None:
    for pid in list(children):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            children.remove(pid)
            _say({"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def _say(told: Mapping[str, int]) -> None:
    os.write(1, json.dumps(told).encode() + b"\n")


if __name__ == "__main__":
    main()
