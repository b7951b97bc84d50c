"""Embeddings to Parquet, and the nearest neighbours of a picture by a DuckDB query.

pip install duckdb
python examples/export_and_query.py
"""

import tempfile
from pathlib import Path

import duckdb

from featx import export_embeddings, load_image_folder, read_embeddings

SAMPLE = Path(__file__).parent.parent / "data" / "cifar10-sample"

NEAREST = """
    SELECT other.path, other.label,
           array_cosine_similarity(
               picture.embedding::FLOAT[1280], other.embedding::FLOAT[1280]
           ) AS similarity
    FROM $file AS picture, $file AS other
    WHERE picture.path = $path AND other.path <> picture.path
    ORDER BY similarity DESC
    LIMIT 5
"""


def main() -> None:
    photos = load_image_folder(SAMPLE / "test")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "embeddings.parquet"
        summary = export_embeddings(photos.paths, file, labels=photos.target)
        print(f"{summary.rows} embeddings of {summary.dimension} numbers in {file.name}")

        table = read_embeddings(file)
        print(f"made by {table.provenance['backbone']}, {table.provenance['weights']}")

        path = photos.paths[photos.target == "horse"][0]
        print(f"nearest to {Path(path).name}, a horse:")
        query = NEAREST.replace("$file", f"'{file}'")
        for other, label, similarity in duckdb.execute(query, {"path": path}).fetchall():
            print(f"  {similarity:.3f}  {label:<10} {Path(other).name}")


if __name__ == "__main__":
    main()
