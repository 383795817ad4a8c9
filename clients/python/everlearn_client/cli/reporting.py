"""What a model has learned, for people: a few lines of figures, then its classes, worst first."""

from __future__ import annotations

from everlearn_client.cli.output import put, put_fields, put_table
from everlearn_protos.v1 import models_pb2

_CLASSES = 30
_CONFUSIONS = 5
_CLIENTS = 5


def figure_of(task: str) -> str:
    """What a task's accuracy is called."""
    return {"multilabel": "whole sets right", "regression": "R2"}.get(task, "accuracy")


def put_report(status: models_pb2.ModelStatus) -> None:
    """The report; of a server that gives none, classes and samples."""
    report = status.report
    if status.input.task == "regression":
        _put_outputs(report)
        return
    if not report.total.samples:
        put_table(("class", "samples"), zip(status.labels, status.samples_per_class, strict=False))
        return
    put("learned (each sample was predicted before it was learned)")
    put_fields({f"  {name}": text for name, text in _lines(report).items() if text})
    put("")
    put_table(
        ("class", "samples", "precision", "recall", "f1", "auc", "recall now"),
        [
            (
                each.label,
                each.samples,
                f"{each.precision:.1%}",
                f"{each.recall:.1%}",
                f"{each.f1:.3f}",
                f"{each.auc:.3f}" if each.HasField("auc") else "-",
                f"{each.windowed_recall:.1%}" if each.HasField("windowed_recall") else "-",
            )
            for each in report.classes[:_CLASSES]
        ],
    )
    hidden = len(report.classes[_CLASSES:]) + report.classes_left_out
    if hidden:
        put(f"and {hidden} more classes, of better recall; `-o json` shows up to 1,000")
    if report.HasField("steps"):
        _put_steps(report.steps)


def _put_steps(report: models_pb2.StepsReport) -> None:
    """What was forgotten of each step, in the order in which they began."""
    put("\nsteps (`again`: when data of it came again after a newer step had begun)")
    earlier = report.count - 1
    if report.tested_again:
        put_fields(
            {
                "  forgotten": f"{_points(report.forgetting)}, mean over the {report.tested_again} of {earlier} "
                "earlier steps that came again",
                "  backward transfer": _points(report.backward_transfer, sign="+"),
                "  average accuracy": f"{report.average_accuracy:.1%} over those and the newest step",
            }
        )
    else:
        put(f"  forgotten: not known; none of {earlier} earlier steps has come again" if earlier else "  one so far")
    put("")
    put_table(
        ("step", "samples", "at its end", "again", "after", "forgotten"),
        [
            (
                each.name,
                each.samples,
                f"{each.accuracy:.1%}",
                f"{each.accuracy_again:.1%}" if each.HasField("accuracy_again") else "-",
                each.after or "-",
                _points(each.forgetting) if each.HasField("forgetting") else "-",
            )
            for each in report.steps
        ],
    )


def _points(share: float, *, sign: str = "") -> str:
    return f"{100 * share:{sign}.1f} points"


def _put_outputs(report: models_pb2.LearningReport) -> None:
    """Errors of each output, so far and now."""
    now = {each.name: each for each in report.window.outputs}
    rows = []
    for each in report.total.outputs:
        newest = now.get(each.name, each)
        rows.append((each.name, *_errors(each), *_errors(newest)))
    put(f"learned {report.total.samples:,} samples; `now` is the last {report.window.samples:,}")
    put_table(("output", "MAE", "RMSE", "R2", "MAE now", "RMSE now", "R2 now"), rows)


def _errors(of: models_pb2.OutputFigures) -> tuple[str, str, str]:
    return f"{of.mae:.4g}", f"{of.rmse:.4g}", f"{of.r2:.3f}" if of.HasField("r2") else "-"


def _lines(report: models_pb2.LearningReport) -> dict[str, str]:
    total, window = report.total, report.window
    return {
        "samples": f"{total.samples:,} so far; `now` is the last {window.samples:,}",
        "whole sets right" if total.HasField("micro_f1") else "accuracy": _pair(total.accuracy, window.accuracy),
        "balanced accuracy": _pair(total.balanced_accuracy, window.balanced_accuracy),
        "micro F1": f"{total.micro_f1:.3f}, now {window.micro_f1:.3f}" if total.HasField("micro_f1") else "",
        "macro F1": f"{total.macro_f1:.3f}, now {window.macro_f1:.3f}",
        "worst class": f"{total.worst_class}, recall {total.worst_recall:.1%}; "
        f"now {window.worst_class}, recall {window.worst_recall:.1%}",
        "AUC": _auc(total, window),
        "calibration": _calibration(total, window),
        "temperature": _temperature(total, window),
        "drift": _drift(report.drift),
        "often confused": ", ".join(
            f"{each.label} for {each.predicted} ({each.samples})"
            for each in [cell for cell in report.confusions if cell.predicted][:_CONFUSIONS]
        ),
        "clients": ", ".join(_client(each) for each in report.clients[:_CLIENTS]),
        "note": f"{report.unattributed:,} wrong predictions are of an unknown label: precisions are at most as given"
        if report.unattributed
        else "",
    }


def _auc(total: models_pb2.LearningFigures, window: models_pb2.LearningFigures) -> str:
    if not total.HasField("auc_pooled"):
        return ""
    macro = f"{total.auc_macro:.3f} mean over classes; " if total.HasField("auc_macro") else ""
    now = f", now {window.auc_pooled:.3f}" if window.HasField("auc_pooled") else ""
    return f"{macro}{total.auc_pooled:.3f} over all pairs{now}"


def _calibration(total: models_pb2.LearningFigures, window: models_pb2.LearningFigures) -> str:
    if not total.HasField("ece"):
        return "not known yet"
    shown = window if window.HasField("ece") else total
    lean = "too sure" if shown.overconfidence > 0 else "too cautious"
    return f"ECE {shown.ece:.3f}, {lean} by {abs(shown.overconfidence):.1%}; log-loss {total.log_loss:.3f} nats"


def _temperature(total: models_pb2.LearningFigures, window: models_pb2.LearningFigures) -> str:
    if not total.HasField("temperature"):
        return ""
    now = f", now {window.temperature:.3g}" if window.HasField("temperature") else ""
    return f"{total.temperature:.3g}{now}: probabilities are softmax(scores / temperature)"


def _drift(drift: models_pb2.Drift) -> str:
    """In standard deviations: about 0.2 is small, above 0.8 large (Cohen 1988)."""
    parts = []
    if drift.HasField("projection_shift"):
        parts.append(f"features {drift.projection_shift:.2f} sd, norm {drift.norm_shift:.2f} sd")
    if drift.HasField("label_distance"):
        parts.append(f"label mix {drift.label_distance:.2f} of 1")
    return "; ".join(parts)


def _client(client: models_pb2.ClientFigures) -> str:
    distance = f", mix {client.label_distance:.2f}" if client.HasField("label_distance") else ""
    return f"{client.client or 'others'} {client.accuracy:.1%} of {client.samples}{distance}"


def _pair(total: float, window: float) -> str:
    return f"{total:.1%}, now {window:.1%}"
