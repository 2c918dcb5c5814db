"""Arrays of other libraries: the same numbers, over the same memory, or an error that says what came."""

from __future__ import annotations

import re
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sparc_kernels as sk
from sparc_kernels import _arrays

FUNCTIONS = [sk.language_grouped_embeddings, sk.alignment_weights]
NUMPY_DTYPES = [np.float16, np.float32, np.float64]
BACKENDS = [("eager", dtype) for dtype in NUMPY_DTYPES] + [("cpu", np.float32), ("cpu", np.float64)]
FLIP = (slice(None), slice(None, None, -1))
README = Path(sk.__file__).parent.parent / "README.md"


def _inputs(dtype: Any = np.float32, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    patches = random.standard_normal((3, 7, 16)).astype(dtype)
    tokens = random.standard_normal((3, 5, 16)).astype(dtype)
    return patches, tokens, np.arange(7) < np.array([[7], [3], [1]])


def _tensors(*arrays: np.ndarray) -> list[Tensor]:
    return [torch.tensor(np.ascontiguousarray(array)) for array in arrays]


def _seen_and_made(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors that ``_arrays.call`` hands to the op, and the tensor that the op hands back."""
    seen: list[Tensor] = []
    made: list[Tensor] = []
    call = _arrays.call

    def recorded(function: Any, *arguments: Any) -> Any:
        def spy(*tensors: Any) -> Tensor:
            seen.extend(value for value in tensors if isinstance(value, Tensor))
            made.append(function(*tensors))
            return made[-1]

        return call(spy, *arguments)

    monkeypatch.setattr(_arrays, "call", recorded)
    return seen, made


# NumPy


@pytest.mark.parametrize("backend, dtype", BACKENDS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_numpy_gives_the_bits_of_tensors(function: Any, backend: str, dtype: Any) -> None:
    patches, tokens, mask = _inputs(dtype)
    out = function(patches, tokens, patch_mask=mask, backend=backend)
    assert type(out) is np.ndarray
    assert out.dtype == dtype
    v, t, m = _tensors(patches, tokens, mask)
    np.testing.assert_array_equal(out, function(v, t, patch_mask=m, backend=backend).numpy())


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_numpy_is_not_copied(function: Any, read_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, made = _seen_and_made(monkeypatch)
    arrays = _inputs()
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = not read_only
    patches, tokens, mask = arrays
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = function(patches, tokens, patch_mask=mask, backend="cpu")
    assert [tensor.data_ptr() for tensor in seen] == [array.ctypes.data for array in arrays]
    (result,) = made
    assert out.ctypes.data == result.data_ptr()
    assert np.shares_memory(out, result.numpy())
    assert not out.flags.owndata
    assert out.flags.writeable
    out[...] = 7  # what is written to the array stands in the tensor: there is one buffer
    assert (result == 7).all()
    for array, old in zip(arrays, before):
        np.testing.assert_array_equal(array, old)


def test_result_outlives_everything_else() -> None:
    patches, tokens, _ = _inputs()
    out = sk.alignment_weights(patches, tokens)
    del patches, tokens
    np.testing.assert_allclose(out.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("read_only", [False, True])
def test_numpy_that_exports_less(read_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old releases of NumPy refuse read-only arrays and bool: still no copy, and no warning."""

    def refuse(array: object) -> Tensor:
        raise BufferError("Cannot export readonly array since signalling readonly is unsupported by DLPack.")

    monkeypatch.setattr(torch, "from_dlpack", refuse)
    patches, tokens, mask = _inputs()
    patches.flags.writeable = mask.flags.writeable = not read_only
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = _arrays._to_tensor("patch_embeds", patches, floating=True)
        assert tensor.data_ptr() == patches.ctypes.data
        assert sk.alignment_weights(patches, tokens, patch_mask=mask).shape == (3, 5, 7)


@st.composite
def _strided(draw: st.DrawFn, shape: tuple[int, ...], dtype: Any, random: np.random.Generator) -> np.ndarray:
    """An array of the shape as a view of a larger buffer: axes permuted, steps, offsets, broadcast batches."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.integers(1, 3)) for _ in shape]
    offsets = [draw(st.integers(0, 2)) for _ in shape]
    lengths = [offset + step * size for size, step, offset in zip(shape, steps, offsets)]
    buffer = np.full([lengths[axis] for axis in order], np.nan).astype(dtype).transpose(np.argsort(order))
    view = buffer[tuple(slice(offset, None, step) for step, offset in zip(steps, offsets))]
    view = view[tuple(slice(0, size) for size in shape)]
    view[...] = random.standard_normal(shape) > 0 if dtype == np.bool_ else random.standard_normal(shape)
    if draw(st.booleans()):
        view = np.broadcast_to(view[:1], shape)  # stride 0, read-only
    assert view.shape == shape
    return view


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(NUMPY_DTYPES), function=st.sampled_from(FUNCTIONS))
def test_any_strides_and_dtype(data: st.DataObject, dtype: Any, function: Any) -> None:
    b, p, l, d = (data.draw(st.integers(low, high)) for low, high in ((0, 3), (1, 6), (1, 4), (1, 9)))
    random = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    patches = data.draw(_strided((b, p, d), dtype, random))
    tokens = data.draw(_strided((b, l, d), dtype, random))
    mask = data.draw(_strided((b, p), np.bool_, random)).copy()
    mask[:, 0] = True
    converted = _arrays._to_tensor("patch_embeds", patches, floating=True)
    if converted.numel():
        assert converted.data_ptr() == patches.ctypes.data
        assert [s * patches.itemsize for s, n in zip(converted.stride(), patches.shape) if n > 1] == [
            s for s, n in zip(patches.strides, patches.shape) if n > 1
        ]
    backend = "eager" if dtype == np.float16 else "cpu"
    out = function(patches, tokens, patch_mask=mask, backend=backend)
    v, t, m = _tensors(patches, tokens, mask)
    expected = function(v, t, patch_mask=m, backend=backend)
    torch.testing.assert_close(torch.from_numpy(out), expected)


@pytest.mark.parametrize(
    "error, message, change",
    [
        (ValueError, r"patch_embeds must have strides >= 0, .* got \(448, -64, 4\) bytes", {"patches": FLIP}),
        (ValueError, r"token_embeds must have strides >= 0", {"tokens": (slice(None, None, -1),)}),
        (ValueError, r"patch_mask must have strides >= 0", {"mask": FLIP}),
        (TypeError, r"token_embeds must be in native byte order, got dtype >f4", {"tokens": ">f4"}),
        (TypeError, r"patch_embeds must be a floating tensor \(float16, float32, float64\), got i", {"patches": "i4"}),
        (TypeError, r"patch_embeds must be a floating tensor .* got complex64", {"patches": "c8"}),
        (TypeError, r"token_embeds must be a floating tensor .* got object", {"tokens": "O"}),
        (TypeError, r"token_embeds must be a floating tensor .* got (float|complex)\d+", {"tokens": "g"}),
        (TypeError, r"patch_mask must have dtype bool \(True = valid\), got uint8", {"mask": "u1"}),
        (TypeError, r"token_embeds and patch_embeds must have the same dtype, got torch.float64", {"tokens": "f8"}),
        (ValueError, r"token_embeds and patch_embeds must have the same B, got B=2", {"tokens": (slice(2),)}),
        (ValueError, r"patch_embeds must have shape \[B, P, D\], got 2 dimensions", {"patches": (0,)}),
        (ValueError, r"patch_mask must leave at least one patch", {"mask": "zero"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("function", FUNCTIONS)
def test_numpy_misuse(function: Any, error: type[Exception], message: str, change: dict[str, Any]) -> None:
    patches, tokens, mask = _inputs()
    arrays = {"patches": patches, "tokens": tokens, "mask": mask}
    ((name, what),) = change.items()
    if what == "zero":
        arrays[name] = np.zeros_like(arrays[name])
    else:
        arrays[name] = arrays[name][what] if isinstance(what, tuple) else arrays[name].astype(what)
    if what == "g" and np.dtype("g") == np.float64:
        pytest.skip("long double is float64 on this platform")
    with pytest.raises(error, match=message):
        function(arrays["patches"], arrays["tokens"], patch_mask=arrays["mask"])


def test_unaligned_and_masked_arrays_are_refused() -> None:
    patches, tokens, _ = _inputs()
    record = np.zeros(patches.shape, [("value", "f4"), ("other", "f2")])["value"]
    with pytest.raises(ValueError, match=r"patch_embeds must be aligned, .* got strides \(672, 96, 6\) bytes"):
        sk.alignment_weights(record, tokens)
    shifted = np.zeros(patches.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(patches.shape)
    with pytest.raises(ValueError, match="patch_embeds must be aligned"):
        sk.alignment_weights(shifted, tokens)
    with pytest.raises(TypeError, match=r"token_embeds must be a plain numpy.ndarray, got MaskedArray"):
        sk.alignment_weights(patches, np.ma.masked_array(tokens, tokens > 0))


# Kinds


@pytest.mark.parametrize("function", FUNCTIONS)
def test_kinds_of_embeddings_do_not_mix(function: Any) -> None:
    patches, tokens, mask = _inputs()
    v, t, m = _tensors(patches, tokens, mask)
    message = "token_embeds and patch_embeds must be the same kind of array, got {} and {}"
    with pytest.raises(TypeError, match=message.format("torch.Tensor", "numpy.ndarray")):
        function(patches, t)
    with pytest.raises(TypeError, match=message.format("numpy.ndarray", "torch.Tensor")):
        function(v, tokens)
    with pytest.raises(
        TypeError, match=r"token_embeds must be a torch.Tensor or DLPack array of shape \[B, L, D\], got list"
    ):
        function(patches, tokens.tolist())
    assert type(function(patches, tokens, patch_mask=m)) is np.ndarray  # a mask may be of any kind
    assert type(function(v, t, patch_mask=mask)) is Tensor


def test_tensors_keep_their_gradient_beside_an_array_mask() -> None:
    v, t, _ = (tensor.requires_grad_(tensor.is_floating_point()) for tensor in _tensors(*_inputs()))
    sk.language_grouped_embeddings(v, t, patch_mask=_inputs()[2]).sum().backward()
    assert v.grad is not None


def test_autocast_is_for_tensors() -> None:
    patches, tokens, _ = _inputs()
    expected = sk.alignment_weights(patches, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(sk.alignment_weights(patches, tokens), expected)


class Wrapped:
    """An array of a library that is neither torch, NumPy nor CuPy."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


class Standard(Wrapped):
    """The same with the namespace of the array API standard."""

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return types.SimpleNamespace(from_dlpack=lambda array: Standard(torch.from_dlpack(array)))


@pytest.mark.parametrize("backend", ["eager", "cpu"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_array_api(function: Any, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, made = _seen_and_made(monkeypatch)
    v, t, m = _tensors(*_inputs())
    out = function(Standard(v), Standard(t), patch_mask=Standard(m), backend=backend)
    assert type(out) is Standard
    assert [tensor.data_ptr() for tensor in seen] == [tensor.data_ptr() for tensor in (v, t, m)]
    assert out.tensor.data_ptr() == made[0].data_ptr()
    assert torch.equal(out.tensor, function(v, t, patch_mask=m, backend=backend))


def test_bfloat16_where_the_library_has_it() -> None:
    v, t, _ = (tensor.bfloat16() for tensor in _tensors(*_inputs()))
    out = sk.language_grouped_embeddings(Standard(v), Standard(t))
    assert torch.equal(out.tensor, sk.language_grouped_embeddings(v, t))


def test_from_dlpack_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries older than the standard keep ``from_dlpack`` in their top module."""
    v, t, _ = _tensors(*_inputs())
    with pytest.raises(
        TypeError, match=r"patch_embeds must be an array whose library has from_dlpack, .* got tests.Wrapped"
    ):
        sk.alignment_weights(Wrapped(v), Wrapped(t))
    library = types.ModuleType("old_library")
    library.from_dlpack = lambda array: Wrapped(torch.from_dlpack(array))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "old_library", library)
    monkeypatch.setattr(Wrapped, "__module__", "old_library.core")
    assert type(sk.alignment_weights(Wrapped(v), Wrapped(t))) is Wrapped


def test_unreadable_array_says_why() -> None:
    class Unreadable(Standard):
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("no export of this dtype")

    v, t, _ = _tensors(*_inputs())
    with pytest.raises(
        TypeError, match=r"patch_embeds must be an array that PyTorch can read by DLPack, got .*no export"
    ):
        sk.alignment_weights(Unreadable(v), Unreadable(t))


def test_negative_strides_of_any_library() -> None:
    class Backwards(Standard):
        strides = (-64, 64, 4)

    v, t, _ = _tensors(*_inputs())
    with pytest.raises(ValueError, match=r"patch_embeds must have strides >= 0, .* got \(-64, 64, 4\) bytes"):
        sk.alignment_weights(Backwards(v), Backwards(t))


def test_compiles_with_tensors() -> None:
    v, t, m = _tensors(*_inputs())
    compiled = torch.compile(sk.alignment_weights, fullgraph=True, backend="eager")
    assert torch.equal(compiled(v, t, patch_mask=m), sk.alignment_weights(v, t, patch_mask=m))


# Documentation


@pytest.mark.skipif(not README.is_file(), reason="runs from a checkout only")
def test_readme_example(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(import numpy as np\n.*?)```", README.read_text(), flags=re.DOTALL)
    subprocess.run([sys.executable, "-c", example], cwd=tmp_path, check=True)


# CuPy


@pytest.mark.gpu
@pytest.mark.parametrize("own_stream", [False, True])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_cupy(function: Any, own_stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy, and the order of both libraries' streams is kept without a wait of the host."""
    cupy = pytest.importorskip("cupy")
    seen, made = _seen_and_made(monkeypatch)
    patches, tokens, mask = _inputs()
    v, t, m = (tensor.cuda() for tensor in _tensors(patches, tokens, mask))
    expected = function(v, t, patch_mask=m)
    seen.clear()
    made.clear()
    stream = cupy.cuda.Stream(non_blocking=True) if own_stream else cupy.cuda.Stream.null
    with stream:
        arrays = [cupy.asarray(array) for array in (patches, tokens, mask)]
        source, arrays[0] = arrays[0], cupy.zeros_like(arrays[0])
        busy = cupy.ones((2048, 2048), cupy.float32)
        for _ in range(20):
            busy = busy @ busy * 0
        arrays[0] += source + busy[0, 0]  # late in the stream: a reader that does not wait sees zeros
        out = function(arrays[0], arrays[1], patch_mask=arrays[2])
        assert type(out) is cupy.ndarray
        doubled = out * 2
    assert [tensor.data_ptr() for tensor in seen] == [array.data.ptr for array in arrays]
    assert out.data.ptr == made[0].data_ptr()
    stream.synchronize()
    np.testing.assert_array_equal(cupy.asnumpy(doubled), (expected * 2).cpu().numpy())


@pytest.mark.gpu
def test_cupy_and_numpy_do_not_mix() -> None:
    cupy = pytest.importorskip("cupy")
    patches, tokens, _ = _inputs()
    with pytest.raises(TypeError, match=r"must be the same kind of array, got numpy.ndarray and cupy.ndarray"):
        sk.alignment_weights(cupy.asarray(patches), tokens)
