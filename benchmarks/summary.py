"""The numbers in the README, from the committed results: ``python -m benchmarks.summary`` writes them there.

A test fails when the README says something else than the results.
"""

from typing import Any

from benchmarks.common import ROOT
from benchmarks.pages import fill, load

README = ROOT / "README.md"

PROCESSORS = {"": "AMD EPYC, family 26", "_epyc": "AMD EPYC, family 25", "_intel": "Intel Xeon"}
"""What was measured where, by the end of the results' names."""

MODELS = {
    "output_dropout": "the example of Lightning's documentation: dropout on the output of a small convnet",
    "convnet_head": "the same convnet with dropout in its head",
    "mlp": "MLP 64-256-256-10, dropout 0.5 after each hidden layer",
    "encoder": "transformer encoder of 4 layers, 64 tokens, dropout everywhere",
}


def summary() -> str:
    """All tables, each under a sentence that says what its numbers are."""
    parts = (_monte_carlo(), _rivals(), _large(), _alone(), _ranks(), _start_and_memory(), _digits())
    return "\n\n".join(parts)


def _monte_carlo() -> str:
    found = {name: load(f"mc_speed{end}") for end, name in PROCESSORS.items()}
    draws = {each["draws"] for each in found.values()}
    cases = {name: {case["case"]: case for case in each["cases"]} for name, each in found.items()}
    rows = [
        (text, *(f"{_over_lightning(each[model])}{_over_floor(each[model])}" for each in cases.values()))
        for model, text in MODELS.items()
    ]
    return (
        f"**Monte Carlo dropout, {draws.pop()} draws.** Rows per second over those of Lightning's "
        "`Trainer.predict` with a loop of draws, each with what suits it best on two cores; in brackets the time of "
        f"the exported graph over that of the same graph without masks.\n\n{_table('model', *cases, rows=rows)}"
    )


def _over_lightning(case: dict[str, Any]) -> str:
    return f"{case['against_lightning']['kit_over_lightning']['median']:.1f}"


def _over_floor(case: dict[str, Any]) -> str:
    found = case.get("against_floor")
    return f" ({found['masked_over_floor']['median']:.2f})" if found else ""


def _rivals() -> str:
    found = load("rivals")
    rows = [
        (
            f"{case['rows']:,}",
            *(f"{case['rows_per_s'][side]:,.0f}" for side in ("deploykit_npy", "lightning")),
            _ratio(case["npy_over_lightning"], 1),
            *(f"{case['rows_per_s'][side]:,.0f}" for side in ("deploykit_parquet", "ray_data")),
            _ratio(case["parquet_over_ray_data"], 1),
        )
        for case in found["cases"]
    ]
    heads = ("rows", "deploykit, npy", "Lightning", "ratio", "deploykit, Parquet", "Ray Data", "ratio")
    return (
        "**The whole command, from start to exit**, a small MLP on two cores: rows per second of `deploykit run`, "
        "of Lightning's `Trainer.predict` with a writer, and of Ray Data's `map_batches` with ONNX Runtime, which "
        f"writes Parquet ({_where(found)}).\n\n{_table(*heads, rows=rows)}"
    )


def _large() -> str:
    found = {PROCESSORS[end]: load(f"large{end}") for end in ("", "_epyc")}
    first = next(iter(found.values()))
    rows = [
        (
            case["writer"],
            *(
                f"{_ratio(each['rows_per_s_over_bare'], 2)} ({_ratio(each['rows_per_s_over_least'], 2)}), "
                f"{each['rows_per_s']:,.0f} rows/s"
                for each in (result["cases"][number] for result in found.values())
            ),
        )
        for number, case in enumerate(first["cases"])
    ]
    return (
        f"**Beside the bare loop**, {first['rows']:,} rows, {first['model']}, batches of {first['batch_size']:,}, two "
        "ranks with one thread each: rows per second of the whole command over those of two loops of `session.run` "
        "whose rows are in memory already; in brackets over two processes that read, predict, write and hash the same "
        f"rows and do nothing else.\n\n{_table('written as', *found, rows=rows)}"
    )


def _alone() -> str:
    found = load("throughput")
    rows = [
        (
            f"{case['model']}, batches of {case['batch_size']}",
            _ratio(case["rows_per_s_run_over_bare"], 2),
            _ratio(case["rows_per_s_reported_over_bare"], 2),
            _s(case["bare_loop_s"]),
        )
        for case in found["cases"]
    ]
    heads = ("model", "whole command", "without the start of Python and its imports", "the loop takes")
    return (
        f"The same with one rank and {found['rows']:,} rows, where the start counts ({_where(found)}).\n\n"
        f"{_table(*heads, rows=rows)}"
    )


def _ranks() -> str:
    found = {PROCESSORS[end]: load(f"ranks{end}") for end in ("", "_epyc")}
    first = next(iter(found.values()))
    rows = [
        (text, *(_ratio(each[name], 2) for each in found.values()))
        for name, text in (
            ("two_over_one", "two ranks over one, rows per second"),
            ("bare_two_over_one", "two bare loops over one"),
            (
                "slowed_over_ideal",
                f"one of two ranks at {first['slowed_speed']:.0%} of its speed: time over that of the ideal split",
            ),
        )
    ]
    return (
        f"**Two ranks**, one thread each, {first['rows']:,} rows through an MLP on two cores. One rank reads and "
        f"writes on the other core, which two ranks need themselves.\n\n{_table('what', *found, rows=rows)}"
    )


def _start_and_memory() -> str:
    startup, memory = load("startup"), load("memory")
    rows = [
        ("`deploykit --help`", _s(startup["help_s"]), f"import click {_s(startup['help_floor_click_s'])}"),
        (
            "first prediction of a fresh process, ONNX",
            _s(startup["first_prediction_onnx_s"]),
            f"bare onnxruntime {_s(startup['first_prediction_bare_onnxruntime_s'])}, "
            f"TorchScript {_s(startup['first_prediction_torch_s'])}",
        ),
        *(
            (
                f"peak memory of a run, {case['runner']}, {memory['rows_small']:,} and {memory['rows_large']:,} rows",
                f"{case['peak_bytes_small'] / 1e6:.0f} and {case['peak_bytes_large'] / 1e6:.0f} MB",
                f"ratio {case['large_over_small']:.2f}",
            )
            for case in memory["cases"]
        ),
        *(
            (
                f"peak memory of a rank, {large['rows']:,} rows and a tenth of them, {case['writer']}",
                f"{case['peak_bytes'] / 1e6:.0f} and {case['peak_bytes_with_a_tenth_of_the_rows'] / 1e6:.0f} MB",
                f"ratio {case['peak_bytes'] / case['peak_bytes_with_a_tenth_of_the_rows']:.2f}",
            )
            for large in [load("large")]
            for case in large["cases"]
        ),
    ]
    return f"**Start and memory.**\n\n{_table('what', 'measured', 'beside it', rows=rows)}"


def _digits() -> str:
    digits = load("digits")
    found, seeds = digits["summary"], len(digits["cases"])
    quartiles = ", ".join(f"{100 * rate:.1f}" for rate in found["error_rate_by_quartile"])
    draws, plain = found["accuracy"]["mean"], found["accuracy_deterministic"]["mean"]
    sentences = [
        f"**Quality**, on scikit-learn's digits ({seeds} trainings, {found['rows']:,} predictions of rows not trained "
        f"on): the error rate by quartile of entropy is {quartiles} %.",
        f"Entropy tells noise from digits with an AUROC of {found['auroc_noise']['mean']:.3f}.",
        f"Accuracy is {100 * draws:.1f} %, without draws {100 * plain:.1f} %: draws give uncertainty, not accuracy.",
        f"Both formats gave the same class in {found['formats_same_class']:,} of {found['rows']:,} cases.",
        "The recipe was chosen on the same rows, so this is a demonstration and no unbiased test score.",
    ]
    return "\n".join(sentences)


def _table(*heads: str, rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ("---",) * len(heads), *rows))


def _where(found: dict[str, Any]) -> str:
    """The processor of a result, by the name that it has in ``PROCESSORS`` where it is one of them."""
    cpu: str = found["environment"]["cpu"]
    return next((name for name in PROCESSORS.values() if cpu.startswith(name.replace(", ", " ("))), cpu)


def _ratio(found: dict[str, float], digits: int) -> str:
    return f"{found['median']:.{digits}f}"


def _s(times: dict[str, float]) -> str:
    return f"{times['median']:.2f} s"


def main() -> None:
    fill(README, "summary", summary())


if __name__ == "__main__":
    main()
