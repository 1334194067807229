# SPDX-License-Identifier: Apache-2.0
"""Three published matchers of resumes and jobs, which learn word vectors from scratch.

Documents are token ids; 0 pads. The official networks read padding like words: their means,
attention weights and backward LSTMs see it. Here BPJFNN and APJFNN skip it, and are equal to the
official ones where there is none. PJFNN, whose convolutions take sentences for channels, reads
padding as words whose vectors are 0.

Sources: PJFNN: Zhu et al. 2018, arXiv:1810.04040; BPJFNN and APJFNN: Qin et al. 2018,
arXiv:1812.08947; all as in the published code of arXiv:2009.13299.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scorejax.models.bionet import BatchNorm
from scorejax.models.convolution import Window, conv
from scorejax.models.layers import dense, fan_avg_uniform
from scorejax.models.text_matching import FEATURES
from scorejax.models.transformer import masked_mean


class Words(nn.Module):
    """Word vectors (*b, width) and the mask (*b) of ids (*b); the vector of padding is 0."""

    vocabulary: int
    width: int

    @nn.compact
    def __call__(self, ids: Int[Array, "*b"]) -> tuple[Float[Array, "*b w"], Bool[Array, "*b"]]:
        embed = nn.Embed(
            self.vocabulary, self.width, embedding_init=nn.initializers.normal(1.0), name="embed"
        )
        mask = ids != 0
        return embed(ids) * mask[..., None], mask


class Perceptron(nn.Module):
    """(b, f) -> logits (b,), by a hidden layer as wide as its input."""

    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "b f"]) -> Float[Array, "b"]:
        h = getattr(jax.nn, self.activation)(dense(x.shape[-1], name="hidden")(x))
        return dense(1, name="out")(h)[:, 0]


class SentenceConvolution(nn.Module):
    """Vectors (b, w) of documents (b, s, t, w) by convolutions along words, twice.

    The s sentences are the channels and mix; the w entries of word vectors stay apart.
    `average` takes the mean of the s outputs, otherwise their maximum. In training,
    normalisations use the moments of the batch.
    """

    last_size: int
    average: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b s t w"], train: bool) -> Float[Array, "b w"]:
        h = x.transpose(0, 2, 3, 1)
        h = self._unit(h, 5, "0", train)
        half = h.shape[1] // 2
        pairs = h[:, : 2 * half].reshape(len(h), half, 2, *h.shape[2:])
        h = jnp.maximum(pairs[:, :, 0], pairs[:, :, 1])
        h = largest(self._unit(h, self.last_size, "1", train), axis=1)
        return jnp.mean(h, axis=-1) if self.average else largest(h, axis=-1)

    def _unit(self, x: Float[Array, "b t w s"], size: int, name: str, train: bool) -> Array:
        kernel = self.param(
            f"kernel_{name}", fan_avg_uniform(), (size, 1, x.shape[-1], x.shape[-1])
        )
        bias = self.param(f"bias_{name}", nn.initializers.zeros, x.shape[-1:])
        h = conv(x, kernel, Window(((0, 0), (0, 0)))) + bias[None, None, None]
        return nn.relu(BatchNorm(0.1, 1e-5, name=f"norm_{name}")(h, train))


def largest(x: Array, *, axis: int) -> Array:
    """Maximum along an axis. The first of equal entries has the gradient, as in the official code;
    that of `jnp.max` may divide by a count of equal entries that compiled code finds to be 0."""
    index = jnp.argmax(jax.lax.stop_gradient(x), axis=axis, keepdims=True)
    return jnp.take_along_axis(x, index, axis=axis).squeeze(axis)


class PJFNN(nn.Module):
    """Logits by convolutions: (resume ids (b, s, t), job ids (b, s', t')) -> (b,).

    The numbers of sentences are fixed by the first call. In training (`train`) running moments in
    `batch_stats` move, if that collection is mutable.
    Raises: ValueError for sentences too short for the convolutions, below 10 words in resumes or 14
    in jobs.
    """

    vocabulary: int
    width: int = 100

    @nn.compact
    def __call__(
        self, resume: Int[Array, "b s t"], job: Int[Array, "b s2 t2"], train: bool = False
    ) -> Float[Array, "b"]:
        if resume.shape[2] < 10 or job.shape[2] < 14:
            raise ValueError(
                "PJFNN needs sentences padded to at least 10 words in resumes and 14 in jobs; got "
                f"{resume.shape[2]} and {job.shape[2]}."
            )
        words = Words(self.vocabulary, self.width, name="words")
        encode_resume = SentenceConvolution(3, average=False, name="resume")
        encode_job = SentenceConvolution(5, average=True, name="job")
        r, j = encode_resume(words(resume)[0], train), encode_job(words(job)[0], train)
        return Perceptron(name="match")(r * j)


class LSTM(nn.Module):
    """Hidden states (b, t, h) of a sequence (b, t, d); `reverse` runs it from its end.

    Outside the mask the state stays as it is. Gates are in the order input, forget, cell, output.
    """

    hidden: int
    reverse: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Array:
        gates = dense(4 * self.hidden, name="input")(x)
        kernel = self.param("kernel", fan_avg_uniform(), (self.hidden, 4 * self.hidden))

        def step(state: tuple[Array, Array], inputs: tuple[Array, Array]):
            h, c = state
            gate, valid = inputs
            i, f, g, o = jnp.split(gate + h @ kernel, 4, axis=-1)
            new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            new_h = jax.nn.sigmoid(o) * jnp.tanh(new_c)
            keep = lambda new, old: jnp.where(valid[:, None], new, old)
            state = keep(new_h, h), keep(new_c, c)
            return state, state[0]

        zeros = jnp.zeros((len(x), self.hidden), gates.dtype)
        inputs = gates.swapaxes(0, 1), mask.T
        _, states = jax.lax.scan(step, (zeros, zeros), inputs, reverse=self.reverse)
        return states.swapaxes(0, 1)


class BiLSTM(nn.Module):
    """States (*b, t, 2 * hidden) of sequences (*b, t, d), forward beside backward."""

    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "*b t d"], mask: Bool[Array, "*b t"]) -> Array:
        flat, flat_mask = x.reshape(-1, *x.shape[-2:]), mask.reshape(-1, mask.shape[-1])
        forward = LSTM(self.hidden, name="forward")(flat, flat_mask)
        backward = LSTM(self.hidden, reverse=True, name="backward")(flat, flat_mask)
        return jnp.concatenate([forward, backward], axis=-1).reshape(*x.shape[:-1], -1)


class BPJFNN(nn.Module):
    """Logits by an LSTM in both directions: (resume ids (b, t), job ids (b, t')) -> (b,)."""

    vocabulary: int
    width: int = 100

    @nn.compact
    def __call__(self, resume: Int[Array, "b t"], job: Int[Array, "b t2"]) -> Float[Array, "b"]:
        words = Words(self.vocabulary, self.width, name="words")

        def encode(ids: Array, name: str) -> Float[Array, "b e"]:
            x, mask = words(ids)
            return masked_mean(BiLSTM(self.width, name=name)(x, mask), mask)

        pair = FEATURES["concat_diff"](encode(resume, "resume"), encode(job, "job"))
        return Perceptron(name="match")(pair)


def masked_softmax(
    logits: Float[Array, "*b t"], mask: Bool[Array, "*#b t"]
) -> Float[Array, "*b t"]:
    """Softmax over the entries of the mask; 0 outside it, and everywhere if it is empty."""
    weights = jax.nn.softmax(jnp.where(mask, logits, jnp.finfo(logits.dtype).min), axis=-1)
    return jnp.where(mask, weights, 0)


class SelfAttention(nn.Module):
    """Averages x (*b, t, e) over t with weights softmax(v . tanh(W x + b)) -> (*b, e)."""

    @nn.compact
    def __call__(self, x: Float[Array, "*b t e"], mask: Bool[Array, "*b t"]) -> Array:
        h = jnp.tanh(dense(x.shape[-1], name="hidden")(x))
        weights = masked_softmax(_score(h), mask)
        return jnp.einsum("...t,...te->...e", weights, x)


class CoAttention(nn.Module):
    """Summaries (b, s, e) of a resume's sentences as the sentences of a job see them.

    The words x (b, s, t, e) of each sentence are averaged once for each of the job's sentences y
    (b, s', e), with weights softmax(v . tanh(W x + U y)) over the words, and then over these.
    Takes b * s * s' * t * e numbers of memory.
    """

    @nn.compact
    def __call__(self, x: Array, mask: Array, y: Array, y_mask: Array) -> Array:
        linear = lambda name, a: nn.Dense(
            a.shape[-1], use_bias=False, kernel_init=fan_avg_uniform(), name=name
        )(a)
        seen = linear("words", x)[:, :, None] + linear("sentences", y)[:, None, :, None]
        weights = masked_softmax(_score(jnp.tanh(seen)), mask[:, :, None])
        weights = jnp.where(y_mask[:, None, :, None], weights, 0)
        count = jnp.maximum(jnp.sum(y_mask, axis=1), 1)[:, None, None]
        return jnp.einsum("bst,bste->bse", jnp.sum(weights, axis=2) / count, x)


def _score(h: Float[Array, "*b e"]) -> Float[Array, "*b"]:
    score = nn.Dense(1, use_bias=False, kernel_init=fan_avg_uniform(), name="score")
    return score(h)[..., 0]


class APJFNN(nn.Module):
    """Logits by attention: (resume ids (b, s, t), job ids (b, s', t')) -> (b,).

    LSTMs over words, then over sentences; the words of a resume are attended to by the sentences of
    the job. LSTMs have `width` units, as the official network needs to fit together.
    """

    vocabulary: int
    width: int = 32

    @nn.compact
    def __call__(
        self, resume: Int[Array, "b s t"], job: Int[Array, "b s2 t2"]
    ) -> Float[Array, "b"]:
        words = Words(self.vocabulary, self.width, name="words")
        lstm = lambda name: BiLSTM(self.width, name=name)
        (r, r_mask), (j, j_mask) = words(resume), words(job)
        r, j = lstm("resume_words")(r, r_mask), lstm("job_words")(j, j_mask)
        r_present, j_present = jnp.any(r_mask, axis=-1), jnp.any(j_mask, axis=-1)

        sentences = SelfAttention(name="job_words_attention")(j, j_mask)
        states = lstm("job_sentences")(sentences, j_present)
        job_vector = SelfAttention(name="job_attention")(states, j_present)

        seen = CoAttention(name="co_attention")(r, r_mask, sentences, j_present)
        states = lstm("resume_sentences")(seen, r_present)
        resume_vector = SelfAttention(name="resume_attention")(states, r_present)
        return Perceptron("tanh", name="match")(FEATURES["concat_diff"](resume_vector, job_vector))
