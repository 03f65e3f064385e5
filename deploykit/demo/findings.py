"""What the demo found, as numbers, and what it claims of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.demo.measures import (
    Agreement,
    Quartile,
    accuracy,
    agreement,
    auroc,
    entropy_quartiles,
    negative_log_likelihood,
)

__all__ = ["ENTROPY", "PROBABILITIES", "Claim", "Findings", "find"]

PROBABILITIES = "output.probs"
ENTROPY = "output.entropy"

LARGEST_DIFFERENCE = 1e-5
"""Between formats, relative to an output's scale: masks are equal bit for bit, sums are rounded differently."""

LEAST_ACCURACY = 0.9
NOISE_RATIO, NOISE_AUROC = 2.0, 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Something that must be so, with the numbers that decide it."""

    text: str
    holds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All numbers of one demo. Entropy is in nats, ``agreement`` is that of ONNX with TorchScript."""

    rows: int
    in_order: bool
    accuracy: float
    accuracy_deterministic: float
    nll: float
    nll_deterministic: float
    quartiles: tuple[Quartile, ...]
    agreement: Agreement
    entropy_digits: float
    entropy_noise: float
    auroc_noise: float

    def claims(self) -> list[Claim]:
        """What the demo promises."""
        worst = self.agreement.worst
        low, *_, high = self.quartiles
        return [
            Claim(
                text=f"both runs hold each of the {self.rows} rows once, in the order of the data", holds=self.in_order
            ),
            Claim(
                text=f"TorchScript and ONNX agree: largest difference {worst.error:.1e} of an output's scale, in "
                f"{worst.output} (allowed {LARGEST_DIFFERENCE:g})",
                holds=worst.error <= LARGEST_DIFFERENCE,
            ),
            Claim(
                text=f"TorchScript and ONNX predict the same class in {self.agreement.same_class} of {self.rows} rows",
                holds=self.agreement.same_class == self.rows,
            ),
            Claim(
                text=f"accuracy is {self.accuracy:.1%} (at least {LEAST_ACCURACY:.0%})",
                holds=self.accuracy >= LEAST_ACCURACY,
            ),
            Claim(
                text=f"errors are where the uncertainty is: {high.wrong} in the least certain quarter, {low.wrong} in "
                "the most certain",
                holds=high.wrong > low.wrong,
            ),
            Claim(
                text=f"noise is uncertain: mean entropy {self.entropy_noise:.2f} against {self.entropy_digits:.2f} "
                f"(at least {NOISE_RATIO:g} times), AUROC {self.auroc_noise:.3f} (at least {NOISE_AUROC:g})",
                holds=self.entropy_noise >= NOISE_RATIO * self.entropy_digits and self.auroc_noise >= NOISE_AUROC,
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values; differences as error by output."""
        differences = {difference.output: difference.error for difference in self.agreement.differences}
        return {
            **{name: value for name, value in asdict(self).items() if name not in ("agreement", "quartiles")},
            "quartiles": [{**asdict(quartile), "error_rate": quartile.error_rate} for quartile in self.quartiles],
            "agreement": {"same_class": self.agreement.same_class, "largest_difference": differences},
        }


def find(
    statistics: Mapping[str, str],
    predictions: Mapping[str, Mapping[str, NDArray[Any]]],
    labels: NDArray[np.int64],
    *,
    deterministic: NDArray[np.float32],
    noise_entropy: NDArray[Any],
) -> Findings:
    """Judge the predictions of the runners ``onnx`` and ``torch``.

    Args:
        statistics: output to statistic, as in the manifest.
        predictions: by runner, every output and ``sample_id``, one row per label.
        labels: (rows,) int64.
        deterministic: probabilities (rows, classes) of one pass without dropout.
        noise_entropy: (images,) nats, of images of noise.
    """
    onnx, torch = predictions["onnx"], predictions["torch"]
    order = np.arange(len(labels))
    probabilities, entropy = onnx[PROBABILITIES], onnx[ENTROPY]
    return Findings(
        rows=len(labels),
        in_order=all(np.array_equal(outputs["sample_id"], order) for outputs in (onnx, torch)),
        accuracy=accuracy(probabilities, labels),
        accuracy_deterministic=accuracy(deterministic, labels),
        nll=negative_log_likelihood(probabilities, labels),
        nll_deterministic=negative_log_likelihood(deterministic, labels),
        quartiles=tuple(entropy_quartiles(entropy, probabilities.argmax(axis=1) != labels)),
        agreement=agreement(statistics, onnx, torch, classes=PROBABILITIES),
        entropy_digits=float(entropy.mean()),
        entropy_noise=float(noise_entropy.mean()),
        auroc_noise=auroc(entropy, noise_entropy),
    )
