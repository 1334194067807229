# SPDX-License-Identifier: Apache-2.0
"""Layers and networks against numbers computed with the official implementations.

Single precision is held to the tolerance in the file, ten times the official rounding error;
double precision to 1e-8 of the largest entry of each example.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from scorejax import interop
from scorejax.interop.networks.score_sde import TENSORS, nin
from scorejax.interop.tensors import CONV, Match, affine
from scorejax.models import fir, layers, ncsnpp, refinenet
from scorejax.models.instance_norm import InstanceNormPlus, VarianceNorm
from scorejax.parameterize import noise_prediction, sigma_conditioned
from scorejax.sdes import VESDE, VPSDE, SubVPSDE
from tests.slow import deep_where

TAPS = (1, 3, 3, 1)


def nhwc(a):
    return np.moveaxis(a, 1, -1) if a.ndim == 4 else a


def as_array(a):
    """Images NHWC, in the precision of the test."""
    return jnp.asarray(nhwc(a), float)


def assert_golden(value, file, name, precision):
    expected, tolerance = nhwc(file[f"out64/{name}"]), nhwc(file[f"tol/{name}"])
    if precision == "float64":
        tolerance = 1e-8 * np.abs(expected).max(axis=tuple(range(1, expected.ndim)), keepdims=True)
    assert value.shape == expected.shape
    excess = np.abs(np.asarray(value, np.float64) - expected) / tolerance
    assert excess.max() <= 1, f"{name} is off by {excess.max():.3g} tolerances"


@pytest.mark.parametrize("dim", [8, 16, 17, 128])
def test_sinusoidal_embedding(golden, precision, dim):
    file = golden("a_embeddings")
    value = layers.sinusoidal_embedding(as_array(file["in/t"]), dim)
    assert_golden(value, file, f"pos{dim}", precision)


def test_fourier_embedding(golden, precision):
    file = golden("a_embeddings")
    params = {"frequencies": as_array(file["params/fourier.W"])}
    value = layers.FourierEmbedding(12).apply({"params": params}, as_array(file["in/x"]))
    assert_golden(value, file, "fourier", precision)


def load_block(file, name, matches):
    """Variables of a block from the official tensors that `matches` pairs with ours."""
    flat = {}
    for official, ours, turn in matches:
        if f"params/{name}.{official}" in file:
            flat[ours] = jnp.asarray(turn.tensor(file[f"params/{name}.{official}"]), float)
    assert len(flat) == sum(key.startswith(f"params/{name}.") for key in file)
    return {"params": unflatten_dict(flat, sep="/")}


up, down = (functools.partial(f, taps=TAPS) for f in (fir.upsample, fir.downsample))
plain_up, plain_down = (functools.partial(f, taps=None) for f in (fir.upsample, fir.downsample))
big = functools.partial(ncsnpp.BigGANBlock, rescale=True)
SCORE_SDE_BLOCKS = {
    "attn": ("attention", layers.Attention(rescale=True)),
    "attn_noscale": ("attention", layers.Attention()),
    "big_up_fir": ("biggan", big(24, resample=up)),
    "big_down_fir": ("biggan", big(24, resample=down)),
    "big_up": ("biggan", big(16, resample=plain_up)),
    "big_down": ("biggan", ncsnpp.BigGANBlock(16, resample=plain_down)),
    "ddpmpp": ("ddpm", ncsnpp.DDPMBlock(24, rescale=True)),
    "ddpmpp_convshort": ("ddpm_convshort", ncsnpp.DDPMBlock(24, conv_shortcut=True)),
    "down_fir_conv": ("fir_resample", fir.ConvDownsample(8, TAPS)),
    "down_conv": ("resample", fir.ConvDownsample(8)),
    "up_conv": ("resample", fir.ConvUpsample(8)),
    "nin": ("nin", nn.Dense(24)),
}
MORE_TENSORS = {
    "ddpm_convshort": TENSORS["ddpm"] + affine("Conv_2.", "shortcut/", CONV),
    "nin": nin("", ""),
}


@pytest.mark.deep
@pytest.mark.parametrize("name", SCORE_SDE_BLOCKS)
def test_score_sde_block(golden, precision, name):
    file = golden("a_blocks")
    kind, module = SCORE_SDE_BLOCKS[name]
    variables = load_block(file, name, (TENSORS | MORE_TENSORS)[kind])
    x, temb = as_array(file["in/x"]), as_array(file["in/temb"])
    arguments = (x, temb, False) if isinstance(module, ncsnpp.ResidualBlock) else (x,)
    assert_golden(module.apply(variables, *arguments), file, name, precision)


def test_combine(golden, precision):
    file = golden("a_blocks")
    variables = load_block(file, "combine_sum", TENSORS["combine"])
    x, y = as_array(file["in/x"]), as_array(file["in/y"])
    assert_golden(layers.Combine("sum").apply(variables, x, y), file, "combine_sum", precision)
    joined = layers.Combine("cat").apply(variables, x, y)
    projected, untouched = jnp.split(joined, 2, axis=-1)
    np.testing.assert_array_equal(untouched, y)
    assert_golden(projected + y, file, "combine_sum", precision)


def instance_norm(official, ours):
    return [Match(f"{official}{leaf}", f"{ours}{leaf}") for leaf in ("alpha", "gamma", "beta")]


REFINENET_NORMS = instance_norm("normalize1.", "norm_0/") + instance_norm("normalize2.", "norm_1/")
REFINENET_BLOCKS = {
    "inormpp": (instance_norm("", ""), InstanceNormPlus()),
    "varnorm": ([Match("alpha", "alpha")], VarianceNorm()),
    "crp": (
        [Match(f"convs.{i}.weight", f"conv_{i}/kernel", CONV) for i in range(2)],
        refinenet.ChainedResidualPooling(),
    ),
    "rcu": (
        [
            Match(f"{i + 1}_{j + 1}_conv.weight", f"block_{i}_conv_{j}/kernel", CONV)
            for i in range(2)
            for j in range(2)
        ],
        refinenet.ResidualConvUnit(),
    ),
    "res_down": (
        REFINENET_NORMS
        + affine("conv1.", "conv_0/", CONV)
        + affine("conv2.conv.", "conv_1/", CONV)
        + affine("shortcut.conv.", "shortcut/", CONV),
        refinenet.RefineNetResidualBlock(24, down=True),
    ),
    "res_dil": (
        REFINENET_NORMS
        + affine("conv1.", "conv_0/", CONV)
        + affine("conv2.", "conv_1/", CONV)
        + affine("shortcut.", "shortcut/", CONV),
        refinenet.RefineNetResidualBlock(24, down=True, dilation=2),
    ),
}


@pytest.mark.parametrize("name", REFINENET_BLOCKS)
def test_refinenet_block(golden, precision, name):
    file = golden("a_blocks")
    matches, module = REFINENET_BLOCKS[name]
    value = module.apply(load_block(file, name, matches), as_array(file["in/x"]))
    assert_golden(value, file, name, precision)


def test_multi_resolution_fusion(golden, precision):
    file = golden("a_blocks")
    matches = []
    for i in range(2):
        matches += affine(f"convs.{i}.", f"conv_{i}/", CONV)
    images = [as_array(file["in/x"]), as_array(file["in/z"])]
    module = refinenet.MultiResolutionFusion(12, (8, 8))
    assert_golden(module.apply(load_block(file, "msf", matches), images), file, "msf", precision)


COMMON = {
    "nf": 16, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (8,), "image_size": 16,
    "num_channels": 3, "embedding_type": "positional", "fir": False, "centered": True,
    "progressive_input": "none", "scale_by_sigma": False,
}  # fmt: skip
VE = {
    "embedding_type": "fourier", "fir": True, "centered": False, "progressive_input": "residual",
    "scale_by_sigma": True,
}  # fmt: skip


@pytest.mark.deep
@pytest.mark.parametrize(
    ("name", "options"),
    [("a_net_ddpmpp_vp", {}), ("a_net_ncsnpp_ve", VE | {"ch_mult": (1, 2, 2)})],
)
def test_whole_network(golden, precision, name, options):
    file = golden(name)
    state = {key.removeprefix("params/"): file[key] for key in file if key.startswith("params/")}
    module, variables = interop.load_torch("score_sde/ncsnpp", state, **COMMON | options)
    x, labels = as_array(file["in/x"]), as_array(file["in/labels"])
    assert_golden(jax.jit(module.apply)(variables, x, labels), file, "y", precision)


@pytest.mark.parametrize("name", deep_where(lambda name: name != "ve", ["vp", "subvp", "ve"]))
def test_score_of_a_network(golden, precision, name):
    file = golden("a_scorefn_tinynet")
    prefix = "params/ve." if name == "ve" else "params/vp."
    state = {key.removeprefix(prefix): file[key] for key in file if key.startswith(prefix)}
    options = COMMON | {"nf": 8, "attn_resolutions": (4,), "image_size": 8}
    options |= VE if name == "ve" else {}
    module, variables = interop.load_torch("score_sde/ncsnpp", state, **options)
    network = jax.jit(functools.partial(module.apply, variables))
    if name == "ve":
        score_fn = sigma_conditioned(VESDE(), network)
    else:
        score_fn = noise_prediction({"vp": VPSDE(), "subvp": SubVPSDE()}[name], network)
    value = score_fn(as_array(file["in/x"]), as_array(file["in/t"]))
    assert_golden(value, file, name, precision)
