"""Pickles of arrays in every protocol; hostile or damaged pickles never execute, hang or exhaust memory."""

from __future__ import annotations

import pickle
import pickletools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ernie_m.reference.checkpoint.paddle_pickle import SCALARS, SKIPPED, read_pickle

PROTOCOLS = (2, 3, 4, 5)


def read(data: bytes) -> dict[str, np.ndarray]:
    return read_pickle("weights.pdparams", memoryview(data))


def text(value: str) -> bytes:
    """The instruction for a string."""
    raw = value.encode("utf-8")
    return b"X" + len(raw).to_bytes(4, "little") + raw


def program(body: bytes, protocol: int = 2) -> bytes:
    """A dictionary with one entry, "weight": what `body` leaves on the stack."""
    return b"\x80" + bytes([protocol]) + b"}" + text("weight") + body + b"s."


def renamed(data: bytes, old: str, new: str) -> bytes:
    """The pickle with module `old` renamed to `new`, in instructions with or without a length."""
    found, end = bytearray(), 0
    starts = [at for _, _, at in pickletools.genops(data)] + [len(data)]
    for (code, argument, at), after in zip(pickletools.genops(data), starts[1:], strict=True):
        piece = data[at:after]
        if code.name == "GLOBAL" and argument.split()[0] == old:
            piece = piece.replace(old.encode(), new.encode())
        elif code.name in ("BINUNICODE", "SHORT_BINUNICODE") and argument == old:
            width = 4 if code.name == "BINUNICODE" else 1
            piece = piece[:1] + len(new).to_bytes(width, "little") + new.encode()
        elif code.name == "FRAME":
            piece = b""
        found += piece
        end = after
    assert end == len(data)
    return bytes(found)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """All dtypes and byte orders, 0-d to 4-d, also empty; in C or Fortran order, transposed or strided."""
    code = draw(st.sampled_from(SCALARS))
    dtype = np.dtype(draw(st.sampled_from("<>")) + code)
    shape = draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = rng.integers(0, 2 if code == "b1" else 256, (*shape, dtype.itemsize), np.uint8)
    array = np.ascontiguousarray(bits).view(dtype)[..., 0].copy()
    layout = draw(st.sampled_from(["C", "F", "transposed", "strided"]))
    if layout == "transposed":
        return array.transpose(draw(st.permutations(range(array.ndim))))
    if layout == "strided" and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    return np.array(array, order="F" if layout == "F" else "C")


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), arrays(), max_size=3), st.sampled_from(PROTOCOLS))
def test_read_pickle_equals_pickle(given_arrays: dict[str, np.ndarray], protocol: int) -> None:
    """Bits, shape and byte order, in every protocol. Red if Fortran order or the byte order is ignored."""
    given_arrays.pop(SKIPPED, None)
    named: dict[str, Any] = {**given_arrays, SKIPPED: dict.fromkeys(given_arrays, "linear_0.w_0")}
    data = pickle.dumps(named, protocol)
    found = read(data)
    assert list(found) == list(given_arrays)
    for name, array in given_arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert not found[name].flags.writeable


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_read_pickle_of_both_numpy_module_names(protocol: int, order: Any) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).copy(order=order)
    data = pickle.dumps({"weight": array}, protocol)
    module = "numeric" if protocol == 5 else "multiarray"
    here = "numpy._core" if f"numpy._core.{module}".encode() in data else "numpy.core"
    variants = [renamed(data, f"{here}.{module}", f"{core}.{module}") for core in ("numpy.core", "numpy._core")]
    assert variants[0] != variants[1]
    for variant in variants:
        np.testing.assert_array_equal(read(variant)["weight"], array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_read_pickle_arrays_are_views_of_the_file(protocol: int) -> None:
    """From protocol 3 on; protocol 2 stores bytes as text, which must be decoded."""
    data = pickle.dumps({"weight": np.arange(1000, dtype=np.float32)}, protocol)
    whole = np.frombuffer(data, np.uint8)
    assert np.shares_memory(read(data)["weight"], whole) == (protocol > 2)


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_read_pickle_executes_nothing(protocol: int, tmp_path: Path) -> None:
    """`pickle.loads` creates the file, which proves that the pickle would do harm."""
    for i, wrap in enumerate([lambda bad: bad, lambda bad: {"weight": bad}, lambda bad: {"weight": (bad, 1)}]):
        mark = tmp_path / f"{i}"
        data = pickle.dumps(wrap(Calls(open, str(mark), "w")), protocol)
        with pytest.raises(ValueError, match=r"weights\.pdparams: .*refused: it references \w+\.open"):
            read(data)
        assert not mark.exists()
        pickle.loads(data)
        assert mark.exists()


GLOBALS = [
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("__builtin__", "eval"),
    ("numpy", "load"),
    ("numpy", "ndarray.tofile"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.multiarray", "fromfile"),
    ("numpy._core.multiarray", "_reconstruct.__globals__"),
    ("_codecs", "decode"),
    ("collections", "OrderedDict"),
    ("subprocess", "Popen"),
    ("numpy.ndarray", ""),
    ("", ""),
]


@pytest.mark.parametrize(("module", "name"), GLOBALS)
def test_read_pickle_refuses_other_globals_by_name(module: str, name: str) -> None:
    for mention in (f"c{module}\n{name}\n".encode(), text(module) + text(name) + b"\x93"):
        for body in (mention, mention + b")R", mention + text("x") + b"\x85R"):
            with pytest.raises(ValueError, match=rf"refused: it references {module}\.{name}, which weight files"):
                read(program(body, 4))


ENCODE, LATIN1 = b"c_codecs\nencode\n", text("latin1")
BYTES = b"c__builtin__\nbytes\n"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (ENCODE + text("x") + text("utf-8") + b"\x86R", "encoded as 'utf-8'; expected text as 'latin1'"),
        (ENCODE + text("x") + text("rot13") + b"\x86R", "encoded as 'rot13'"),
        (ENCODE + text("x") + b"\x85R", "damaged, TypeError"),
        (ENCODE + text("Ω") + LATIN1 + b"\x86R", "latin-1"),
        (ENCODE + b"C\x01x" + LATIN1 + b"\x86R", "memoryview encoded as 'latin1'"),
        (BYTES + b"K\x05\x85R", "a call to 'bytes'"),
        (b"cnumpy\nndarray\nK\x05\x85R", "a call to 'ndarray'"),
        (b"cnumpy\ndtype\n" + text("O8") + b"\x85R", "dtype 'O8'; expected one of b1, "),
        (b"cnumpy\ndtype\n" + text("V8") + b"\x85R", "dtype 'V8'"),
        (b"cnumpy\ndtype\n" + text("f4,f4") + b"\x85R", "dtype 'f4,f4'"),
        (b"cnumpy\ndtype\n" + b"K\x04\x85R", "dtype int"),
        (b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85C\x01b\x87R", "a call to '_reconstruct'"),
        (b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R", "got an incomplete one"),
        (b"cnumpy\ndtype\n" + text("f4") + b"\x85R(K\x03" + text("!") + b"NNNtb", "a dtype with fields"),
        (
            b"cnumpy\ndtype\n" + text("f4") + b"\x85R(K\x03" + text("<") + b"N)NJ\xff\xff\xff\xfftb",
            "a dtype with fields",
        ),
        (b"cnumpy\nndarray\n", "expected an array, got Mark"),
        (b"K\x01", "expected an array, got int"),
        (text("x"), "expected an array, got str"),
        (b"K\x01K\x02b", "a state for int"),
        (b"I01\n", "instruction b'I'"),
        (b"P1\n", "instruction b'P'"),
        (b"\x82\x01", r"instruction b'\\x82'"),
        (b"\x97", r"instruction b'\\x97'"),
    ],
)
def test_read_pickle_refuses_programs_that_build_no_array(body: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^weights\.pdparams: .*{reason}"):
        read(program(body))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.array([1, "x"], dtype=object),
        np.zeros(2, "f4,i4"),
        np.zeros(2, [("x", "f4", 3)]),
        np.array(["a", "b"]),
        np.array([b"a"]),
        np.zeros(2, "M8[s]"),
        np.zeros(2, np.complex64),
        np.ma.masked_array([1.0], [True]),
        np.float32(1),
        [np.zeros(2)],
    ],
    ids=["object", "structured", "nested", "text", "bytes", "dates", "complex", "masked", "scalar", "list"],
)
def test_read_pickle_refuses_other_arrays(array: Any, protocol: int) -> None:
    with pytest.raises(ValueError, match=r"weights\.pdparams: "):
        read(pickle.dumps({"weight": array}, protocol))


@pytest.mark.parametrize("found", [[1], "text", None, (), 3])
def test_read_pickle_refuses_anything_but_a_dictionary(found: Any) -> None:
    with pytest.raises(ValueError, match=r"weights\.pdparams: "):
        read(pickle.dumps(found, 4))


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
FROMBUFFER = b"cnumpy.core.numeric\n_frombuffer\n"
DTYPE = b"cnumpy\ndtype\n" + text("f4") + b"\x85R"


def by_state(shape: bytes) -> bytes:
    """An array of six numbers, as written in protocols 2 to 4."""
    return program(RECONSTRUCT + b"(K\x01" + shape + DTYPE + b"\x89C\x18" + bytes(24) + b"tb", 4)


def from_buffer(shape: bytes) -> bytes:
    """The same array, as written in protocol 5."""
    return program(FROMBUFFER + b"(C\x18" + bytes(24) + DTYPE + shape + text("C") + b"tR", 5)


@pytest.mark.parametrize("make", [by_state, from_buffer])
@pytest.mark.parametrize("shape", [(7,), (-1,), (3, -1), (2**40, 2**40), (2**70,), (6, "1"), ((6,),), 6, None, ()])
def test_read_pickle_refuses_shapes_that_do_not_fit(shape: Any, make: Any) -> None:
    """Red if only NumPy checks the shape: it accepts -1 as a size to infer."""
    assert read(make(pickle.dumps((2, 3), 2)[2:-1]))["weight"].shape == (2, 3)
    with pytest.raises(ValueError, match=r"weights\.pdparams: "):
        read(make(pickle.dumps(shape, 2)[2:-1]))


@pytest.mark.parametrize("protocol", [0, 1, 6, 255])
def test_read_pickle_refuses_other_protocols(protocol: int) -> None:
    data = pickle.dumps({"weight": np.zeros(2)}, protocol) if protocol < 2 else b"\x80" + bytes([protocol]) + b"}."
    with pytest.raises(ValueError, match="not a pickle of protocol 2 to 5"):
        read(data)


def example(protocol: int) -> bytes:
    rng = np.random.default_rng(protocol)
    weights: dict[str, Any] = {name: rng.standard_normal((2, 3), np.float32) for name in ("a.weight", "b.weight")}
    weights["b.weight"] = np.asfortranarray(weights["b.weight"])
    return pickle.dumps({**weights, SKIPPED: {"a.weight": "linear_0.w_0"}}, protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_read_pickle_truncated_anywhere(protocol: int) -> None:
    data = example(protocol)
    assert len(read(data)) == 2
    for n in range(len(data)):
        with pytest.raises(
            ValueError,
            match=r"weights\.pdparams: not a Paddle weight file: (truncated|not a pickle|unterminated name)",
        ):
            read(data[:n])


@given(st.data())
def test_read_pickle_of_damaged_bytes(data: st.DataObject) -> None:
    """Returns arrays or raises a ValueError that names the file, in little memory."""
    raw = bytearray(example(data.draw(st.sampled_from(PROTOCOLS))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    assert_bounded(bytes(raw))


@given(
    st.lists(
        st.sampled_from([*b"()}]N\x88\x89KMJXCBcRbsu.hjqr\x85\x86\x87\x8a\x93\x94\x95\x8e\x96t"]) | st.integers(0, 255)
    )
)
def test_read_pickle_of_any_program(codes: list[int]) -> None:
    assert_bounded(b"\x80\x04" + bytes(codes) + b".")


def assert_bounded(data: bytes) -> None:
    tracemalloc.start()
    try:
        found = read(data)
        assert all(isinstance(array, np.ndarray) for array in found.values())
    except ValueError as error:
        assert str(error).startswith("weights.pdparams: ") and len(str(error)) < 500
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**20


def test_read_pickle_of_a_text_encoded_many_times() -> None:
    """A text of 100 kB, encoded ten thousand times by a few bytes each: refused within a second."""
    again = ENCODE + b"q\x00" + text("x" * 100_000) + b"q\x01" + LATIN1 + b"\x86q\x02R" + b"h\x00h\x02R" * 10_000
    data = program(again)
    tracemalloc.start()
    with pytest.raises(ValueError, match="encodes more text than the file contains"):
        read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22  # decoded ten thousand times the text would take a gigabyte


def test_read_pickle_of_tuples_that_double() -> None:
    """Forty repetitions build a nested tuple of 2^40 items, which must never be traversed."""
    bomb = b"K\x01" + b"q\x00h\x00\x86" * 40
    for body in (bomb, ENCODE + bomb + LATIN1 + b"\x86R", b"cnumpy\ndtype\n" + bomb + b"\x85R", bomb + bomb + b"b"):
        with pytest.raises(ValueError, match=r"weights\.pdparams: ") as caught:
            read(program(body))
        assert len(str(caught.value)) < 300


def test_read_pickle_stops_an_endless_program() -> None:
    with pytest.raises(ValueError, match="more than 1000000 instructions"):
        read(b"\x80\x02" + b"K\x01" * 1_000_001)
