"""Every classification network of torchvision, with its own weights enum and that enum's transforms."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UnknownNameError, WeightsError, one_line
from ..data.transforms import Transform
from .state_dicts import State, rename
from .weights import Architecture, Listing, Weights

if TYPE_CHECKING:
    from torch import nn

# what the published weights expect and the builders only set when they download by themselves
BUILD_SETTINGS: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "aux_logits": False, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
    "vit_h_14": {"image_size": 518},  # its default weights are for larger images than its builder's default
}
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def names() -> list[str]:
    """Return the names of torchvision's classification networks."""
    from torchvision import models

    return models.list_models(module=models)


def find(name: str) -> Architecture | None:
    """Return torchvision's architecture of that name, if there is one."""
    if name not in names():
        return None
    from torchvision import models

    tags = tuple(member.name for member in models.get_model_weights(name))
    default = models.get_model_weights(name).DEFAULT.name
    ordered = (default, *(tag for tag in tags if tag != default))
    return Architecture(
        name,
        lambda: skeleton(name),
        lambda tag: Transform.from_torchvision(_member(name, tag).transforms()),
        lambda tag: published(name, tag),
        ordered,
        lambda state: convert(name, state),
    )


def _member(name: str, tag: str | None) -> Any:
    from torchvision import models

    enum = models.get_model_weights(name)
    if tag is None:
        return enum.DEFAULT
    if tag not in enum.__members__:
        raise UnknownNameError(f"weights of {name}", tag, enum.__members__)
    return enum[tag]


def published(name: str, tag: str | None) -> Weights:
    """Return published weights, downloading them to torch's own cache when they are not there yet.

    Raises
    ------
    WeightsError
        If they cannot be downloaded; the message says where a copy would be found.
    """
    from pathlib import Path

    import torch

    member = _member(name, tag)
    path = Path(torch.hub.get_dir()) / "checkpoints" / member.url.rsplit("/", 1)[-1]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            expected = re.search(r"-([0-9a-f]{8,})\.", path.name)
            torch.hub.download_url_to_file(member.url, str(path), expected.group(1) if expected else None)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"Cannot download {member.url}: {one_line(error)}. Put the file at {str(path)!r}, pass "
                "--weights FILE, or choose a backbone that needs no download (`pipeline backbones`)."
            ) from error
    return Weights.from_file(path, member.name)


def classifier_of(network: nn.Module) -> str:
    """Return the name of the layer that turns pooled features into class scores: the last linear one.

    In SqueezeNet that is a convolution, followed by the pooling.
    """
    from torch import nn

    return [name for name, module in network.named_modules()
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and name.startswith("classifier"))][-1]


def skeleton(name: str) -> nn.Module:
    """Build a network without its last layer."""
    from torch import nn
    from torchvision import models

    network = models.get_model(name, weights=None, **BUILD_SETTINGS.get(name, {}))
    network.set_submodule(classifier_of(network), nn.Identity())
    if getattr(network, "AuxLogits", None) is not None:
        network.AuxLogits, network.aux_logits = None, False
    return network


def convert(name: str, state: State) -> State:
    """Leave out the classifier, and read DenseNet's tensors under their present names."""
    classifier = _classifier_name(name)

    def new_name(key: str) -> str | None:
        if key.startswith((classifier + ".", *AUXILIARY)):
            return None
        return re.sub(r"\.(norm|relu|conv)\.([12])\.", r".\1\2.", key) if name.startswith("densenet") else key

    return rename(state, new_name)


def _classifier_name(name: str) -> str:
    from torchvision import models

    with shapes_only():
        return classifier_of(models.get_model(name, weights=None, **BUILD_SETTINGS.get(name, {})))


def shapes_only() -> Any:
    """Return a context in which networks are built without memory for their weights."""
    import torch
    from torch.overrides import TorchFunctionMode

    drawn = (torch.Tensor.normal_, torch.Tensor.uniform_)

    class ShapesOnly(TorchFunctionMode):
        # not torch.device("meta"): RegNet computes its widths with tensors, whose values it needs
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            if func in drawn and args[0].is_meta:  # numbers that nobody has: torch would import its compiler for them
                return args[0]
            if func in (torch.empty, torch.zeros, torch.ones):
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    return ShapesOnly()


def laid_out(architecture: Architecture) -> nn.Module:
    """Return a network without weights, on torch's device `meta`, in evaluation mode: for shapes and names alone."""
    with shapes_only():
        network = architecture.skeleton()
    return network.to("meta").eval()


def closest(state: State, prefix: str = "") -> str:
    """Return a sentence that names the network which a state dict fits best; empty where it fits none well."""
    state = rename(state, lambda key: key.removeprefix(prefix))
    best, most = "", 0.8
    for _, family in itertools.groupby(names(), lambda name: re.match("(wide_)?[a-z]+", name)[0]):  # type: ignore[index]
        for name in family:
            architecture = find(name)
            assert architecture is not None
            expected, part = laid_out(architecture).state_dict(), architecture.convert(state)
            shared = expected.keys() & part.keys()
            if len(shared) < len(expected) / 10:
                break  # its relatives, some of which take a second to lay out, call their layers likewise
            same = sum(expected[key].shape == part[key].shape for key in shared)
            if (share := same / max(len(expected), len(part), 1)) > most:
                best, most = name, share
    return f" They fit {best}{'' if most == 1 else f' for {most:.0%}'}: --backbone {best}." if best else ""


def listings() -> list[Listing]:
    """Return what `pipeline backbones` shows of these. Takes seconds: it lays out every network."""
    import torch
    from torchvision import models

    found = []
    for name in names():
        member = models.get_model_weights(name).DEFAULT
        with shapes_only():
            network = models.get_model(name, weights=None, **BUILD_SETTINGS.get(name, {}))
        layer = network.get_submodule(classifier_of(network))
        features = layer.in_features if hasattr(layer, "in_features") else layer.in_channels
        pixels = Transform.from_torchvision(member.transforms()).crop[0]
        top1 = member.meta["_metrics"].get("ImageNet-1K", {}).get("acc@1")
        there = (Path(torch.hub.get_dir()) / "checkpoints" / Path(member.url).name).is_file()
        found.append(Listing(name, features, member.meta["num_params"], pixels, top1, f"download ({member.name})",
                             offline=there))
    return found
