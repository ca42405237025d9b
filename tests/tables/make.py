#!/usr/bin/env python3
"""Writes the small tables that tests of `inferq predict` read, with the libraries that users write theirs with.

They are committed: the tests need neither this script nor its packages. Row r of all is id = "f<r>", a = r, b = r + 0.5,
c = -r, d = 2 r, in ten rows and row groups of four, so that a job has rows of several.

    python3 -m venv target/test-tables
    target/test-tables/bin/pip install --only-binary=:all: --require-hashes -r tests/tables/requirements.txt
    target/test-tables/bin/python tests/tables/make.py
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
ROWS = 10
ROW_GROUP = 4
CODECS = ("none", "snappy", "zstd", "gzip", "lz4")


def main() -> None:
    row = np.arange(ROWS)
    rows = np.stack([row, row + 0.5, -row, 2 * row], axis=1)
    # As pandas writes a categorical: Arrow's own note beside the data says that it is a dictionary.
    ids = pa.array([f"f{r}" for r in row]).dictionary_encode()
    columns = {
        "id": ids,
        "a": pa.array(rows[:, 0], pa.float32()),
        "b": pa.array(rows[:, 1], pa.float64()),
        "c": pa.array(rows[:, 2].astype(np.int64), pa.int64()),
        "d": pa.array(rows[:, 3].astype(np.float16), pa.float16()),
    }
    for codec in CODECS:
        write(f"{codec}.parquet", columns, codec)
    vectors = [list(map(float, values)) for values in rows]
    write("list.parquet", {"id": ids, "v": pa.array(vectors, pa.list_(pa.float32()))})
    write("fixed_size_list.parquet", {"id": ids, "v": pa.array(vectors, pa.list_(pa.float32(), 4))})
    write("large_list.parquet", {"id": ids, "v": pa.array(vectors, pa.large_list(pa.float64()))})
    write("null.parquet", columns | {"b": pa.array([0.5, 1.5, None] + [3.5] * (ROWS - 3))})
    write("uneven.parquet", {"v": pa.array([*vectors[:6], [1.0], *vectors[7:]], pa.list_(pa.float32()))})
    write("date.parquet", columns | {"b": pa.array([0] * ROWS, pa.timestamp("us"))})
    write("text.parquet", columns | {"b": pa.array(["x"] * ROWS)})
    write("brotli.parquet", columns, "brotli")
    write("no_rows.parquet", {name: column[:0] for name, column in columns.items()})
    arrays = {"rows": rows.astype(np.float32), "others": row}
    np.savez(HERE / "stored.npz", **arrays)
    np.savez_compressed(HERE / "deflated.npz", **arrays)


def write(name: str, columns: dict, codec: str = "snappy") -> None:
    pq.write_table(pa.table(columns), HERE / name, compression=codec, row_group_size=ROW_GROUP)


if __name__ == "__main__":
    main()
