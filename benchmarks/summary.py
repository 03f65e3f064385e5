"""The numbers in the README, from the committed results: ``python -m benchmarks.summary`` writes them there.

A test fails when the README says something else than the results.
"""

from typing import Any

from benchmarks.common import ROOT
from benchmarks.pages import fill, load

README = ROOT / "README.md"


def summary() -> str:
    startup, throughput, memory, digits = (load(name) for name in ("startup", "throughput", "memory", "digits"))
    speed, large, older = load("mc_speed"), load("large"), load("large_epyc")
    others = [dict(_by_case(load(f"mc_speed_{name}"))) for name in PROCESSORS]
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
        *(_large(*cases, large["rows"]) for cases in zip(large["cases"], older["cases"], strict=True)),
        *(_rivals(case) for case in load("rivals")["cases"]),
        *_ranks(load("ranks"), load("ranks_epyc")),
        *(_monte_carlo(case, [each[name] for each in others], speed["draws"]) for name, case in _by_case(speed)),
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


def _large(case: dict[str, Any], older: dict[str, Any], rows: int) -> tuple[str, str, str]:
    peak, small = case["peak_bytes"] / 1e6, case["peak_bytes_with_a_tenth_of_the_rows"] / 1e6
    return (
        "rows per second of `deploykit run` on two ranks over those of two bare `session.run` loops with the rows in "
        f"memory, {rows:,} rows, a small MLP, written as {case['writer']}",
        f"{case['rows_per_s_over_bare']['median']:.2f}",
        f"{case['rows_per_s_over_least']['median']:.2f} of two processes that read, predict, write and hash the same "
        f"rows and do nothing else; {case['rows_per_s']:,.0f} rows/s; {PROCESSORS['epyc']} "
        f"{older['rows_per_s_over_bare']['median']:.2f} and {older['rows_per_s_over_least']['median']:.2f}, "
        f"{older['rows_per_s']:,.0f} rows/s; peak memory of a rank {peak:.0f} MB, with a tenth of the rows "
        f"{small:.0f} MB",
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


def _ranks(found: dict[str, Any], older: dict[str, Any]) -> list[tuple[str, str, str]]:
    late, late_then = found["slowed_over_ideal"], older["slowed_over_ideal"]
    return [
        (
            f"two ranks over one, one thread each, {found['rows']:,} rows through an MLP on two cores",
            f"{found['two_over_one']['median']:.2f}",
            f"{found['two_over_one_at_best']['median']:.2f} if two ranks needed no more processor time than one, which "
            f"reads and writes on the other core; two bare loops over one {found['bare_two_over_one']['median']:.2f}; "
            f"{PROCESSORS['epyc']} {older['two_over_one']['median']:.2f}",
        ),
        (
            f"time with one of two ranks at {found['slowed_speed']:.0%} of its speed, over that of the ideal split",
            f"{late['median']:.2f}",
            f"{late['min']:.2f} to {late['max']:.2f}; {PROCESSORS['epyc']} {late_then['median']:.2f}",
        ),
    ]


PROCESSORS = {"epyc": "on a slower AMD EPYC", "intel": "on an Intel Xeon"}
"""The others on which some was measured, by the end of the results' names."""

MODELS = {
    "output_dropout": "the example of Lightning's documentation, dropout on a small convnet's output",
    "convnet_head": "a small convnet with dropout in its head",
    "mlp": "MLP 64-256-256-10 with dropout 0.5",
    "encoder": "a 4-layer transformer encoder, 64 tokens, dropout everywhere",
}


def _by_case(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(case["case"], case) for case in found["cases"]]


def _monte_carlo(case: dict[str, Any], others: list[dict[str, Any]], draws: int) -> tuple[str, str, str]:
    """``others`` are the same case on the other ``PROCESSORS``."""
    elsewhere = [
        f"{name} {_over_lightning(other)}{_over_floor(other, ' and {:.2f}')}"
        for name, other in zip(PROCESSORS.values(), others, strict=True)
    ]
    return (
        f"rows per second with {draws} draws over Lightning's `Trainer.predict` with that loop, both on two cores: "
        f"{MODELS[case['case']]}",
        _over_lightning(case),
        "; ".join([*filter(None, [_over_floor(case, "{:.2f} times the time of the graph without masks")]), *elsewhere]),
    )


def _over_lightning(case: dict[str, Any]) -> str:
    return f"{case['against_lightning']['kit_over_lightning']['median']:.1f}"


def _over_floor(case: dict[str, Any], text: str) -> str:
    found = case.get("against_floor")
    return text.format(found["masked_over_floor"]["median"]) if found else ""


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
