"""The demo from beginning to end, told as it goes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from deploykit.demo import work
from deploykit.demo.commands import Commands, wrapped
from deploykit.demo.digits import Digits, load_digits
from deploykit.demo.findings import ENTROPY, PROBABILITIES, Findings, find
from deploykit.demo.folder import FORMATS, RECORD, Folder, Settings, prepare
from deploykit.demo.picture import draw
from deploykit.demo.text import digit_rows, quartile_rows
from deploykit.errors import DemoError, MissingExtraError

if TYPE_CHECKING:
    from deploykit.demo.training import Trained
    from exporters.export import ExportResult

__all__ = ["tell"]

INDENT = "   "
SHOWN = 5
WORTH_SAYING_S = 0.05


class _Teller:
    """Numbered steps, each with the time it took."""

    def __init__(self, echo: Callable[[str], None]) -> None:
        self.echo, self._steps = echo, 0

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        self._steps += 1
        self.echo(f"\n{self._steps}. {title}")
        began = monotonic()
        yield
        seconds = monotonic() - began
        if seconds >= WORTH_SAYING_S:
            self.say(f"[{seconds:.1f} s]")

    def say(self, *lines: str) -> None:
        for line in lines:
            self.echo(f"{INDENT}{line}".rstrip())

    def columns(self, *rows: tuple[str, str]) -> None:
        width = max(len(name) for name, _ in rows) + 3
        self.say(*(f"{name:{width}}{text}" for name, text in rows))

    def command(self, *commands: list[str]) -> None:
        for words in commands:
            self.echo(wrapped(words, indent=INDENT * 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """The predictions that everything after the runs looks at."""

    digits: Digits
    outputs: work.Arrays
    noise: work.Arrays
    findings: Findings


def tell(path: Path, settings: Settings, echo: Callable[[str], None]) -> Findings:
    """Do the whole demo in ``path`` and say what happens through ``echo``, line by line.

    Raises:
        MissingExtraError: a package is not installed.
        UsageError: the directory holds something else.
        DemoError: at the end, something that the demo claims is not so.
        DeploykitError: a step failed.
    """
    began = monotonic()
    work.check_installed()
    digits = load_digits()
    folder, note = prepare(path, settings)
    commands, teller = Commands(folder), _Teller(echo)
    echo("deploykit demo: a classifier of handwritten digits, from its checkpoint to verified predictions")
    teller.say(
        *([note] if note else []), "Each step shows its command. To repeat one, paste this first, then the command:"
    )
    teller.say(*(f"{INDENT}{line}" for line in commands.enter()))
    trained = _train(teller, folder, digits)
    result = _export(teller, folder, commands)
    predictions = _run(teller, folder, commands)
    outcome = _judge(teller, folder, digits, trained, result, predictions)
    _show(teller, folder, outcome)
    commands.write_script()
    failed = [claim.text for claim in outcome.findings.claims() if not claim.holds]
    folder.record("failed" if failed else "finished", outcome.findings.to_json())
    _end(teller, folder, commands, outcome.findings, seconds=monotonic() - began)
    if failed:
        raise DemoError(
            f"demo: not so: {'; '.join(failed)}. Everything is in {path}; please report this with {path / RECORD}"
        )
    return outcome.findings


def _train(teller: _Teller, folder: Folder, digits: Digits) -> "Trained":
    from deploykit.demo.training import train

    with teller.step("Train a small convolutional classifier with dropout, and save a checkpoint as Lightning does"):
        trained = train(digits.train_images, digits.train_labels, seed=folder.settings.seed)
        work.save_inputs(folder, digits, trained)
        teller.say(
            f"{trained.recipe.epochs} epochs over {len(digits.train_images)} images of 8 x 8 pixels; "
            f"{len(digits.images)} others are held out",
            f"{folder.checkpoint}, and the class in {folder.network}: all that deploykit gets",
        )
    return trained


def _export(teller: _Teller, folder: Folder, commands: Commands) -> "ExportResult":
    with teller.step(f"Export to TorchScript and ONNX, {folder.settings.draws} Monte Carlo draws in the file"):
        teller.command(commands.export())
        result = work.export_model(folder)
        manifest, section = result.manifest, result.manifest.monte_carlo
        teller.say(*(f"note: {note}" for note in result.notes))
        teller.say(f"outputs {', '.join(output.name for output in manifest.outputs)}")
        if section is not None:
            sites = ", ".join(f"{site.module} ({site.kind}, p {site.p or 0:g})" for site in section.sites)
            teller.say(
                f"dropout at {sites}",
                f"{section.nodes_once} of {section.nodes_total} operations run once per batch, the others per draw",
            )
        sizes = ", ".join(map(str, manifest.tested[manifest.batch_dimension]))
        teller.say(f"both files compared with the module at batches of {sizes}: largest error {result.max_error:.1e}")
    return result


def _run(teller: _Teller, folder: Folder, commands: Commands) -> dict[str, work.Arrays]:
    runners = list(FORMATS.values())
    with teller.step(f"Predict the held-out images with both, on {folder.settings.ranks} ranks"):
        teller.command(*(commands.run(runner) for runner in runners))
        runs = work.run_formats(folder)
        for runner in runners:
            teller.say(f"{runner:5} {runs.rows_per_s[runner]:,.0f} rows/s, start of the ranks included "
                       f"({runs.seconds[runner]:.1f} s)")  # fmt: skip
    with teller.step("Verify the artifact and both runs, and put each run into one file"):
        names = [folder.model, *(folder.run(runner) for runner in runners)]
        teller.command(*(commands.verify(name) for name in names), *(commands.merge(runner) for runner in runners))
        error, rows = work.verify_all(folder)
        teller.say(
            f"the artifact's golden inputs give its golden outputs here (largest error {error:.1e})",
            f"both runs hold all {rows} rows, each once, and every digest holds",
        )
        return work.merge_runs(folder)


def _judge(
    teller: _Teller,
    folder: Folder,
    digits: Digits,
    trained: "Trained",
    result: "ExportResult",
    predictions: dict[str, work.Arrays],
) -> _Outcome:
    from deploykit.demo.training import probabilities

    with teller.step("Predict as many images of noise, from Python and in memory"):
        teller.say(*(INDENT + line.format(model=folder.model, noise=folder.noise) for line in work.PYTHON))
        noise = work.predict_noise(folder)
    statistics = {output.name: output.statistic for output in result.manifest.outputs}
    findings = find(
        statistics,
        predictions,
        digits.labels,
        deterministic=probabilities(trained.network, digits.images),
        noise_entropy=noise[ENTROPY],
    )
    with teller.step("Do both formats agree? Largest difference of each output, relative to the output's scale"):
        teller.columns(*((each.output, f"{each.error:.1e}") for each in findings.agreement.differences))
        teller.say(f"the same class is predicted in {findings.agreement.same_class} of {findings.rows} rows")
    return _Outcome(digits=digits, outputs=predictions["onnx"], noise=noise, findings=findings)


def _show(teller: _Teller, folder: Folder, outcome: _Outcome) -> None:
    findings = outcome.findings
    with teller.step("Is the uncertainty worth anything?"):
        teller.say(
            f"{'':22}accuracy   negative log-likelihood",
            f"{'mean of ' + str(folder.settings.draws) + ' draws':22}{findings.accuracy:>8.2%}   {findings.nll:.4f}",
            f"{'without dropout':22}{findings.accuracy_deterministic:>8.2%}   {findings.nll_deterministic:.4f}",
            "",
            *quartile_rows(findings.quartiles),
        )
    with teller.step(f"The {SHOWN} digits that the model is least certain of"):
        teller.echo("\n".join(_uncertain(outcome)))
    with teller.step("Images of noise, which the model has never seen"):
        teller.say(
            f"mean entropy {findings.entropy_noise:.2f} nats; of digits {findings.entropy_digits:.2f}",
            f"a noise image has more entropy than a digit in {findings.auroc_noise:.1%} of all pairs (AUROC)",
        )
    with teller.step("A picture of all this"):
        teller.say(_picture(folder, outcome))


def _uncertain(outcome: _Outcome) -> list[str]:
    entropy, digits = outcome.outputs[ENTROPY], outcome.digits
    rows = np.argsort(-entropy, kind="stable")[:SHOWN]
    said = outcome.outputs[PROBABILITIES].argmax(axis=1)
    captions = [
        [f"row {row}", f"true {digits.labels[row]}, said {said[row]}", f"entropy {entropy[row]:.2f}"] for row in rows
    ]
    return digit_rows(digits.images[rows, 0], captions)


def _picture(folder: Folder, outcome: _Outcome) -> str:
    try:
        draw(
            folder.path / folder.picture,
            outcome.findings,
            images=outcome.digits.images,
            labels=outcome.digits.labels,
            probabilities=outcome.outputs[PROBABILITIES],
            entropy=outcome.outputs[ENTROPY],
            noise_entropy=outcome.noise[ENTROPY],
        )
    except MissingExtraError as error:
        return f"skipped: {error}"
    return str(folder.path / folder.picture)


def _end(teller: _Teller, folder: Folder, commands: Commands, findings: Findings, *, seconds: float) -> None:
    settings = ", ".join(f"{name} {value}" for name, value in asdict(folder.settings).items())
    teller.echo(f"\nWhat this demo claims ({settings})")
    for claim in findings.claims():
        teller.say(f"{'yes' if claim.holds else 'NO '}  {claim.text}")
    teller.echo(f"\nWhere to look, in {folder.path}")
    teller.columns(
        (f"{folder.model}/", "the artifact: both formats, manifest, golden inputs and outputs"),
        (
            f"{folder.run('onnx')}/",
            f"parts, commits, report.html with what the run cost; {folder.run('torch')}/ likewise",
        ),
        (folder.predictions("onnx"), f"every output by row; {folder.predictions('torch')} likewise"),
        (folder.picture, "the picture"),
        (RECORD, "all numbers"),
        (folder.script, "all steps after the training, as a shell script"),
    )
    teller.echo("\nWhat to try next, there")
    for purpose, words in commands.more():
        teller.say(f"{purpose}:")
        teller.command(words)
    teller.echo(f"\nDone in {seconds:.0f} s.")
