"""Feature-caching transfer learning for images.

Run a frozen backbone once, cache its features, train heads on them in seconds, and compare with fine-tuning.
Names are resolved when they are first used: ``import pipeline`` loads neither torch nor scikit-learn.

Examples
--------
>>> import pipeline
>>> done = pipeline.extract("photos/")                       # doctest: +SKIP
>>> run = pipeline.train_head("logistic", "photos/")         # doctest: +SKIP
>>> pipeline.ImageClassifier.load(run).predict(["new.jpg"])  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .core.registry import lazy_names

if TYPE_CHECKING:
    from .auditing.audit import audit
    from .backbones import Backbone, resolve
    from .core.errors import PipelineError
    from .data import Dataset, load_dataset
    from .data.augmentation import Views
    from .evaluation import evaluate
    from .finetuning import FinetuneSettings
    from .finetuning.finetune import finetune
    from .heads import LinearHead, make_head
    from .runs import ImageClassifier, Prediction, Run
    from .runs.scores import compare
    from .stage_one import estimate, extract
    from .stage_two import train_head, train_heads
    from .store import FeatureCache

_HOMES = {
    "Backbone": "backbones",
    "Dataset": "data",
    "FeatureCache": "store",
    "FinetuneSettings": "finetuning",
    "ImageClassifier": "runs",
    "LinearHead": "heads",
    "PipelineError": "core.errors",
    "Prediction": "runs",
    "Run": "runs",
    "Views": "data.augmentation",
    "audit": "auditing.audit",
    "compare": "runs.scores",
    "estimate": "stage_one",
    "evaluate": "evaluation",
    "extract": "stage_one",
    "finetune": "finetuning.finetune",
    "load_dataset": "data",
    "make_head": "heads",
    "resolve": "backbones",
    "train_head": "stage_two",
    "train_heads": "stage_two",
}

__all__ = [
    "Backbone",
    "Dataset",
    "FeatureCache",
    "FinetuneSettings",
    "ImageClassifier",
    "LinearHead",
    "PipelineError",
    "Prediction",
    "Run",
    "Views",
    "audit",
    "compare",
    "estimate",
    "evaluate",
    "extract",
    "finetune",
    "load_dataset",
    "make_head",
    "resolve",
    "train_head",
    "train_heads",
]

__getattr__ = lazy_names(__name__, _HOMES)
