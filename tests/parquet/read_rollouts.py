#!/usr/bin/env python3
"""Opens a file of rollouts with pyarrow, as anybody would, and prints what is in it as one JSON object.

    python3 tests/parquet/read_rollouts.py FILE

`columns` has each column's name and type, `rows` every row, `header` what stands under the metadata's key `vassal`.
The versions that it runs with are in requirements.txt; tests/parquet/prepare makes an environment of them.
"""

import json
import sys

import pyarrow.parquet


def main():
    """Prints the object."""
    [path] = sys.argv[1:]
    file = pyarrow.parquet.ParquetFile(path)
    table = file.read()
    header = json.loads(file.metadata.metadata[b"vassal"])
    columns = [[field.name, str(field.type)] for field in table.schema]
    json.dump({"columns": columns, "rows": table.to_pylist(), "header": header}, sys.stdout)


if __name__ == "__main__":
    main()
