# SPDX-License-Identifier: Apache-2.0
"""Published files: each layout is read as it was written, and nothing in a bad one is executed.

Files are written opcode by opcode (tests/published_files.py); where PyTorch is there, it writes the
same ones. A bad file is one line, takes no more memory than a few times its size, and touches
nothing.
"""

import pickle
import sys
import tracemalloc
import types

import numpy as np
import pytest
from flax.serialization import msgpack_serialize

from scorejax import interop
from scorejax.interop.readers import inert_pickle
from tests.bad_checkpoints import (
    AVERAGED,
    BAD_FILES,
    CHECKPOINT,
    FLAX,
    GOOD_FILES,
    MODEL,
    SHADOW,
    SYSTEM,
    opcodes,
)
from tests.published_files import (
    Call,
    Name,
    Opcodes,
    Stored,
    Writer,
    legacy_file,
    module_state,
    persistent_object,
    plain_pickle,
    safetensors,
    torch_zip,
)


def read(tmp_path, data: bytes):
    path = tmp_path / "weights"
    path.write_bytes(data)
    return interop.read_checkpoint(path)


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("write", [torch_zip, legacy_file, plain_pickle])
def test_a_score_sde_checkpoint_is_read_with_both_weights(tmp_path, write):
    found = read(tmp_path, write(CHECKPOINT))
    assert_same(found.weights(averaged=False), MODEL)
    assert_same(found.weights(), AVERAGED)
    assert (found.layout, found.step, found.settings) == ("torch", 1234, {})


def test_an_ncsnv2_checkpoint_is_read_with_both_weights(tmp_path):
    raw = {f"module.{name}": Stored(array) for name, array in MODEL.items()}
    averaged = {name: Stored(array) for name, array in AVERAGED.items() if name != "sigmas"}
    found = read(tmp_path, torch_zip([raw, {"state": {}}, 7, 99, averaged]))
    assert_same(found.raw, MODEL)
    assert {name: a.tolist() for name, a in found.averaged.items()} == {
        name: a.tolist() for name, a in AVERAGED.items()
    }
    assert found.step == 99


@pytest.mark.parametrize("write", [torch_zip, safetensors])
def test_a_bare_state_dictionary_has_raw_weights_only(tmp_path, write):
    stored = MODEL if write is safetensors else {k: Stored(a) for k, a in MODEL.items()}
    found = read(tmp_path, write({f"module.{name}": value for name, value in stored.items()}))
    assert_same(found.raw, MODEL)
    with pytest.raises(ValueError, match="no averaged weights, only raw ones"):
        found.weights()


def test_an_edm_pickle_gives_its_network_and_settings_without_its_code(tmp_path):
    canary = tmp_path / "canary"
    source = f"import pathlib; pathlib.Path({str(canary)!r}).touch()"
    layer = {"weight": Stored(SHADOW[0]), "bias": Stored(SHADOW[1])}
    layers = {"conv": persistent_object("Linear", module_state(layer), source)}
    inner = module_state({}, {"enc": Call("torch.nn.modules.container.ModuleDict")})
    inner["_modules"]["enc"] = persistent_object("ModuleDict", module_state({}, layers), source)
    inner["_init_kwargs"] = {"model_channels": 8, "channel_mult": [1, 2]}
    model = persistent_object("SongUNet", inner, source)
    outer = module_state({}, {"model": model}, model_type="SongUNet", img_resolution=8)
    loss = persistent_object("EDMLoss", {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5}, source)
    file = {"ema": persistent_object("EDMPrecond", outer, source), "loss_fn": loss}
    found = read(tmp_path, plain_pickle(file | {"dataset_kwargs": {"path": "x.zip"}}))
    assert_same(found.averaged, {"enc.conv.weight": SHADOW[0], "enc.conv.bias": SHADOW[1]})
    assert found.settings["SongUNet"] == {"model_channels": 8, "channel_mult": [1, 2]}
    assert found.settings["EDMPrecond"]["img_resolution"] == 8
    assert found.raw is None and not canary.exists()


def test_a_flax_checkpoint_is_read_with_both_weights(tmp_path):
    found = read(tmp_path, msgpack_serialize(FLAX))
    names = {"Dense_0/kernel": SHADOW[0], "Dense_0/bias": SHADOW[1], "NIN_0/W": SHADOW[0]}
    for weights in (found.raw, found.averaged):
        assert_same({name: weights[name] for name in names}, names)
        assert len(weights) == len(names)
    assert (found.layout, found.step) == ("flax", 5)


def test_bfloat16_and_strides_are_read_as_pytorch_shows_them(tmp_path):
    torch = pytest.importorskip("torch")
    values = torch.randn(4, 6, generator=torch.manual_seed(0))
    state = {
        "bfloat16": values.bfloat16(), "transposed": values.T, "part": values[1:3, ::2],
        "half": values.half(), "whole": torch.arange(5), "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(values),
    }  # fmt: skip
    for zipped in (True, False):
        torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        found = interop.read_checkpoint(tmp_path / "w.pth").raw
        for name, tensor in state.items():
            expected = tensor.detach().float() if name == "bfloat16" else tensor.detach()
            np.testing.assert_array_equal(found[name], expected.numpy())


def test_pytorch_writes_what_we_read(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Module()
    for name, array in MODEL.items():
        module.register_buffer(name.replace(".", "_"), torch.tensor(array))
    weights = [torch.nn.Parameter(torch.tensor(array)) for array in SHADOW]
    optimizer = torch.optim.Adam(weights)
    sum((w**2).sum() for w in weights).backward()
    optimizer.step()
    model = module.state_dict()  # with its hidden _metadata
    for name in MODEL:
        model[f"module.{name}"] = model.pop(name.replace(".", "_"))
    shadow = {"decay": 0.999, "num_updates": 1, "shadow_params": [*map(torch.tensor, SHADOW)]}
    saved = {"optimizer": optimizer.state_dict(), "model": model, "ema": shadow, "step": 7}
    for zipped in (True, False):
        torch.save(saved, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        found = interop.read_checkpoint(tmp_path / "w.pth")
        assert_same(found.raw, MODEL)
        assert_same(found.averaged, AVERAGED)
        assert found.step == 7


def test_python_pickles_what_we_read_of_edm(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    persistence = types.ModuleType("torch_utils.persistence")
    persistence._reconstruct_persistent_obj = lambda meta: meta
    persistence._reconstruct_persistent_obj.__module__ = persistence.__name__
    persistence._reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, persistence.__name__, persistence)

    class Persistent(torch.nn.Module):
        def __reduce__(self):
            meta = {"type": "class", "version": 6, "module_src": "raise SystemExit"}
            meta |= {"class_name": type(self).__name__, "state": self.__dict__}
            return persistence._reconstruct_persistent_obj, (meta,), None

    class SongUNet(Persistent):
        def __init__(self):
            super().__init__()
            self._init_kwargs = {"model_channels": 8}
            self.enc = torch.nn.ModuleDict({"8x8": Persistent()})
            self.enc["8x8"].weight = torch.nn.Parameter(torch.tensor(SHADOW[0]))
            self.register_buffer("taps", torch.tensor(SHADOW[1]))

    net = Persistent()
    net.model = SongUNet().requires_grad_(False)
    expected = {name[6:]: tensor.numpy() for name, tensor in net.state_dict().items()}
    for protocol in (3, 4, 5):
        data = pickle.dumps({"ema": net, "loss_fn": None}, protocol=protocol)
        found = read(tmp_path, data)
        assert_same(found.averaged, expected)
        assert found.settings == {"SongUNet": {"model_channels": 8}}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_line_and_nothing_in_it_is_executed(tmp_path, monkeypatch, name):
    data, words = BAD_FILES[name]
    path = tmp_path / "weights"
    path.write_bytes(data)
    monkeypatch.chdir(tmp_path)  # where the canary would be made
    tracemalloc.start()
    with pytest.raises(ValueError) as raised:
        interop.read_checkpoint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    message = str(raised.value)
    assert message.startswith(f"{path}: ") and words in message, message
    assert len(message) < len(str(path)) + 400 and "\n" not in message
    assert set(tmp_path.iterdir()) == {path}
    # The pieces of a pickle are Python objects: a byte can make one of 100 bytes, and their errors
    # are kept with their frames.
    assert peak < 4 * 2**20 + 130 * len(data), f"{peak} bytes for a file of {len(data)}"


def test_the_canary_is_made_by_those_who_trust_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(Writer().pickle(SYSTEM))
    assert (tmp_path / "canary").exists()


def test_a_pickle_of_too_many_operations_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(inert_pickle, "MAX_OPERATIONS", 1000)
    with pytest.raises(ValueError, match="more than 1000 operations"):
        read(tmp_path, opcodes(b"N0" * 600 + b"}"))


def test_the_same_storage_is_not_read_again_and_again(tmp_path):
    # 10^4 tensors of one pickled storage of 40 kB: each to be read anew, that would be 400 MB.
    data = legacy_file(Opcodes(Writer().opcodes(
        ("storage", Name("torch.FloatStorage"), "0", "cpu", 10_000, None)) + b"Q"
    ), [np.zeros(10_000, "f4")])  # fmt: skip
    first = Writer().opcodes(data) + b"q\x000"
    again = Opcodes(b"ctorch.storage\n_load_from_bytes\nh\x00\x85R")
    path = tmp_path / "weights"
    path.write_bytes(b"\x80\x02" + first + b"](" + again * 10_000 + b"e.")
    tracemalloc.start()
    with pytest.raises(ValueError, match="a list where a checkpoint holds"):
        interop.read_checkpoint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * path.stat().st_size


@pytest.mark.parametrize("name", GOOD_FILES)
def test_whatever_happens_to_a_file_is_told_in_one_line(tmp_path, name):
    rng, data = np.random.default_rng(1), GOOD_FILES[name]
    for place in rng.integers(0, len(data), 60):
        damaged = bytearray(data)
        damaged[place] = rng.integers(256)
        for spoilt in (bytes(damaged), data[:place]):
            try:
                read(tmp_path, spoilt)
            except ValueError as error:
                assert "\n" not in str(error)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file of weights at .*/none.pth"):
        interop.read_checkpoint(tmp_path / "none.pth")
