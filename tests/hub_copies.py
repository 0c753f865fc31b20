"""Local folders that are laid out as datasets of the Hugging Face hub are."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Features, Value

from tests.conftest import tone
from workbench.audio.decode import write_wav


def write_copy(folder, files, configs=None):
    """Write Parquet files into a dataset's folder, and a card that says which are a configuration's splits."""
    for place, rows in files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        table = {column: [row[column] for row in rows] for column in rows[0]}
        kinds = {c: Audio() if c == "audio" else Value("int64" if isinstance(v[0], int) else "string") for c, v in table.items()}  # fmt: skip
        # written by pyarrow: datasets 4 asks for torchcodec to write audio, even where it is encoded already
        pq.write_table(pa.table(table, schema=Features(kinds).arrow_schema), folder / place)
    if configs:
        lines = ["---", "configs:"]
        for config, splits in configs.items():
            lines += [f"- config_name: {config}", "  data_files:"]
            lines += [part for split, path in splits.items() for part in (f"  - split: {split}", f"    path: {path}")]
        (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def clip(seconds=1.0, **columns):
    file = io.BytesIO()
    write_wav(file, tone(seconds))
    return {"audio": {"bytes": file.getvalue(), "path": None}, **columns}
