"""Thousands of wrong messages over real gRPC against the real server: `python -m tests.faults.fuzz_run --messages N`.

What must hold: the process lives, its log has no traceback, nothing is answered INTERNAL or UNKNOWN, what no server may
take is INVALID_ARGUMENT with the path of a field, memory grows by less than 10 MB, and the connection still works.
"""

from __future__ import annotations

import argparse
import json
import queue
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from tests import tiny
from tests.faults.fuzz_cases import MODELS, Case, Cases, declarations, learn_bombs
from tests.real_server import RealServer

from everlearn_client.errors import EverlearnClientError
from everlearn_protos.oip import message
from everlearn_protos.v1 import learn_pb2, predict_pb2

MAX_GROWTH_BYTES = 10 * 2**20
WORKERS = 12
ROUND = 20_000
"""Messages after which the models are deleted and declared anew: what they have learned is no leak."""
BATCHES = 12
"""Of one learning stream: below the credits, so that the answers need not be awaited."""
REST = 240
"""Messages before memory is measured: few enough that the models, new ones, have learned next to nothing."""
TIMEOUT_S = 120.0
"""Of a call; far above what any takes, so that only one that hangs is late, whatever else the machine does."""
FAULTS = frozenset({"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DATA_LOSS", "DEADLINE_EXCEEDED", "CANCELLED"})
SHARES = {"Learn": 30, "Predict": 14, "PredictStream": 8, "Embed": 6, "ModelInfer": 10, "ModelStreamInfer": 6}
"""Of a hundred and more; every other method gets 1 to 2."""
SERVER = ("-m", "everlearn_server.cli")


@dataclass
class Report:
    """What came of it."""

    sent: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    @property
    def is_hopeless(self) -> bool:
        """Enough has been seen."""
        return len(self.violations) > 200

    def judge(self, method: str, case: Case, code: str, fields: Sequence[str], text: str) -> None:
        """One answer to one message."""
        self.codes[code] += 1
        self.kinds[case.what] += 1
        said = f"{method}, {case.what}, {case.data[:60].hex()} ({len(case.data)} bytes): {code} {text[:200]}"
        if code == "DEADLINE_EXCEEDED" and method in ("ModelInfer", "ModelStreamInfer"):
            return  # it asked for it, with its parameter `timeout`
        if code in FAULTS or "internal error" in text:
            self.violations.append(f"a fault of ours: {said}")
        elif code == "INVALID_ARGUMENT" and not (fields and all(fields)):
            self.violations.append(f"no field is named: {said}")
        elif case.is_wrong and code != "INVALID_ARGUMENT" and not (code == "UNIMPLEMENTED" and "not offered" in text):
            self.violations.append(f"taken, and wrong: {said}")


def run(messages: int, seed: int, *, program: Sequence[str] = SERVER) -> dict[str, Any]:
    """Starts a server, sends that many messages, and tells what came of it; `violations` is empty where all held."""
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        backbone = tiny.write_backbone(Path(name))
        server = RealServer(Path(name) / "data", program=program)
        try:
            server.start()
            fuzzer = _Fuzzer(server, backbone, messages, seed)
            growth = fuzzer.run()
            slope = fuzzer.slope
            report, ended = fuzzer.report, server.process.poll()
            if ended is not None:
                report.violations.insert(0, f"the server ended with {ended}")
            else:
                server.terminate()
            log = server.log
        finally:
            if server.process.poll() is None:
                server.kill()
    report.violations += [f"the log says: {line[:3000]}" for line in log.splitlines() if _is_alarming(line)][:20]
    if growth > MAX_GROWTH_BYTES:
        report.violations.insert(0, f"memory grew by {growth / 2**20:.1f} MiB")
    took_s = time.monotonic() - begun_s
    return {
        "messages": report.sent,
        "seed": seed,
        "seconds": round(took_s, 1),
        "messages_s": round(report.sent / took_s),
        "growth_mib": round(growth / 2**20, 1),
        "slope_mib_per_100000": None if slope is None else round(slope, 2),
        "codes": dict(report.codes.most_common()),
        "kinds": dict(report.kinds.most_common()),
        "violations": report.violations[:50],
    }


def _is_alarming(line: str) -> bool:
    return any(word in line for word in ("Traceback", "internal error", "Exception", "Fatal", "frames="))


class _Fuzzer:
    """One connection, many conversations at once: each worker makes its own messages, from its own seed."""

    def __init__(self, server: RealServer, backbone: Path, messages: int, seed: int) -> None:
        self._server = server
        self._backbone = backbone
        self._messages = messages
        self.report = Report()
        self._resident: list[tuple[int, int]] = []
        """Messages sent, and bytes of memory then, after each round but the first two."""
        self._process = psutil.Process(server.pid)
        methods = _reflected(server.address)
        self._workers = [
            _Worker(f"worker-{i}", Cases(methods, backbone, seed + i), self.report) for i in range(WORKERS)
        ]

    def run(self) -> int:
        """By how many bytes the server grew after it was warm."""
        warm = max(200, min(ROUND, self._messages // 5))
        try:
            for _ in range(2):
                self._round(warm)
            before = self._rested()
            while self.report.sent < self._messages - REST and not self._is_hopeless:
                self._round(min(ROUND, self._messages - REST - self.report.sent))
                self._resident.append((self.report.sent, self._settled()))
            return self._rested() - before
        except (grpc.RpcError, EverlearnClientError) as error:
            self.report.violations.append(f"an honest call failed: {type(error).__name__} {error}"[:500])
            return 0

    @property
    def slope(self) -> float | None:
        """MiB a hundred thousand messages, by least squares over the rounds; None of fewer than four."""
        if len(self._resident) < 4:
            return None
        sent_R, bytes_R = np.array(self._resident, np.float64).T
        return float(np.polyfit(sent_R / 1e5, bytes_R / 2**20, 1)[0])

    @property
    def _is_hopeless(self) -> bool:
        return self.report.is_hopeless or self._server.process.poll() is not None

    def _rested(self) -> int:
        """Bytes of memory beside models that know nothing yet: what they have learned meanwhile is no leak."""
        self._round(REST)
        return self._settled()

    def _settled(self) -> int:
        time.sleep(0.5)
        return int(self._process.memory_info().rss) if self._server.process.poll() is None else 0

    def _round(self, count: int) -> None:
        if self._is_hopeless:
            return
        goal, digest = self.report.sent + count, self._declare()
        with (
            grpc.insecure_channel(self._server.address, [("grpc.max_send_message_length", -1)]) as channel,
            ThreadPoolExecutor(WORKERS) as pool,
        ):
            self._workers[0].explode(channel)
            for done in [pool.submit(worker.work, channel, goal, digest) for worker in self._workers]:
                done.result()
            if not self._is_hopeless:  # the connection that all this came over
                channel.unary_unary("/everlearn.v1.ServerInfoService/GetServerInfo")(b"", timeout=TIMEOUT_S)

    def _declare(self) -> str:
        """Models that have learned little, and no others; the digest of features of the first."""
        digest = ""
        with self._server.client(client_id="beginner") as client:
            for model in client.models.list():
                client.models.delete(model.name.removeprefix("models/"))
            for text in declarations(self._backbone):
                made = client.models.apply(text).model
                assert made is not None
                digest = digest or made.status.input.feature_digest
            client.learn("fuzzed", [(tiny.images(4, label), [f"{label}"] * 4) for label in range(3)])
        return digest


class _Worker:
    """One client, which does one thing after another."""

    def __init__(self, name: str, cases: Cases, report: Report) -> None:
        self._name = name
        self._cases = cases
        self._report = report
        self._rng = cases.rng
        self._bombs = learn_bombs()
        self._methods = list(cases.methods.values())
        self._weights = [SHARES.get(method.name, 1) for method in self._methods]

    def work(self, channel: grpc.Channel, goal: int, digest: str) -> None:
        """Sends until all together have sent so many."""
        while self._report.sent < goal and not self._report.is_hopeless:
            (method,) = self._rng.choices(self._methods, self._weights)
            if method.name == "Learn":
                self._learn(channel, digest)
            elif method.client_streaming:
                self._talk(channel, method)
            else:
                self._call(channel, method)

    def explode(self, channel: grpc.Channel) -> None:
        """Sends every bomb."""
        for data in self._bombs:
            case = Case(data, is_wrong=True, what="bomb")
            try:
                list(channel.stream_stream("/everlearn.v1.LearnService/Learn")(iter([data]), timeout=TIMEOUT_S))
            except grpc.RpcError as error:
                self._report.judge("Learn", case, *_refusal(error))
            else:
                self._report.judge("Learn", case, "OK", (), "")

    def _call(self, channel: grpc.Channel, method: Any) -> None:
        case, path = self._cases.of(method), _path(method)
        self._report.sent += 1
        try:
            if method.server_streaming:  # one answer is enough: some never end
                call = channel.unary_stream(path)(case.data, timeout=TIMEOUT_S)
                next(call, None)
                call.cancel()
            else:
                channel.unary_unary(path)(case.data, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            self._report.judge(method.name, case, *_refusal(error))
        else:
            self._report.judge(method.name, case, "OK", (), "")

    def _talk(self, channel: grpc.Channel, method: Any) -> None:
        """Streams of independent requests, each answered in its turn; others end with the first that is wrong."""
        cases, answered = [self._cases.of(method) for _ in range(6)], 0
        try:
            for answer in channel.stream_stream(_path(method))(iter([case.data for case in cases]), timeout=TIMEOUT_S):
                if method.name in ("PredictStream", "ModelStreamInfer"):
                    self._report.judge(method.name, cases[answered], *_error_inside(method.name, answer))
                answered += 1
        except grpc.RpcError as error:
            # An upgrade that opens may answer often; then it is not known which of its messages was refused.
            case = cases[min(answered, len(cases) - 1)]
            case = case if answered == 0 else Case(case.data, is_wrong=False, what=case.what)
            self._report.judge(method.name, case, *_refusal(error))
        self._report.sent += max(1, min(answered, len(cases)))

    def _learn(self, channel: grpc.Channel, digest: str) -> None:
        """Opens, and sends a dozen batches, whether or not the stream still stands."""
        model = self._rng.choice(MODELS)
        opening = self._opening(model, digest)
        requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        requests.put(opening.data)
        call = channel.stream_stream("/everlearn.v1.LearnService/Learn")(iter(requests.get, None), timeout=TIMEOUT_S)
        cases: dict[int, Case] = {}
        ends = self._rng.random() < 0.4
        self._report.sent += 1
        try:
            opened = learn_pb2.LearnResponse.FromString(next(call)).opened
            for sequence in range(opened.durable_sequence + 1, opened.durable_sequence + 1 + BATCHES):
                case = self._cases.batch(model, sequence, ends=ends)
                if ends and self._rng.random() < 0.01:
                    case = Case(self._rng.choice(self._bombs), is_wrong=True, what="bomb")
                cases[sequence] = case
                requests.put(case.data)
            requests.put(None)
            self._hear(call, cases)
        except grpc.RpcError as error:
            # Of a stream that ended it is only known for the opening which message did that.
            last = next(reversed(cases.values()), None)
            known = opening if last is None else Case(last.data, is_wrong=False, what="stream")
            self._report.judge("Learn", known, *_refusal(error))
        finally:
            requests.put(None)
            call.cancel()

    def _opening(self, model: str, digest: str) -> Case:
        if self._rng.random() < 0.1:
            return self._cases.of(self._cases.methods["everlearn.v1.LearnService.Learn"])
        opening = learn_pb2.Open(model=f"models/{model}", client=self._name)
        if model == "fuzzed" and self._rng.random() < 0.5:
            opening.feature_digest = digest
        return Case(learn_pb2.LearnRequest(open=opening).SerializeToString(), is_wrong=False, what="open")

    def _hear(self, call: Any, cases: dict[int, Case]) -> None:
        heard: set[int] = set()
        try:
            for data in call:
                answer = learn_pb2.LearnResponse.FromString(data)
                told = getattr(answer, answer.WhichOneof("response") or "")
                sequence = told.sequence
                if isinstance(told, learn_pb2.Durable) or sequence not in cases or sequence in heard:
                    continue
                heard.add(sequence)
                if isinstance(told, learn_pb2.Received) and told.duplicate:
                    continue  # staged by the connection before: it is not even looked at
                if isinstance(told, learn_pb2.Rejected):
                    self._report.judge("Learn", cases[sequence], told.code, [told.field], told.message)
                else:
                    self._report.judge("Learn", cases[sequence], "OK", (), "received")
        finally:
            self._report.sent += len(heard)
        if missing := [case.what for sequence, case in cases.items() if sequence not in heard and case.is_wrong]:
            # It ended with OK: all was answered, and nothing on the wire was wrong.
            self._report.violations.append(f"Learn: no answer to {missing}")


def _reflected(address: str) -> list[Any]:
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        return [method for name in database.get_services() for method in pool.FindServiceByName(name).methods]


def _path(method: Any) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def _refusal(error: Any) -> tuple[str, list[str], str]:
    bad, status = error_details_pb2.BadRequest(), rpc_status.from_call(error)
    details = status.details if status is not None else ()
    fields = [each.field for detail in details if detail.Unpack(bad) for each in bad.field_violations]
    return error.code().name, fields, error.details() or ""


def _error_inside(method: str, answer: bytes) -> tuple[str, list[str], str]:
    if method == "PredictStream":
        told = predict_pb2.PredictStreamResponse.FromString(answer).error
        return (told.code, [told.field], told.message) if told.code else ("OK", [], "")
    text = message("ModelStreamInferResponse").FromString(answer).error_message
    # The protocol carries a text alone; ours leads with the field.
    return ("INVALID_ARGUMENT", [text.partition(":")[0]], text) if text else ("OK", [], "")


def main() -> None:
    """One run, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=20261121)
    options = parser.parse_args()
    print(json.dumps(run(options.messages, options.seed), indent=1))


if __name__ == "__main__":
    main()
