"""`featx backbones`: the networks that are known by name."""

from __future__ import annotations

from featx.cli.options import AsJson
from featx.cli.printing import print_json, print_table


def backbones(as_json: AsJson = False) -> None:
    """List the networks whose pretrained weights featx knows by name."""
    from featx.backbones.catalog import list_backbones

    entries = [
        {
            "name": entry.name,
            "dimension": entry.dimension,
            "image_size": entry.image_size,
            "parameters": entry.parameters,
            "licence": entry.licence,
            "installed": entry.installed,
            "install": entry.install_command,
        }
        for entry in list_backbones()
    ]
    if as_json:
        print_json(entries)
        return
    print_table(
        ("backbone", "dimension", "image size", "parameters", "licence", "weights"),
        [
            (
                str(entry["name"]),
                str(entry["dimension"]),
                f"{entry['image_size']} px",
                f"{entry['parameters']:,}",
                str(entry["licence"]),
                "installed" if entry["installed"] else str(entry["install"]),
            )
            for entry in entries
        ],
    )
