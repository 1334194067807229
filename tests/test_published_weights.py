# SPDX-License-Identifier: Apache-2.0
"""Published files, in every layout, become networks that compute what the official ones did.

The checkpoint of the golden numbers is written as each official program would have written it. For
the names in JAX the truth is Linen itself, which names the modules of a skeleton of the network.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from flax.traverse_util import flatten_dict

from scorejax import interop
from scorejax.interop import published
from scorejax.interop.networks.score_sde import build, correspondence, published_sigmas
from scorejax.interop.networks.score_sde_flax import load_flax
from scorejax.models.ncsnpp import NCSNpp
from tests.jax_skeleton import jax_layout
from tests.published_files import (
    Stored,
    edm_pickle,
    legacy_file,
    module_state,
    persistent_object,
    plain_pickle,
    safetensors,
    score_sde_checkpoint,
    torch_zip,
)

VE = {
    "nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "image_size": 8,
    "num_channels": 3, "embedding_type": "fourier", "fir": True, "centered": False,
    "progressive_input": "residual", "scale_by_sigma": True, "sigma_max": 50, "num_scales": 1000,
}  # fmt: skip
NCSNPP = "score_sde/ncsnpp"


@pytest.fixture(scope="module")
def official(golden):
    """(raw, averaged as a list, the golden file) of the published checkpoint layout."""
    file = golden("a_ckpt_ncsnpp_ve")
    raw = {key[14:]: file[key] for key in file if key.startswith("params/module.")}
    shadow = [file[key] for key in sorted(file) if key.startswith("in/ema_shadow/")]
    return raw, shadow, file


def averaged_by_name(raw, shadow):
    names = [name for name in raw if name not in ("sigmas", "all_modules.0.W")]
    return raw | dict(zip(names, shadow, strict=True))


def flax_file(raw, shadow):
    trees = [jax_layout(state, VE) for state in (raw, averaged_by_name(raw, shadow))]
    optimizer = {"target": trees[0], "state": {"step": 5}}
    return msgpack_serialize({"step": 5, "optimizer": optimizer, "params_ema": trees[1], "lr": 1.0})


WRITERS = {
    "torch": lambda raw, shadow: torch_zip(score_sde_checkpoint(raw, shadow)),
    "legacy": lambda raw, shadow: legacy_file(score_sde_checkpoint(raw, shadow)),
    "flax": flax_file,
}


@pytest.mark.deep
@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("layout", WRITERS)
def test_a_published_file_computes_the_golden_numbers(official, tmp_path, layout, averaged):
    raw, shadow, file = official
    path = tmp_path / "checkpoint"
    path.write_bytes(WRITERS[layout](raw, shadow))
    module, variables = interop.load_checkpoint(NCSNPP, path, averaged=averaged, **VE)
    x, labels = jnp.asarray(np.moveaxis(file["in/x"], 1, -1)), jnp.asarray(file["in/labels"])
    value = np.moveaxis(jax.jit(module.apply)(variables, x, labels), -1, 1)
    name = "y_ema" if averaged else "y_model"
    # The file's tolerance: ten times the rounding error of the official code.
    assert (np.abs(value - file[f"out64/{name}"]) <= file[f"tol/{name}"]).all()


def test_safetensors_give_the_same_parameters(official, tmp_path):
    raw = official[0]
    (tmp_path / "w.safetensors").write_bytes(safetensors(raw))
    loaded = interop.load_checkpoint(NCSNPP, tmp_path / "w.safetensors", averaged=False, **VE)
    expected = interop.load_torch(NCSNPP, raw, **VE)
    assert jax.tree.structure(loaded[1]) == jax.tree.structure(expected[1])
    for leaf, other in zip(*map(jax.tree.leaves, (loaded[1], expected[1])), strict=True):
        np.testing.assert_array_equal(leaf, other)


DDPM = {
    "nf": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "image_size": 8,
    "num_channels": 3, "centered": False, "scale_by_sigma": True, "num_scales": 10,
}  # fmt: skip
FAMILY = {
    "NCSN++": (NCSNPP, VE),
    "DDPM": ("score_sde/ddpm", DDPM),
    "DDPM++": (NCSNPP, VE | {"fir": False, "embedding_type": "positional", "centered": True,
                             "progressive_input": "none", "scale_by_sigma": False}),
    "256 pixels": (NCSNPP, VE | {"ch_mult": [1, 1, 2], "progressive_input": "input_skip",
                                 "progressive": "output_skip"}),
    "joined": (NCSNPP, VE | {"progressive_input": "input_skip", "progressive_combine": "cat"}),
    "residual pyramids": (NCSNPP, VE | {"ch_mult": [1, 1, 2], "progressive": "residual"}),
    "DDPM blocks": (NCSNPP, VE | {"resblock_type": "ddpm", "progressive_input": "input_skip",
                                  "ch_mult": [1, 1, 2], "progressive": "output_skip"}),
    "DDPM blocks without convolutions": (
        NCSNPP, VE | {"resblock_type": "ddpm", "fir": False, "resamp_with_conv": False},
    ),
}  # fmt: skip


def random_state(architecture, hyper):
    """A state dictionary of random tensors, in the official order."""
    table, rng = (
        correspondence(build(architecture, hyper), hyper),
        np.random.default_rng(0),
    )
    draws = {name: rng.normal(size=shape).astype("f4") for name, shape in table.shapes.items()}
    return {"sigmas": published_sigmas(hyper)} | draws


@pytest.mark.deep
@pytest.mark.parametrize("name", FAMILY)
def test_all_layouts_are_the_same_network_and_exported_exactly(name):
    architecture, hyper = FAMILY[name]
    state = random_state(architecture, hyper)
    variables = interop.load_torch(architecture, state, **hyper)[1]
    tree = jax_layout(state, hyper, ddpm=name == "DDPM")
    from_jax = load_flax(architecture, flatten_dict(tree, sep="/"), **hyper)[1]
    jax.tree.map(np.testing.assert_array_equal, from_jax, variables)
    exported = interop.export_torch(architecture, variables, **hyper)
    assert list(exported) == list(state)
    for key, tensor in state.items():
        assert exported[key].dtype == tensor.dtype
        np.testing.assert_array_equal(exported[key], tensor)


def test_an_official_checkpoint_is_exported_in_the_official_order(official):
    raw = official[0]
    exported = interop.export_torch(NCSNPP, interop.load_torch(NCSNPP, raw, **VE)[1], **VE)
    assert list(exported) == list(raw)
    for name, tensor in raw.items():
        assert exported[name].dtype == tensor.dtype
        # The levels are computed anew, and exp differs by a unit in the last place between CPUs.
        rtol = 5e-16 if name == "sigmas" else 0
        np.testing.assert_allclose(exported[name], tensor, rtol=rtol, atol=0)


def test_noise_levels_that_contradict_the_settings_are_not_exported():
    variables = interop.load_torch("score_sde/ddpm", random_state("score_sde/ddpm", DDPM), **DDPM)
    with pytest.raises(ValueError, match=r"50 \.\.\. 0.01, are not those of .*, 90 \.\.\. 0.01"):
        interop.export_torch("score_sde/ddpm", variables[1], **DDPM | {"sigma_max": 90})


def spoil(state, how):
    name = "all_modules.4.Conv_0.weight"
    if how == "renamed":
        state["all_modules.4.conv_0.weight"] = state.pop(name)
    elif how == "of integers":
        state[name] = state[name].astype(np.int64)
    elif how == "misshapen":
        state[name] = state[name][:-1]
    else:
        del state[name], state["all_modules.3.bias"]


BAD_TENSORS = {
    "missing": "2 missing, first all_modules.3.bias",
    "renamed": "1 missing, first all_modules.4.Conv_0.weight; 1 surplus",
    "misshapen": "1 misshapen, first all_modules.4.Conv_0.weight (7, 8, 3, 3) for (8, 8, 3, 3)",
    "of integers": "1 not real numbers, first all_modules.4.Conv_0.weight int64",
}


@pytest.mark.parametrize("how", BAD_TENSORS)
def test_tensors_of_another_network_are_named_in_one_line(official, tmp_path, how):
    state = dict(official[0])
    spoil(state, how)
    (tmp_path / "w").write_bytes(torch_zip({name: Stored(a) for name, a in state.items()}))
    with pytest.raises(ValueError) as raised:
        interop.load_checkpoint(NCSNPP, tmp_path / "w", averaged=False, **VE)
    assert BAD_TENSORS[how] in str(raised.value) and "\n" not in str(raised.value)


def test_arrays_of_another_jax_network_are_named_in_their_own_names(official):
    tree = flatten_dict(jax_layout(official[0], VE), sep="/")
    tree["Conv_7/kernel"] = tree.pop("ResnetBlockBigGANpp_0/Conv_0/kernel")
    with pytest.raises(ValueError, match="1 missing, first ResnetBlockBigGANpp_0/Conv_0/kernel; 1"):
        load_flax(NCSNPP, tree, **VE)


SONG = {
    "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8],
    "embedding_type": "fourier", "encoder_type": "residual", "decoder_type": "standard",
    "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1], "img_resolution": 16,
    "in_channels": 3, "out_channels": 3, "label_dim": 5, "augment_dim": 9,
}  # fmt: skip


def test_an_edm_pickle_brings_its_own_settings(golden, tmp_path):
    file = golden("i_net_ncsnpp_cond")
    tensors = {name[7:]: file[name] for name in file if name.startswith("params/")}
    (tmp_path / "edm.pkl").write_bytes(edm_pickle(tensors, SONG))
    module, variables = interop.load_checkpoint("edm/song_unet", tmp_path / "edm.pkl")
    names = ("noise_labels", "class_labels", "augment_labels")
    arguments = [jnp.asarray(file[f"in/{name}"]) for name in names]
    x = jnp.asarray(np.moveaxis(file["in/x"], 1, -1))
    value = np.moveaxis(jax.jit(module.apply)(variables, x, *arguments), -1, 1)
    assert (np.abs(value - file["out64/y"]) <= file["tol/y"]).all()


def test_settings_in_a_file_may_not_be_contradicted(tmp_path):
    weight = {"weight": Stored(np.ones((2, 2), np.float32))}
    inner = persistent_object("SongUNet", module_state(weight, model_channels=8))
    outer = persistent_object("EDMPrecond", module_state({}, {"model": inner}))
    (tmp_path / "w").write_bytes(plain_pickle({"ema": outer}))
    load = functools.partial(interop.load_checkpoint, path=tmp_path / "w")
    with pytest.raises(ValueError, match="the file has model_channels=8; got 16"):
        load("edm/song_unet", model_channels=16)
    with pytest.raises(ValueError, match="score_sde/ncsnpp: the file holds EDMPrecond, SongUNet"):
        load(NCSNPP, **VE)
    with pytest.raises(ValueError, match="the file has no raw weights, only averaged ones"):
        load("edm/song_unet", averaged=False)


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        (NCSNPP, {"fir": True}, "ncsnpp has fir=False; the config has True"),
        ("score_sde/ddpm", {}, "ddpm has resblock_type='ddpm'; the config has 'biggan'"),
        (
            "score_sde/ddpm",
            {"resblock_type": "ddpm", "skip_rescale": False},
            "32 groups .* 8 where",
        ),
    ],
)
def test_a_network_that_the_architecture_is_not_is_named(architecture, change, message):
    hyper = VE | {"nf": 32, "embedding_type": "positional", "progressive_input": "none"}
    options = {k: v for k, v in hyper.items() if k in NCSNpp.__dataclass_fields__}
    options |= {"ch_mult": (1, 2), "attn_resolutions": (4,), "fir": False}
    with pytest.raises(ValueError, match=message):
        published.require_same_network(
            architecture,
            build(architecture, hyper | {"fir": False}),
            NCSNpp(**options | change),
        )
