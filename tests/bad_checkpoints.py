# SPDX-License-Identifier: Apache-2.0
"""Checkpoints, good ones and a table of those that are hostile, damaged or of another kind."""

import io
import struct
import zipfile

import msgpack
import numpy as np
from flax.serialization import msgpack_serialize

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
    score_sde_checkpoint,
    torch_zip,
)

RNG = np.random.default_rng(0)
MODEL = {
    "sigmas": np.linspace(50, 0.01, 10),
    "all_modules.0.W": RNG.normal(size=4).astype("f4"),
    "all_modules.1.weight": RNG.normal(size=(8, 4)).astype("f4"),
    "all_modules.1.bias": RNG.normal(size=8).astype("f4"),
}
SHADOW = [MODEL["all_modules.1.weight"] + 1, MODEL["all_modules.1.bias"] + 1]
AVERAGED = MODEL | dict(zip(list(MODEL)[2:], SHADOW, strict=True))
CHECKPOINT = score_sde_checkpoint(MODEL, SHADOW)
TREE = {"Dense_0": {"kernel": SHADOW[0], "bias": SHADOW[1]}, "NIN_0": {"W": SHADOW[0]}}
FLAX = {
    "step": np.int32(5), "lr": 2e-4, "model_state": {}, "params_ema": TREE, "ema_rate": 0.999,
    "optimizer": {"target": TREE, "state": {"step": 5, "param_states": {}}},
    "rng": np.zeros(2, "u4"),
}  # fmt: skip

HUGE = 10 * 2**30
SCALAR = "numpy.core.multiarray.scalar"
SYSTEM = Call("posix.system", "touch canary")
SHELL = "which no checkpoint needs"


def within(**changes):
    return CHECKPOINT | changes


def opcodes(data: bytes) -> bytes:
    return torch_zip(Opcodes(data))


def hostile_tensor(place):
    zeros = (0, (1,), (1,), False, Call("collections.OrderedDict"))
    arguments = [Opcodes(Writer().opcodes(("storage", Name("torch.FloatStorage"), "0", "cpu", 1))
                         + b"Q"), *zeros]  # fmt: skip
    arguments[place] = SYSTEM
    return within(model={"module.w": Call("torch._utils._rebuild_tensor_v2", *arguments)})


def identifier(*parts):
    return torch_zip({"w": Opcodes(Writer().opcodes(parts) + b"Q")})


def compressed():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", Writer().pickle({}) + bytes(50 * 2**20))
    return file.getvalue()


def claiming(size):
    """A zip file whose directory says that a member has this many bytes."""
    data, directory = torch_zip(CHECKPOINT), b"PK\x01\x02"
    start = data.index(directory, data.index(directory) + 1)
    return data[: start + 20] + struct.pack("<II", size, size) + data[start + 28 :]


def flipped(data, marker):
    place = data.index(marker) + 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def packed_array(shape, dtype):
    array = msgpack.ExtType(1, msgpack.packb((shape, dtype, b"12345678")))
    return msgpack.packb({"a layer of a network": {"its kernel": array}})


def self_containing():
    # Memo 0 is the table of modules; it gets the module itself as an entry.
    state = module_state({}, {"x": None})
    state["_modules"] = Opcodes(b"}q\x00")
    writer = Writer()
    module = writer.opcodes(persistent_object("A", state)) + b"q\x01"
    return b"\x80\x02}X\x03\0\0\0ema" + module + b"h\x00X\x01\0\0\0mh\x01s0s."


LONG_HEADER = struct.pack("<Q", HUGE) + b"{" + bytes(100)
ZIP, LEGACY = torch_zip(CHECKPOINT), legacy_file(CHECKPOINT)
F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_FILES = {
    # Something to be called, in every slot of a pickle.
    "system": (torch_zip(SYSTEM), "posix.system"),
    "system in a plain pickle": (plain_pickle({"ema": SYSTEM}), "posix.system"),
    "system in a legacy file": (legacy_file(SYSTEM), "posix.system"),
    "system in an embedded storage": (
        plain_pickle(Call("torch.storage._load_from_bytes", legacy_file(SYSTEM))), "posix.system",
    ),
    "system as the model": (torch_zip(within(model=SYSTEM)), "posix.system"),
    "system as a weight": (torch_zip(within(model={"module.w": SYSTEM})), "posix.system"),
    "system as a key": (opcodes(b"}" + Writer().opcodes(SYSTEM) + b"Ns"), "posix.system"),
    "system as the average": (torch_zip(within(ema={"shadow_params": [SYSTEM]})), "posix.system"),
    "system as the optimiser": (torch_zip(within(optimizer=[(SYSTEM,)])), "posix.system"),
    "system as the step": (torch_zip(within(step=SYSTEM)), "posix.system"),
    "system as a storage": (torch_zip(hostile_tensor(0)), "posix.system"),
    "system as an offset": (torch_zip(hostile_tensor(1)), "posix.system"),
    "system as a shape": (torch_zip(hostile_tensor(2)), "posix.system"),
    "system as hooks": (torch_zip(hostile_tensor(5)), "posix.system"),
    "system in an identifier": (identifier("storage", SYSTEM, "0", "cpu", 1), "posix.system"),
    "system as a state": (
        opcodes(b"ccollections\nOrderedDict\n)R" + Writer().opcodes(SYSTEM) + b"b"),
        "posix.system",
    ),
    "eval": (torch_zip(Call("builtins.eval", "open('canary', 'w')")), "builtins.eval"),
    "getattr": (torch_zip(Call("builtins.getattr", Name("os.path"), "os")), "builtins.getattr"),
    "a name with dots": (
        opcodes(b"X\x0b\0\0\0collectionsX\x10\0\0\0OrderedDict.copy\x93)R"), "OrderedDict.copy",
    ),
    "a class as a function": (
        plain_pickle({"ema": Call("torch.nn.modules.container", 1)}), "torch.nn.modules.container",
    ),
    "Popen by NEWOBJ": (opcodes(b"csubprocess\nPopen\n(X\x02\0\0\0lst\x81"), "subprocess.Popen"),
    "system by INST": (opcodes(b"(X\x02\0\0\0lsiposix\nsystem\n"), "INST"),
    "system by OBJ": (opcodes(b"(cposix\nsystem\nX\x02\0\0\0lso"), "OBJ"),
    "an extension": (opcodes(b"\x82\x01"), "EXT1"),
    "a call of no name": (opcodes(b"X\x06\0\0\0systemX\x02\0\0\0ls\x85R"), "in place of Global"),
    "a state for a name": (opcodes(b"cposix\nsystem\n}b"), "Global in place of dict"),
    "an object of torch": (torch_zip({"w": Call("torch.jit.load", "x")}), "torch.jit.load"),
    "objects in an array": (
        torch_zip({"w": Call(SCALAR, Call("numpy.dtype", "O8"), b"12345678")}), "NumPy array",
    ),
    # Sizes that cannot be.
    "10 GB of bytes": (b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + bytes(40), str(HUGE)),
    "10 GB of bytearray": (b"\x80\x05\x96" + struct.pack("<Q", HUGE) + bytes(40), str(HUGE)),
    "10 GB of text": (b"\x80\x04\x8d" + struct.pack("<Q", HUGE) + bytes(40), str(HUGE)),
    "a frame of 10 GB": (b"\x80\x04\x95" + struct.pack("<Q", HUGE) + bytes(40), "unknown"),
    "a memo of 4 billion": (
        torch_zip(Opcodes(b"}r\xff\xff\xff\xff")), "no tensors in it",
    ),
    "a compressed zip": (compressed(), "compressed"),
    "a member of 4 GB": (claiming(2**32 - 2), "larger than the file"),
    "a storage of 10^12": (torch_zip({"w": Stored(MODEL["sigmas"], num=10**12)}), "80 bytes where"),
    "a legacy storage of 10^12": (
        legacy_file({"w": Stored(MODEL["sigmas"], num=10**12)}), "storage 0 is not whole",
    ),
    "a stride of 0": (
        torch_zip({"w": Stored(SHADOW[1], shape=(10**6, 10**6), strides=(0, 0))}),
        "in a storage of 8 numbers",
    ),
    "a view beyond its storage": (
        torch_zip({"w": Stored(SHADOW[1], shape=(8,), strides=(2,))}), "in a storage of 8 numbers",
    ),
    "a negative shape": (torch_zip({"w": Stored(SHADOW[1], shape=(-8,))}), "impossible shape"),
    "a negative stride": (torch_zip({"w": Stored(SHADOW[1], strides=(-1,))}), "impossible shape"),
    "a long shape": (torch_zip({"w": Stored(SHADOW[1], shape=(1,) * 999)}), "other strides"),
    "a header of 10 GB": (LONG_HEADER, f"a header of {HUGE} bytes"),
    "a tensor of 10 GB": (
        safetensors({}, w=F32 | {"shape": [HUGE // 4], "data_offsets": [0, HUGE]}), "truncated",
    ),
    "one tensor many times": (
        safetensors({"v": SHADOW[1]}, w=F32 | {"shape": [8], "data_offsets": [0, 32]}), "outside",
    ),
    "a negative offset": (
        safetensors({"v": SHADOW[1]}, w=F32 | {"data_offsets": [-8, 0]}), "impossible header",
    ),
    "a shape of another size": (
        safetensors({"v": SHADOW[1]} , v=F32 | {"shape": [3]}), "8 bytes where 3 numbers",
    ),
    "an unknown type": (safetensors({}, w=F32 | {"dtype": "PY"}), "impossible header"),
    "no JSON": (struct.pack("<Q", 40) + b"{" + bytes(60), "not JSON"),
    "deep JSON": (struct.pack("<Q", 100_009) + b'{"w":[' + b"[" * 100_003 + bytes(9), "not JSON"),
    "an array of 4 billion": (b"\x81\xa1a\xdd\xff\xff\xff\xff" + bytes(40), "msgpack"),
    "a map of 4 billion": (b"\xdf\xff\xff\xff\xff" + bytes(40), "msgpack"),
    "binary of 4 GB": (b"\x81\xa1a\xc6\xff\xff\xff\xff" + bytes(40), "msgpack"),
    "deep msgpack": (b"\x81\xa1a" * 900 + b"\xc0", "not an array"),
    "msgpack of objects": (
        packed_array((1,), "object"), "type object",
    ),
    "msgpack of another size": (
        packed_array((9,), "float32"), "8 bytes where 9 numbers",
    ),
    "msgpack of text": (msgpack.packb({"w": "all the weights in the world, they say"}), "str"),
    # Structures without end.
    "a module in itself": (self_containing(), "there twice"),
    "a key of nested tuples": (opcodes(b"})" + b"\x85" * 50_000 + b"Ns"), "a key of type tuple"),
    "nested tuples": (opcodes(b")" + b"\x85" * 50_000), "a tuple where a checkpoint"),
    "nothing on the stack": (opcodes(b"0"), "damaged pickle"),
    "a memo that is not there": (opcodes(b"h\x07"), "damaged pickle"),
    "an odd mapping": (opcodes(b"}(Nu"), "a key without a value"),
    # Truncated, damaged, of another kind.
    "half a zip": (ZIP[: len(ZIP) // 2], "truncated or damaged zip"),
    "a zip without its end": (ZIP[:-10], "truncated or damaged zip"),
    "a flipped bit": (flipped(ZIP, MODEL["all_modules.1.bias"].tobytes()), "CRC"),
    "no data.pkl": (torch_zip({}).replace(b"data.pkl", b"data.pkx"), "0 members data.pkl"),
    "two data.pkl": (torch_zip(CHECKPOINT, **{"b/data.pkl": b""}), "2 members data.pkl"),
    "half a legacy file": (LEGACY[: len(LEGACY) // 2], "truncated or damaged pickle"),
    "a legacy file cut short": (LEGACY[:-3], "is not whole"),
    "half of msgpack": (msgpack_serialize(FLAX)[:-30], "truncated or damaged msgpack"),
    "half of safetensors": (safetensors(MODEL)[:-30], "may be truncated"),
    "an empty file": (b"", "too short"),
    "a letter": (b"Dear reader, these are no weights at all.", "not a checkpoint of a known kind"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "or of another kind"),
    # What a checkpoint cannot have.
    "a list of numbers": (torch_zip([1, 2, 3]), "a list where a checkpoint holds a mapping"),
    "no tensors": (torch_zip({}), "no tensors in it"),
    "text for a tensor": (torch_zip({"w": "heavy"}), "w is a str, not a tensor"),
    "a number for a name": (torch_zip({3: Stored(SHADOW[0])}), "whose name is 3"),
    "a name twice": (
        torch_zip({"w": Stored(SHADOW[0]), "module.w": Stored(SHADOW[0])}), "with the name w",
    ),
    "no average": (torch_zip(within(ema=3)), "no list shadow_params"),
    "a short average": (
        torch_zip(score_sde_checkpoint(MODEL, SHADOW[:1])), "1 averaged tensors for 2 parameters",
    ),
    "a misshapen average": (
        torch_zip(score_sde_checkpoint(MODEL, SHADOW[::-1])),
        "2 averaged tensors are misshapen, first all_modules.1.weight (8,) for (8, 4)",
    ),
    "a step of text": (torch_zip(within(step="many")), "its step is many"),
    "an endless step": (torch_zip(within(step=float("inf"))), "its step is inf"),
}  # fmt: skip
GOOD_FILES = {
    "zip": ZIP, "legacy": LEGACY, "pickle": plain_pickle(CHECKPOINT),
    "safetensors": safetensors(MODEL), "msgpack": msgpack_serialize(FLAX),
}  # fmt: skip
