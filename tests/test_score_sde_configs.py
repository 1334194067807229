# SPDX-License-Identifier: Apache-2.0
"""The official experiments of score SDEs: networks of the published sizes, methods as named."""

import re

import jax
import pytest

from scorejax.systems import load_model
from tests.test_configs import NAMES, get_config

IN_FULL = [
    "score_sde/vp_bedroom_ddpm", "score_sde/ve_cifar10_ncsnpp",
    "score_sde/ve_ffhq_1024_ncsnpp_continuous",
]  # fmt: skip
"""Networks that others are like; the others are slow."""


def ddpm_size(nf, mult, attending, *, conditional=True, blocks=2):
    """Parameters of DDPM by its recipe; the level `attending` has attention."""
    dense, norm = lambda a, b: (a + 1) * b, lambda c: 2 * c
    conv = lambda a, b: 9 * a * b + b
    embed = dense(nf, 4 * nf) + dense(4 * nf, 4 * nf) if conditional else 0
    label = lambda b: dense(4 * nf, b) if conditional else 0
    attention = lambda c: norm(c) + 4 * dense(c, c)

    def block(a, b):
        body = norm(a) + conv(a, b) + label(b) + norm(b) + conv(b, b)
        return body + (dense(a, b) if a != b else 0)

    attends = lambda level: level == attending
    widths, size, c, skips = [nf * m for m in mult], embed + conv(3, nf), nf, [nf]
    for level, width in enumerate(widths):
        for _ in range(blocks):
            size += block(c, width) + attends(level) * attention(width)
            c = width
            skips.append(c)
        if level + 1 < len(widths):
            size += conv(c, c)
            skips.append(c)
    size += 2 * block(c, c) + attention(c)
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(blocks + 1):
            size += block(c + skips.pop(), width)
            c = width
        size += attends(level) * attention(c) + (conv(c, c) if level else 0)
    return size + norm(c) + conv(c, 3)


DDPM_CIFAR10 = ddpm_size(128, (1, 2, 2, 2), 1)  # 16 of 32 pixels is level 1
DDPM_256 = ddpm_size(128, (1, 1, 2, 2, 4, 4), 4)
DDPMPP, DDPMPP_DEEP = 61_804_419, 106_632_579
NCSNPP, NCSNPP_DEEP, FREQUENCIES = 62_693_251, 107_521_411, 128 + 128 * 512
OFFICIAL = {  # name: parameters, as published or counted by hand
    "score_sde/vp_cifar10_ddpm": DDPM_CIFAR10,
    "score_sde/vp_cifar10_ddpm_continuous": DDPM_CIFAR10,
    "score_sde/vp_cifar10_ddpm_unconditional": ddpm_size(128, (1, 2, 2, 2), 1, conditional=False),
    "score_sde/vp_bedroom_ddpm": DDPM_256,
    "score_sde/vp_church_ddpm": DDPM_256,
    "score_sde/vp_celebahq_256_ddpm": DDPM_256,
    "score_sde/vp_cifar10_ddpmpp": DDPMPP,
    "score_sde/vp_cifar10_ddpmpp_continuous": DDPMPP,
    "score_sde/vp_cifar10_ddpmpp_deep_continuous": DDPMPP_DEEP,
    "score_sde/vp_cifar10_ncsnpp": NCSNPP,
    "score_sde/vp_cifar10_ncsnpp_continuous": NCSNPP,
    "score_sde/vp_cifar10_ncsnpp_deep_continuous": NCSNPP_DEEP,
    "score_sde/subvp_cifar10_ddpm_continuous": DDPM_CIFAR10,
    "score_sde/subvp_cifar10_ddpmpp_continuous": DDPMPP,
    "score_sde/subvp_cifar10_ddpmpp_deep_continuous": DDPMPP_DEEP,
    "score_sde/subvp_cifar10_ncsnpp_continuous": NCSNPP,
    "score_sde/subvp_cifar10_ncsnpp_deep_continuous": NCSNPP_DEEP,
    "score_sde/ve_cifar10_ddpm": DDPM_CIFAR10,
    "score_sde/ve_cifar10_ncsnpp": NCSNPP,
    "score_sde/ve_cifar10_ncsnpp_continuous": NCSNPP + FREQUENCIES,
    "score_sde/ve_cifar10_ncsnpp_deep_continuous": NCSNPP_DEEP + FREQUENCIES,
    "score_sde/ve_celeba_ncsnpp": NCSNPP,
    "score_sde/ve_bedroom_ncsnpp_continuous": 65_574_549,
    "score_sde/ve_church_ncsnpp_continuous": 65_574_549,
    "score_sde/ve_celebahq_256_ncsnpp_continuous": 65_574_549,
    "score_sde/ve_ffhq_256_ncsnpp_continuous": 65_574_549,
    "score_sde/ve_celebahq_1024_ncsnpp_continuous": 105_785_896,
    "score_sde/ve_ffhq_1024_ncsnpp_continuous": 105_785_896,
}


def test_ddpm_is_counted_as_its_authors_count():
    # 527,360 fewer than Ho et al. have: two attentions on the way up, of 256 channels each.
    assert DDPM_CIFAR10 == 35_746_307 - 527_360


def test_the_number_of_parameters_of_every_official_score_sde_is_known():
    files = {name for name in NAMES if re.match("score_sde/(vp|subvp|ve)_", name)}
    assert files == set(OFFICIAL)


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_score_sde_reads_as_its_file_is_called(name):
    config = get_config(name)
    sde, rest = name.removeprefix("score_sde/").split("_", 1)
    assert config.sde == sde
    assert (config.model == "ddpm") == ("ddpm" in rest.split("_"))
    assert (config.objective == "denoising") == (sde == "subvp" or rest.endswith("continuous"))
    assert ("deep" in rest) == (config.num_res_blocks == 8)
    assert config.fir == ("ncsnpp" in rest)


@pytest.mark.deep
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in IN_FULL else [pytest.mark.slow]) for name in OFFICIAL],
)
def test_an_official_network_has_its_size(name):
    config = get_config(name)
    model, view = load_model(config).network, load_model(config).data
    image = jax.ShapeDtypeStruct((1, *view.shape), "float32")
    label = jax.ShapeDtypeStruct((1,), "float32")
    output, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image, label)
    assert output.shape == image.shape
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == OFFICIAL[name]
