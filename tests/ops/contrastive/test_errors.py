"""Every misuse gets an error that names the argument, what came and what was expected."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import sparc_kernels as sk
from sparc_kernels import Above, Ids, Labels, Pairs, Teacher

B, D, K = 4, 8, 3
X, Y = torch.randn(B, D), torch.randn(B, D)
I = torch.arange(B)
N = torch.arange(B + 1)
U = torch.randn(B, K)
META = "meta"  # a second device that every machine has
Cases = list[tuple[str, type[Exception], str, dict[str, Any]]]


def ids(name: str) -> Cases:
    """Misuse of ids as ``name`` says them; the values are filled in by the caller."""
    return [
        ("ids of another size", ValueError, rf"{name}\.rows must have shape \[4\], got \[3\]", {"ids": (I[:3], I)}),
        ("ids of another rank", ValueError, rf"{name}\.cols must have shape \[4\], got \[4, 1\]", {"ids": (I, I[:, None])}),
        ("float ids", TypeError, rf"{name}\.cols must be an integer tensor, got torch.float32", {"ids": (I, I.float())}),
        ("bool ids", TypeError, rf"{name}\.rows must be an integer tensor, got torch.bool", {"ids": (I > 1, I)}),
        ("a list of ids", TypeError, rf"{name}\.rows must be an integer torch.Tensor, got list", {"ids": ([0, 1, 2, 3], I)}),
        ("ids elsewhere", ValueError, rf"{name}\.rows must be on the device of rows, got meta and cpu", {"ids": (I.to(META), I)}),
    ]  # fmt: skip


def pairs(name: str) -> Cases:
    return [
        ("short indptr", ValueError, rf"{name}\.indptr must have shape \[5\], got \[4\]", {"pairs": (N[:4], I)}),
        ("float indptr", TypeError, rf"{name}\.indptr must be an integer tensor, got torch.float32", {"pairs": (N.float(), I)}),
        ("indptr not from 0", ValueError, rf"{name}\.indptr must rise from 0 to 4, the number of pairs, got 1 to 4", {"pairs": (torch.tensor([1, 1, 2, 3, 4]), I)}),
        ("indptr too far", ValueError, rf"{name}\.indptr must rise from 0 to 4, .* got 0 to 5", {"pairs": (torch.tensor([0, 1, 2, 3, 5]), I)}),
        ("indptr falls", ValueError, rf"{name}\.indptr must rise .* falling in between", {"pairs": (torch.tensor([0, 3, 1, 2, 4]), I)}),
        ("index too large", ValueError, rf"{name}\.indices must lie in \[0, 4\), got 1 to 4", {"pairs": (N, I + 1)}),
        ("index negative", ValueError, rf"{name}\.indices must lie in \[0, 4\), got -1 to 2", {"pairs": (N, I - 1)}),
        ("indices fall", ValueError, rf"{name}\.indices must ascend within each row, without repetition", {"pairs": (torch.tensor([0, 2, 2, 3, 4]), torch.tensor([1, 0, 2, 3]))}),
        ("a pair twice", ValueError, rf"{name}\.indices must ascend", {"pairs": (torch.tensor([0, 2, 2, 3, 4]), torch.tensor([1, 1, 2, 3]))}),
        ("indices of another rank", ValueError, rf"{name}\.indices must have shape \[any\], got \[4, 1\]", {"pairs": (N, I[:, None])}),
    ]  # fmt: skip


WEIGHTED: Cases = [
    ("negative weights", ValueError, r"targets\.weights must be finite and not negative, got -1 to 2", {"targets": Pairs(N, I, I.float() - 1)}),
    ("infinite weights", ValueError, r"targets\.weights must be finite", {"targets": Pairs(N, I, torch.full((4,), torch.inf))}),
    ("too few weights", ValueError, r"targets\.weights must have shape \[4\], got \[3\]", {"targets": Pairs(N, I, torch.ones(3))}),
    ("integer weights", TypeError, r"targets\.weights must be a floating tensor, got torch.int64", {"targets": Pairs(N, I, I)}),
    ("a number as weights", TypeError, r"targets\.weights must be a floating torch.Tensor or None, got float", {"targets": Pairs(N, I, 0.5)}),
]  # fmt: skip
EXCLUSIONS: Cases = [
    ("a tensor", TypeError, r"exclude must be made of Ids, Pairs and Above, got Tensor", {"exclude": I}),
    ("labels", TypeError, r"exclude must be made of Ids, Pairs and Above, got Labels", {"exclude": [Labels(I, I)]}),
    ("twice", ValueError, r"exclude takes each kind once, got 2 of Ids", {"exclude": [Ids(I, I), Ids(I, I)]}),
    ("weights", ValueError, r"exclude pairs\.weights must be None", {"exclude": Pairs(N, I, torch.ones(4))}),
    ("guide of another batch", ValueError, r"exclude above\.cols must have 4 items, those of cols, got \[3, 3\]: .* same batch", {"exclude": Above(U, U[:3], 0.5)}),
    ("guides of two widths", ValueError, r"exclude above\.cols and exclude above\.rows must have the same K, got K=2", {"exclude": Above(U, U[:, :2], 0.5)}),
    ("threshold per column", ValueError, r"exclude above\.threshold must be a single number or have shape \[4\], .* got \[5\]", {"exclude": Above(U, U, torch.zeros(5))}),
    ("threshold of integers", TypeError, r"exclude above\.threshold must be a floating tensor, got torch.int64", {"exclude": Above(U, U, I)}),
    ("threshold of text", TypeError, r"exclude above\.threshold must be a number or a one-element tensor, got str", {"exclude": Above(U, U, "0.5")}),
]  # fmt: skip
SCALES: Cases = [
    ("zero", ValueError, "SCALE must be positive, got 0", {"SCALE": 0}),
    ("negative", ValueError, "SCALE must be positive, got -1.5", {"SCALE": -1.5}),
    ("infinite", ValueError, "SCALE must be finite, got inf", {"SCALE": float("inf")}),
    ("a negative tensor", ValueError, "SCALE must be positive and finite, got -2 to -2", {"SCALE": torch.tensor(-2.0)}),
    ("a NaN tensor", ValueError, "SCALE must be positive and finite, got nan", {"SCALE": torch.tensor([float("nan")])}),
    ("text", TypeError, "SCALE must be a number or a one-element tensor, got str", {"SCALE": "14"}),
    ("integers", TypeError, "SCALE must be a floating tensor, got torch.int64", {"SCALE": torch.tensor(3)}),
    ("elsewhere", ValueError, "SCALE must be on the device of", {"SCALE": torch.tensor(3.0, device=META)}),
]  # fmt: skip
LOSSES: Cases = [
    ("targets", TypeError, r"targets must be Labels, Pairs or None, got Ids", {"targets": Ids(I, I)}),
    ("weights of another size", ValueError, r"weights must have shape \[4\], got \[3\]", {"weights": torch.ones(3)}),
    ("negative weights", ValueError, r"weights must be finite and not negative, got -1 to 1", {"weights": torch.tensor([-1.0, 1, 1, 1])}),
    ("integer weights", TypeError, r"weights must be a floating tensor, got torch.int64", {"weights": I}),
    ("reduction", ValueError, r"reduction must be one of 'mean', 'sum', 'none', got 'token'", {"reduction": "token"}),
    ("above and labels", ValueError, r"exclude may not hold Above where targets are Labels", {"targets": Labels(I, I), "exclude": Above(U, U, 0.5)}),
    ("ids and labels", ValueError, r"exclude may not hold Ids where targets are Labels", {"targets": Labels(I, I), "exclude": [Ids(I, I)]}),
    ("more texts", ValueError, r"text_embeds and image_embeds must have the same B", {"text_embeds": torch.randn(5, D)}),
    ("width", ValueError, r"text_embeds and image_embeds must have the same D, got D=7", {"text_embeds": Y[:, :7]}),
    ("dtype", TypeError, r"text_embeds and image_embeds must have the same dtype", {"text_embeds": Y.double()}),
    ("rank", ValueError, r"image_embeds must have shape \[B, D\], got 3 dimensions", {"image_embeds": X[None]}),
    ("group", TypeError, r"group must be 'world', a ProcessGroup or None, got object", {"group": object()}),
    ("backend", ValueError, r"backend must be one of .* got 'fast'", {"backend": "fast"}),
    ("cuda", NotImplementedError, r"backend='cuda' cannot serve contrastive .*no CUDA kernel", {"backend": "cuda"}),
    *WEIGHTED, *EXCLUSIONS,
]  # fmt: skip
SOFTMAX: Cases = [
    ("direction", ValueError, r"direction must be one of 'both', 'image_to_text', 'text_to_image', got 'rows'", {"direction": "rows"}),
    ("smoothing of one", ValueError, r"label_smoothing must lie in \[0, 1\), got 1", {"label_smoothing": 1.0}),
    ("negative smoothing", ValueError, r"label_smoothing must lie in \[0, 1\), got -0.1", {"label_smoothing": -0.1}),
    ("smoothing of text", TypeError, r"label_smoothing must be a number, got str", {"label_smoothing": "0.1"}),
    ("smoothing and exclusions", ValueError, r"label_smoothing must be 0 where exclude is given", {"label_smoothing": 0.1, "exclude": Ids(I, I)}),
    ("alpha too large", ValueError, r"alpha must lie in \[0, 1\], got 1.5", {"alpha": 1.5, "teacher": Teacher(U, U, 1.0)}),
    ("alpha without teacher", ValueError, r"alpha must be 0 without a teacher, got 0.4", {"alpha": 0.4}),
    ("teacher", TypeError, r"teacher must be a Teacher or None, got tuple", {"teacher": (U, U, 1.0)}),
    ("teacher of another batch", ValueError, r"teacher\.rows must have 4 items, those of rows, got \[3, 3\]", {"teacher": Teacher(U[:3], U, 1.0)}),
    ("teacher's scale", ValueError, r"teacher\.scale must be positive, got 0", {"teacher": Teacher(U, U, 0)}),
    ("teacher's integers", TypeError, r"teacher\.rows must be a floating tensor", {"teacher": Teacher(U.long(), U, 1.0)}),
    ("teacher and ids", ValueError, r"exclude may not hold Ids where a teacher is given", {"teacher": Teacher(U, U, 1.0), "exclude": Ids(I, I)}),
    ("teacher and above", ValueError, r"exclude may not hold Above where a teacher is given", {"teacher": Teacher(U, U, 1.0), "exclude": Above(U, U, 0.5)}),
    ("teacher without the queue", ValueError, r"teacher\.cols must have 6 items, those of cols, got \[4, 3\]", {"teacher": Teacher(U, U, 1.0), "extra_texts": X[:2]}),
    ("teacher, queue, exclusions", ValueError, r"a teacher with extra_texts or extra_images goes with neither exclude nor Pairs", {"teacher": Teacher(U, torch.randn(6, K), 1.0), "extra_texts": X[:2], "exclude": Pairs(N, I)}),
    ("width of the queue", ValueError, r"extra_texts and text_embeds must have the same D, got D=7", {"extra_texts": X[:, :7]}),
    ("dtype of the queue", TypeError, r"extra_images and image_embeds must have the same dtype", {"extra_images": X.double()}),
    ("rank of the queue", ValueError, r"extra_images must have shape \[Q, D\]", {"extra_images": X[0]}),
    ("queue of the other direction", ValueError, r"extra_images must be None in the other direction", {"extra_images": X, "direction": "image_to_text"}),
    ("positives missing", ValueError, r"text_embeds must hold the positive of each of the 4 image_embeds, got \[3, 8\]", {"text_embeds": Y[:3], "direction": "image_to_text"}),
    ("none of two sizes", ValueError, r"reduction='none' with both directions needs as many texts as images, got \[4, 8\] and \[3, 8\]", {"text_embeds": Y[:3], "targets": Labels(I, I[:3]), "reduction": "none"}),
    ("weights of two sizes", ValueError, r"weights with both directions need as many texts as images", {"text_embeds": Y[:3], "targets": Labels(I, I[:3]), "weights": torch.ones(4)}),
]  # fmt: skip
STATISTICS: Cases = [
    ("width", ValueError, r"cols and rows must have the same D, got D=7", {"cols": Y[:, :7]}),
    ("rank", ValueError, r"rows must have shape \[M, D\]", {"rows": X[0]}),
    ("targets", TypeError, r"targets must be Labels or None, got Pairs", {"targets": Pairs(N, I)}),
    ("ids and labels", ValueError, r"exclude may not hold Ids where targets are Labels", {"targets": Labels(I, I), "exclude": [Ids(I, I)]}),
    ("group", TypeError, r"group must be 'world', a ProcessGroup or None, got object", {"group": object()}),
    *EXCLUSIONS,
]  # fmt: skip
MINING: Cases = [
    ("more than there are", ValueError, r"k must lie between 1 and 4, the number of columns, got 5", {"k": 5}),
    ("none", ValueError, r"k must lie between 1 and 4, .* got 0", {"k": 0}),
    ("half", TypeError, r"k must be an integer, got float", {"k": 1.5}),
    ("yes", TypeError, r"k must be an integer, got bool", {"k": True}),
    ("at_most per column", ValueError, r"at_most must be a single number or have shape \[4\]", {"at_most": torch.zeros(3)}),
    ("at_most of text", TypeError, r"at_most must be a number", {"at_most": "0.5"}),
    ("group", TypeError, r"group must be 'world', a ProcessGroup or None, got object", {"group": object()}),
    ("width", ValueError, r"cols and rows must have the same D", {"cols": Y[:, :7]}),
    *EXCLUSIONS,
]  # fmt: skip


def parameters(cases: Cases) -> list[Any]:
    return [pytest.param(*case[1:], id=case[0]) for case in cases]


def softmax(**change: Any) -> Any:
    return sk.contrastive_loss(**{"image_embeds": X, "text_embeds": Y} | change)


def sigmoid(**change: Any) -> Any:
    return sk.sigmoid_loss(**{"image_embeds": X, "text_embeds": Y, "logit_scale": 5.0, "logit_bias": -1.0} | change)


def logsumexp(**change: Any) -> Any:
    return sk.similarity_logsumexp(**{"rows": X, "cols": Y, "row_scale": 5.0} | change)


def softplus(**change: Any) -> Any:
    return sk.similarity_softplus(**{"rows": X, "cols": Y, "scale": 5.0} | change)


def mining(**change: Any) -> Any:
    return sk.mine_negatives(**{"rows": X, "cols": Y, "k": 2} | change)


@pytest.mark.parametrize("function", [softmax, sigmoid])
@pytest.mark.parametrize("error, message, change", parameters(LOSSES))
def test_losses(function: Any, error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        function(**change)


@pytest.mark.parametrize("error, message, change", parameters(SOFTMAX))
def test_contrastive_loss(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        softmax(**change)


@pytest.mark.parametrize("function", [logsumexp, softplus])
@pytest.mark.parametrize("error, message, change", parameters(STATISTICS))
def test_statistics(function: Any, error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        function(**change)


@pytest.mark.parametrize("error, message, change", parameters(MINING))
def test_mining(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        mining(**change)


@pytest.mark.parametrize(
    "function, name",
    [(softmax, "logit_scale"), (sigmoid, "logit_scale"), (logsumexp, "row_scale"), (logsumexp, "col_scale"), (softplus, "scale")],
)  # fmt: skip
@pytest.mark.parametrize("error, message, change", parameters(SCALES))
def test_scales(function: Any, name: str, error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message.replace("SCALE", name)):
        function(**{name: change["SCALE"]})


@pytest.mark.parametrize("function", [softmax, sigmoid, logsumexp, softplus, mining])
@pytest.mark.parametrize("error, message, change", parameters([*ids("exclude ids"), *pairs("exclude pairs")]))
def test_exclusions(function: Any, error: type[Exception], message: str, change: dict[str, Any]) -> None:
    (kind, values) = next(iter(change.items()))
    with pytest.raises(error, match=message):
        function(exclude={"ids": Ids, "pairs": Pairs}[kind](*values))


@pytest.mark.parametrize("function", [softmax, sigmoid, logsumexp])
@pytest.mark.parametrize("error, message, change", parameters([*ids("targets"), *pairs("targets")]))
def test_targets(function: Any, error: type[Exception], message: str, change: dict[str, Any]) -> None:
    (kind, values) = next(iter(change.items()))
    if function is logsumexp and kind == "pairs":
        pytest.skip("no such targets")
    with pytest.raises(error, match=message):
        function(targets={"ids": Labels, "pairs": Pairs}[kind](*values))


@pytest.mark.parametrize("bias, error", [("-10", TypeError), (torch.ones(2), ValueError), (float("nan"), ValueError)])
def test_bias(bias: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="logit_bias must be"):
        sigmoid(logit_bias=bias)


def test_scales_per_item() -> None:
    with pytest.raises(ValueError, match=r"col_scale must be given where row_scale is one per row, got \[4\]"):
        logsumexp(row_scale=torch.ones(4))
    with pytest.raises(ValueError, match=r"row_scale must be a single number or have shape \[4\], .* got \[3\]"):
        logsumexp(row_scale=torch.ones(3), direction="rows")
    with pytest.raises(ValueError, match=r"row_scale must be positive and finite, got 0 to 3"):
        logsumexp(row_scale=I.float(), direction="rows")
    with pytest.raises(ValueError, match=r"direction must be one of 'both', 'rows', 'cols', got 'image_to_text'"):
        logsumexp(direction="image_to_text")
    with pytest.raises(ValueError, match=r"Above and teacher must name the same tensors"):
        logsumexp(teacher=Teacher(U, U, 1.0), exclude=Above(U.clone(), U, 0.5))


def test_every_message_says_what_came() -> None:
    """A message that only says "invalid" would pass a careless match; these name an argument."""
    for name, _, message, change in [*LOSSES, *SOFTMAX, *STATISTICS, *MINING]:
        assert any(re.search(rf"{argument}|rows|cols|_embeds", message) for argument in change), name
