# SPDX-License-Identifier: Apache-2.0
"""What do passes of BiO-Net cost in training and in inference, compared with PyTorch?

    python -m benchmarks.bionet [--networks nuclei tissue] [--passes 1 2 3] [--rounds=9]
                                [--measures training inference memory]

One update (cross-entropy, Adam, a falling rate) and the logits of a batch, by us and by a PyTorch
twin with the same weights: eager, eager with channels-last memory, and torch.compile. "nuclei" is
the network and the pieces of configs/bionet/nuclei.py, "tissue" the published network at half of
its widths on pieces of 128 x 128. Before anything is timed both have to give the same logits, and
the same loss in training. Both sides use two threads; turns alternate in one process, see
`benchmarks/timing.py`.

Memory is what the forward pass leaves to the backward pass, with the passes of the network
recomputed and without, for two pieces of 512 x 512 by the published network (batch and sizes of its
training script). JAX counts it, and nothing of it is computed: see `benchmarks/residuals.py`.

On a CPU: see docs/speed.md; memory in docs/papers/bionet.md.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

from benchmarks import timing  # first: it sets what JAX and PyTorch read as they start

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.bionet_quality import first_state, make_step, with_network
from benchmarks.residuals import residual_bytes
from benchmarks.torch_bionet import TorchBiONet
from benchmarks.torch_bionet import make_step as torch_step
from benchmarks.torch_twin import require_same
from configs.bionet import nuclei
from scorejax import interop
from scorejax.data.nuclei import nuclei as drawn_nuclei
from scorejax.models.bionet import BiONet, torch_bionet

OURS = "scorejax"
LAYOUTS = {
    "PyTorch eager": torch.contiguous_format,
    "PyTorch channels-last": torch.channels_last,
    "torch.compile": torch.contiguous_format,
}
MIB = 2**20
Turn = Callable[[], object]


class Size(NamedTuple):
    """A network and the pieces that it sees."""

    multiplier: float
    num_levels: int
    side: int
    batch_size: int

    def network(self, num_passes: int, **options) -> BiONet:
        shape = {"multiplier": self.multiplier, "num_levels": self.num_levels}
        return torch_bionet(num_passes=num_passes, **shape, **options)

    def config(self):
        """That of the drawn nuclei, for the loss and the optimiser, with these pieces."""
        config = nuclei.get_config()
        config.side = self.side
        return config


SIZES = {"nuclei": Size(0.25, 3, 64, 8), "tissue": Size(0.5, 4, 128, 2)}
PUBLISHED = Size(1.0, 4, 512, 2)


class Pair(NamedTuple):
    """A network with its variables, the weights of its twin, and a batch."""

    size: Size
    model: BiONet
    variables: dict
    weights: dict[str, torch.Tensor]
    image: np.ndarray
    mask: np.ndarray

    def twin(self) -> TorchBiONet:
        network = TorchBiONet(self.model.widths, self.model.num_passes)
        network.load_state_dict(self.weights)
        return network


def make_pair(size: Size, num_passes: int) -> Pair:
    """Drawn weights, and running statistics that are those of the batch.

    Raises: AssertionError unless the twin computes the same.
    """
    model = size.network(num_passes)
    images, instances = drawn_nuclei(size.batch_size, size.side, seed=0)
    image = images / np.float32(255)
    mask = (instances > 0)[..., None].astype(np.float32)
    at_once = model.clone(dialect=model.dialect._replace(momentum=1.0))
    init = lambda x: model.init(jax.random.key(0), x)
    settle = lambda v, x: at_once.apply(v, x, train=True, mutable=["batch_stats"])[1]
    variables = jax.jit(lambda x: (v := init(x)) | settle(v, x))(image)
    hyper = {"iterations": num_passes, "num_layers": size.num_levels}
    exported = interop.export_torch("bionet/bionet", variables, **hyper)
    weights = {name: torch.from_numpy(np.array(value)) for name, value in exported.items()}
    pair = Pair(size, model, variables, weights, image, mask)
    require_same_in_double(pair)
    return pair


def require_same_in_double(pair: Pair) -> None:
    """Raises AssertionError unless both give the same logits, in evaluation and in training.

    In double precision: each layer divides by a standard deviation, and so enlarges what was
    rounded before; in float32 a few pixels are off by a thousandth.
    """
    x = as_torch(pair.image, torch.contiguous_format).double()
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda a: jnp.asarray(a, jnp.promote_types(a.dtype, "f8")),
                                 jax.device_get(pair.variables))  # fmt: skip
        for train in (False, True):
            run = jax.jit(lambda v, x, train=train: pair.model.apply(v, x, train))
            with torch.inference_mode():
                theirs = pair.twin().double().train(train)(x).permute(0, 2, 3, 1)
            ours = run(variables, pair.image.astype(np.float64))
            require_same(ours, theirs, tolerance=1e-6)


def as_torch(images: np.ndarray, layout: torch.memory_format) -> torch.Tensor:
    """Images (b, h, w, c) as (b, c, h, w)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=layout)


def training_turns(pair: Pair) -> dict[str, Turn]:
    """An update of each contender, which returns the loss before it."""
    config = pair.size.config()
    batch = {"image": jnp.asarray(pair.image), "mask": jnp.asarray(pair.mask)}
    step = jax.jit(make_step(config, pair.model), donate_argnums=0)
    params, statistics = pair.variables["params"], pair.variables["batch_stats"]
    state = first_state(config, pair.model).replace(
        params=jax.tree.map(jnp.copy, params),
        ema_params=jax.tree.map(jnp.copy, params),
        model_state={"batch_stats": jax.tree.map(jnp.copy, statistics)},
    )
    held = [state]

    def ours() -> jax.Array:
        held[0], metrics = step(held[0], batch, jax.random.key(0))
        return jax.block_until_ready((held[0], metrics))[1]["loss"]

    turns: dict[str, Turn] = {OURS: ours}
    for name, layout in LAYOUTS.items():
        network = pair.twin().to(memory_format=layout)
        network = torch.compile(network) if name == "torch.compile" else network
        options = {"learning_rate": config.learning_rate, "decay": config.learning_rate_decay}
        update = torch_step(network, **options)
        given = as_torch(pair.image, layout), as_torch(pair.mask, layout)
        turns[name] = lambda update=update, given=given: update(*given)
    return turns


def inference_turns(pair: Pair) -> dict[str, Turn]:
    """The logits of the batch by each contender."""
    apply = jax.jit(pair.model.apply)
    image = jnp.asarray(pair.image)
    turns: dict[str, Turn] = {OURS: lambda: jax.block_until_ready(apply(pair.variables, image))}
    for name, layout in LAYOUTS.items():
        network = pair.twin().to(memory_format=layout).eval().requires_grad_(False)
        network = torch.compile(network) if name == "torch.compile" else network
        given = as_torch(pair.image, layout)
        turns[name] = torch.inference_mode()(lambda network=network, x=given: network(x))
    return turns


MEASURES = {"training": training_turns, "inference": inference_turns}


def measure(name: str, what: str, num_passes: int, rounds: int) -> None:
    """Prints a table of one network. First calls compile, and agree on the loss in training."""
    pair = make_pair(SIZES[name], num_passes)
    turns = MEASURES[what](pair)
    answers, notes = {}, {}
    for label, turn in turns.items():
        taken = timing.seconds(lambda label=label, turn=turn: answers.update({label: turn()}))
        notes[label] = f"first call {taken:.0f} s"
    if what == "training":
        # In float32, after three passes, PyTorch's own layouts differ by a thousandth and a half.
        losses = [float(answer) for answer in answers.values()]
        np.testing.assert_allclose(losses, losses[0], rtol=5e-3)
    times = timing.compare(turns, rounds=rounds, calls=3)
    title = f"{what}, {name} network, t = {num_passes}: {pair.image.shape}, seconds"
    timing.report(title, times, notes, [OURS])


def report_memory(passes: list[int]) -> None:
    """Prints what is kept for the backward pass, by passes of the network and recomputation."""
    config = PUBLISHED.config()
    shape = (PUBLISHED.batch_size, PUBLISHED.side, PUBLISHED.side)
    batch = {
        name: jax.ShapeDtypeStruct((*shape, channels), jnp.float32)
        for name, channels in (("image", 3), ("mask", 1))
    }
    print("\nMiB between forward and backward pass, published network, two pieces of 512 x 512")
    print("passes      kept  recomputed")
    for num_passes in passes:
        kept = []
        for remat in (False, True):
            model = PUBLISHED.network(num_passes, remat=remat)
            state = jax.eval_shape(lambda model=model: first_state(config, model))
            loss = with_network(config, model).loss
            kept.append(residual_bytes(loss, state, batch, jax.random.key(0)) / MIB)
        print(f"{num_passes:6}  {kept[0]:8.0f}  {kept[1]:10.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=SIZES, default=list(SIZES))
    kinds = [*MEASURES, "memory"]
    parser.add_argument("--measures", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--passes", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if "memory" in options.measures:
        report_memory(options.passes)
    for name in options.networks:
        for what in (what for what in MEASURES if what in options.measures):
            for num_passes in options.passes:
                measure(name, what, num_passes, options.rounds)


if __name__ == "__main__":
    main()
