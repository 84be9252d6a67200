import os
import pickle

import numpy as np
import pytest
from official_layouts import write_pickle

from intern_vision.data.official.pickles import load_plain

VALUE = {"data": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": [1, 2, 0], "names": ["a", "b"], "n": 7}


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_a_python_2_pickle_gives_its_arrays_and_bytes(tmp_path):
    write_pickle(tmp_path / "batch", VALUE)
    data = (tmp_path / "batch").read_bytes()
    # numpy's old name and byte strings without a type of their own: what Python 2 wrote.
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in data and b"_codecs" not in data
    read = load_plain(data)
    assert np.array_equal(read[b"data"], VALUE["data"]) and read[b"data"].dtype == np.uint8
    assert read[b"labels"] == [1, 2, 0] and read[b"names"] == [b"a", b"b"] and read[b"n"] == 7
    expected = pickle.loads(data, encoding="bytes")
    assert expected.keys() == read.keys() and np.array_equal(expected[b"data"], read[b"data"])


@pytest.mark.parametrize("protocol", range(2, 5))
def test_pickles_of_today_are_read_too(protocol):
    read = load_plain(pickle.dumps(VALUE, protocol))
    assert np.array_equal(read["data"], VALUE["data"]) and read["names"] == ["a", "b"]


def test_fortran_order_is_kept():
    array = np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert np.array_equal(load_plain(pickle.dumps(array, 2)), array)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Malicious(os.system, "true"), "system"),
        (Malicious(eval, "1"), "eval"),
        (Malicious(getattr, "a", "upper"), "getattr"),
        (os.system, "system"),
        (pickle.loads, "loads"),
    ],
)
def test_a_pickle_that_asks_for_code_is_refused(value, name):
    for protocol in (2, 4):
        with pytest.raises(ValueError, match=f"asks for .*{name}; only plain values"):
            load_plain(pickle.dumps({"data": value}, protocol))


def test_nothing_runs_before_the_refusal(tmp_path):
    mark = tmp_path / "mark"
    with pytest.raises(ValueError, match="asks for"):
        load_plain(pickle.dumps([Malicious(open, str(mark), "w")]))
    assert not mark.exists()


def test_names_cannot_be_changed_by_the_pickle():
    # BUILD with attributes for the object on the stack: the names given to a pickle have no place for them.
    attack = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}U\x08__call__K\x01s\x86b."
    with pytest.raises(ValueError, match="not a pickle of plain values"):
        load_plain(attack)


@pytest.mark.parametrize("value", [np.arange(3), np.array([object()]), 1j, {1, 2}])
def test_other_types_are_refused(value):
    with pytest.raises(ValueError, match="asks for|only|array"):
        load_plain(pickle.dumps(value, 4))


def test_damaged_pickles_are_value_errors():
    data = pickle.dumps(VALUE, 2)
    for end in range(0, len(data), 7):
        with pytest.raises(ValueError):
            load_plain(data[:end])


def test_an_array_that_lies_about_its_size_is_refused():
    data = pickle.dumps(np.zeros(200, np.uint8), 2).replace(b"K\xc8\x85", b"K\xc9\x85")
    with pytest.raises(ValueError, match="its size is not that of its shape"):
        load_plain(data)
