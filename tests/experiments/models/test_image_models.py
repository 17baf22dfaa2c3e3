"""VGG-16, ResNet-50 and ResNet-20."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekern.experiments.models import IMAGE_MODELS, MODELS, VGG16, ResNet20, ResNet50


@pytest.fixture(scope="module")
def models():
    return {name: MODELS[name][1](torch.Generator().manual_seed(0)) for name in IMAGE_MODELS}


def test_parameter_counts(models):
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert counts == {"vgg16": 15_222_464, "resnet50": 25_557_032, "resnet20": 269_722}


def test_shapes_of_vgg16(models):
    widths = [64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    expected = [(out, in_, 3, 3) for in_, out in zip([3, *widths], widths)]
    assert [tuple(p.shape) for p in models["vgg16"].parameters()] == [*expected, (1000, 512, 1, 1)]


def test_names_and_shapes_of_resnet50_are_those_of_torchvision(models):
    shapes = {name: tuple(value.shape) for name, value in models["resnet50"].state_dict().items()}
    assert len(shapes) == 320
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer2.0.conv1.weight"] == (128, 256, 1, 1)
    assert shapes["layer3.5.conv2.weight"] == (256, 256, 3, 3)
    assert shapes["layer4.2.bn3.running_var"] == (2048,)
    assert shapes["fc.weight"] == (1000, 2048)
    assert "layer1.1.downsample.0.weight" not in shapes


def vgg16_as_written(model, x):
    weights = list(model.parameters())
    for number, weight in enumerate(weights[:-1], 1):
        x = F.relu(F.conv2d(x, weight, padding=1))
        if number in (2, 4, 7, 10):
            x = F.max_pool2d(x, 2, 2)
    return x.mean((2, 3)) @ weights[-1][:, :, 0, 0].T


def resnet50_as_written(model, x):
    state = model.state_dict()

    def conv_bn(x, conv, bn, stride=1, padding=0):
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=padding)
        statistics = (state[f"{bn}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *statistics, eps=1e-5)

    x = F.max_pool2d(F.relu(conv_bn(x, "conv1", "bn1", 2, 3)), 3, 2, 1)
    for layer, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            y = F.relu(conv_bn(x, f"{name}.conv1", f"{name}.bn1"))
            y = F.relu(conv_bn(y, f"{name}.conv2", f"{name}.bn2", stride, 1))
            y = conv_bn(y, f"{name}.conv3", f"{name}.bn3")
            if block == 0:
                x = conv_bn(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = F.relu(x + y)
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def resnet20_as_written(model, x):
    state = model.state_dict()

    def conv_bn(x, name, number, stride=1):
        statistics = ("running_mean", "running_var", "weight", "bias")
        x = F.conv2d(x, state[f"{name}conv{number}.weight"], stride=stride, padding=1)
        return F.batch_norm(x, *(state[f"{name}bn{number}.{part}"] for part in statistics), eps=1e-5)

    x = F.relu(conv_bn(x, "", 1))
    for layer in (1, 2, 3):
        for block in range(3):
            name = f"layer{layer}.{block}."
            stride = 2 if layer > 1 and block == 0 else 1
            y = conv_bn(F.relu(conv_bn(x, name, 1, stride)), name, 2)
            shortcut = torch.zeros_like(y)
            shortcut[:, : x.shape[1]] = F.avg_pool2d(x, 1, stride)
            x = F.relu(y + shortcut)
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize(
    ("cls", "written"),
    [(VGG16, vgg16_as_written), (ResNet50, resnet50_as_written), (ResNet20, resnet20_as_written)],
    ids=["vgg16", "resnet50", "resnet20"],
)
def test_logits_are_those_of_the_network_written_out(cls, written):
    generator = torch.Generator().manual_seed(0)
    model = cls(num_classes=7, generator=generator).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1, generator=generator)
    images = torch.randn(2, 3, 64, 48, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (2, 7)
        torch.testing.assert_close(logits, written(model, images), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "gain"), [("vgg16", 2), ("resnet50", 1), ("resnet20", 2)])
def test_initial_convolutions_have_the_variance_of_their_fan_in(models, name, gain):
    for layer_name, layer in models[name].named_modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        assert layer.bias is None
        variance = gain / math.prod(layer.weight.shape[1:])
        if layer.weight.numel() > 10_000:
            assert layer.weight.var().item() == pytest.approx(variance, rel=0.05), layer_name
        # Cut at two deviations of the uncut normal, which are 2.27 of what is left.
        assert layer.weight.abs().max() < 2.28 * math.sqrt(variance)


def test_a_block_of_resnet50_starts_as_its_shortcut(models):
    block = models["resnet50"].layer2[1]
    x = torch.rand(2, 512, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x)
    assert models["resnet50"].fc.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert models["resnet50"].fc.bias.eq(0).all()


@pytest.mark.parametrize("multiplier", [1, 0.5, 1.3, 0.001])
def test_the_width_of_resnet20(multiplier):
    model = ResNet20(7, multiplier, torch.Generator().manual_seed(0))
    a, b, c = (max(1, round(multiplier * channels)) for channels in (16, 32, 64))
    weights = 9 * (3 * a + 6 * a**2 + (a * b + 5 * b**2) + (b * c + 5 * c**2)) + 7 * c
    others = 2 * (7 * a + 6 * b + 6 * c) + 7
    assert sum(p.numel() for p in model.parameters()) == weights + others
    assert model(torch.zeros(2, 3, 9, 8)).shape == (2, 7)


@pytest.mark.parametrize("multiplier", [0, -1, float("nan")])
def test_a_width_of_nothing_is_refused(multiplier):
    with pytest.raises(ValueError, match=f"^width_multiplier must be a number above 0, got {multiplier}$"):
        ResNet20(10, multiplier)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_weights_depend_on_the_generator_only(models, name):
    state = torch.get_rng_state()
    again = MODELS[name][1](torch.Generator().manual_seed(0)).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    # Parameters: another test runs a block, whose running statistics changed.
    ours = dict(models[name].named_parameters())
    assert all(torch.equal(ours[key], again[key]) for key in ours)
