# SPDX-License-Identifier: Apache-2.0
"""Episodes of gymnasium's classic tasks; tests/goldens/classic_control.npz keeps what it returned.

As a program it writes that file anew.
"""

import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "goldens" / "classic_control.npz"


def pendulum_episode() -> dict[str, np.ndarray]:
    """200 steps of Pendulum-v1 under random torques, some beyond the box."""
    start, rng = np.array([2.5, 0.5]), np.random.default_rng(0)
    actions = rng.uniform(-2.4, 2.4, 200)
    return _episode("Pendulum-v1", start, lambda t, obs: actions[t], 200)


def mountain_car_episode() -> dict[str, np.ndarray]:
    """MountainCarContinuous-v0, pushed along its velocity until it arrives at the goal."""
    push = lambda t, obs: 0.9 if obs[1] >= 0 else -0.9
    return _episode("MountainCarContinuous-v0", np.array([-0.5, 0.0]), push, 400)


def _episode(id, start, policy, num_steps) -> dict[str, np.ndarray]:
    import gymnasium

    env = gymnasium.make(id, max_episode_steps=num_steps + 1)
    obs, _ = env.reset(seed=0)
    env.unwrapped.state = start
    obs, steps = start, []
    for t in range(num_steps):
        action = policy(t, obs)
        obs, reward, terminated, _, _ = env.step(np.array([action]))
        steps.append((action, np.array(obs, float), float(reward), terminated))
        if terminated:
            break
    columns = zip(*steps, strict=True)
    names = ("actions", "observations", "rewards", "terminated")
    return {"start": start} | {n: np.array(v) for n, v in zip(names, columns, strict=True)}


if __name__ == "__main__":
    episodes = {"pendulum": pendulum_episode(), "mountain_car": mountain_car_episode()}
    arrays = {f"{name}_{key}": array for name, e in episodes.items() for key, array in e.items()}
    np.savez_compressed(GOLDEN, **arrays)
