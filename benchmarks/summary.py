"""The numbers in the README, from the committed results: ``python -m benchmarks.summary`` writes them there.

A test fails when the README says something else than the results.
"""

from typing import Any

from benchmarks.common import ROOT
from benchmarks.pages import fill, load

README = ROOT / "README.md"


def summary() -> str:
    startup, throughput, memory, digits = (load(name) for name in ("startup", "throughput", "memory", "digits"))
    speed, other, large = load("mc_speed"), load("mc_speed_intel"), load("large")
    onnx = next(case for case in memory["cases"] if case["runner"] == "onnx")
    click = f"import click: {_s(startup['help_floor_click_s'])}"
    rows = [
        ("`deploykit --help`", _s(startup["help_s"]), click),
        (
            "first prediction of a fresh process, ONNX",
            _s(startup["first_prediction_onnx_s"]),
            f"bare onnxruntime {_s(startup['first_prediction_bare_onnxruntime_s'])}, "
            f"TorchScript {_s(startup['first_prediction_torch_s'])}",
        ),
        *(_throughput(case, throughput["rows"]) for case in throughput["cases"]),
        (
            f"peak memory of a run, {onnx_rows(memory)}",
            f"{onnx['peak_bytes_small'] / 1e6:.0f} and {onnx['peak_bytes_large'] / 1e6:.0f} MB",
            f"ratio {onnx['large_over_small']:.2f}",
        ),
        *(_large(case, large["rows"]) for case in large["cases"]),
        *(_rivals(case) for case in load("rivals")["cases"]),
        *_ranks(load("ranks")),
        *(_monte_carlo(*cases, speed["draws"]) for cases in zip(speed["cases"], other["cases"], strict=True)),
    ]
    lines = ["| what | measured | beside it |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]
    return "\n".join(lines) + "\n\n" + _quality(digits["summary"], len(digits["cases"]))


def onnx_rows(memory: dict[str, Any]) -> str:
    return f"{memory['rows_small']:,} and {memory['rows_large']:,} rows"


def _throughput(case: dict[str, Any], rows: int) -> tuple[str, str, str]:
    whole, reported = (case[f"rows_per_s_{name}_over_bare"]["median"] for name in ("run", "reported"))
    return (
        "rows per second of `deploykit run`, from the start of its process to its exit, over those of the bare "
        f"`session.run` loop ({rows:,} rows, {case['model']}, batches of {case['batch_size']})",
        f"{whole:.2f}",
        f"{reported:.2f} without the start of Python and its imports; the loop takes "
        f"{case['bare_loop_ms_per_batch']:.1f} ms per batch, {_s(case['bare_loop_s'])} in all",
    )


def _large(case: dict[str, Any], rows: int) -> tuple[str, str, str]:
    peak, small = case["peak_bytes"] / 1e6, case["peak_bytes_with_a_tenth_of_the_rows"] / 1e6
    return (
        "rows per second of `deploykit run` on two ranks over those of two bare `session.run` loops with the rows in "
        f"memory, {rows:,} rows, a small MLP, written as {case['writer']}",
        f"{case['rows_per_s_over_bare']['median']:.2f}",
        f"{case['rows_per_s_over_least']['median']:.2f} of two processes that read, predict, write and hash the same "
        f"rows and do nothing else; {case['rows_per_s']:,.0f} rows/s; peak memory of a rank {peak:.0f} MB, with a "
        f"tenth of the rows {small:.0f} MB",
    )


def _rivals(case: dict[str, Any]) -> tuple[str, str, str]:
    rate = case["rows_per_s"]
    return (
        f"rows per second, start-up included, {case['rows']:,} rows through a small MLP on two cores: as npy over "
        "Lightning's `Trainer.predict` with a writer, and as Parquet over Ray Data `map_batches` with ONNX Runtime",
        f"{case['npy_over_lightning']['median']:.1f} and {case['parquet_over_ray_data']['median']:.1f}",
        f"{rate['deploykit_npy']:,.0f} and {rate['lightning']:,.0f}; {rate['deploykit_parquet']:,.0f} and "
        f"{rate['ray_data']:,.0f} rows/s",
    )


def _ranks(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (
            f"two ranks over one, one thread each, {found['rows']:,} rows through an MLP on two cores",
            f"{found['two_over_one']['median']:.2f}",
            f"{found['two_over_one_without_start']['median']:.2f} without the start of the processes; two bare loops "
            f"over one {found['bare_two_over_one']['median']:.2f}",
        ),
        (
            f"time with one of two ranks at {found['slowed_speed']:.0%} of its speed, over that of the ideal split",
            f"{found['slowed_over_ideal']['median']:.2f}",
            f"{found['slowed_over_ideal']['min']:.2f} to {found['slowed_over_ideal']['max']:.2f}",
        ),
    ]


MODELS = {
    "output_dropout": "the example of Lightning's documentation, dropout on a small convnet's output",
    "convnet_head": "a small convnet with dropout in its head",
    "mlp": "MLP 64-256-256-10 with dropout 0.5",
    "encoder": "a 4-layer transformer encoder, 64 tokens, dropout everywhere",
}


def _monte_carlo(case: dict[str, Any], other: dict[str, Any], draws: int) -> tuple[str, str, str]:
    """``other`` is the same case on another processor."""
    floors = [found["against_floor"]["masked_over_floor"] for found in (case, other) if "against_floor" in found]
    beside = [f"{floor['median']:.2f} times the graph without masks" for floor in floors]
    here, there = (found["against_lightning"]["kit_over_lightning"] for found in (case, other))
    on_other = f"on an Intel Xeon {there['median']:.1f} ({there['min']:.1f} to {there['max']:.1f})"
    return (
        f"rows per second with {draws} draws over Lightning's `Trainer.predict` with that loop, both on two cores: "
        f"{MODELS[case['case']]}",
        f"{here['median']:.1f}",
        "; ".join([*beside[:1], ", ".join([on_other, *beside[1:]])]),
    )


def _quality(found: dict[str, Any], seeds: int) -> str:
    quartiles = ", ".join(f"{100 * rate:.1f}" for rate in found["error_rate_by_quartile"])
    draws, plain = found["accuracy"]["mean"], found["accuracy_deterministic"]["mean"]
    sentences = [
        f"On scikit-learn's digits ({seeds} trainings, {found['rows']:,} predictions of rows not trained on) the "
        f"error rate by quartile of entropy is {quartiles} %.",
        f"Entropy tells noise from digits with an AUROC of {found['auroc_noise']['mean']:.3f}.",
        f"Accuracy is {100 * draws:.1f} %, without draws {100 * plain:.1f} %: draws give uncertainty, not accuracy.",
        f"Both formats gave the same class in {found['formats_same_class']:,} of {found['rows']:,} cases.",
        "The recipe was chosen on the same rows, so this is a demonstration and no unbiased test score.",
    ]
    return "\n".join(sentences)


def _s(times: dict[str, float]) -> str:
    return f"{times['median']:.2f} s"


def main() -> None:
    fill(README, "summary", summary())


if __name__ == "__main__":
    main()
