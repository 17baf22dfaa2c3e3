"""What the compiler makes of the convolution kernels, for GPUs that need not be here."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import sparsekern as sk
from sparsekern.formats.known import index_of
from sparsekern.kernels import configs, conv2d, conv2d_grad_input, conv2d_grad_values
from sparsekern.kernels.inspection import compile_for
from sparsekern.kernels.pixels import Window

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 is set: nothing can be compiled"
)
FORMATS = {"nchw": torch.contiguous_format, "channels-last": torch.channels_last}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "ieee": torch.float32}
OPS = ("conv2d", "conv2d_grad_input", "conv2d_grad_values")
# Output and input channels, kernel, stride, height and width of x, tile size: a layer in the middle of a
# network, the first layer, whose taps have three channels each, and one with smaller tiles and a stride.
LAYERS = {
    "256-to-256": (256, 256, 3, 1, 28, 64),
    "first-layer": (64, 3, 7, 2, 224, 64),
    "96-to-96": (96, 96, 3, 2, 56, 32),
}


def launches(op, layer, arithmetic, memory_format, capability):
    """(config, launch) of each config that the op may choose for 64 images."""
    outputs, channels, kernel, stride, side, tile = LAYERS[layer]
    dtype = DTYPES[arithmetic]
    shape, pad = (outputs, channels, kernel, kernel), kernel // 2
    geometry = (stride, stride, pad, pad, 1, 1, 1)
    pattern = sk.Pattern.random(shape, 0.9, tile_size=tile)
    index = index_of(pattern.data)

    def images(*size):
        return torch.empty(size, dtype=dtype, device="meta").to(memory_format=memory_format)

    x = images(64, channels, side, side)
    window = Window.of_output(x, shape, geometry)
    y = images(64, outputs, window.plane.value // window.width.value, window.width.value)
    values = torch.empty(pattern.nnz, dtype=dtype)

    def parts(result, config):
        return result if config.splits == 1 else result.new_empty((1, *result.shape), dtype=torch.float32)

    if op == "conv2d":
        for config in conv2d.conv2d_configs(x, index, window, geometry)[0]:
            yield config, conv2d.plan(x, values, None, index, geometry, parts(y, config), config)
    elif op == "conv2d_grad_input":
        for config in conv2d_grad_input.grad_input_configs(y, x, index, geometry)[0]:
            yield config, conv2d_grad_input.plan(y, values, index, geometry, parts(x, config), config)
    else:
        for config in conv2d_grad_values.grad_values_configs(x, index, window, geometry)[0]:
            yield config, conv2d_grad_values.plan(y, x, index, geometry, parts(values, config), config)


@pytest.fixture
def arithmetic(request):
    """Of float32, TF32 or IEEE, as PyTorch is told."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = request.param == "tf32"
    yield request.param
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def capability(request):
    with configs.assumed_limits(request.param, 132):
        yield request.param


def check(found, capability, arithmetic):
    for config, launch in found:
        kernel = compile_for(launch, capability)
        assert kernel.stack == kernel.local == 0, config
        assert kernel.count("STL") == kernel.count("LDL") == 0, config
        assert kernel.shared <= configs.SHARED_MEMORY[capability], config
        if arithmetic in ("bf16", "fp16"):
            # The newer instructions take 64 rows at least, which small tiles may not have.
            small = min(launch.constants.ROWS, launch.constants.COLUMNS) < 64
            matrix = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}[capability]
            assert kernel.count(matrix) + small * kernel.count("HMMA") > 0, config
        # 16-byte vectors of channels go to shared memory while the product before them runs.
        if launch.constants.ALIGNED and not launch.constants.NARROW:
            assert kernel.count("LDGSTS") > 0, config


every_gpu = pytest.mark.parametrize(
    "capability", [80, 90, 100], ids=lambda capability: f"sm_{capability}", indirect=True
)


@pytest.mark.parametrize("capability", [pytest.param(90, id="sm_90")], indirect=True)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("arithmetic", ["bf16"], indirect=True)
@pytest.mark.parametrize("op", OPS)
def test_best_guess_spills_no_registers(op, arithmetic, memory_format, capability):
    found = launches(op, "256-to-256", arithmetic, FORMATS[memory_format], capability)
    check([next(found)], capability, arithmetic)


@pytest.mark.slow
@every_gpu
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("arithmetic", DTYPES, indirect=True)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("op", OPS)
def test_no_config_spills_registers(op, layer, arithmetic, memory_format, capability):
    check(launches(op, layer, arithmetic, FORMATS[memory_format], capability), capability, arithmetic)
