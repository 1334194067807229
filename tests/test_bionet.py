# SPDX-License-Identifier: Apache-2.0
"""BiO-Net against an unrolled NumPy network, and what follows from its passes sharing weights."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from scorejax import interop
from scorejax.data.nuclei import nuclei
from scorejax.interop.networks import bionet as bionet_weights
from scorejax.models import bionet
from scorejax.models.bionet import BiONet, Unit, keras_bionet, torch_bionet
from scorejax.models.convolution import Window, conv, conv_spread
from tests.bionet_reference import PlainUNet, Reference, spread
from tests.bionet_state import BIONET, LEVELS, MULTIPLIER, hyper, random_state
from tests.published_files import Stored, torch_zip
from tests.random_variables import random_variables
from tests.trees import assert_equal

WIDTHS = {"multiplier": MULTIPLIER, "num_levels": LEVELS}
ALL_THE_OTHERS = ((1, False), (1, True), (2, False), (3, False), (3, True))
X = np.random.default_rng(0).normal(size=(3, 16, 8, 3))


def load(num_passes, integrate=False):
    return interop.load_torch(
        BIONET, random_state(num_passes, integrate), **hyper(num_passes, integrate)
    )


@pytest.mark.parametrize(
    ("num_passes", "integrate", "fed"),
    [
        (2, True, None),
        pytest.param(3, False, (1,), marks=pytest.mark.deep),
        *(pytest.param(*case, None, marks=pytest.mark.slow) for case in ALL_THE_OTHERS),
    ],
)
@pytest.mark.deep
def test_it_is_the_unrolled_network(x64, num_passes, integrate, fed):
    # In double precision; three passes of batch normalisation amplify rounding: 1e-8 is plenty.
    net, variables = load(num_passes, integrate)
    net = net.clone(backward_levels=fed)
    state = random_state(num_passes, integrate)
    options = {"integrate": integrate, "fed": fed}
    evaluated = Reference(state, LEVELS, num_passes, **options).forward(X)
    training = Reference(state, LEVELS, num_passes, train=True, **options)
    trained = training.forward(X)

    @jax.jit
    def both(variables, x):
        return net.apply(variables, x), net.apply(variables, x, train=True, mutable=["batch_stats"])

    in_evaluation, (in_training, after) = both(variables, X)
    np.testing.assert_allclose(in_evaluation, evaluated, atol=1e-8 * np.abs(evaluated).max())
    np.testing.assert_allclose(in_training, trained, atol=1e-8 * np.abs(trained).max())
    exported = interop.export_torch(BIONET, {**variables, **after}, **hyper(num_passes, integrate))
    for key, value in training.stats.items():
        np.testing.assert_allclose(exported[key], value, rtol=1e-8, atol=1e-10)
    passes = lambda key: num_passes if key.startswith("middles") else 1
    for key in state:
        if key.endswith("num_batches_tracked"):
            assert exported[key] == 7 + passes(key)


def test_one_pass_is_a_u_net_whose_first_kernels_are_the_sums_of_their_halves():
    # Single precision against double: rounding over 20 layers.
    net, variables = load(1)
    expected = PlainUNet(random_state(1), LEVELS, 1).forward(X)
    found = jax.jit(net.apply)(variables, jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_passes_add_normalisations_and_no_convolution():
    image, shapes = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32"), []
    for num_passes in (1, 2, 3):
        net = torch_bionet(num_passes=num_passes, **WIDTHS)
        params = jax.eval_shape(net.init, jax.random.key(0), image)["params"]
        shapes.append({k: leaf.shape for k, leaf in flatten_dict(params, sep="/").items()})
    of_convolutions = [{k: s for k, s in one.items() if "norm" not in k} for one in shapes]
    assert of_convolutions[0] == of_convolutions[1] == of_convolutions[2]
    # Each of five units of a level has a scale and a bias; that which goes down has its features.
    widths = net.widths
    per_pass = sum(2 * (5 * width + below) for width, below in itertools.pairwise(widths))
    sizes = [sum(map(math.prod, one.values())) for one in shapes]
    assert np.diff(sizes).tolist() == [per_pass, per_pass]


@pytest.mark.deep
def test_without_levels_to_go_back_to_every_pass_is_the_first_but_for_its_norms(x64):
    net, variables = load(2)
    alone = net.clone(backward_levels=())
    flat = flatten_dict(variables, sep="/")
    same = {path: flat[path.replace("norm_1", "norm_0")] for path in flat}
    outputs = alone.apply(unflatten_dict(same, sep="/"), X, method="decoded")
    np.testing.assert_array_equal(*outputs)
    outputs = net.apply(unflatten_dict(same, sep="/"), X, method="decoded")
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


@pytest.fixture(scope="module")
def two_passes():
    """A network of two passes, its variables, and what each of them decodes."""
    net, variables = load(2)
    x = jnp.asarray(X, jnp.float32)
    decode = jax.jit(lambda variables: net.apply(variables, x, method="decoded"))
    return variables, decode


def perturbed(variables, path):
    flat = flatten_dict(variables, sep="/")
    assert path in flat
    return unflatten_dict({**flat, path: flat[path] + 0.1}, sep="/")


def test_a_norm_of_the_second_pass_does_not_touch_the_first(two_passes):
    variables, decode = two_passes
    before = decode(variables)
    for leaf in ("params/encoder_0_0/norm_1/scale", "batch_stats/decoder_1_1/norm_1/mean"):
        after = decode(perturbed(variables, leaf))
        np.testing.assert_array_equal(after[0], before[0])
        assert np.abs(after[1] - before[1]).max() > 1e-3


def test_a_convolution_belongs_to_both_passes(two_passes):
    variables, decode = two_passes
    before, after = decode(variables), decode(perturbed(variables, "params/encoder_1_0/kernel"))
    assert min(np.abs(a - b).max() for a, b in zip(after, before, strict=True)) > 1e-3


@pytest.mark.deep
def test_the_gradient_of_a_shared_kernel_is_the_sum_over_passes(x64):
    # The reference has a kernel for each pass: central differences in each, one after the other.
    net, variables = load(2)
    weight = np.random.default_rng(2).normal(size=(3, 16, 8, 1))
    kernel = variables["params"]["encoder_0_1"]["kernel"]
    direction = np.random.default_rng(3).normal(size=kernel.shape)

    def loss(kernel):
        params = {**variables["params"]}
        params["encoder_0_1"] = {**params["encoder_0_1"], "kernel": kernel}
        logits, _ = net.apply(
            {**variables, "params": params}, X, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(weight * logits)

    found = np.sum(np.asarray(jax.jit(jax.grad(loss))(kernel)) * direction)
    turned, size, total = direction.transpose(3, 2, 0, 1), 1e-6, 0.0
    for number in range(2):
        name, values = f"iteration{number}_layer0_encoder_convs.3.weight", []
        for sign in (1, -1):
            state = dict(random_state(2))
            state[name] = state[name] + sign * size * turned
            reference = Reference(state, LEVELS, 2, train=True)
            values.append(np.sum(weight * reference.forward(X)))
        total += (values[0] - values[1]) / (2 * size)
    # Central differences of size 1e-6 in double precision: errors of 1e-10 / 1e-6.
    np.testing.assert_allclose(found, total, rtol=1e-4)


@pytest.mark.deep
def test_recomputed_passes_have_the_same_gradients_and_statistics():
    # The same operations in another order of memory: rounding, amplified by batch normalisation.
    x = jnp.asarray(X[:, :8], jnp.float32)
    plain = BiONet((4, 8), num_passes=2)
    variables = random_variables(plain, x, seed=0, mean=0.1, std=0.2)
    networks, results = (plain, plain.clone(remat=True)), []

    def loss(params, net):
        bound = {**variables, "params": params}
        logits, after = net.apply(bound, x, train=True, mutable=["batch_stats"])
        return jnp.mean(logits**2), after

    for net in networks:
        gradient = jax.grad(functools.partial(loss, net=net), has_aux=True)
        results.append(jax.jit(gradient)(variables["params"]))
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(results[0][0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * scale), *results)


@pytest.mark.slow  # the gradients of recomputed passes are tested by default
def test_what_the_backward_pass_keeps_does_not_grow_with_recomputed_passes():
    def kept_bytes(num_passes, remat):
        net = torch_bionet(num_passes=num_passes, remat=remat, **WIDTHS)
        x = jax.ShapeDtypeStruct((4, 64, 64, 3), "float32")
        shapes = jax.eval_shape(net.init, jax.random.key(0), x)
        state = {"batch_stats": shapes["batch_stats"]}

        def residuals(params, state, x):
            apply = lambda p: net.apply({"params": p, **state}, x, True, mutable=["batch_stats"])
            return jax.tree.leaves(jax.vjp(apply, params)[1])

        leaves = jax.eval_shape(residuals, shapes["params"], state, x)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if leaf.ndim == 4)

    growth = [kept_bytes(3, remat) / kept_bytes(1, remat) for remat in (False, True)]
    # Of a recomputed pass are kept what it begins with and what it hands on: a tenth of it.
    assert growth[0] > 1.5 and growth[1] < 1 + (growth[0] - 1) / 3


def test_the_up_convolution_adds_what_each_pixel_gives(x64):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(4, 6, 3, 3))
    ours = bionet_weights.TRANSPOSED.tensor(kernel)
    found = conv_spread(jnp.asarray(x), jnp.asarray(ours), bionet.TORCH.up)
    np.testing.assert_allclose(found, spread(x, kernel), atol=1e-12)
    # Keras' transposed convolution is the same, a pixel to the right and down.
    moved = conv_spread(jnp.asarray(x), jnp.asarray(ours), bionet.KERAS.up)
    np.testing.assert_allclose(moved[:, 1:, 1:], found[:, :-1, :-1], atol=1e-12)


@pytest.mark.parametrize("dialect", [bionet.TORCH, bionet.KERAS])
def test_its_gradients_are_those_of_the_convolution_with_zeros_between_pixels(x64, dialect):
    rng = np.random.default_rng(0)
    x, kernel, weight = (
        rng.normal(size=size) for size in ((2, 3, 5, 4), (3, 3, 4, 6), (2, 6, 10, 6))
    )
    ours = lambda x, kernel: conv_spread(x, kernel, dialect.up)
    window = Window(dialect.up, image_dilation=(2, 2))
    for a, b in zip(
        *(jax.vjp(f, x, kernel)[1](weight) for f in (ours, lambda x, k: conv(x, k, window))),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("dialect", [bionet.TORCH, bionet.KERAS])
def test_weights_are_drawn_as_the_dialect_draws_them(dialect):
    # 9 * 64 * 64 weights: their standard deviation has a relative error of 0.4 %.
    unit, x = Unit(64, 1, dialect), jnp.zeros((1, 4, 4, 64))
    params = unit.init(jax.random.key(0), x, 0, False)["params"]
    variance = 2 / (9 * 64) if dialect is bionet.KERAS else 1 / (3 * 9 * 64)
    np.testing.assert_allclose(np.std(params["kernel"]), variance**0.5, rtol=0.02)
    largest = 0 if dialect is bionet.KERAS else (9 * 64) ** -0.5
    assert np.abs(params["bias"]).max() <= largest
    assert np.abs(params["bias"]).max() >= 0.9 * largest


def test_only_keras_has_private_norms_in_the_middle():
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")
    for make, norms in ((torch_bionet, {"norm_0"}), (keras_bionet, {"norm_0", "norm_1"})):
        net = make(num_passes=2, **WIDTHS)
        middle = jax.eval_shape(net.init, jax.random.key(0), image)["params"]["middle_1"]
        assert middle.keys() - {"kernel", "bias"} == norms


def test_images_need_sides_that_can_be_halved():
    variables = random_variables(BiONet((4, 4)), jnp.zeros((1, 4, 4, 3)), seed=0, mean=0.5, std=0.1)
    for shape in ((2, 4, 8, 3), (1, 12, 4, 3)):
        logits = jax.eval_shape(BiONet((4, 4)).apply, variables, jnp.zeros(shape))
        assert logits.shape == (*shape[:3], 1)
    with pytest.raises(ValueError, match="multiples of 4; got 4 x 6"):
        BiONet((4, 4)).apply(variables, jnp.zeros((1, 4, 6, 3)))
    with pytest.raises(ValueError, match="multiples of 32; got 48 x 64"):
        jax.eval_shape(torch_bionet().init, jax.random.key(0), jnp.zeros((1, 48, 64, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_passes": 0}, "num_passes needs to be at least 1; got 0"),
        ({"num_classes": 0}, "num_classes needs to be at least 1; got 0"),
        ({"multiplier": 0.01}, r"each at least 1; got \(0, 0, 1, 2, 5\)"),
        ({"num_levels": 0}, "at least two widths"),
        ({"backward_levels": (1, 4)}, r"levels of \[0, 1, 2, 3\]; got \(1, 4\)"),
    ],
)
def test_a_network_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        torch_bionet(**options)


def test_training_leaves_the_variables_that_it_is_given_alone():
    net, x = BiONet((4, 4)), jnp.ones((2, 4, 4, 3))
    variables = random_variables(net, x, seed=0, mean=0.5, std=0.1)  # NumPy arrays
    before = jax.tree.map(np.copy, variables)
    net.apply(variables, x, train=True, mutable=["batch_stats"])
    assert_equal(variables, before)


def test_one_pixel_has_no_batch_statistics():
    net = BiONet((4, 4))
    variables = random_variables(net, jnp.zeros((1, 4, 4, 3)), seed=0, mean=0.5, std=0.1)
    with pytest.raises(ValueError, match=r"more than one pixel in training; got \(1, 1, 1, 4\)"):
        net.apply(variables, jnp.zeros((1, 4, 4, 3)), train=True)


def spoil(state, how):
    shared = "iteration1_layer0_encoder_convs.0.weight"
    if how == "aliases":
        state[shared] = state[shared] + 1e-6
    elif how == "missing":
        del state["middles.6.bias"]
    elif how == "misshapen":
        state[shared] = state[shared][:, :-1]


BAD = {
    "aliases": "iteration1_layer0_encoder_convs.0.weight and iteration0_layer0_encoder_convs.0."
    "weight are one convolution",
    "missing": "1 missing, first middles.6.bias",
    "misshapen": "1 misshapen, first iteration1_layer0_encoder_convs.0.weight",
    "passes": "84 surplus, first iteration1_layer0_encoder_convs.0.weight",
    "integrate": "1 misshapen, first post_transform_conv_block.0.weight",
    "setting": "unknown setting 'iteration'",
}


@pytest.mark.parametrize("how", BAD)
def test_weights_of_another_network_are_named_in_one_line(how):
    state, settings = dict(random_state(2)), hyper(2)
    spoil(state, how)
    settings |= {"passes": {"iterations": 1}, "integrate": {"integrate": True}}.get(how, {})
    settings |= {"setting": {"iteration": 2}}.get(how, {})
    with pytest.raises(ValueError) as raised:
        interop.load_torch(BIONET, state, **settings)
    assert BAD[how] in str(raised.value) and "\n" not in str(raised.value)


def test_widths_are_those_of_the_tensors_and_another_multiplier_is_said():
    state = {f"module.{name}": tensor for name, tensor in random_state(1).items()}
    with pytest.warns(UserWarning, match=r"multiplier=0.5 means widths \(16, 32, 64\)"):
        net, variables = interop.load_torch(BIONET, state, **hyper(1) | {"multiplier": 0.5})
    assert net.widths == (4, 8, 16)
    with pytest.warns(UserWarning, match=r"the tensors have \(4, 8, 16\)"):
        exported = interop.export_torch(BIONET, variables, **hyper(1) | {"multiplier": 0.5})
    assert exported.keys() == random_state(1).keys()
    # Checkpoints of before PyTorch 0.4.1 do not count batches.
    older = {name: a for name, a in random_state(1).items() if not name.endswith("tracked")}
    counts = interop.load_torch(BIONET, older, **hyper(1))[1]["batch_stats"]
    assert counts["pre_0"]["norm_0"]["count"] == 0


def test_a_checkpoint_of_the_official_script_is_read(tmp_path):
    stored = {name: Stored(tensor) for name, tensor in random_state(1).items()}
    path = tmp_path / "iter_1_mul_0.125_best_weights.pt"
    path.write_bytes(torch_zip({"state_dict": stored}))
    loaded = interop.load_checkpoint(BIONET, path, averaged=False, **hyper(1))[1]
    assert_equal(loaded, load(1)[1])


@pytest.mark.slow
def test_it_learns_four_images_by_heart():
    images, instances = nuclei(4, 64, seed=0)
    x, mask = jnp.asarray(images / 255, jnp.float32), jnp.asarray(instances > 0, jnp.float32)
    net, tx = torch_bionet(multiplier=0.25, num_passes=2), optax.adam(0.01)
    variables = jax.jit(net.init)(jax.random.key(0), x)
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}

    @jax.jit
    def step(params, state, opt_state):
        def loss(params):
            logits, after = net.apply(
                {"params": params, **state}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.mean(optax.sigmoid_binary_cross_entropy(logits[..., 0], mask)), after

        gradient, state = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(gradient, opt_state)
        return optax.apply_updates(params, updates), state, opt_state

    opt_state = tx.init(params)
    for _ in range(200):
        params, state, opt_state = step(params, state, opt_state)
    # By the batch's own statistics, as in the training: 200 steps at this rate are too few for the
    # running ones, which move by a hundredth in each.
    found = net.apply({"params": params, **state}, x, train=True)[..., 0] > 0
    union = np.sum(found | (mask > 0), axis=(1, 2))
    assert np.all(np.sum(found & (mask > 0), axis=(1, 2)) / union > 0.95)
