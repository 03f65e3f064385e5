"""The demo's numbers over several training seeds, and Monte Carlo dropout in eager PyTorch beside them.

For every seed a network is trained and exported as the demo does it, both formats predict the held-out digits and as
many images of noise, and the demo's measures are taken. The control is the method's definition: the trained module with
its Dropout modules in training mode, masks from torch's own generator. Both sides are repeated with fresh seeds, which
gives every statistic a standard error; ``z`` is the difference of the two means in units of its standard error, and
should look like a standard normal number. ``per_image`` does the same for the mean probability of every image and
class.
"""

import argparse
from collections.abc import Callable, Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import deploykit
from benchmarks.common import save, workplace
from deploykit.demo.digits import Digits, load_digits, noise_images
from deploykit.demo.findings import ENTROPY, PROBABILITIES, Findings, find
from deploykit.demo.folder import FORMATS, Folder, Settings, prepare
from deploykit.demo.measures import accuracy, auroc, calibration_error, entropy_quartiles, negative_log_likelihood
from deploykit.demo.training import probabilities, train
from deploykit.demo.work import Arrays, export_model, save_inputs

__all__ = ["main"]

SEEDS, DRAWS, REPEATS, BATCH = 5, 50, 24, 256
CELLS_FROM = 1e-3
"""Probabilities below this are too skewed for a normal approximation of their mean."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many networks are trained")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of the whole prediction, on either side")
    chosen = parser.parse_args()
    digits = load_digits()
    with workplace() as place:
        cases = [measure(place / str(seed), digits, seed, chosen.draws, chosen.repeats) for seed in range(chosen.seeds)]
    save(
        "digits",
        rows=len(digits.labels),
        draws=chosen.draws,
        repeats=chosen.repeats,
        summary=summary(cases),
        cases=cases,
    )


def measure(path: Path, digits: Digits, seed: int, draws: int, repeats: int) -> dict[str, Any]:
    """One network: the demo's findings, and the exported file against eager PyTorch."""
    trained = train(digits.train_images, digits.train_labels, seed=seed)
    folder, _ = prepare(path, Settings(seed=seed, draws=draws))
    save_inputs(folder, digits, trained)
    result = export_model(folder)
    noise = noise_images(len(digits.images), seed)
    statistics = {output.name: output.statistic for output in result.manifest.outputs}
    found = findings(folder, digits, noise, statistics, probabilities(trained.network, digits.images))
    with deploykit.load(result.path, runner="onnx") as model:

        def exported(images: NDArray[np.float32], repeat: int) -> NDArray[Any]:
            outputs: Arrays = model.predict(images, batch_size=BATCH, seed=1000 + repeat)
            return outputs[PROBABILITIES]

        ours = repeated(exported, digits, noise, repeats)
    theirs = repeated(eager(trained.network, draws), digits, noise, repeats)
    return {
        "seed": seed,
        "findings": found.to_json(),
        "claims_hold": all(claim.holds for claim in found.claims()),
        "exported_against_eager": {name: compared(ours[0][name], theirs[0][name]) for name in ours[0]},
        "per_image": per_image(ours[1], theirs[1]),
    }


def findings(
    folder: Folder,
    digits: Digits,
    noise: NDArray[np.float32],
    statistics: Mapping[str, str],
    deterministic: NDArray[np.float32],
) -> Findings:
    """What the demo finds, without its ranks and files."""
    outputs: dict[str, Arrays] = {}
    for runner in FORMATS.values():
        with deploykit.load(folder.path / folder.model, runner=runner) as model:
            outputs[runner] = model.predict(digits.images, batch_size=BATCH)
            outputs[runner]["sample_id"] = np.arange(len(digits.images))
            uncertain = model.predict(noise, batch_size=BATCH)[ENTROPY]
    return find(statistics, outputs, digits.labels, deterministic=deterministic, noise_entropy=uncertain)


Predict = Callable[[NDArray[np.float32], int], NDArray[Any]]


def eager(network: nn.Module, draws: int) -> Predict:
    """Monte Carlo dropout as its definition says it: the mean of the probabilities of passes in training mode."""

    def predict(images: NDArray[np.float32], repeat: int) -> NDArray[Any]:
        network.eval()
        for module in network.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                module.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1_000_000 + repeat)
            passes = [probabilities(network, images) for _ in range(draws)]
        network.eval()
        return np.asarray(np.stack(passes).mean(axis=0, dtype=np.float64))

    return predict


def repeated(
    predict: Predict, digits: Digits, noise: NDArray[np.float32], repeats: int
) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """Every statistic (repeats,), and the mean probabilities (repeats, rows, classes) of the digits."""
    means = np.stack([predict(digits.images, repeat) for repeat in range(repeats)])
    noisy = np.stack([predict(noise, repeats + repeat) for repeat in range(repeats)])
    rows = [statistics_of(*pair, digits.labels) for pair in zip(means, noisy, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}, means


def statistics_of(mean: NDArray[Any], noisy: NDArray[Any], labels: NDArray[np.int64]) -> dict[str, float]:
    digits_entropy, noise_entropy = entropy(mean), entropy(noisy)
    quartiles = entropy_quartiles(digits_entropy, mean.argmax(axis=1) != labels)
    return {
        "accuracy": accuracy(mean, labels),
        "nll": negative_log_likelihood(mean, labels),
        "ece": calibration_error(mean, labels),
        **{f"error_rate_quartile_{n}": quartile.error_rate for n, quartile in enumerate(quartiles, 1)},
        "entropy_digits": float(digits_entropy.mean()),
        "entropy_noise": float(noise_entropy.mean()),
        "auroc_noise": auroc(digits_entropy, noise_entropy),
    }


def entropy(mean: NDArray[Any]) -> NDArray[Any]:
    wide = mean.astype(np.float64)
    return np.asarray(-(wide * np.log(np.maximum(wide, np.finfo(np.float32).tiny))).sum(axis=-1))


def compared(ours: NDArray[Any], theirs: NDArray[Any]) -> dict[str, float | None]:
    """Two means with their standard errors; no ``z`` where neither side varies."""
    errors = [float(side.std(ddof=1) / sqrt(len(side))) for side in (ours, theirs)]
    difference, error = float(ours.mean() - theirs.mean()), sqrt(errors[0] ** 2 + errors[1] ** 2)
    return {
        "exported": float(ours.mean()),
        "exported_standard_error": errors[0],
        "eager": float(theirs.mean()),
        "eager_standard_error": errors[1],
        "difference": difference,
        "z": difference / error if error > 0 else None,
    }


def per_image(ours: NDArray[Any], theirs: NDArray[Any]) -> dict[str, float]:
    """The z of the mean probability of each image and class: t-distributed, with 2 (repeats - 1) degrees of freedom."""
    repeats = len(ours)
    pooled = (ours.var(axis=0, ddof=1, dtype=np.float64) + theirs.var(axis=0, ddof=1, dtype=np.float64)) / repeats
    centre = (ours.mean(axis=0, dtype=np.float64) + theirs.mean(axis=0, dtype=np.float64)) / 2
    usable = (pooled > 0) & (centre > CELLS_FROM) & (centre < 1 - CELLS_FROM)
    z = (ours.mean(axis=0, dtype=np.float64) - theirs.mean(axis=0, dtype=np.float64))[usable] / np.sqrt(pooled[usable])
    freedom = 2 * (repeats - 1)
    ratio = ours.var(axis=0, ddof=1)[usable].sum() / theirs.var(axis=0, ddof=1)[usable].sum()
    return {
        "cells": int(usable.sum()),
        "z_mean": float(z.mean()),
        "z_rms": float(np.sqrt(np.mean(z**2))),
        "z_rms_expected": sqrt(freedom / (freedom - 2)),
        "z_largest": float(np.abs(z).max()),
        "variance_exported_over_eager": float(ratio),
    }


def summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the seeds: mean and standard deviation of the findings, and all z together."""
    names = ("accuracy", "accuracy_deterministic", "nll", "nll_deterministic", "entropy_digits", "entropy_noise")
    table = {name: [case["findings"][name] for case in cases] for name in (*names, "auroc_noise")}
    rates = np.array([[quartile["error_rate"] for quartile in case["findings"]["quartiles"]] for case in cases])
    z = [row["z"] for case in cases for row in case["exported_against_eager"].values() if row["z"] is not None]
    differences = [max(case["findings"]["agreement"]["largest_difference"].values()) for case in cases]
    return {
        **{name: {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=min(1, len(values) - 1)))}
           for name, values in table.items()},
        "error_rate_by_quartile": [float(rate) for rate in rates.mean(axis=0)],
        "formats_largest_difference": max(differences),
        "formats_same_class": sum(case["findings"]["agreement"]["same_class"] for case in cases),
        "rows": sum(case["findings"]["rows"] for case in cases),
        "claims_hold": all(case["claims_hold"] for case in cases),
        "z_count": len(z),
        "z_rms": float(np.sqrt(np.mean(np.square(z)))),
        "z_largest": float(np.max(np.abs(z))),
    }  # fmt: skip


if __name__ == "__main__":
    main()
