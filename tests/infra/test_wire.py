"""Messages: the bytes of openpi's own packer, everything else refused, nothing that is run."""

from __future__ import annotations

import pickle
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from openpi_client import msgpack_numpy as openpi

from common_utils.wire import MAX_ITEMS, WireError, pack, unpack

DTYPES = hnp.boolean_dtypes() | hnp.integer_dtypes() | hnp.unsigned_integer_dtypes()
ARRAYS = hnp.arrays(
    DTYPES | hnp.floating_dtypes(sizes=(16, 32, 64)) | hnp.unicode_string_dtypes(max_len=5),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
MESSAGES = st.recursive(
    PLAIN | st.binary() | ARRAYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        native = a.dtype.newbyteorder("=")
        return bool(
            b.dtype == native and b.shape == a.shape and a.astype(native).tobytes() == b.tobytes()
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and (a == b or a != a)


@settings(deadline=None, max_examples=60)
@given(MESSAGES)
def test_the_bytes_are_openpis_and_come_back(message: Any) -> None:
    data = pack(message)
    assert data == openpi.packb(message)
    assert same(message, unpack(data))


def test_scalars_of_numpy_and_arrays_that_are_views() -> None:
    image = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    message = {"i": np.int16(-3), "f": np.float32(0.1), "b": np.bool_(True), "v": image[:, ::2].T}
    assert pack(message) == openpi.packb(message)
    back = unpack(openpi.Packer().pack(message))
    assert (back["i"], back["f"], back["b"]) == (-3, np.float32(0.1), True)
    assert [type(back[k]) for k in "ifb"] == [np.int16, np.float32, np.bool_]
    np.testing.assert_array_equal(back["v"], message["v"])
    back["v"][...] = 0  # writable, unlike a view of the message
    assert back["v"].flags.c_contiguous


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (np.array([object()]), "an array of object"),
        (np.zeros(2, complex), "an array of complex128"),
        (np.zeros(2, [("a", "f4")]), "an array of [('a', '<f4')]"),
        (np.zeros(2, np.longdouble), "an array of float128"),
        ({"when": np.datetime64("2020-01-01")}, "an array of datetime64"),
        ({"policy": object()}, "found a object"),
        ({1, 2}, "found a set"),
        (2**64, "message: "),
    ],
)
def test_what_cannot_be_packed(message: Any, said: str) -> None:
    with pytest.raises(WireError) as error:
        pack(message)
    assert said in str(error.value)


def array(**fields: Any) -> bytes:
    """An array's map with other fields."""
    usual = {"__ndarray__": True, "data": b"\0" * 8, "dtype": "<f4", "shape": [2]}
    return msgpack.packb({k.encode(): v for k, v in (usual | fields).items() if v is not None})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("Traceback ...", "found text 'Traceback ...'"),
        (b"", "0 bytes are not a msgpack message"),
        (b"\xc1", "not a msgpack message"),
        (pack([1, 2])[:-1], "not a msgpack message"),
        (pack(1) + b"\0", "not a msgpack message"),
        (pickle.dumps({"a": 1}), "not a msgpack message"),
        (msgpack.packb({3: 4}), "not a msgpack message"),
        (msgpack.packb(msgpack.ExtType(5, b"x")), "extension type 5"),
        (b"\x91" * 100_000 + b"\x00", "not a msgpack message"),
        (array(dtype="|O"), "found dtype '|O'"),
        (array(dtype="f4,f4"), "found dtype 'f4,f4'"),
        (array(dtype="<f3"), "found dtype '<f3'"),
        (array(dtype="<f16"), "found dtype '<f16'"),
        (array(dtype=["f4"]), "found dtype ['f4']"),
        (array(data="text"), "has a str, expected 8 bytes"),
        (array(data=b"\0" * 7), "has 7 bytes, expected 8 bytes"),
        (array(shape=[2**40, 2**40]), "has 8 bytes, expected"),
        (array(shape=[-2]), "shape is [-2]"),
        (array(shape=[True, True]), "shape is [True, True]"),
        (array(shape=2), "shape is 2"),
        (array(shape=[1] * 40), "40 axes"),
        (array(shape=[0, 2**63], data=b""), "shape is [0, 9223372036854775808]"),
        (array(shape=None), "an array has the fields"),
        (array(kind=1), "an array has the fields"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 1}), "a number has the fields"),
        (
            msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}),
            "found 300, expected a number that uint8 holds",
        ),
        (
            msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "|u1"}),
            "found [1], expected a number",
        ),
    ],
)
def test_what_is_no_message(data: Any, said: str) -> None:
    with pytest.raises(WireError) as error:
        unpack(data)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@settings(deadline=None, max_examples=60)
@given(MESSAGES, st.data())
def test_damaged_messages_are_read_or_refused(message: Any, draw: st.DataObject) -> None:
    data = bytearray(pack(message))
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        unpack(bytes(data))
    except WireError:
        pass


def test_small_messages_do_not_take_much_memory() -> None:
    bombs = [
        b"\x91" * 900 + b"\xdd\x7f\xff\xff\xff",  # a list that claims 2 billion entries
        b"\xdd\x00\x00\x27\x10" * 900,  # each list claims MAX_ITEMS, and holds the next
        msgpack.packb([{}] * (MAX_ITEMS + 1)),
        msgpack.packb([[{}] * MAX_ITEMS] * 200),  # 2 million maps
        array(shape=[0] + [10**6] * 3, data=b""),
    ]
    tracemalloc.start()
    for data in bombs[:-1]:
        with pytest.raises(WireError):
            unpack(data)
    assert unpack(bombs[-1]).nbytes == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 2**20


def test_a_reader_may_take_less() -> None:
    data = pack(np.zeros(100))
    assert unpack(data, 1000).shape == (100,)
    with pytest.raises(WireError, match="found 8\\d\\d bytes, expected at most 100"):
        unpack(data, 100)
