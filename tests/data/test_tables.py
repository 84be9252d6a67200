import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intern_vision.data import tables
from intern_vision.data.tables import TableWriter, iter_rows

SCHEMA = pa.schema([("key", pa.string()), ("size", pa.int64()), ("names", pa.list_(pa.string()))])
ROWS = [{"key": f"k{index}", "size": index, "names": ["a"] * (index % 3)} for index in range(23)]


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, 23), max_size=6))
def test_the_bytes_do_not_tell_in_which_pieces_rows_came(tmp_path_factory, cuts):
    folder = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "ROWS_PER_GROUP", 5)
        with TableWriter(folder / "rows.parquet", SCHEMA) as writer:
            for row in ROWS:
                writer.add(row)
        with TableWriter(folder / "pieces.parquet", SCHEMA) as pieces:
            edges = [0, *sorted(cuts), len(ROWS)]
            for number, (start, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
                if number % 2:
                    for row in ROWS[start:end]:
                        pieces.add(row)
                else:
                    pieces.add_table(pa.Table.from_pylist(ROWS[start:end], schema=SCHEMA))
        assert writer.num_rows == pieces.num_rows == len(ROWS)
        assert (folder / "rows.parquet").read_bytes() == (folder / "pieces.parquet").read_bytes()
        assert pq.ParquetFile(folder / "rows.parquet").num_row_groups == 5
        assert list(iter_rows(folder / "pieces.parquet")) == ROWS
        assert list(iter_rows(folder / "pieces.parquet", ["size"])) == [{"size": row["size"]} for row in ROWS]


def test_a_fault_leaves_nothing_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "rows.parquet"
    with TableWriter(path, SCHEMA) as writer:
        writer.add(ROWS[0])
    before = path.read_bytes()
    with pytest.raises(KeyError), TableWriter(path, SCHEMA) as writer:
        writer.add(ROWS[1])
        raise KeyError
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["rows.parquet"]
