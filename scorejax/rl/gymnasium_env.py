# SPDX-License-Identifier: Apache-2.0
"""Environments of gymnasium, such as MuJoCo's, within compiled loops.

The simulators live on the host, and each step calls it; policy, memory and updates stay on the
device. What such a call gets depends on what the one before returned (`clock`), so that their order
is that of the loop: under pmap JAX orders no calls itself.

gymnasium cannot save a simulator. A run that goes on from a checkpoint therefore starts new
episodes, and says so once on stderr; the memory of transitions goes on as it was.
"""

import inspect
import sys
import threading
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Int

from scorejax.choices import require_known, unknown
from scorejax.random import Rng, keys_of_rows
from scorejax.rl.interface import Stepped, VectorEnv, require_count

AUTORESETS = {"next_step": "NextStep", "same_step": "SameStep", "disabled": "Disabled"}
"""How gymnasium's vector environments go on after an end: our names, and theirs."""


def gymnasium_vector(
    id: str, num_envs: int, *, autoreset: str = "next_step", **make_options: Any
) -> VectorEnv:
    """`num_envs` environments gymnasium.make(id, **make_options), with `VectorEnv`'s semantics.

    The autoreset mode is that of the vector environment of gymnasium underneath. All three give the
    same transitions: in "next_step" the environments that ended are reset at once, so that none is
    the step in which gymnasium would ignore the action. Contact forces are left out of observations
    where the task has that option (most are 0, which no density fits), unless it is given.

    The environments belong to what is returned: one program at a time may step them, each device
    its own rows of them. Pass `max_episode_steps` to change the horizon.
    Raises: ValueError if gymnasium is not installed, and for an unknown name or option, for
    observations or actions that are not vectors in a box, and for a task without a time limit.
    """
    require_count(num_envs=num_envs)
    require_known("autoreset mode", autoreset, AUTORESETS)
    host = _Host(import_gymnasium(), id, num_envs, autoreset, make_options)
    observation_dim = host.sizes.observation_dim

    numbers = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.result_type(float))
    flags = lambda num: jax.ShapeDtypeStruct((num,), jnp.bool_)

    def reset(rng: Rng) -> tuple[Int[Array, "e 3"], Array]:
        rngs = keys_of_rows(rng, num_envs)
        seeds = jax.vmap(lambda rng: jax.random.bits(rng, (), jnp.uint32))(rngs).astype(jnp.int32)
        row = jnp.arange(len(rngs), dtype=jnp.int32)
        state = jnp.stack([row, seeds, jnp.zeros_like(row)], axis=1)
        like = (jax.eval_shape(lambda: state), numbers(len(rngs), observation_dim))
        return io_callback(host.reset, like, state)

    def step(rng: Rng, state: Int[Array, "e 3"], action: Array) -> Stepped:
        num = len(action)
        obs, ends = numbers(num, observation_dim), (flags(num), flags(num))
        like = Stepped(jax.eval_shape(lambda: state), obs, obs, numbers(num), *ends, obs)
        return io_callback(host.step, like, state, action)

    return VectorEnv(id, num_envs, reset, step, *host.sizes)


def import_gymnasium() -> ModuleType:
    """The gymnasium package, an optional dependency. Raises: ValueError if not installed."""
    try:
        import gymnasium
    except ImportError:
        raise ValueError(
            "environments of gymnasium need it installed: pip install 'gymnasium[mujoco]'"
        ) from None
    return gymnasium


class _Host:
    """The environments on the host, and vector environments of those that step together.

    The latter are made anew for another share of the rows, from the same environments, and hold
    nothing between two calls: what ended was reset. The state of a row on the device is its number,
    the seed of its first episode, and its clock, the steps it has taken. They are one array, as JAX
    takes longer to pass an array to the host than many a simulator to step.
    """

    def __init__(
        self, gymnasium: ModuleType, id: str, num_envs: int, autoreset: str, options: dict[str, Any]
    ) -> None:
        self.id, self._module, self._autoreset = id, gymnasium.vector, autoreset
        self.envs = [make_env(gymnasium, id, options) for _ in range(num_envs)]
        self.sizes = _sizes(id, self.envs[0])
        # The states that the next call is to bring; -1 for environments that were never reset.
        self._expected = np.full((num_envs, 3), -1, np.int32)
        self._obs = np.zeros((num_envs, self.sizes.observation_dim), jnp.result_type(float))
        self._lost = np.zeros(num_envs, bool)
        self._telling, self._told = threading.Lock(), False
        self._vectors: dict[bytes, Any] = {}

    def reset(self, state: Array) -> tuple[np.ndarray, np.ndarray]:
        """Starts the episodes of these rows."""
        state = np.array(state)
        self._start(state)
        return state, self._obs[state[:, 0]]

    def _start(self, state: np.ndarray) -> None:
        row, seed, _ = state.T
        self._obs[row] = self._vector(row).reset(seed=seed.astype(np.uint32).tolist())[0]
        self._expected[row], self._lost[row] = state, False

    def step(self, state: Array, action: Array) -> Stepped:
        """Steps these rows, and resets what ended."""
        state = np.array(state)
        row = state[:, 0]
        self._go_on(state)
        start_obs = self._obs[row]
        obs, *transition = self._step(self._vector(row), np.asarray(action))
        state[:, 2] += 1
        self._expected[row], self._obs[row] = state, obs
        return Stepped(state, self._obs[row], *transition, start_obs)

    def _go_on(self, state: np.ndarray) -> None:
        """Starts new episodes unless the environments are those that the state means."""
        row, seed, clock = state.T
        lost = not np.array_equal(self._expected[row], state)
        if lost and self._lost[row].any():
            raise RuntimeError(f"two programs step the same environments {self.id}: make it twice.")
        if lost:
            self._tell_once()
            # Other seeds than at the start of the run, whose episodes are in the memory.
            self._start(np.stack([row, seed + clock, clock], axis=1))
        self._lost[row] = lost

    def _tell_once(self) -> None:
        """Says that episodes start anew: one line, though each device calls from its own thread."""
        with self._telling:
            told, self._told = self._told, True
        if not told:
            line = f"{self.id}: gymnasium cannot save environments; their episodes start anew"
            print(line, file=sys.stderr, flush=True)

    def _step(self, vector: Any, action: np.ndarray) -> tuple[np.ndarray, ...]:
        """The fields of `Stepped` from `obs` to `truncated`."""
        space = vector.single_action_space
        action = np.clip(action, space.low, space.high).astype(space.dtype)
        obs, reward, terminated, truncated, info = vector.step(action)
        next_obs, ended = obs, terminated | truncated
        if ended.any() and self._autoreset == "same_step":
            next_obs = obs.copy()
            next_obs[ended] = np.stack(list(info["final_obs"][ended]))
        elif ended.any():
            obs, _ = vector.reset(options={"reset_mask": ended})
        numbers = (np.asarray(array, self._obs.dtype) for array in (obs, next_obs, reward))
        return *numbers, terminated, truncated & ~terminated

    def _vector(self, row: np.ndarray) -> Any:
        if row.tobytes() not in self._vectors:
            # The environments themselves, not copies, whoever stepped them before.
            makers = [lambda number=number: self.envs[number] for number in row]
            mode = self._module.AutoresetMode(AUTORESETS[self._autoreset])
            self._vectors[row.tobytes()] = self._module.SyncVectorEnv(makers, autoreset_mode=mode)
        return self._vectors[row.tobytes()]


def make_env(gymnasium: ModuleType, id: str, options: dict[str, Any]) -> Any:
    """gymnasium.make without contact forces. Raises: ValueError as `gymnasium_vector`."""
    try:
        spec = gymnasium.spec(id)
    except gymnasium.error.Error as error:
        if id in gymnasium.registry:
            raise ValueError(f"gymnasium environment {id!r}: {error}") from None
        raise unknown("gymnasium environment", id, gymnasium.registry) from None
    entry = spec.entry_point
    maker = entry if callable(entry) else gymnasium.envs.registration.load_env_creator(entry)
    if "include_cfrc_ext_in_observation" in inspect.signature(maker).parameters:
        options = {"include_cfrc_ext_in_observation": False} | options
    try:
        return gymnasium.make(id, **options)
    except TypeError as error:
        raise ValueError(f"gymnasium environment {id!r}: {error}") from None


class _Sizes(NamedTuple):
    horizon: int
    observation_dim: int
    action_low: np.ndarray
    action_high: np.ndarray


def _sizes(id: str, env: Any) -> _Sizes:
    for kind in ("observation", "action"):
        space = getattr(env, f"{kind}_space")
        if len(getattr(space, "shape", None) or ()) != 1 or not hasattr(space, "low"):
            raise ValueError(f"{id} needs vectors in a box for its {kind}s; it has {space}.")
    box = env.action_space
    low, high = np.asarray(box.low, float), np.asarray(box.high, float)
    if not np.all(np.isfinite(high - low)):
        raise ValueError(f"{id} needs a finite box of actions; it has {box}.")
    horizon = env.spec.max_episode_steps
    if horizon is None:
        raise ValueError(f"{id} has no time limit; pass max_episode_steps.")
    require_count(horizon=horizon)
    return _Sizes(horizon, env.observation_space.shape[0], low, high)
