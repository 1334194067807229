# SPDX-License-Identifier: Apache-2.0
"""How many rows of 64 features a second do the scores of failures take, and pytorch-ood's?

    pip install -e '.[bench]'
    python -m benchmarks.failure_scores [--rounds=7]
    python -m benchmarks.failure_scores --flow

All scores of `failures.scores` but ODIN, which needs the classifier, and a Gaussian for each class,
beside pytorch-ood 0.4.0 on the same features and logits: 10,000 rows a call, in turns on one core
of one process that is charged processor time. 5000 training rows of 10 classes; neighbours are
among 700 of them, as many as a small validation set has, and among all. The logits of ViM and SHE
are computed with the scores by both, since pytorch-ood does.

Largest differences are of scores in the same unit, divided by the standard deviation of a score
over the rows. Its Gaussians by class are in double precision, so that the difference is our error.

--flow instead times `density.score_flow` on 100,000 rows, on the cores that there are, and compares
its log-density of new rows with the truth.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

if "--flow" not in sys.argv:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])

from benchmarks import timing  # first: it sets what JAX and PyTorch read as they start

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from scorejax.density import gaussian, gaussian_mixture, score_flow
from scorejax.density.gaussian_mixture import GaussianMixture
from scorejax.failures import feature_scores, scores
from scorejax.failures.scores import SCORES

DIM, CLASSES = 64, 10
NUM_TRAIN, NUM_FEW, NUM_ROWS, K, PRINCIPAL = 5000, 700, 10_000, 50, 32
FLOW_ROWS, FLOW_TEST = 100_000, 1000
SHARED = np.random.default_rng(0)
MAHALANOBIS, MIXTURE = "Mahalanobis", "GMM, per class"


class Law(NamedTuple):
    """Gaussians of one covariance mixing.T @ mixing about a centre for each class."""

    centres: np.ndarray
    mixing: np.ndarray

    def draw(self, num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and their classes."""
        generator = np.random.default_rng(seed)
        labels = generator.integers(CLASSES, size=num)
        return self.centres[labels] + generator.normal(size=(num, DIM)) @ self.mixing, labels


CENTRES = SHARED.normal(size=(CLASSES, DIM))
MIXING = SHARED.normal(size=(DIM, DIM)) / DIM**0.5
COMMON = SHARED.normal(size=(DIM, 1)) / DIM**0.5
SCORED = Law(CENTRES / 4, np.eye(DIM) + MIXING / 2)
"""Classes overlap, as those of a classifier that makes mistakes."""
FITTED = Law(2 * CENTRES, MIXING)


class Contest(NamedTuple):
    """Two scores of the same rows, and the map from pytorch-ood's to ours."""

    ours: Callable[[], np.ndarray]
    theirs: Callable[[], np.ndarray]
    convert: Callable[[np.ndarray], np.ndarray] = np.negative


class Peers:
    """Detectors of pytorch-ood, fitted, and tensors of the rows; one thread."""

    def __init__(self, train: np.ndarray, labels: np.ndarray, head: tuple):
        if not importlib.util.find_spec("pytorch_ood"):
            raise SystemExit("pytorch-ood 0.4.0 is missing: pip install -e '.[bench]'")
        self.torch, self.detector = import_pytorch_ood()
        self.torch.set_num_threads(1)
        self.weight, self.bias = (self.torch.tensor(leaf.T.copy()) for leaf in head)
        self.train, self.labels = self.torch.tensor(train), self.torch.tensor(labels)

    def logits(self, features):
        return features @ self.weight.T + self.bias

    def fitted(self, name: str, *, num: int = NUM_TRAIN, **options):
        """A detector that needs no encoder, fitted to `num` rows."""
        detector = getattr(self.detector, name)(encoder=None, **options)
        return detector.fit_features(self.train[:num], self.labels[:num])


def import_pytorch_ood() -> tuple:
    """PyTorch and pytorch_ood.detector.

    pytorch-ood imports torchvision, which refuses a PyTorch that it was not built for: two of its
    operators are not there, of which it only wants to register shapes.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        sys.modules["torchvision_operators"] = operators  # lives as long as the process
    from pytorch_ood import detector

    return torch, detector


def linear_head(train: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (d, k) and bias (k,) of a linear classifier, in single precision."""
    fit = gaussian.fit_by_class(jax.random.key(0), train, labels)
    white, means = np.asarray(fit.whitening, float), np.asarray(fit.means, float)
    # The same vector in all columns changes no probability, and makes the kernel's rank k.
    kernel = white @ means.T + COMMON
    bias = -np.sum(means**2, axis=1) / 2 - np.asarray(fit.center, float) @ kernel
    return kernel.astype(np.float32), bias.astype(np.float32)


def by_class(train: np.ndarray, labels: np.ndarray) -> GaussianMixture:
    """The Gaussian of each class as a component, with pytorch-ood's 1e-6 on the diagonal."""
    rows = [train[labels == c].astype(float) for c in range(CLASSES)]
    covariances = [np.cov(row.T, bias=True) + 1e-6 * np.eye(DIM) for row in rows]
    whitening = [np.linalg.inv(np.linalg.cholesky(covariance)).T for covariance in covariances]
    counts, means = np.array([len(row) for row in rows]), [row.mean(axis=0) for row in rows]
    leaves = np.log(counts / counts.sum()), np.stack(means), np.stack(whitening)
    return GaussianMixture(*(jnp.asarray(leaf, jnp.float32) for leaf in leaves))


def of_logits(peers: Peers, rows: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> dict:
    """Contests of scores of logits alone."""
    logits = jnp.asarray(rows @ kernel + bias)
    tensor = peers.torch.tensor(np.array(logits))
    names = {
        "MSP": ("MaxSoftmax", scores.max_softmax, lambda theirs: np.log(-theirs)),
        "entropy": ("Entropy", scores.negative_entropy, np.negative),
        "MaxLogit": ("MaxLogit", scores.max_logit, np.negative),
        "energy": ("EnergyBased", scores.energy, np.negative),
    }
    return {
        title: Contest(
            lambda ours=ours: np.asarray(ours(logits)),
            lambda name=name: getattr(peers.detector, name).score(tensor).numpy(),
            convert,
        )
        for title, (name, ours, convert) in names.items()
    }


def of_features(
    peers: Peers, train: np.ndarray, labels: np.ndarray, rows: np.ndarray, head: tuple
) -> dict:
    """Contests of scores of features."""
    kernel, bias = (jnp.asarray(leaf) for leaf in head)
    train_logits, z = train @ head[0] + head[1], jnp.asarray(rows)
    tensor = peers.torch.tensor(rows)

    def contest(score, params, detector, convert=np.negative) -> Contest:
        scored = jax.jit(lambda z: score(params, z, z @ kernel + bias))
        theirs = lambda: detector.predict_features(tensor).numpy()
        return Contest(lambda: np.asarray(scored(z)), theirs, convert)

    def named(name, detector, convert=np.negative) -> Contest:
        params = SCORES[name].fit(train, train_logits, labels)
        return contest(SCORES[name].score, params, detector, convert)

    def neighbours(num: int) -> Contest:
        params, detector = feature_scores.fit_nearest_neighbours(train[:num], k=K), "KNN"
        theirs = peers.fitted(detector, num=num, k=K)
        return Contest(
            lambda: feature_scores.nearest_neighbours(params, rows),
            lambda: theirs.predict_features(tensor).numpy(),
        )

    virtual = feature_scores.fit_virtual_logit(train, train_logits, head=head, dim=PRINCIPAL)
    mixture = lambda params, z, logits: gaussian_mixture.log_prob(params, z)
    patterns = peers.detector.SHE(None, peers.logits).fit_features(peers.train, peers.labels)
    # Its covariance is a sum over rows, and its Mahalanobis score half of the square.
    doubled = lambda half: -2 * len(train) * half
    return {
        MAHALANOBIS: named("mahalanobis", peers.fitted("Mahalanobis"), doubled),
        "RMD": named("relative_mahalanobis", peers.fitted("RMD"), lambda v: -len(train) * v),
        MIXTURE: contest(mixture, by_class(train, labels), peers.fitted("GMM")),
        f"kNN, k = {K} of {NUM_FEW}": neighbours(NUM_FEW),
        f"kNN, k = {K} of {NUM_TRAIN}": neighbours(NUM_TRAIN),
        "ViM": contest(
            feature_scores.virtual_logit,
            virtual,
            peers.fitted("ViM", d=PRINCIPAL, w=peers.weight, b=peers.bias),
        ),
        "SHE": named("stored_patterns", patterns),
    }


def difference(contest: Contest) -> float:
    """Largest difference of two scores over the standard deviation of ours."""
    ours, theirs = contest.ours().astype(float), contest.convert(contest.theirs().astype(float))
    return float(np.max(np.abs(ours - theirs)) / np.std(ours))


def by_em(train: np.ndarray, rows: np.ndarray) -> Callable[[], np.ndarray]:
    """The log-density of a mixture that no labels were used for."""
    fit = gaussian_mixture.fit(jax.random.key(0), train, num_components=CLASSES)
    scored, z = jax.jit(gaussian_mixture.log_prob), jnp.asarray(rows)
    return lambda: np.asarray(scored(fit, z))


def compare(rounds: int) -> None:
    (train, labels), (rows, _) = SCORED.draw(NUM_TRAIN, 1), SCORED.draw(NUM_ROWS, 2)
    train, rows = train.astype(np.float32), rows.astype(np.float32)
    head = linear_head(train, labels)
    peers = Peers(train, labels, head)
    contests = of_logits(peers, rows, *head) | of_features(peers, train, labels, rows, head)
    print("| score | scorejax, rows/s | pytorch-ood, rows/s | ratio | largest difference |")
    print("|---" * 5 + "|")
    for title, contest in contests.items():
        contenders = {"ours": contest.ours, "theirs": contest.theirs}
        if title == MIXTURE:
            contenders["GMM by EM, without labels"] = by_em(train, rows)
        calls = 2 if "NN" in title or title == MIXTURE else 10
        times = timing.compare(contenders, rounds=rounds, calls=calls, clock=time.process_time)
        rate = {name: NUM_ROWS / statistics.median(taken) for name, taken in times.items()}
        for name in [name for name in contenders if name != "theirs"]:
            ratio = timing.ratio(times["theirs"], times[name])
            rates = f"{rate[name]:,.0f} | {rate['theirs']:,.0f}"
            off = f"{difference(contest):.1e}" if name == "ours" else ""
            print(f"| {title if off else name} | {rates} | {ratio} | {off} |", flush=True)


def flow() -> None:
    (train, _), (rows, _) = FITTED.draw(FLOW_ROWS, 1), FITTED.draw(FLOW_TEST, 2)
    mean, std = train.mean(axis=0), train.std(axis=0)
    prepared = lambda x: ((x - mean) / std).astype(np.float32)
    covariance = FITTED.mixing.T @ FITTED.mixing
    joint = [multivariate_normal(c, covariance).logpdf(rows) for c in FITTED.centres]
    truth = logsumexp(joint, axis=0) - np.log(CLASSES) + np.log(std).sum()
    wall, processor = time.perf_counter(), time.process_time()
    params = score_flow.fit(jax.random.key(0), prepared(train))
    jax.block_until_ready(params)
    taken = time.process_time() - processor, time.perf_counter() - wall
    print(f"fit to {FLOW_ROWS} rows: {taken[0]:.0f} s of processor, {taken[1]:.0f} s", flush=True)
    log_prob, x = jax.jit(score_flow.log_prob), jnp.asarray(prepared(rows))
    value = np.asarray(log_prob(params, x), float)
    processor = time.process_time()
    jax.block_until_ready(log_prob(params, x))
    print(f"log_prob of {FLOW_TEST} rows: {time.process_time() - processor:.0f} s of processor")
    error = np.std(value - truth) / FLOW_TEST**0.5
    print(f"mean log-density minus the truth: {np.mean(value - truth):.2f} +- {error:.2f} nats")
    normal = gaussian.log_prob(gaussian.fit(jax.random.key(0), prepared(train)), x)
    print(f"a Gaussian's minus the truth: {np.mean(np.asarray(normal) - truth):.2f} nats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--flow", action="store_true")
    arguments = parser.parse_args()
    flow() if arguments.flow else compare(arguments.rounds)


if __name__ == "__main__":
    main()
