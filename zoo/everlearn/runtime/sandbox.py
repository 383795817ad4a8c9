"""Takes from this process what a decoder of hostile files does not need: files, network, processes, most system calls.

Three walls, each as far as the system has it: resource limits (everywhere), Landlock (Linux 5.13: no file can be
opened, no port connected to) and seccomp (a list of system calls; any other is answered "not permitted"). None can be
taken down again. Sources: setrlimit(2), landlock(7), seccomp(2), the kernel's syscall tables.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
from dataclasses import dataclass

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF, _LANDLOCK_VERSION = 444, 446, 1
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Landlock's version -> how many rights there are; from 5 on, 16."""
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h
_ALLOW, _NOT_PERMITTED, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
_NUMBER_AT, _MACHINE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16  # struct seccomp_data


@dataclass(frozen=True, kw_only=True)
class _Machine:
    audit: int
    """AUDIT_ARCH_*."""
    calls: str
    prlimit64: int
    """Allowed on the process itself."""


_MACHINES = {
    # read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn poll mremap madvise
    # sched_yield getpid setitimer sendto recvfrom sendmsg recvmsg sigaltstack exit gettid futex restart_syscall
    # clock_gettime exit_group tgkill newfstatat set_robust_list getrandom membarrier rseq
    "x86_64": _Machine(
        audit=0xC000003E,
        calls="0 1 3 5 8 9 10 11 12 13 14 15 7 25 28 24 39 38 44 45 46 47 131 60 186 202 219 228 231 234 262 273 318 "
        "324 334",
        prlimit64=302,
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        calls="63 64 57 80 62 222 226 215 214 134 135 139 73 216 233 124 172 103 206 207 211 212 132 93 178 98 128 113 "
        "94 131 79 99 278 283 293",
        prlimit64=261,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Walls:
    """What holds in a process that was confined."""

    seccomp: bool
    landlock: int
    """The kernel's version of it; 0 for none."""

    def __str__(self) -> str:
        walls = [*(["seccomp"] if self.seccomp else []), *([f"Landlock {self.landlock}"] if self.landlock else [])]
        return " and ".join(walls) or "resource limits alone: this system has neither seccomp nor Landlock"


def confine(*, open_files: int) -> Walls:
    """Confines this process, for ever. `open_files`: descriptors below this number may exist. Call it when everything
    that is needed has been imported and opened."""
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))
    libc = ctypes.CDLL(None)
    may_confine = sys.platform == "linux" and libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    landlock = _landlock(libc) if may_confine else 0
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))  # a set of Landlock's rules is a file too
    return Walls(landlock=landlock, seccomp=may_confine and _seccomp(libc))


def mapped_bytes() -> int:
    """Of this process, where the system tells; to be asked before files are out of reach."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm") as told:
        return int(told.read().split()[0]) * resource.getpagesize()


def limit_memory(total_bytes: int) -> None:
    """What this process may map from now on; may be raised again."""
    resource.setrlimit(resource.RLIMIT_AS, (total_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _landlock(libc: ctypes.CDLL) -> int:
    """Every right over files, ports and other processes is handled, and none is granted."""
    version = int(libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION))
    if version < 1:
        return 0
    rights = [(1 << _FILE_RIGHTS.get(version, 16)) - 1]
    rights += [0b11] if version >= 4 else []  # bind and connect TCP
    rights += [0b11] if version >= 6 else []  # abstract sockets, signals
    attributes = struct.pack(f"<{len(rights)}Q", *rights)
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return 0
    holds = libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return version if holds else 0


def _seccomp(libc: ctypes.CDLL) -> bool:
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return False
    program = _filter(machine)
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    told = Program(len(program) // 8, ctypes.addressof(code))
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(told), 0, 0) == 0)


def _filter(machine: _Machine) -> bytes:
    """struct sock_filter after sock_filter: code, jump if true, jump if false, value."""
    numbers = [int(number) for number in machine.calls.split()]
    lines = [
        (_LOAD, 0, 0, _MACHINE_AT),
        (_JUMP_IF_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    # After the list: not permitted | prlimit64's first argument: 0 is this process | allowed.
    lines += [(_JUMP_IF_EQUAL, len(numbers) - index + 4, 0, number) for index, number in enumerate(numbers)]
    lines += [
        (_JUMP_IF_EQUAL, 1, 0, machine.prlimit64),
        (_RETURN, 0, 0, _NOT_PERMITTED),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_JUMP_IF_EQUAL, 1, 0, 0),
        (_RETURN, 0, 0, _NOT_PERMITTED),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)
