# SPDX-License-Identifier: Apache-2.0
"""Mistakes in commands about imitation: command, argv, exit status, and what the line must say."""

PENDULUM = "--config=configs/density_imitation/pendulum.py:debug"
NEW = "--workdir={tmp}/new"

# A file of demonstrations for the pendulum, with observations of 3 numbers and actions in [-2, 2].
CASES: dict[str, tuple[str, list[str], int, str]] = {
    f"demonstrations: {name}": (
        "train", [PENDULUM, NEW, f"--config.demonstrations={{tmp}}/{name}.npz"], 2,
        f"{{tmp}}/{name}.npz {words}",
    )
    for name, words in [
        ("plane", "has observations of 2 numbers, and pendulum has 3"),
        ("two_motors", "has actions of 2 numbers, and pendulum has 1"),
        ("strong", "has the action 2.5 in column 0 of row 3, outside of [-2, 2] of pendulum"),
        ("unknown", "needs finite numbers; observations[2, 1] is nan, one of 1"),
        ("empty", "needs actions in every episode; episode 1 has none"),
        ("short", "needs 6 observations in 1 episodes, T + 1 for T actions: first and last"),
        ("nameless", "has 'states', which is unknown; it needs arrays of actions, dt, lengths"),
        ("garbled", "needs to be an .npz file of numbers"),
    ]
}  # fmt: skip
# A value in the debug config of the imitator -> what the line must say.
IMITATION = [
    ("horizon=-1", "horizon needs to be 0 or more; got -1"),
    ("environment=pendulm", "unknown environment 'pendulm': did you mean 'pendulum'?"),
    ("environment=lasa/Angel", "unknown motion 'Angel': did you mean 'Angle'?"),
    ("method=gial", "unknown method 'gial': did you mean 'gail'?"),
    ("density=maed", "unknown density 'maed': did you mean 'made'?"),
    ("entropy_term=similar", "unknown entropy_term 'similar': did you mean 'similarity'?"),
    ("terminal=absorb", "unknown terminal 'absorb': did you mean 'absorbing'?"),
    ("model=imitater", "unknown model 'imitater': did you mean 'imitator'?"),
    ("demonstrations=", "set --config.demonstrations to a file of them, such as launch.sample"),
    ("gamma=1.0", "gamma needs to lie in [0, 1); got 1.0"),
    ("demonstrations={tmp}/nowhere.npz", "No such file or directory: '{tmp}/nowhere.npz'"),
    ("num_demonstrations=3", "{tmp}/right.npz has 1 episodes; num_episodes=3 needs 1 to that"),
    ("num_demonstrations=0", "num_demonstrations needs to be at least 1; got 0"),
    ("lambda_f=-1.0", "lambda_f needs to be 0 or positive; got -1.0"),
    ("num_envs=1", "the source has 1 rows (num_envs), which do not divide over 2 devices"),
    ("method=gail", "the config lacks penalty, adversarial_reward"),
    ("method=bc", "the method 'bc' does not read density; leave it out, as the variants do"),
    ("best_metric=reward", "unknown best_metric 'reward'"),
]
CASES |= {
    f"imitation: {override}": (
        "train",
        [PENDULUM, NEW, "--config.demonstrations={tmp}/right.npz", f"--config.{override}"],
        2, words,
    )
    for override, words in IMITATION
}  # fmt: skip
CASES |= {
    "imitation: gymnasium is not installed": (
        "train", ["--config={tmp}/without_gymnasium.py:expert,debug", NEW], 2,
        "environments of gymnasium need it installed: pip install 'gymnasium[mujoco]'",
    ),
    "sample: steps of an episode": (
        "sample", ["--workdir={tmp}/expert", "--num_steps=9"], 2,
        "an episode has the steps of its task; leave out num_steps and nfe",
    ),
    "sample: policy": (
        "sample", ["--workdir={tmp}/expert", "--sampler=stochastics"], 2,
        "unknown sampler 'stochastics': did you mean 'stochastic'?",
    ),
    "evaluate: an expert's bound": (
        "evaluate", ["--workdir={tmp}/expert", "--metrics=bound"], 2, "unknown metric 'bound'",
    ),
    "likelihood: an expert": (
        "likelihood", ["--workdir={tmp}/expert"], 2,
        "the system 'density_imitation', model 'expert', cannot",
    ),
}  # fmt: skip
