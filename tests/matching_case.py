# SPDX-License-Identifier: Apache-2.0
"""A small matcher of generated documents, untrained, for tests of multi-view co-teaching."""

import functools

import jax

from configs.mv_con import generated
from scorejax import systems
from scorejax.data.matching import Documents
from scorejax.train.state import TrainState


def config(**values):
    found = generated.get_config("debug")
    found.update({"dropout": 0.0} | values)
    return found


class Case:
    """A model, its initial state, a batch, and its loss compiled."""

    def __init__(self, **values):
        self.config = config(**values)
        self.system = systems.load(self.config)
        self.model = systems.load_model(self.config)
        params, model_state = self.system.init(jax.random.key(0))
        self.state = TrainState.create(params, model_state, self.system.tx)
        carry = self.system.source.init(0, jax.random.key(1))
        _, self.batch = self.system.source.next(carry, self.state, jax.random.key(2))
        self.batch |= {"rng": jax.random.split(jax.random.key(3), len(self.batch["label"]))}
        self.corpus = self.system.frozen["corpus"]
        loss = lambda params, state, batch, corpus: self.system.loss(
            params, state, jax.random.key(4), batch, {"corpus": corpus}
        )
        self.gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def case(**values):
    return Case(**values)


def logits(model, params, state, corpus, pairs):
    """Logits of each learner from the parameters alone."""
    shared = model._prepare(params, corpus)
    return {
        name: one.logits(params[name], state["moments"][name], shared, corpus, pairs)
        for name, one in model.learners.learners.items()
    }


def new_documents(model):
    known = model.task.resumes
    resumes = Documents(("new", "copy"), (("zzz qqq",), known.sentences[7]))
    return resumes, Documents(("a", "b", "c"), model.task.jobs.sentences[:3])
