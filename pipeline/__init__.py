"""Feature-caching transfer learning for images.

Run a frozen backbone once, cache its features, train heads on them in seconds, and compare with fine-tuning.

Notes
-----
Names are resolved when they are first used: ``import pipeline`` loads neither torch nor scikit-learn.

Examples
--------
>>> import pipeline
>>> done = pipeline.extract("photos/")                       # doctest: +SKIP
>>> run = pipeline.train_head("logistic", "photos/")         # doctest: +SKIP
>>> pipeline.ImageClassifier.load(run).predict(["new.jpg"])  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .core.registry import lazy_names

if TYPE_CHECKING:
    from .auditing.audit import audit
    from .backbones import Backbone, own_backbone, resolve
    from .core.errors import PipelineError
    from .data import Dataset, load_dataset
    from .data.augmentation import Views
    from .data.transforms import Transform
    from .evaluation import evaluate
    from .finetuning import FinetuneSettings
    from .finetuning.finetune import finetune
    from .finetuning.layer_survey import survey_layers
    from .heads import HEADS, LinearHead, make_head
    from .labelling import LabelSession
    from .reports.page import write_report as report
    from .runs import ImageClassifier, Prediction, Run
    from .runs.classifier import predict
    from .runs.export import export
    from .runs.scores import compare
    from .stage_one import estimate, extract
    from .stage_one.embeddings import cache_embeddings
    from .stage_two import train_head, train_heads
    from .stage_two.evaluate import evaluate_runs
    from .stage_two.fit import Sweep
    from .stage_two.train import learning_curve
    from .store import FeatureCache

    BACKBONES: tuple[str, ...]

_HOMES = {
    "Backbone": "backbones",
    "Dataset": "data",
    "FeatureCache": "store",
    "FinetuneSettings": "finetuning",
    "HEADS": "heads",
    "ImageClassifier": "runs",
    "LabelSession": "labelling",
    "LinearHead": "heads",
    "PipelineError": "core.errors",
    "Prediction": "runs",
    "Run": "runs",
    "Sweep": "stage_two.fit",
    "Transform": "data.transforms",
    "Views": "data.augmentation",
    "audit": "auditing.audit",
    "cache_embeddings": "stage_one.embeddings",
    "compare": "runs.scores",
    "estimate": "stage_one",
    "evaluate": "evaluation",
    "evaluate_runs": "stage_two.evaluate",
    "export": "runs.export",
    "extract": "stage_one",
    "finetune": "finetuning.finetune",
    "learning_curve": "stage_two.train",
    "load_dataset": "data",
    "make_head": "heads",
    "own_backbone": "backbones",
    "predict": "runs.classifier",
    "report": "reports.page:write_report",
    "resolve": "backbones",
    "survey_layers": "finetuning.layer_survey",
    "train_head": "stage_two",
    "train_heads": "stage_two",
}

__all__ = [
    "BACKBONES",
    "HEADS",
    "Backbone",
    "Dataset",
    "FeatureCache",
    "FinetuneSettings",
    "ImageClassifier",
    "LabelSession",
    "LinearHead",
    "PipelineError",
    "Prediction",
    "Run",
    "Sweep",
    "Transform",
    "Views",
    "audit",
    "cache_embeddings",
    "compare",
    "estimate",
    "evaluate",
    "evaluate_runs",
    "export",
    "extract",
    "finetune",
    "learning_curve",
    "load_dataset",
    "make_head",
    "own_backbone",
    "predict",
    "report",
    "resolve",
    "survey_layers",
    "train_head",
    "train_heads",
]

_named = lazy_names(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from .core.machine import installed

        return installed("image-feature-pipeline")
    if name == "BACKBONES":  # takes torchvision's import
        from .backbones import names

        return names()
    return _named(name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
