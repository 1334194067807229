# SPDX-License-Identifier: Apache-2.0
"""The two models: an expert, paid by its environment, and an imitator, paid for resemblance."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from scorejax.data import trajectories
from scorejax.data.demonstrations import Demonstrations
from scorejax.evaluate.progress import Metric, Metrics
from scorejax.systems.density_imitation import rewards
from scorejax.systems.density_imitation.agent import Agent
from scorejax.systems.density_imitation.bound import bound_metric
from scorejax.systems.density_imitation.evaluation import (
    Play,
    chamfer_metric,
    density_metric,
    make_play,
    motion_metric,
    returns_metric,
)
from scorejax.systems.density_imitation.learner import (
    Entropy,
    Experience,
    Learner,
    behavioural_cloning,
    soft_actor_critic,
    value_dice,
)
from scorejax.systems.density_imitation.occupancy import FitOptions, Occupancy, fit_occupancy
from scorejax.systems.density_imitation.rewards import Reward, true_reward


@dataclasses.dataclass(frozen=True, eq=False)
class Expert:
    """An agent that maximises the reward of its environment by soft actor-critic."""

    agent: Agent
    experience: Experience
    gamma: float
    num_eval_episodes: int
    deterministic: bool
    target_entropy: float
    """Nats of the policy for each dimension of an action in [-1, 1]."""

    def learner(self) -> Learner:
        """The learner that trains it."""
        half_widths = np.subtract(self.agent.example.action_high, self.agent.example.action_low) / 2
        # In units of the environment an entropy has the logarithm of the unit in it.
        target = self.target_entropy * len(half_widths) + float(np.log(half_widths).sum())
        entropy = Entropy(weight=None, target=target)
        return soft_actor_critic(
            self.agent, true_reward, self.experience, gamma=self.gamma, entropy=entropy
        )

    def sampler(self, name: str = "", *, num_steps: int = 0, nfe: int = 0) -> Callable:
        """Episodes, for launch.sample; see `Agent.sampler`."""
        return self.agent.sampler(name, num_steps=num_steps, nfe=nfe)

    def metrics(self) -> Metrics:
        """By name: "return", and "motion", an animation."""
        play = make_play(self.agent, self.num_eval_episodes, deterministic=self.deterministic)
        return {
            "return": lambda: returns_metric(self.agent, play, None),
            "motion": lambda: motion_metric(self.agent, play, None),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Imitator:
    """An agent that does as demonstrated, by one of `METHODS`."""

    agent: Agent
    experience: Experience
    gamma: float
    num_eval_episodes: int
    deterministic: bool
    seed: int
    method: str
    path: str
    """The file of demonstrations; empty for those of the task."""
    num_demonstrations: int
    every: int
    """Keeps every so many transitions of a demonstration."""

    # Each method reads some of these; the others are None.
    density: str | None = None
    fit: FitOptions | None = None
    floor_margin: float | None = None
    terminal: str | None = None
    lambda_pi: float | None = None
    lambda_f: float | None = None
    entropy_term: str | None = None
    similarity_scale: float | None = None
    centre: bool | None = None
    recent: int | None = None
    penalty: float | None = None
    adversarial_reward: str | None = None

    @functools.cached_property
    def demonstrations(self) -> Demonstrations:
        """The demonstrations that are imitated. Raises: ValueError or FileNotFoundError."""
        return self.available.subsample(self.num_demonstrations, self.every)

    def inputs(self) -> dict[str, np.ndarray]:
        """By name: a digest of the demonstrations that are imitated. Raises: as `demonstrations`.

        A density fitted on another machine differs in its last digits; demonstrations do not.
        """
        return {"demonstrations": self.demonstrations.digest()}

    def origins(self) -> dict[str, str]:
        """The file of demonstrations, by its key in the config."""
        return {"demonstrations": self.path}

    @functools.cached_property
    def available(self) -> Demonstrations:
        """All of the file, by which the agent is judged. Raises: as `demonstrations`."""
        if self.path:
            all_of_them = trajectories.load(self.path)
        elif self.agent.task.demonstrations is not None:
            all_of_them = self.agent.task.demonstrations()
        else:
            raise ValueError(
                "set --config.demonstrations to a file of them, such as launch.sample writes"
            )
        one = self.agent.example
        box = one.action_low, one.action_high
        all_of_them.require_fit(self.agent.task.name, one.observation_dim, *box)
        return all_of_them

    @functools.cached_property
    def occupancy(self) -> Occupancy:
        """The density of the demonstrations' pairs of states and actions."""
        return fit_occupancy(
            self.density, self.demonstrations, self.fit, margin=self.floor_margin, seed=self.seed
        )

    @functools.cached_property
    def term(self) -> rewards.EntropyTerm:
        """The term of the states' entropy."""
        options = {"gamma": self.gamma, "centre": self.centre, "scale": self.similarity_scale}
        return rewards.TERMS[self.entropy_term](**options)

    def learner(self) -> Learner:
        """The learner that trains it. Raises: as `demonstrations`, and as a density's fit."""
        return METHODS[self.method](self)

    def learn(self, reward: Reward) -> Learner:
        """Soft actor-critic on a reward, at the temperature lambda_pi."""
        entropy = Entropy(weight=self.lambda_pi, target=None)
        return soft_actor_critic(
            self.agent, reward, self.experience, gamma=self.gamma, entropy=entropy
        )

    def sampler(self, name: str = "", *, num_steps: int = 0, nfe: int = 0) -> Callable:
        """Episodes, for launch.sample; see `Agent.sampler`."""
        return self.agent.sampler(name, num_steps=num_steps, nfe=nfe)

    def metrics(self) -> Metrics:
        """By name: "return", "chamfer", "motion", an animation; of a density "bound", "density"."""
        play = make_play(self.agent, self.num_eval_episodes, deterministic=self.deterministic)
        built = {
            "return": lambda: returns_metric(self.agent, play, self.available),
            "chamfer": lambda: chamfer_metric(play, self.available),
            "motion": lambda: motion_metric(self.agent, play, self.demonstrations),
        }
        # An energy's log q lacks a constant, and so would its bound.
        bounded = self.method == "ndi" and self.density != "energy"
        return (
            built | {"bound": self._bound, "density": lambda: self._density(play)}
            if bounded
            else built
        )

    def _density(self, play: Play) -> Metric:
        return density_metric(self.agent, play, self.demonstrations, self.density, self.occupancy)

    def _bound(self) -> Metric:
        return bound_metric(
            self.agent,
            self.density,
            self.occupancy,
            self.term,
            gamma=self.gamma,
            centre=self.centre,
            num_episodes=self.num_eval_episodes,
        )


def _by_density(model: Imitator) -> Learner:
    return model.learn(
        rewards.density_reward(
            model.density,
            model.occupancy,
            model.term,
            weight=model.lambda_f,
            terminal=model.terminal,
            ended=model.demonstrations.share_ended,
            recent=model.recent,
            observation_dim=model.demonstrations.observation_dim,
        )
    )


METHODS: dict[str, Callable[[Imitator], Learner]] = {
    "ndi": _by_density,
    "gail": lambda m: m.learn(
        rewards.adversarial(
            m.demonstrations, hidden=m.agent.hidden, penalty=m.penalty, kind=m.adversarial_reward
        )
    ),
    "red": lambda m: m.learn(rewards.expert_distillation(m.demonstrations, m.fit, seed=m.seed)),
    "sqil": lambda m: m.learn(rewards.soft_q_imitation(m.demonstrations)),
    "value_dice": lambda m: value_dice(
        m.agent, m.demonstrations, m.experience, gamma=m.gamma, penalty=m.penalty
    ),
    "bc": lambda m: behavioural_cloning(m.agent, m.demonstrations, m.experience.batch_size),
}
"""Neural density imitation, and baselines in the same loop."""
