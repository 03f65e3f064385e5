"""Adaptive draws on the digits of the demo: 50 draws for every row against ``draws_until=0.01``.

For several networks and several seeds of the masks: the mean number of draws, the rows whose class changes, and the
time of both sides in the same process on one thread, interleaved. The rows whose class differs between two seeds of the
fixed 50 draws are the measure for the rows that change.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

import deploykit
from benchmarks.common import interleaved, ratio, save, workplace
from deploykit.demo.digits import Digits, load_digits
from deploykit.demo.findings import PROBABILITIES
from deploykit.demo.folder import Settings, prepare
from deploykit.demo.measures import accuracy, negative_log_likelihood
from deploykit.demo.training import train
from deploykit.demo.work import export_model, save_inputs

__all__ = ["main"]

NETWORKS, SEEDS, DRAWS, UNTIL, BATCH, TRIALS = 3, 5, 50, 0.01, 256, 5

Predict = Callable[..., dict[str, NDArray[Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=NETWORKS, help="how many networks are trained")
    chosen = parser.parse_args()
    digits = load_digits()
    with workplace() as place:
        cases = [measure(place / str(seed), digits, seed) for seed in range(chosen.networks)]
    save(
        "adaptive",
        rows=len(digits.labels),
        draws=DRAWS,
        draws_until=UNTIL,
        summary=summary(cases),
        target={"draws_used_over_fixed": 0.5, "rows_decided_otherwise": 0},
        cases=cases,
    )


def measure(path: Path, digits: Digits, seed: int) -> dict[str, Any]:
    """One network."""
    trained = train(digits.train_images, digits.train_labels, seed=seed)
    folder, _ = prepare(path, Settings(seed=seed, draws=DRAWS))
    save_inputs(folder, digits, trained)
    result = export_model(folder)
    with deploykit.load(result.path, runner="onnx", threads=1) as model:

        def predict(**options: Any) -> dict[str, NDArray[Any]]:
            return model.predict(digits.images, batch_size=BATCH, **options)

        seeds = [compared(predict, digits, 1000 + number) for number in range(SEEDS)]
        again = [decisions(predict(seed=2000 + number)) for number in range(SEEDS)]
        first = [decisions(predict(seed=1000 + number)) for number in range(SEEDS)]
        fixed, adaptive = interleaved(
            TRIALS, lambda: _seconds(predict, seed=1), lambda: _seconds(predict, seed=1, draws_until=UNTIL)
        )
    return {
        "network": seed,
        "seeds": seeds,
        "other_seed_decides_otherwise": [int((a != b).sum()) for a, b in zip(first, again, strict=True)],
        "time_over_fixed": ratio(adaptive, fixed),
    }


def compared(predict: Predict, digits: Digits, seed: int) -> dict[str, Any]:
    """The same masks: a row's adaptive draws are the first of its fixed ones."""
    fixed, adaptive = predict(seed=seed), predict(seed=seed, draws_until=UNTIL)
    used = adaptive["draws_used"]
    values, counts = np.unique(used, return_counts=True)
    return {
        "mean_draws": float(used.mean()),
        "rows_by_draws": dict(zip(values.tolist(), counts.tolist(), strict=True)),
        "rows_decided_otherwise": int((decisions(fixed) != decisions(adaptive)).sum()),
        "accuracy_fixed": accuracy(fixed[PROBABILITIES], digits.labels),
        "accuracy_adaptive": accuracy(adaptive[PROBABILITIES], digits.labels),
        "nll_fixed": negative_log_likelihood(fixed[PROBABILITIES], digits.labels),
        "nll_adaptive": negative_log_likelihood(adaptive[PROBABILITIES], digits.labels),
    }


def decisions(outputs: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    return np.asarray(outputs[PROBABILITIES].argmax(axis=1))


def summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    each = [one for case in cases for one in case["seeds"]]
    mean = float(np.mean([one["mean_draws"] for one in each]))
    return {
        "mean_draws": mean,
        "draws_used_over_fixed": mean / DRAWS,
        "rows_decided_otherwise": sum(one["rows_decided_otherwise"] for one in each),
        "rows_decided_otherwise_by_another_seed": sum(sum(case["other_seed_decides_otherwise"]) for case in cases),
        "rows_compared": sum(sum(one["rows_by_draws"].values()) for one in each),
        "time_over_fixed": float(np.median([case["time_over_fixed"]["median"] for case in cases])),
    }


def _seconds(predict: Predict, **options: Any) -> float:
    began = perf_counter()
    predict(**options)
    return perf_counter() - began


if __name__ == "__main__":
    main()
