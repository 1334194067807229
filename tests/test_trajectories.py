# SPDX-License-Identifier: Apache-2.0
"""Demonstrations keep what files say, whoever wrote them, and refuse what cannot be in one line."""

import dataclasses

import numpy as np
import pytest

from scorejax.data import hdf5_trajectories, trajectories
from scorejax.data.trajectories import Demonstrations, from_episodes, from_rollouts

LENGTHS = (3, 5, 4)


def episodes(seed=0):
    """Lists of observations (T + 1, 2), actions (T, 1) and rewards (T,)."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape)
    return (
        [draw(t + 1, 2) for t in LENGTHS],
        [np.tanh(draw(t, 1)) for t in LENGTHS],
        [draw(t) for t in LENGTHS],
    )


def some(**changes):
    observations, actions, rewards = episodes()
    made = from_episodes(
        observations, actions, rewards=rewards, terminated=[True, False, True], name="made"
    )
    return dataclasses.replace(made, **changes)


def assert_equal(first, second):
    for field in dataclasses.fields(Demonstrations):
        if field.name != "name":
            values = getattr(first, field.name), getattr(second, field.name)
            assert (values[0] is None) == (values[1] is None), field.name
            np.testing.assert_array_equal(*values, err_msg=field.name)


def test_a_transition_is_followed_by_the_next_observation_of_its_own_episode():
    observations, actions, rewards = episodes()
    made, row = some(), 0
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            np.testing.assert_array_equal(made.observations[row], observations[i][t])
            np.testing.assert_array_equal(made.next_observations[row], observations[i][t + 1])
            np.testing.assert_array_equal(made.actions[row], actions[i][t])
            assert made.terminated[row] == (t == length - 1 and i != 1)
            row += 1
    np.testing.assert_array_equal(made.lengths(), LENGTHS)
    np.testing.assert_allclose(made.returns(), [r.sum() for r in rewards], rtol=1e-12)
    assert [len(e) for e in made.episodes()] == list(LENGTHS)
    batch = made.transitions()
    assert batch["obs"].dtype == batch["action"].dtype == np.float32
    np.testing.assert_array_equal(batch["terminated"], made.terminated)


def test_subsampling_keeps_every_so_many_and_the_returns_of_whole_episodes():
    made = some()
    thin = made.subsample(2, 2)
    np.testing.assert_array_equal(thin.observations, made.observations[[0, 2, 3, 5, 7]])
    np.testing.assert_array_equal(thin.next_observations, made.next_observations[[0, 2, 3, 5, 7]])
    np.testing.assert_array_equal(thin.returns(), made.returns()[:2])
    np.testing.assert_array_equal(thin.subsample(1).returns(), made.returns()[:1])
    drawn = made.subsample(2, 3, rng=np.random.default_rng(0))
    assert drawn.num_episodes == 2 and set(drawn.returns()) < set(made.returns())
    assert_equal(drawn, made.subsample(2, 3, rng=np.random.default_rng(0)))
    starts = {
        float(made.subsample(1, 3, rng=np.random.default_rng(i)).observations[0, 0])
        for i in range(40)
    }
    assert len(starts) == 3 * len(LENGTHS)  # of 40 draws of 9, one is missing once in 100


def test_rollouts_are_cut_at_their_lengths():
    observations, actions, rewards = episodes()
    pad = lambda rows, num: np.stack(
        [np.pad(r, [(0, num - len(r))] + [(0, 0)] * (r.ndim - 1), constant_values=9) for r in rows]
    )
    ends = np.zeros((3, 5), bool)
    ends[[0, 2], [2, 3]] = True
    padded = (pad(observations, 6), pad(actions, 5), pad(rewards, 5), ends, np.array(LENGTHS))
    assert_equal(from_rollouts(padded), some())


@pytest.mark.parametrize("change", [{}, {"dt": 0.1}, {"rewards": None}])
def test_what_save_npz_writes_is_read_again(tmp_path, change):
    path, made = tmp_path / "file.npz", some(**change)
    trajectories.save_npz(path, made)
    assert_equal(trajectories.load(path), made)
    trajectories.save_npz(path, made.subsample(2, 2))
    assert_equal(trajectories.load_npz(path), made.subsample(2, 2))


def write(path, **changes):
    """A file of whole episodes, as users write them."""
    observations, actions, rewards = (np.concatenate(rows) for rows in episodes())
    arrays = {
        "observations": observations,
        "actions": actions,
        "rewards": rewards,
        "lengths": LENGTHS,
        "terminated": [True, False, True],
    }
    arrays = {name: a for name, a in (arrays | changes).items() if a is not None}
    np.savez(path, **arrays)
    return path


def test_files_of_whole_episodes_are_read(tmp_path):
    assert_equal(trajectories.load(write(tmp_path / "file.npz")), some())
    one = write(tmp_path / "one.npz", rewards=None, lengths=None, terminated=None,
                observations=np.zeros((13, 2)))  # fmt: skip
    assert trajectories.load(one).num_episodes == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": None}, "lacks actions; it needs arrays of"),
        ({"acts": np.zeros(3)}, "has 'acts', which is unknown"),
        ({"observations": np.zeros((12, 2))}, r"needs 15 observations .* T \+ 1 for T .*got 12"),
        ({"lengths": (3, 5, 5)}, "needs 16 observations in 3 episodes"),
        ({"lengths": (0, 8, 4)}, "needs actions in every episode; episode 0 has none"),
        ({"actions": np.full((12, 1), np.nan)}, r"finite numbers; actions\[0, 0\] is nan, one of"),
        ({"actions": np.full((12, 1), "left")}, "needs actions to be rows"),
        ({"terminated": [True]}, "as many of each as episodes"),
        ({"actions": np.array([{}] * 12)}, "needs to be an .npz file of numbers"),
        ({"dt": 0.0}, "needs a positive dt; got 0.0"),
        ({"dt": np.ones(2)}, r"needs dt to be a number; got shape \(2,\)"),
        ({"actions": 3.0}, "needs actions to be an array with a row for each step"),
        ({"lengths": (3.0, 5.0, 4.0)}, "needs lengths to be whole numbers"),
        ({"lengths": (-3, 11, 4)}, "needs lengths to be whole numbers"),
    ],
)
def test_files_that_cannot_be_are_refused_by_name(tmp_path, changes, message):
    path = write(tmp_path / "file.npz", **changes)
    with pytest.raises(ValueError, match=message) as error:
        trajectories.load_npz(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_files_of_another_kind_are_refused_by_name(tmp_path):
    np.save(tmp_path / "file.npy", np.zeros(3))
    (tmp_path / "file.npy").rename(tmp_path / "file.npz")
    (tmp_path / "text.npz").write_text("no")
    (tmp_path / "half.npz").write_bytes(write(tmp_path / "whole.npz").read_bytes()[:99])
    for name in ("file.npz", "text.npz", "half.npz"):
        with pytest.raises(ValueError, match=f"{tmp_path / name} needs to be an .npz file"):
            trajectories.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        trajectories.load(tmp_path / "nowhere.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terminated": np.ones(12, bool)}, "goes on in episode 0 after its terminal .* row 0"),
        ({"episode": np.arange(12)[::-1]}, "episode numbers that do not fall"),
        ({"next_observations": np.zeros((12, 3))}, "a next observation for each"),
        ({"rewards": np.zeros(11)}, r"has 12 observations, and rewards of shape \(11,\)"),
        ({"observations": np.zeros((0, 2)), "actions": np.zeros((0, 1))}, "needs a transition"),
    ],
)
def test_demonstrations_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^made .*{message}"):
        some(**changes)


def test_a_missing_last_observation_is_said():
    observations, actions, _ = episodes()
    with pytest.raises(ValueError, match=r"T \+ 1 .*episode 0 has 3 for 3: the last .* missing"):
        from_episodes([o[:-1] for o in observations], actions)
    with pytest.raises(ValueError, match="has 3 episodes; num_episodes=4 needs 1 to that"):
        some().subsample(4)
    with pytest.raises(ValueError, match="made has no rewards"):
        some(rewards=None).returns()


def test_an_environment_that_could_not_have_made_them_is_refused():
    made = some(actions=np.clip(some().actions, -0.5, 0.5))
    made.require_fit("env", 2, [-0.5], [0.5])
    with pytest.raises(ValueError, match=r"^made has observations of 2 numbers, and env has 3"):
        made.require_fit("env", 3, [-1], [1])
    with pytest.raises(ValueError, match=r"^made has actions of 1 numbers, and env has 2"):
        made.require_fit("env", 2, [-1, -1], [1, 1])
    with pytest.raises(ValueError, match=r"action -?0.5 in column 0 .* outside of \[-0.4, 0.4\]"):
        made.require_fit("env", 2, [-0.4], [0.4])


BOX = {"action_low": [-1.0], "action_high": [1.0]}


@pytest.mark.parametrize("change", [{}, {"rewards": None}])
def test_what_save_minari_writes_is_read_again(tmp_path, change):
    pytest.importorskip("h5py")
    made = some(**change)
    folder = trajectories.save_minari(tmp_path, made, dataset_id="toy/made-v0", **BOX)
    for path in (folder, folder.parent, folder / "main_data.hdf5"):
        assert_equal(trajectories.load(path), made)
    thin = trajectories.load_minari(folder, num_episodes=2, subsample=2)
    assert_equal(thin, made.subsample(2, 2))
    with pytest.raises(ValueError, match="transitions of episode 0 were left out"):
        trajectories.save_minari(tmp_path, thin, dataset_id="thin-v0", **BOX)


def test_minari_opens_what_save_minari_writes(tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    minari = pytest.importorskip("minari")
    trajectories.save_minari(tmp_path, some(), dataset_id="toy/made-v0", **BOX)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data = minari.load_dataset("toy/made-v0")
    assert (data.total_episodes, data.total_steps) == (3, 12)
    assert data.action_space.shape == (1,) and data.action_space.high == 1
    observations, actions, rewards = episodes()
    for i, episode in enumerate(data.iterate_episodes()):
        np.testing.assert_array_equal(episode.observations, observations[i])
        np.testing.assert_array_equal(episode.actions, actions[i])
        np.testing.assert_array_equal(episode.rewards, rewards[i])
        assert episode.terminations[-1] == (i != 1) and episode.truncations[-1] == (i == 1)
        assert not (episode.terminations[:-1] | episode.truncations[:-1]).any()


def test_what_minari_writes_is_read(tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    minari = pytest.importorskip("minari")
    spaces = pytest.importorskip("gymnasium").spaces
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    observations, actions, rewards = episodes()
    both = spaces.Dict({"b": spaces.Box(-9, 9, (1,)), "a": spaces.Box(-9, 9, (1,))})
    buffers = [
        minari.data_collector.EpisodeBuffer(
            id=i,
            observations={"b": o[:, 1:], "a": o[:, :1]},
            actions=a,
            rewards=list(r),
            terminations=[False] * (len(r) - 1) + [i != 1],
            truncations=[False] * (len(r) - 1) + [i == 1],
        )
        for i, (o, a, r) in enumerate(zip(observations, actions, rewards, strict=True))
    ]
    minari.create_dataset_from_buffers(
        "theirs-v0", buffers, observation_space=both, action_space=spaces.Box(-1, 1, (1,))
    )
    # gymnasium flattens a dictionary in the order of its names.
    assert_equal(trajectories.load_minari(tmp_path / "theirs-v0"), some())


def hdf5(path, **arrays):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


@pytest.mark.parametrize("has_next", [True, False])
def test_d4rl_files_are_cut_at_ends_of_both_kinds(tmp_path, has_next):
    made = some()
    last = np.cumsum(LENGTHS) - 1
    timeouts = np.zeros(12, bool)
    timeouts[last[1]] = True
    arrays = {"next_observations": made.next_observations} if has_next else {}
    path = hdf5(
        tmp_path / "d4rl.hdf5",
        observations=made.observations,
        actions=made.actions,
        rewards=made.rewards,
        terminals=made.terminated,
        timeouts=timeouts,
        **arrays,
    )
    read = trajectories.load_d4rl(path)
    if has_next:
        assert_equal(read, made)
        assert_equal(trajectories.load_d4rl(path, num_episodes=2), made.subsample(2))
    else:
        kept = np.setdiff1d(np.arange(12), last)
        np.testing.assert_array_equal(read.next_observations, made.next_observations[kept])
        np.testing.assert_array_equal(read.episode, made.episode[kept])
        assert not read.terminated.any()


def test_hdf5_that_cannot_be_read_is_refused_by_name(tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    path = hdf5(tmp_path / "main_data.hdf5", actions=np.zeros(3))
    with pytest.raises(ValueError, match=f"{path} needs episodes"):
        trajectories.load_minari(path)
    with pytest.raises(ValueError, match=f"{path} needs the array 'observations' of D4RL"):
        trajectories.load_d4rl(path)
    fields = ("observations", "actions", "rewards", "terminations")
    path = hdf5(path, **{f"episode_0/{name}": np.zeros(3, int) for name in fields})
    with pytest.raises(ValueError, match="episode_0/observations needs real numbers; got int64"):
        trajectories.load_minari(path)
    (tmp_path / "metadata.json").write_text('{"data_format": "arrow"}')
    with pytest.raises(ValueError, match="needs the data_format hdf5; got arrow"):
        trajectories.load_minari(tmp_path)
    path.write_text("no")
    (tmp_path / "metadata.json").unlink()
    with pytest.raises(ValueError, match=f"{path} needs to be an HDF5 file"):
        trajectories.load_minari(path)
    with pytest.raises(FileNotFoundError, match="give the folder of a Minari data set"):
        trajectories.load_minari(tmp_path / "nowhere")

    def absent(name):
        raise ImportError

    monkeypatch.setattr(hdf5_trajectories.importlib, "import_module", absent)
    with pytest.raises(ValueError, match="h5py, which is not installed"):
        trajectories.load_d4rl(path)
