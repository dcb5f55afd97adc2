"""A backbone as the rest of the pipeline sees it: weights, layer, transform, and the network they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..core.errors import PipelineError, UnknownNameError, WeightsError
from ..data import nvjpeg
from ..data.augmentation import PLAIN, Views
from ..data.decoding import DECODE_RULES, SCALED_RULE
from ..data.files import DEFAULT_LIMITS, Limits
from ..data.preprocessing import Preprocessing
from ..data.transforms import Transform
from ..store.spec import Spec, joined_spec
from . import bundled, own, timm_models, torchvision_models
from .layer_names import POOLED
from .quantisation import quantisation
from .state_dicts import MisfitError, load_into, read_state, split_part
from .weights import Architecture, Listing, Weights

if TYPE_CHECKING:
    from torch import nn

    from .layers import FeatureNetwork

DEFAULT = "efficientnet_lite0"
NETWORK_FILE = "network.safetensors"  # in a run folder: the weights of a network trained as a whole
DECODERS = ("pillow", "nvjpeg")
PRECISIONS = ("float32", "tf32", "bfloat16", "float16", "int8")
STORAGES = ("float16", "float32")
# in this order, so that a bundled name or one of timm's never waits for torchvision's import
SOURCES: tuple[Callable[[str], Architecture | None], ...] = (
    bundled.find, own.find, timm_models.find, torchvision_models.find
)  # fmt: skip


@dataclass(frozen=True)
class Backbone:
    """A frozen pretrained network, not built yet.

    Attributes
    ----------
    architecture : Architecture
    weights : Weights
    transform : Transform
        From an image to the uint8 pixels (H, W, 3) that the network sees, and how they are normalised.
    layer : str
        Where features are read; see `FeatureNetwork`.
    precision : str
        Of the arithmetic: ``float32``, ``bfloat16`` or ``float16``; or ``int8``, a network made from this one.
    seed : int
        Of random weights.
    fast_decode : bool
        Whether large JPEG files are decoded at a fraction of their size, see `pipeline.data.decode`.
    views : Views
        How many views of an image it is given; by default the plain one alone.
    resize : int
        What `transform` resizes to instead of the published size; 0 where it is that.
    quantisation : dict
        Of ``int8``: what decides which network it is, see `pipeline.backbones.quantisation`. Else empty.
    decoder : str
        Of JPEG files: ``pillow``, or ``nvjpeg``, which takes an NVIDIA GPU and trusts the files.
    storage : str
        Of a layer's activations, which are kept with their shape: ``float16`` or ``float32``. Else empty: then rows
        are as the engine gives them.
    """

    architecture: Architecture
    weights: Weights
    transform: Transform
    layer: str = POOLED
    precision: str = "float32"
    seed: int = 0
    fast_decode: bool = False
    views: Views = PLAIN
    resize: int = 0
    quantisation: Mapping[str, Any] = field(default_factory=dict, hash=False)
    decoder: str = "pillow"
    storage: str = ""

    def __post_init__(self) -> None:
        if self.storage and self.storage not in STORAGES:
            raise UnknownNameError("storage", self.storage, STORAGES)
        if self.decoder not in DECODERS:
            raise UnknownNameError("decoder", self.decoder, DECODERS)
        if self.fast_decode and self.decoder != "pillow":
            raise PipelineError(f"--fast-decode is a way of Pillow's decoder, not of {self.decoder!r}: give one of "
                                "--fast-decode and --decoder, not both.")

    @property
    def name(self) -> str:
        """As on the command line."""
        return self.architecture.name

    @property
    def parts(self) -> tuple[Backbone, ...]:
        """Itself: the one network behind its features, see `JoinedBackbone`."""
        return (self,)

    @property
    def label(self) -> str:
        """The name, and whatever is not as usual: for people, in tables and run names."""
        file, part = split_part(self.weights.label)
        named = "-".join(filter(None, (file.stem, part)))
        weights = named if self.weights.label not in self.architecture.tags[:1] else ""
        layer = self.layer if self.layer != POOLED else ""
        precision = self.precision if self.precision != "float32" else ""
        decoding = "fast-decode" if self.fast_decode else self.decoder if self.decoder != "pillow" else ""
        resize = f"resize-{self.resize}" if self.resize else ""
        kept = f"kept in {self.storage}" if self.storage else ""
        return " ".join(filter(None, (self.name, weights, layer, precision, decoding, resize, kept, self.views.label)))

    @property
    def spec(self) -> Spec:
        """Everything that can change a feature row. Neither torch nor the network is needed for it."""
        return Spec(
            {
                "architecture": self.name,
                "weights": self.weights.digest,
                "layer": self.layer,
                "transform": self.transform.to_dict(),
                "precision": self.precision,
                "decode": {
                    **DECODE_RULES,
                    **({"scaled": SCALED_RULE} if self.fast_decode else {}),
                    **({"jpeg": nvjpeg.RULE} if self.decoder == "nvjpeg" else {}),
                },
                **({"quantisation": dict(self.quantisation)} if self.quantisation else {}),
                **({"storage": self.storage} if self.storage else {}),
                **({"views": self.views.described(self.transform)} if self.views.count > 1 else {}),
            }
        )

    def row_bytes(self, features: int, dtype: np.dtype) -> int:
        """Return the bytes of an image's row of all views, from an engine that gives `features` values of `dtype`."""
        return self.views.count * features * np.dtype(self.storage or dtype).itemsize

    @property
    def plain(self) -> Backbone:
        """What an engine runs, whatever the number of views and however rows are stored."""
        return replace(self, views=PLAIN, storage="")

    def stored(self, rows: np.ndarray) -> np.ndarray:
        """Return rows in the type in which the cache keeps them.

        Raises
        ------
        PipelineError
            If a value is too large for that type.
        """
        if not self.storage or rows.dtype == self.storage:
            return rows
        with np.errstate(over="ignore"):
            kept = rows.astype(self.storage)
        if np.isinf(kept).any() and np.isfinite(rows).all():
            raise PipelineError(f"Activations of {self.layer!r} reach {np.abs(rows).max():.3g}, and float16 ends at "
                                "65,504. Use --storage float32.")
        return kept

    @property
    def preprocessing(self) -> Preprocessing:
        """What becomes of an image file before the network sees it."""
        return Preprocessing(self.transform, self.views, self.fast_decode, self.decoder)

    def decode(self, content: bytes, limits: Limits = DEFAULT_LIMITS) -> Image.Image:
        """Return the image in a file's content, as large as the transform needs it, see `Preprocessing.decode`."""
        return self.preprocessing.decode(content, limits)

    def pixels(self, content: bytes, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
        """Return the (V, H, W, 3) uint8 views of the image in a file's content, see `Preprocessing.pixels`."""
        return self.preprocessing.pixels(content, limits)

    def network(self) -> FeatureNetwork:
        """Build the network with its weights, on the CPU, in float32 and evaluation mode.

        Raises
        ------
        WeightsError
            If the weights cannot be read, or are another architecture's.
        UnknownNameError
            If the network has no such layer.
        """
        from .layers import FeatureNetwork

        network, state = self.architecture.skeleton(), self.weights.load()
        try:
            load_into(network, state, f"{self.weights.label} does not fit {self.name}", self.architecture.convert)
        except MisfitError as error:
            raise WeightsError(f"{error}{torchvision_models.closest(state, error.prefix)}") from error
        return FeatureNetwork(network.eval(), self.layer, self.transform.crop)


def resolve(
    name: str = DEFAULT,
    weights: str | Path | None = None,
    layer: str = POOLED,
    precision: str = "float32",
    seed: int = 0,
    fast_decode: bool = False,
    resize: int = 0,
    decoder: str = "pillow",
    storage: str = "",
) -> Backbone:
    """Find a backbone by its name.

    Parameters
    ----------
    name : str
        A bundled network, one of torchvision's, or ``timm:NAME``.
    weights : str or Path, optional
        A tag of the published weights (``IMAGENET1K_V1``), a file, or ``random``. Default: the published ones.
    layer : str
        ``pooled`` (just under the classifier), or a named module, see `FeatureNetwork`.
    precision : str
        ``float32``, ``bfloat16``, ``float16`` or ``int8``.
    seed : int
        Of random weights.
    fast_decode : bool
        Decode large JPEG files at a fraction of their size.
    resize : int
        Resize images to so many pixels before the crop, instead of as the weights were published with; 0 for that.
    decoder : str
        Of JPEG files: ``pillow`` or ``nvjpeg``.
    storage : str
        Keep the layer's activations with their shape, as ``float16`` or ``float32``; empty for a vector of features.

    Raises
    ------
    UnknownNameError
        If nothing has that name.
    WeightsError
        If the weights are not there and cannot be downloaded.
    EngineError
        If what precision int8 takes is not installed.
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    if resize < 0:
        raise PipelineError(f"resize is {resize}; it must be a number of pixels.")
    if storage and (layer == POOLED or ":" in layer):
        raise PipelineError(f"Activations keep their shape at a layer of the network, not at {layer!r}: give --layer "
                            "NAME, as `pipeline summary` lists them.")
    architecture = find_architecture(name)
    tag = str(weights) if weights is not None and str(weights) in architecture.tags else None
    if weights is None or tag:
        chosen = architecture.pretrained(tag)
    elif str(weights) == "random":
        chosen = random_weights(architecture, seed)
    elif split_part(weights)[0].is_file():
        chosen = Weights.from_file(weights)
    else:
        known = ", ".join((*architecture.tags, "random"))
        raise PipelineError(f"No weights {str(weights)!r} for {name}: there is no such file. Known by name: {known}.")
    transform = architecture.transform(tag)
    if resize:
        transform = replace(transform, resize=(resize, resize))
    return Backbone(architecture, chosen, transform, layer, precision, seed, fast_decode, resize=resize,
                    quantisation=quantisation() if precision == "int8" else {}, decoder=decoder, storage=storage)


def own_backbone(
    module: nn.Module, transform: Any, name: str | None = None, layer: str = POOLED, precision: str = "float32",
    fast_decode: bool = False,
) -> Backbone:  # fmt: skip
    """Return any network as a backbone, which `extract`, `finetune` and all else take.

    It is known by its weights and its code's name, so that changed weights are never served old rows; of changed code
    nothing is noticed. A run says which network it was made with: another process calls this first, with the same
    name, before it predicts with such a run.

    Parameters
    ----------
    module : nn.Module
        Maps normalised images (N, 3, H, W) to features (N, D); with `layer`, any network that has such a layer.
    transform : Transform, torchvision's preset of some weights, or timm's data config
        What its images go through.
    name : str, optional
        By default that of the module's class. Afterwards ``own:NAME`` is a backbone's name in this process.
    layer, precision, fast_decode
        See `resolve`.

    Raises
    ------
    PipelineError
        If the module has no weights, or the transform is none of these.
    """
    return resolve(own.register(module, transform, name or type(module).__name__), None, layer, precision,
                   fast_decode=fast_decode)


def find_architecture(name: str) -> Architecture:
    """Ask each source for an architecture of that name."""
    for find in SOURCES:
        if architecture := find(name):
            return architecture
    raise UnknownNameError("backbone", name, [*bundled.BUNDLED, *torchvision_models.names()])


def random_weights(architecture: Architecture, seed: int) -> Weights:
    """Return the architecture's initial weights under a seed, without the classifier's."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Weights.from_state("random", architecture.skeleton().state_dict())


def names() -> tuple[str, ...]:
    """Return the names of all backbones that are listed, those that need no download first; timm has more."""
    return (*bundled.BUNDLED, *torchvision_models.names())


def listings() -> Iterator[Listing]:
    """Yield every backbone that `pipeline backbones` shows, those that need no download first."""
    yield from bundled.listings()
    yield from torchvision_models.listings()


def description(backbone: Backbone) -> dict[str, Any]:
    """Return what `from_description` needs to find this backbone again, as TOML values."""
    return {
        "name": backbone.name,
        "weights": backbone.weights.label,
        "seed": backbone.seed,
        "layer": backbone.layer,
        "precision": backbone.precision,
        "fast_decode": backbone.fast_decode,
        "decoder": backbone.decoder,
        "resize": backbone.resize,
        "transform": backbone.transform.to_dict(),
        **({"views": backbone.views.to_dict()} if backbone.views.count > 1 else {}),
        **({"storage": backbone.storage} if backbone.storage else {}),
        "spec": backbone.spec.fields,
    }


def as_described(fields: Mapping[str, Any], folder: Path) -> Backbone:
    """Take the backbone of a run at its word; only when its network is to be built is it found and checked.

    For engines that have the network already, kept under this very spec.
    """

    _require_network(fields, folder)

    @cache
    def found() -> Backbone:
        return from_description(fields, folder)

    transform = Transform.from_dict(fields["transform"])
    architecture = Architecture(
        fields["name"],
        lambda: found().architecture.skeleton(),
        lambda tag: transform,
        lambda tag: found().weights,
        tuple(fields.get("tags", ())),
        convert=lambda state: found().architecture.convert(state),
    )
    weights = Weights(fields["weights"], fields["spec"]["weights"], lambda: found().weights.load())
    return Backbone(architecture, weights, transform, fields["layer"], fields["precision"], fields["seed"],
                    fields.get("fast_decode", False), Views(**fields.get("views", {})), fields.get("resize", 0),
                    fields["spec"].get("quantisation", {}), fields.get("decoder", "pillow"),
                    fields.get("storage", ""))


def _require_network(fields: Mapping[str, Any], folder: Path) -> None:
    """Refuse what was trained on features that came without a network."""
    if fields.get("given"):
        raise PipelineError(f"{folder.name} was trained on features that {fields['name']!r} made elsewhere: there is "
                            "no network to run on images. `pipeline.heads.load_head(folder)` gives the head, which "
                            "takes such features.")


def as_asked(fields: Mapping[str, Any]) -> Backbone:
    """Find the backbone of a description anew; whether it still is the same one, its spec tells."""
    asked = {"fast_decode": False, "resize": 0, "decoder": "pillow", "storage": "", **fields}
    found = resolve(*(asked[name] for name in (
        "name", "weights", "layer", "precision", "seed", "fast_decode", "resize", "decoder", "storage")))
    return replace(found, views=Views(**fields.get("views", {})))


def from_description(fields: Mapping[str, Any], folder: Path) -> Backbone:
    """Find the backbone of a run: with the weights in its folder where it has any, else the frozen ones.

    Raises
    ------
    WeightsError
        If the weights are gone, or are others than the run's.
    """
    _require_network(fields, folder)
    spec = Spec(fields["spec"])
    if (folder / NETWORK_FILE).is_file():
        weights = Weights.from_state("fine-tuned", read_state(folder / NETWORK_FILE))
        found = Backbone(
            find_architecture(fields["name"]), weights, Transform.from_dict(fields["transform"]),
            fields["layer"], fields["precision"], fast_decode=fields.get("fast_decode", False),
            resize=fields.get("resize", 0), decoder=fields.get("decoder", "pillow"),
        )
    else:
        found = as_asked(fields)
    if found.spec != spec:
        changed = "; ".join(f"{field}: {theirs!r} then, {ours!r} now" for field, theirs, ours in
                            found.spec.differences(spec))
        raise WeightsError(f"{found.name} is not the backbone that {str(folder)!r} was trained with ({changed}).")
    return found


@dataclass(frozen=True)
class JoinedBackbone:
    """Backbones whose features stand side by side in this order.

    Attributes
    ----------
    parts : tuple of Backbone
    """

    parts: tuple[Backbone, ...]

    @property
    def name(self) -> str:
        """The names of all of them."""
        return "+".join(part.name for part in self.parts)

    @property
    def spec(self) -> Spec:
        """Everything that can change a row of the features of all of them."""
        return joined_spec([part.spec for part in self.parts])
