"""What may be said about the outputs, and what follows for each."""

import pytest

from deploykit.errors import ExportError, UsageError
from exporters.tasks import OutputTask, parse_tasks

SHAPES = {"logits": (5, 3), "tokens": (5, 12, 1), "score": (5,), "fixed": (5, 3)}
DRAWN = ["logits", "tokens", "score"]
RAW = OutputTask()
TWO = {"a": (5, 3), "b": (5, 3)}


def test_a_task_without_a_name_is_for_all() -> None:
    assert parse_tasks("raw").resolve(SHAPES, DRAWN) == dict.fromkeys(SHAPES, RAW)
    found = parse_tasks(["regression"]).resolve(SHAPES, DRAWN)
    assert {task.kind for task in found.values()} == {"regression"}
    assert parse_tasks([]).resolve(SHAPES, None) == dict.fromkeys(SHAPES, RAW)


def test_classification_is_of_the_only_output_or_the_one_called_logits() -> None:
    classes = OutputTask(kind="classification", class_axis=1)
    request = parse_tasks("classification")
    assert request.resolve(TWO, ["b"]) == {"a": RAW, "b": classes}
    assert request.resolve(SHAPES, DRAWN) == {**dict.fromkeys(SHAPES, RAW), "logits": classes}
    assert request.resolve(TWO, None) == {"a": RAW, "b": RAW}, "nothing is made of them without draws"
    with pytest.raises(ExportError, match=r"several outputs \(a, b\).*--task a=classification"):
        request.resolve(TWO, ["a", "b"])
    named = parse_tasks(["classification", "a=raw"])
    assert named.resolve(TWO, ["a", "b"]) == {"a": RAW, "b": classes}


def test_each_output_has_its_own_task_and_axis() -> None:
    request = parse_tasks(["regression", "logits=classification", "tokens=classification@-1", "score=classification"])
    assert request.resolve(SHAPES, DRAWN) == {
        "logits": OutputTask(kind="classification", class_axis=1),
        "tokens": OutputTask(kind="classification", class_axis=2, event=True),
        "score": OutputTask(kind="classification", class_axis=None, event=True),
        "fixed": OutputTask(kind="regression"),
    }


def test_probabilities_have_classes_as_scores_have() -> None:
    request = parse_tasks(["logits=probabilities", "tokens=probabilities@-1", "score=probabilities"])
    found = request.resolve(SHAPES, DRAWN)
    assert found == {
        "logits": OutputTask(kind="probabilities", class_axis=1),
        "tokens": OutputTask(kind="probabilities", class_axis=2, event=True),
        "score": OutputTask(kind="probabilities", event=True),
        "fixed": RAW,
    }
    assert {name: (task.classes, task.scores) for name, task in found.items()} == {
        "logits": (True, False), "tokens": (True, False), "score": (True, False), "fixed": (False, True),
    }  # fmt: skip
    both = parse_tasks(["classification", "a=probabilities"])
    assert {name: task.kind for name, task in both.resolve(TWO, ["a", "b"]).items()} == {
        "a": "probabilities", "b": "classification",
    }  # fmt: skip


def test_probabilities_without_a_name_are_the_only_output_and_not_the_one_called_logits() -> None:
    request = parse_tasks("probabilities")
    assert request.resolve(TWO, ["b"]) == {"a": RAW, "b": OutputTask(kind="probabilities", class_axis=1)}
    with pytest.raises(ExportError, match=r"\(logits, tokens, score\).*holds probabilities.*logits=probabilities"):
        request.resolve(SHAPES, DRAWN)


def test_a_variance_belongs_to_its_mean_and_is_no_output() -> None:
    request = parse_tasks([], {"tokens": "score"}, {"logits": "fixed"})
    assert request.resolve(SHAPES, DRAWN) == {
        "logits": OutputTask(kind="regression", variance="fixed", logarithm=True),
        "tokens": OutputTask(kind="regression", variance="score"),
    }
    classes = OutputTask(kind="classification", class_axis=1)
    assert parse_tasks("classification", {"tokens": "score"}).resolve(SHAPES, DRAWN) == {
        "logits": classes,
        "tokens": OutputTask(kind="regression", variance="score"),
        "fixed": RAW,
    }


@pytest.mark.parametrize("drawn", [DRAWN, None])
def test_classification_of_nothing_but_means_with_a_variance_is_refused(drawn: list[str] | None) -> None:
    request = parse_tasks("classification", {"tokens": "score"}, {"logits": "fixed"})
    with pytest.raises(UsageError, match=r"each output that draws has a variance \(logits, tokens.*regression"):
        request.resolve(SHAPES, drawn)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("guessing", "unknown kind 'guessing'.*classification, probabilities, regression, raw, none"),
        ("logits=guessing", "unknown kind 'guessing'"),
        ("none", "give the output, NAME=none"),
        ("=raw", "give the output, NAME=raw"),
        ("logits=regression@1", "only classification and probabilities have a class axis"),
        ("logits=classification@last", "axis 'last' is no number"),
        ("logits=probabilities@last", "axis 'last' is no number.*NAME=probabilities@-1"),
        (["raw", "regression"], "2 tasks without an output's name"),
        (["logits=raw", "logits=none"], "logits: given twice"),
    ],
)
def test_other_forms_are_refused(texts: str | list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_tasks(texts)


@pytest.mark.parametrize(
    ("texts", "variance", "log_variance", "message"),
    [
        ([], {"a": "v"}, {"a": "w"}, "output a has two variances"),
        ([], {"a": "v", "b": "v"}, {}, "output v is the variance of two outputs"),
        ([], {"a": "b"}, {"b": "v"}, "output b is a mean and a variance"),
        (["a=classification"], {"a": "v"}, {}, "output a has a variance, so its task is regression"),
        (["a=probabilities"], {"a": "v"}, {}, "output a has a variance, so its task is regression"),
        (["a=none"], {"a": "v"}, {}, "output a has a variance"),
        (["v=raw"], {}, {"a": "v"}, "output v is used as a variance"),
    ],
)
def test_variances_that_contradict_are_refused(
    texts: list[str], variance: dict[str, str], log_variance: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        parse_tasks(texts, variance, log_variance)


@pytest.mark.parametrize(
    ("texts", "variance", "message"),
    [
        ("nothing=raw", {}, "'nothing': no such output.*logits, tokens, score, fixed"),
        ([], {"logits": "sigma"}, "'sigma': no such output"),
        ("tokens=classification@0", {}, "3 dimensions.*1 to 2, or -2 to -1"),
        ("tokens=classification@3", {}, "1 to 2"),
        ("tokens=probabilities@3", {}, "tokens=probabilities@3: .*1 to 2"),
        ("score=classification@1", {}, "must be left out"),
    ],
)
def test_outputs_and_axes_that_do_not_exist_are_refused(texts: str, variance: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_tasks(texts, variance).resolve(SHAPES, DRAWN)


@pytest.mark.parametrize(
    ("texts", "variance"), [("fixed=classification", {}), ("fixed=probabilities", {}), ([], {"fixed": "score"})]
)
def test_what_needs_draws_is_refused_for_an_output_that_has_none(texts: str, variance: dict[str, str]) -> None:
    with pytest.raises(ExportError, match=r"'fixed': depends on no dropout.*logits, tokens, score"):
        parse_tasks(texts, variance).resolve(SHAPES, DRAWN)


def test_an_axis_without_classes_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a=classification: the output has no class along axis 1, whose size is 0"):
        parse_tasks("classification").resolve({"a": (5, 0)}, ["a"])
