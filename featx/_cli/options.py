"""The arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

LABEL = "label"

_IMAGES = "A folder or archive (.zip, .tar) of images, or a table (.csv, .tsv, .parquet) of them"
Images = Annotated[Path, typer.Argument(help=f"{_IMAGES}.")]
ImagesOrList = Annotated[
    Path,
    typer.Argument(help=f"{_IMAGES}, or - for a list on standard input, one path a line."),
]
Backbone = Annotated[str, typer.Option(help="The network; see 'featx backbones'.")]
Weights = Annotated[
    str, typer.Option(help="'default', a tag, or a .safetensors or .pth file of the network.")
]
Layers = Annotated[str, typer.Option(help="Layers to take, separated by commas; or 'multilevel'.")]
Pooling = Annotated[
    str, typer.Option(help="One for all layers or one for each: 'avg', 'max', 'gem', 'grid2', …")
]
Views = Annotated[
    str, typer.Option(help="'center', 'flip', 'five_crops', 'ten_crops' or 'multiscale'.")
]
Device = Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'cuda:1', …")]
Runtime = Annotated[
    str, typer.Option(help="What executes the network: 'auto', 'onnx', 'torch' or 'compile'.")
]
Precision = Annotated[
    str, typer.Option(help="Of the network's arithmetic: 'float32' or 'bfloat16'.")
]
Cache = Annotated[
    str, typer.Option(help="Folder that keeps embeddings; 'auto' is the user's, 'off' keeps none.")
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Go on without images that cannot be read.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
PathColumn = Annotated[str, typer.Option(help="The table's column of paths.")]
LabelColumn = Annotated[str, typer.Option(help="The table's column of labels.")]
