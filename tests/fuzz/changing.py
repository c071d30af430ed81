"""Strategies that change what is valid: bytes, values of JSON, arrays of a .npz."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

# Bytes that mean something to one parser or another.
TOKENS = (
    *(
        b"\0",
        b"\xff",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n",
        b",",
        b";",
        b"\t",
        b'"',
        b"'",
        b"=",
        b"-1",
        b"0",
        b"1",
    ),
    *(
        b"nan",
        b"NaN",
        b"Infinity",
        b"1e999",
        b"null",
        b"true",
        b"[]",
        b"{}",
        b"[",
        b"{",
        b"9" * 30,
        b"../",
        b"/dev/zero",
    ),
    *(
        b"&a [*a]",
        b"!!python/object:os.system",
        b": ",
        b"- ",
        b"\\",
        b"\x80",
        b"\xed\xa0\x80",
        b"<script>",
        b"\x7f\xff\xff\xff",
    ),
    *(
        b"descr",
        b"'shape': (99999999999,)",
        b"object",
        b"O",
        b"<U99999999",
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"__metadata__",
    ),
)
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["poisoned", "undecided", "../..", "/", "cat", "\ud800", "\0", "=1+1", "<script>", "witnesses", "wrn-10-1"]
    ),
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def changed_bytes(draw: Any, valid: bytes) -> bytes:
    """A few cuts, flips, insertions and repetitions."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        what = draw(st.sampled_from(["flip", "cut", "token", "bytes", "remove", "repeat"]))
        if what == "flip" and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "cut":
            del content[at:]
        elif what == "token":
            token = draw(st.sampled_from(TOKENS))
            content[at : at + draw(st.sampled_from([0, len(token)]))] = token
        elif what == "bytes":
            content[at:at] = draw(st.binary(max_size=8))
        elif what == "remove":
            del content[at : at + draw(st.integers(1, 40))]
        elif what == "repeat":
            content[at:at] = content[at : at + draw(st.integers(1, 60))] * draw(st.integers(1, 30))
    return bytes(content)


@st.composite
def changed_json(draw: Any, valid: bytes) -> bytes:
    """One or two values anywhere replaced, removed, or put in addition."""
    values = json.loads(valid)
    for _ in range(draw(st.integers(1, 2))):
        here = values
        for _ in range(draw(st.integers(0, 4))):
            inner = [key for key, value in _items(here) if isinstance(value, dict | list) and value]
            if not inner:
                break
            here = here[draw(st.sampled_from(inner))]
        keys = [key for key, _ in _items(here)]
        if not keys:
            continue
        key = draw(st.sampled_from(keys))
        if draw(st.booleans()) and draw(st.booleans()):
            del here[key]
        elif isinstance(here, dict) and draw(st.integers(0, 4)) == 0:
            here[draw(st.text(max_size=6))] = draw(VALUES)
        else:
            here[key] = draw(VALUES)
    return json.dumps(values).encode()


def _items(values: Any) -> list[tuple[Any, Any]]:
    return list(values.items()) if isinstance(values, dict) else list(enumerate(values))


@st.composite
def changed_npz(draw: Any, valid: bytes) -> bytes:
    """One array of another type, shape or content, left out, or its bytes changed inside a whole archive."""
    with np.load(io.BytesIO(valid), allow_pickle=False) as file:
        arrays = dict(file)
    name = draw(st.sampled_from(sorted(arrays)))
    what = draw(st.sampled_from(["other", "type", "shape", "values", "gone", "shorter"]))
    held = arrays[name]
    if what == "gone":
        del arrays[name]
    elif what == "shorter":
        arrays[name] = held[: draw(st.integers(0, max(0, len(held) - 1)))] if held.ndim else held.reshape(1)
    elif what == "type":
        wanted = draw(st.sampled_from(["f2", "f8", "i1", "u8", "i8", "?", "U3", "S3", "c8", "M8[s]"]))
        arrays[name] = np.zeros(held.shape, wanted)
    elif what == "shape":
        arrays[name] = held.reshape(draw(st.sampled_from([(-1,), (1, *held.shape), (*held.shape, 1)])))
    elif what == "values" and held.dtype.kind in "iuf" and held.size:
        low = draw(st.sampled_from([0, 1, 2, 255, 10**6]))
        flat = held.astype(held.dtype, copy=True).reshape(-1)
        with np.errstate(all="ignore"):
            flat[draw(st.integers(0, flat.size - 1))] = (
                draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e30]))
                if held.dtype.kind == "f"
                else np.array(low).astype(held.dtype)
            )
        arrays[name] = flat.reshape(held.shape)
    else:
        kind = draw(st.sampled_from([np.uint8, np.int64, np.float32, np.float16, np.dtype("U2"), np.bool_]))
        arrays[name] = draw(nps.arrays(kind, nps.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()
