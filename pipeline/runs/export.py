"""A run as one file for other programs: backbone, head and normalisation, with the class names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import PipelineError, UnknownNameError
from ..data import UnreadableImageError, place
from ..heads import probabilities
from .classifier import ImageClassifier, load_image
from .run import Run

if TYPE_CHECKING:
    import torch

FORMATS = {"onnx": ".onnx", "torch-export": ".pt2"}
TOLERANCE = 1e-4  # of probabilities, against our own
CHECKED = 16  # images
METADATA = "pipeline.json"
ABSENT = -1e30  # the score of a class that the head never saw


class ExportError(PipelineError):
    """A run that cannot be exported, or an exported file that does not answer as the run does."""


def export(
    run: str | Path | Run, format: str = "onnx", out: str | Path | None = None, *, runs_dir: str | Path = "runs"
) -> dict[str, Any]:
    """Write a run as one file, load it again with the other runtime, and compare its answers with ours.

    The file takes ``pixels``, uint8 (N, H, W, 3), as the run's transform gives them (``transform`` in the metadata),
    and returns ``probabilities``, float32 (N, K).

    Parameters
    ----------
    run : str, path or Run
        By name below `runs_dir`, or folder.
    format : {'onnx', 'torch-export'}
    out : Path, optional
        By default ``model.onnx`` or ``model.pt2`` in the run's folder.

    Returns
    -------
    dict
        ``path``, ``format``, ``classes``, ``checked`` (images), ``largest_difference`` (of probabilities), and
        ``notes`` for the user.

    Raises
    ------
    ExportError
        If the head is not linear, a library is missing, or the file answers otherwise than the run.
    """
    run = run if isinstance(run, Run) else Run.open(run, Path(runs_dir))
    if format not in FORMATS:
        raise UnknownNameError("format", format, FORMATS)
    classifier = ImageClassifier.load(run, device="cpu")
    if len(classifier.backbone.parts) > 1:
        raise ExportError(f"{run.name!r} takes the features of {len(classifier.backbone.parts)} backbones "
                          f"({classifier.backbone.name}): only runs of one backbone can be exported.")
    network, pixels = _network(classifier, run), _samples(classifier, run)
    path = Path(out) if out else run.path / f"model{FORMATS[format]}"
    metadata = {"classes": list(classifier.classes), "transform": classifier.backbone.parts[0].transform.to_dict(),
                "run": run.name, "backbone": classifier.backbone.parts[0].name}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new{FORMATS[format]}")
    try:
        write, answer = {"onnx": (_write_onnx, _ask_onnx), "torch-export": (_write_torch, _ask_torch)}[format]
        write(network, pixels, fresh, metadata)
        difference = _compare(answer(fresh, pixels), _ours(classifier, pixels), path)
        fresh.replace(path)
    except ImportError as error:
        raise ExportError(f"Export to {format} takes {error.name!r}: pip install "
                          "'image-feature-pipeline[export]'.") from error
    finally:
        fresh.unlink(missing_ok=True)
    notes = [f"{run.name!r} was scored with probabilities averaged over views (--tta); the file takes one image as it "
             "is, and does not average."] if run.metrics.get("tta") else []
    return {"path": str(path), "format": format, "classes": list(classifier.classes), "checked": len(pixels),
            "largest_difference": difference, "notes": notes}  # fmt: skip


def _network(classifier: ImageClassifier, run: Run) -> torch.nn.Module:
    """Return pixels -> probabilities as one torch module."""
    import torch

    head, backbone = classifier.head, classifier.backbone.parts[0]
    if not hasattr(head, "coef_") or not hasattr(head, "intercept_"):
        raise ExportError(f"The head of {run.name!r} ({type(head).__name__}) is not linear, so it cannot be exported; "
                          "train logistic, linear, ridge, lda or linear-svm.")
    weight = np.zeros((len(classifier.classes), head.coef_.shape[1]))
    bias = np.full(len(classifier.classes), ABSENT)
    weight[head.classes_], bias[head.classes_] = head.coef_ / head.temperature_, head.intercept_ / head.temperature_

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = backbone.network()
            self.head = torch.nn.Linear(*reversed(weight.shape))
            self.head.weight.data = torch.from_numpy(weight).float()
            self.head.bias.data = torch.from_numpy(bias).float()
            self.unit = head.scaler_.kind == "l2"
            self.mean = torch.nn.Buffer(torch.tensor(backbone.transform.mean).view(1, 3, 1, 1))
            self.std = torch.nn.Buffer(torch.tensor(backbone.transform.std).view(1, 3, 1, 1))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            features = self.features((pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std)
            if self.unit:
                features = torch.nn.functional.normalize(features)
            return self.head(features).softmax(1)

    return Whole().eval().requires_grad_(False)


def _samples(classifier: ImageClassifier, run: Run) -> np.ndarray:
    """Return the pixels of some images that the run was scored on; noise where they are gone."""
    transform = classifier.backbone.parts[0].transform
    found: list[np.ndarray] = []
    root = place(run.config()["dataset"]["root"])
    for row in reversed(run.predictions()):
        if len(found) < CHECKED:
            try:
                found.append(transform(load_image(root / row["filename"])))
            except UnreadableImageError:
                continue
    if not found:
        found = list(np.random.default_rng(0).integers(0, 256, (CHECKED, *transform.crop, 3), dtype=np.uint8))
    return np.stack(found)


def _ours(classifier: ImageClassifier, pixels: np.ndarray) -> np.ndarray:
    from ..engines import make_engine

    features = make_engine(classifier.backbone.parts[0], "cpu", "torch")(pixels)
    return probabilities(classifier.head, features, len(classifier.classes))


def _compare(theirs: np.ndarray, ours: np.ndarray, path: Path) -> float:
    difference = float(np.abs(theirs - ours).max())
    top = np.sort(ours, axis=1)
    clear = top[:, -1] - top[:, -2] > 2 * TOLERANCE if ours.shape[1] > 1 else np.ones(len(ours), bool)
    if difference > TOLERANCE or (theirs.argmax(1) != ours.argmax(1))[clear].any():
        raise ExportError(f"{path} answers otherwise than the run: probabilities differ by up to {difference:.2g}, "
                          f"more than {TOLERANCE:g}. It was not kept.")
    return difference


def _write_onnx(network: torch.nn.Module, pixels: np.ndarray, path: Path, metadata: dict[str, Any]) -> None:
    import onnx
    import torch

    program = torch.onnx.export(
        network, (torch.from_numpy(pixels[:2]),), dynamo=True, input_names=["pixels"],
        output_names=["probabilities"], dynamic_shapes=({0: torch.export.Dim("images")},), verbose=False,
    )  # fmt: skip
    assert program is not None  # dynamo=True gives one
    model = program.model_proto
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.save(model, str(path))


def _ask_onnx(path: Path, pixels: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"pixels": pixels})[0]


def _write_torch(network: torch.nn.Module, pixels: np.ndarray, path: Path, metadata: dict[str, Any]) -> None:
    import torch

    batch = torch.from_numpy(pixels[:2] if len(pixels) > 1 else np.repeat(pixels, 2, axis=0))
    program = torch.export.export(network, (batch,), dynamic_shapes=({0: torch.export.Dim("images")},))
    torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})


def _ask_torch(path: Path, pixels: np.ndarray) -> np.ndarray:
    import torch

    return torch.export.load(path).module()(torch.from_numpy(pixels)).numpy()
