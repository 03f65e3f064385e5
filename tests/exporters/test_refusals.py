"""What cannot be exported says which module, what it does, and what to do instead; and what only seemed impossible."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, distributions, nn

from deploykit.errors import ExportError
from exporters.export import ExportResult, export_module
from exporters.exportable import advising

SPEC = "x:float32[batch,8]"


class Body(nn.Module):
    """Two layers and a dropout around a function, and other rows to compare with."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.last, self.drop = nn.Linear(8, 8), nn.Linear(8, 3), nn.Dropout(0.3)
        self.examples: Tensor
        self.register_buffer("examples", torch.linspace(-1, 1, 240).view(30, 8))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def exported(function: Any, path: Path, formats: tuple[str, ...] = ("torchscript",), **options: Any) -> ExportResult:
    """As a part of a larger model, so that its name is to be seen."""
    model = nn.Sequential(nn.Identity(), function if isinstance(function, nn.Module) else Body(function)).eval()
    return export_module(model, path / "a", inputs=[SPEC], mc_draws=3, formats=formats, **options)


def by_nonzero(owner: Body, x: Tensor) -> Tensor:
    hidden = owner.drop(owner.first(x))
    rows = (x[:, 0] > 0).nonzero().flatten()
    return torch.zeros_like(hidden).index_add(0, rows, hidden[rows])


def by_mask(owner: Body, x: Tensor) -> Tensor:
    hidden, chosen = owner.drop(owner.first(x)), x[:, 0] > 0
    out = hidden.clone()
    out[chosen] = owner.first(hidden[chosen])
    return out


def by_where(owner: Body, x: Tensor) -> Tensor:
    """As experts are mostly written."""
    hidden = owner.drop(owner.first(x))
    (rows,) = torch.where(owner.last(hidden).argmax(-1) == 1)
    return hidden.index_copy(0, rows, hidden[rows] * 2)


@pytest.mark.parametrize("function", [by_nonzero, by_mask, by_where])
def test_rows_picked_by_their_values_are_refused_in_these_words(tmp_path: Path, function: Any) -> None:
    with pytest.raises(ExportError, match=r"^1 \(aten\.\w+\.\w+\): picks some of the rows .*torch\.where"):
        exported(function, tmp_path)


def test_a_size_that_values_decide_is_refused_in_these_words(tmp_path: Path) -> None:
    """As well as, under torch 2.11, one that is computed from others."""

    def cut(owner: Body, x: Tensor) -> Tensor:
        return owner.drop(x[:, : x[:, 0].abs().amax().long().item()]).sum(1)

    with pytest.raises(ExportError, match=r"^1 \(aten\.slice\.Tensor\): gives the rows a size that torch does not"):
        exported(cut, tmp_path)


def neighbour(owner: Body, x: Tensor) -> Tensor:
    """The place of the row beside, where values are larger than any in a check."""
    return (torch.arange(x.shape[0]) + (x[:, 0] > 1e4).long()).clamp(max=x.shape[0] - 1)


def by_index(owner: Body, x: Tensor) -> Tensor:
    return owner.drop(owner.first(x))[neighbour(owner, x)]


def by_gather(owner: Body, x: Tensor) -> Tensor:
    return owner.drop(owner.first(x)).gather(0, neighbour(owner, x)[:, None].expand(-1, 8))


def by_sum(owner: Body, x: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(0, neighbour(owner, x), owner.drop(owner.first(x)))


def by_writing(owner: Body, x: Tensor) -> Tensor:
    hidden = owner.drop(owner.first(x))
    hidden[neighbour(owner, x)] = x
    return hidden


def by_table(owner: Body, x: Tensor) -> Tensor:
    return F.embedding(neighbour(owner, x), owner.drop(owner.first(x)))


def by_turns(owner: Body, x: Tensor) -> Tensor:
    """Each row takes as many values as it has places for them, beginning where the row before it ended."""
    return owner.drop(owner.first(x)).masked_scatter(x > 1e4, owner.first(x))


BY_PLACES: dict[str, Any] = {
    "scatter": lambda hidden, places: hidden.scatter(0, places[:, None], hidden[:, :1]),
    "scatter_add": lambda hidden, places: hidden.scatter_add(0, places[:, None], hidden[:, :1]),
    "scatter_reduce": lambda hidden, places: hidden.scatter_reduce(0, places[:, None], hidden[:, :1], "amax"),
    "index_copy": lambda hidden, places: hidden.index_copy(0, places, hidden),
    "index_fill": lambda hidden, places: hidden.index_fill(0, places, 1.0),
    "index_reduce": lambda hidden, places: hidden.index_reduce(0, places, hidden, "amax"),
    "take": lambda hidden, places: hidden.take(places[:, None] * 8),
    "put": lambda hidden, places: hidden.put(places[:, None] * 8, hidden[:, :1]),
}


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("name", BY_PLACES)
def test_every_operation_that_finds_rows_at_places_is_refused(tmp_path: Path, name: str) -> None:
    def function(owner: Body, x: Tensor) -> Tensor:
        return BY_PLACES[name](owner.drop(owner.first(x)), neighbour(owner, x))

    with pytest.raises(ExportError, match=rf"^1 \(aten\.{name}\.\w+\): finds rows of a batch at places"):
        exported(function, tmp_path)


@pytest.mark.parametrize("function", [by_index, by_gather, by_sum, by_writing, by_table, by_turns])
def test_rows_at_places_that_values_decide_are_refused(tmp_path: Path, function: Any) -> None:
    with pytest.raises(ExportError, match=r"^1 \(aten\.\w+\.\w+\): finds rows of a batch at places"):
        exported(function, tmp_path)


def first_thousand(owner: Body, x: Tensor) -> Tensor:
    """With fifty draws together, a batch of 21 would have more rows."""
    return owner.drop(owner.first(x)) * (torch.arange(x.shape[0]) < 1000).unsqueeze(1)


def table_of_places(owner: Body, x: Tensor) -> Tensor:
    return owner.drop(owner.first(x)) + owner.examples[(torch.arange(x.shape[0]) - 1000).clamp(min=0)]


def unless_large(owner: Body, x: Tensor) -> Tensor:
    return owner.drop(owner.first(x)) * torch.where(torch.tensor(x.shape[0]) > 1000, 0.0, 1.0)


@pytest.mark.parametrize("function", [first_thousand, table_of_places, unless_large])
def test_the_place_of_a_row_in_its_batch_is_refused_also_where_no_check_shows_it(tmp_path: Path, function: Any) -> None:
    with pytest.raises(
        ExportError, match=r"^1 \(aten\.(arange|scalar_tensor|lift_fresh_copy)\.\w+\): counts the rows of the batch"
    ):
        exported(function, tmp_path)


def own_places(owner: Body, x: Tensor) -> Tensor:
    """Each row at its own place, also where it is one of several lines, and a table that is not the batch's."""
    hidden, best = owner.drop(owner.first(x)), x.argmax(1)
    lines = hidden.view(-1, 2)[torch.arange(x.shape[0]) * 4 + best // 2]
    return torch.cat(
        [lines, hidden[torch.arange(x.shape[0]), best, None], owner.examples[best], x.gather(1, best[:, None])], 1
    )


def in_parts(owner: Body, x: Tensor) -> Tensor:
    """Several views of each row in one pass."""
    first, second, third = owner.last(owner.drop(owner.first(torch.cat([x, x.flip(1), -x])))).chunk(3)
    return torch.stack([*torch.chunk(torch.cat([first, second]), 2), *torch.cat([third, first]).split(x.shape[0])], 1)


@pytest.mark.parametrize("function", [own_places, in_parts])
def test_rows_at_their_own_places_are_exported(tmp_path: Path, function: Any) -> None:
    assert exported(function, tmp_path).max_error < 1e-5


def middle_of_numbers(owner: Body, x: Tensor) -> Tensor:
    return torch.nanmedian(owner.drop(owner.first(x)), dim=1)[0]


def filter_per_row(owner: Body, x: Tensor) -> Tensor:
    batch, hidden = x.shape[0], owner.drop(owner.first(x))
    filters = owner.first(x)[:, :2].reshape(batch, 1, 1, 2)
    return F.conv2d(hidden.view(1, batch, 2, 4), filters, groups=batch).view(batch, -1)


def orthogonal() -> Body:
    body = Body(lambda owner, x: owner.last(owner.drop(owner.first(x))))
    nn.utils.parametrizations.orthogonal(body.first)
    return body


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (middle_of_numbers, r"^1: aten\.nanmedian\.dim has no ONNX form; export with --format torchscript"),
        (filter_per_row, r"^1: aten\.conv2d\.default has no ONNX form with .* computed from the size of the inputs"),
        (orthogonal(), r"^1\.first\.parametrizations\.weight\.0: .*remove_parametrizations of 1\.first"),
    ],
)
def test_what_onnx_lacks_is_refused_by_its_module(tmp_path: Path, function: Any, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        exported(function, tmp_path, ("onnx",))


def test_what_onnx_lacks_in_a_loop_over_draws_is_refused_by_its_module(tmp_path: Path) -> None:
    def function(owner: Body, x: Tensor) -> Tensor:
        filters = owner.drop(owner.examples[:2].view(2, 1, 8))
        return torch.nanmedian(F.conv1d(x[:, None], filters, padding=3), dim=2)[0]

    with pytest.raises(ExportError, match=r"^1: aten\.nanmedian\.dim has no ONNX form"):
        exported(function, tmp_path, ("onnx",))


@pytest.mark.parametrize("kind", [distributions.Beta, distributions.Gamma])
def test_distributions_without_a_form_are_refused_by_their_module(tmp_path: Path, kind: Any) -> None:
    def function(owner: Body, x: Tensor) -> Tensor:
        level = F.softplus(owner.first(x)) + 0.1
        noise: Tensor = kind(level, level + 1).rsample()
        return noise

    with pytest.raises(ExportError, match=r"\b1\b.*: _(sample_dirichlet|standard_gamma)\b.*(draws|random)"):
        exported(function, tmp_path)


def test_a_generator_of_its_own_is_refused_by_its_module(tmp_path: Path) -> None:
    def function(owner: Body, x: Tensor) -> Tensor:
        return owner.drop(x) * torch.rand(x.shape, generator=torch.Generator().manual_seed(3))

    with pytest.raises(ExportError, match=r"^1 .*: draws with a generator of its own.*leave generator= out"):
        exported(function, tmp_path)


def test_a_dropout_in_a_condition_is_refused_by_its_module(tmp_path: Path) -> None:
    def function(owner: Body, x: Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda y: F.dropout(y, 0.3, owner.training), lambda y: y * 1, (x,))

    with pytest.raises(ExportError, match=r": 1: dropout in a block of torch\.cond"):
        exported(function, tmp_path)


def test_a_condition_of_tensors_is_refused_by_what_to_do(tmp_path: Path) -> None:
    def function(owner: Body, x: Tensor) -> Any:
        return owner.drop(torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y * 1, (x,)))

    with pytest.raises(ExportError, match=r"^1: torch\.cond: an operation that takes functions .*with torch\.where"):
        exported(function, tmp_path)


def scanned(owner: Body, x: Tensor) -> Any:
    from torch._higher_order_ops import scan

    return owner.drop(scan(lambda total, each: (total + each, total * 1), torch.zeros_like(x[:, 0]), x.t())[1].t())


def scanned_by_parts(owner: Body, x: Tensor) -> Any:
    from torch._higher_order_ops import associative_scan

    return owner.drop(associative_scan(torch.add, x, 1, combine_mode="generic"))


def attending_by_functions(owner: Body, x: Tensor) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    tokens = x.view(-1, 1, 2, 4)
    return owner.drop(flex_attention(tokens, tokens, tokens))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("function", "words"),
    [
        (scanned, r"^1: scan: an operation that takes functions .*in a loop of Python"),
        (scanned_by_parts, r"^1 \(.*: associative_scan: an operation that takes functions .*in a loop of Python"),
        (attending_by_functions, r"^1: flex_attention: an operation that takes functions .*attn_mask"),
    ],
)
def test_operations_that_take_functions_are_refused_by_their_names(tmp_path: Path, function: Any, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        exported(function, tmp_path)


def test_a_copy_made_in_forward_is_refused_with_the_way_out(tmp_path: Path) -> None:
    def copied(owner: Body, x: Tensor) -> Any:
        return copy.deepcopy(owner.last)(owner.drop(x))

    with pytest.raises(ExportError, match=r"^1 \(.*: copies a module .* call the module itself"):
        exported(copied, tmp_path)


def test_a_block_of_autocast_is_refused_by_its_module(tmp_path: Path) -> None:
    def function(owner: Body, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return owner.drop(owner.first(x)) * torch.rand_like(x)

    with pytest.raises(ExportError, match=r"^1: computes in a block of torch\.autocast.*enabled=False"):
        exported(function, tmp_path)


@pytest.mark.parametrize("read", [lambda batch: batch["x"], lambda batch: sum(value for _, value in batch.items())])
def test_a_module_that_takes_one_dict_is_told_of_its_option(tmp_path: Path, read: Any) -> None:
    class Net(nn.Module):
        def forward(self, batch: Any) -> Any:
            return F.dropout(read(batch), 0.5, self.training)

    with pytest.raises(ExportError, match=r"^\(root\) .*out of one dict: .*give --batch dict"):
        export_module(Net().eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3)
    assert export_module(Net().eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3, batch="dict", formats=["torchscript"])


class Loops(nn.Module):
    """As layers of torch_geometric: a batch of graphs as one, whose edges that are loops are replaced."""

    def __init__(self, where: str, add_self_loops: bool) -> None:
        super().__init__()
        self.where, self.add_self_loops, self.last = where, add_self_loops, nn.Linear(2, 3)
        self.ends: Tensor
        self.register_buffer("ends", torch.tensor([[0, 1, 2], [0, 2, 1]]))

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "all rows":
            return self.of_all_rows(x)
        nodes = x.reshape(-1, 2)
        # Each node's neighbour is another one of its row, or itself.
        source = torch.arange(len(nodes))
        source, target = self.looped(source, source // 4 * 4 + (nodes[:, 0] > 0) * 2, len(nodes))
        messages = nodes[source]
        messages = F.dropout(messages, 0.3, self.training and self.where == "edges")
        summed = torch.zeros_like(nodes).index_add(0, target, messages)
        return self.last(F.dropout(summed, 0.3, self.training and self.where == "nodes")).view(x.shape[0], -1)

    def looped(self, source: Tensor, target: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
        if not self.add_self_loops:
            return source, target
        apart, loops = source != target, torch.arange(nodes)
        return torch.cat([source[apart], loops]), torch.cat([target[apart], loops])

    def of_all_rows(self, x: Tensor) -> Tensor:
        """All rows share the edges."""
        source, target = self.looped(self.ends[0], self.ends[1], 8)
        summed = torch.zeros_like(x).index_add(1, target, x[:, source])
        return self.last(F.dropout(summed, 0.3, self.training).view(-1, 4, 2)).flatten(1)


@pytest.mark.parametrize("where", ["edges", "nodes", "all rows"])
def test_layers_that_look_for_loops_are_refused_with_their_own_way_out(tmp_path: Path, where: str) -> None:
    words = r"^1\b.*( by their values| that torch does not know).*add_self_loops=False"
    with pytest.raises(ExportError, match=words):
        exported(Loops(where, add_self_loops=True), tmp_path)
    result = exported(Loops(where, add_self_loops=False), tmp_path)
    assert result.manifest.monte_carlo is not None


class TinyExperts(nn.Module):
    """As experts of transformers, which have another form for all tokens at once."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.first = function, nn.Linear(8, 8)

    def set_experts_implementation(self, name: str) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x))


def looped_experts(x: Tensor) -> Tensor:
    return x * 2 if (x[0] > 0).any() else x


def sorted_experts(x: Tensor) -> Tensor:
    return x[x[:, 0].argsort()]


def experts_of_a_library(x: Tensor) -> Tensor:
    return torch.ops.deploykit_tests.same(x)


@pytest.mark.parametrize(
    ("function", "written", "draws"),
    [
        (looped_experts, "torchscript", None),
        (sorted_experts, "torchscript", 3),
        (lambda x: x - x.mean(0), "torchscript", 3),
        (lambda x: x.logcumsumexp(1), "onnx", None),
        (experts_of_a_library, "torchscript", None),
    ],
)
def test_experts_are_refused_with_their_own_way_out(
    tmp_path: Path, function: Any, written: str, draws: int | None
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Dropout(0.3), TinyExperts(function)).eval()
    with torch.library._scoped_library("deploykit_tests", "FRAGMENT") as library:
        library.define("same(Tensor x) -> Tensor")
        library.impl("same", torch.clone, "CompositeExplicitAutograd")
        with pytest.raises(ExportError, match=r"^1\b.*set_experts_implementation\(.batched_mm"):
            export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=draws, formats=[written])


def test_the_words_of_a_refusal_give_it_no_way_out() -> None:
    """Its kind does: another refusal of the same layer, in whatever words, is not mended by another form of it."""

    def refuse(module: nn.Module, refusal: ExportError) -> None:
        raise refusal

    module = nn.Sequential(nn.Linear(2, 2), Loops("edges", add_self_loops=True))
    words = "1: picks some of the rows by their values"
    for refusal in (ExportError(words), ExportError(words, part="0", by_values=True), ExportError(words, part="1")):
        with pytest.raises(ExportError) as caught:
            advising(refuse)(module, refusal)
        assert caught.value is refusal
    with pytest.raises(ExportError, match=r"^cut\. .*add_self_loops=False"):
        advising(refuse)(module, ExportError("cut", part="1", by_values=True))


def test_other_rows_beside_the_batch_are_refused_with_a_way_out(tmp_path: Path) -> None:
    def beside(owner: Body, x: Tensor) -> Tensor:
        both = owner.drop(owner.first(torch.cat([x, owner.examples])))
        return torch.cdist(both[: x.shape[0]], both[x.shape[0] :])

    with pytest.raises(ExportError, match=r"^1\.drop: .* is batch \+ 30, which is not .*once for the batch and once"):
        exported(beside, tmp_path)


def distances(owner: Body, x: Tensor) -> Tensor:
    """To prototypes that pass through the same layers."""
    return -torch.cdist(owner.drop(owner.first(x)), owner.drop(owner.first(owner.examples)))


def other_distances(owner: Body, x: Tensor) -> Tensor:
    hidden, others = owner.drop(owner.first(x)).view(-1, 2, 4), owner.examples.view(-1, 4)
    each = [torch.cdist(hidden, others, p=p) for p in (0.0, 1.0, 3.0, float("inf"))]
    return torch.stack(each, 1)


def ranked(owner: Body, x: Tensor) -> Tensor:
    order = torch.argsort(owner.drop(owner.first(x)).round(), dim=1, stable=True)
    return torch.cat([x.gather(1, order), torch.sort(x.round(), dim=1, stable=True, descending=True)[0]], 1)


@pytest.mark.parametrize("function", [distances, other_distances, ranked])
def test_distances_and_stable_sorts_have_an_onnx_form(tmp_path: Path, function: Any) -> None:
    result = exported(function, tmp_path, ("onnx",))
    assert result.max_error < 1e-5
    assert result.notes == ()


def test_only_an_error_about_sizes_asks_for_a_larger_example(tmp_path: Path) -> None:
    class Misspelt(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x.sizes()  # type: ignore[operator]

    inputs = ["x:float32[batch,3,steps]"]
    with pytest.raises(ExportError, match="has no attribute 'sizes'") as misspelt:
        export_module(Misspelt(), tmp_path / "a", inputs=inputs)
    assert "real size" not in str(misspelt.value)
    with pytest.raises(ExportError, match=r"steps=.* give an --example of a real size"):
        export_module(nn.Conv1d(3, 4, kernel_size=64), tmp_path / "a", inputs=inputs)


def each_alone(owner: Body, x: Tensor) -> Tensor:
    return torch.stack([owner.last(owner.drop(each)) for each in x])


def by_numpy(owner: Body, x: Tensor) -> Tensor:
    return owner.drop(torch.from_numpy(np.tanh(x.numpy())))


def by_chance(owner: Body, x: Tensor) -> Tensor:
    return owner.drop(x) * torch.multinomial(owner.first(x).softmax(-1), 1)


def by_chance_that_exports(owner: Body, x: Tensor) -> Tensor:
    p = owner.first(x).softmax(-1)
    return owner.drop(x) * (p / torch.empty_like(p).exponential_()).topk(1).indices


def flat_noise(owner: Body, x: Tensor) -> Tensor:
    return owner.last(x * torch.rand(x.numel()).view_as(x))


def sorted_and_put_back(owner: Body, x: Tensor) -> Tensor:
    order = x[:, 0].argsort()
    return owner.last(owner.drop(owner.first(x[order])))[order.argsort()]


def of_the_batch() -> Body:
    body = Body(lambda owner, x: owner.last(owner.drop(owner.norm(x))))
    body.norm = nn.BatchNorm1d(8, track_running_stats=False)
    return body


def experts(owner: Body, x: Tensor) -> Tensor:
    """Each adds what it makes of its rows, as those of Mixtral."""
    out, choice = torch.zeros_like(x), F.one_hot(owner.last(x).argmax(-1), 3)
    for expert in range(3):
        (rows,) = torch.where(choice[:, expert] > 0)
        out.index_add_(0, rows, owner.drop(owner.first(x[rows])))
    return out


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (each_alone, r"\(batch\): its code takes tensors apart .*x\.tolist\(\) do; .*for all rows at once"),
        (by_numpy, r"^1 .*: computes with numpy.*use the functions of torch"),
        (by_chance, r"\b1: multinomial\. .*\(p / torch\.empty_like\(p\)\.exponential_\(\)\)\.topk\(k\)\.indices"),
        (flat_noise, r"^1: .*draw it unfolded.*torch\.rand_like"),
        (sorted_and_put_back, r"influence each other.*sorted and put back again need not be: leave both out$"),
        (of_the_batch(), r"^1\.norm .*influence each other.*track_running_stats=True.*nn\.GroupNorm and nn\.LayerNorm"),
        (experts, r"^1 \(aten\.index\.Tensor\): picks some of the rows .*torch\.where\(mask"),
    ],
)
def test_a_refusal_says_the_cause_and_a_way_out_that_fits_it(tmp_path: Path, function: Any, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        exported(function, tmp_path)


def test_rows_chosen_by_chance_export_as_the_refusal_says(tmp_path: Path) -> None:
    assert exported(by_chance_that_exports, tmp_path, ("torchscript", "onnx")).max_error < 1e-5


def unless_it_fits(owner: Body, x: Tensor) -> Tensor:
    if x.shape[2] % 16 != 0:
        x = F.pad(x, (0, 16 - x.shape[2] % 16))
    return owner.drop(F.avg_pool1d(x, 16))


def half_of_it(owner: Body, x: Tensor) -> Tensor:
    return owner.drop(x)[..., : int(x.shape[2] * 0.5)].sum(2)


def cut_again(owner: Body, x: Tensor) -> Tensor:
    padded = owner.drop(F.pad(x.transpose(1, 2), (0, 0, 0, -x.shape[2] % 8)))
    return padded[:, : x.shape[2]] @ owner.first.weight[:3]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (cut_again, r" != .*; a part that may be all of a tensor .*: take it as x\[:, :n\]\.contiguous\(\)"),
        (unless_it_fits, r"\(steps % 16\) != 0; do it for every size, as F\.pad\(x, \(0, -n % 16\)\) does"),
        (half_of_it, r"write it without that size \(math\.floor\(n / 2\) for int\(n / 2\)\)"),
    ],
)
def test_a_size_that_is_fixed_is_refused_with_what_to_write(tmp_path: Path, function: Any, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        export_module(Body(function).eval(), tmp_path / "a", inputs=["x:float32[batch,3,steps]"], mc_draws=3)


def test_sizes_written_as_the_refusals_say_stay_dynamic(tmp_path: Path) -> None:
    def written(owner: Body, x: Tensor) -> Tensor:
        half = owner.drop(x)[..., : math.floor(x.shape[2] * 0.5)].sum(2)
        padded = F.pad(x, (0, -x.shape[2] % 16))
        cut: Tensor = (padded.transpose(1, 2)[:, : x.shape[2]].contiguous() @ owner.first.weight[:3]).sum(2)
        return half + F.avg_pool1d(padded, 16).sum(2) + cut.mean(1, keepdim=True)

    module = Body(written).eval()
    result = export_module(module, tmp_path / "a", inputs=["x:float32[batch,3,steps]"], mc_draws=3)
    assert (result.manifest.bounds, result.notes) == ({}, ())
