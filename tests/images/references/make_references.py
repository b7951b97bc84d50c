"""Make the files of this folder: one picture in every format and mode, and its pixels in 8-bit RGB.

Not part of the tests, which only read what it made. It needs ImageMagick 6 and the command of
libvips (Debian: ``apt-get install imagemagick libvips-tools``), and is run without arguments.

``MODE.EXTENSION`` is what featx is to decode. ``MODE.EXTENSION.rgb.png`` is what ImageMagick, or
where it is wrong libvips, makes of it: 8-bit RGB, upright, on white. Both are independent of
torchvision and Pillow. The picture is computed below.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT = 36, 28

# ImageMagick's arguments for each file; `rgb` and `rgba` stand for the picture, in 16 bits.
GRAY = "-colorspace Gray"
WHITE_IS_ZERO = "-define quantum:polarity=min-is-white -compress none"
FILES = {
    "l.png": f"rgb {GRAY} -depth 8",
    "la.png": f"rgba {GRAY} -depth 8 -define png:color-type=4",
    "1.png": "rgb -monochrome -define png:bit-depth=1 -define png:color-type=0",
    "p.png": "rgb -colors 16 -define png:color-type=3",
    "p-transparent.png": "rgba -channel A -threshold 50% +channel -colors 15 png8:",
    "rgb.png": "rgb -depth 8 -define png:color-type=2",
    "rgba.png": "rgba -depth 8 -define png:color-type=6",
    "rgb-interlaced.png": "rgb -depth 8 -interlace PNG -define png:color-type=2",
    "i16.png": f"rgb {GRAY} -depth 16 -define png:bit-depth=16 -define png:color-type=0",
    "la16.png": f"rgba {GRAY} -depth 16 -define png:bit-depth=16 -define png:color-type=4",
    "rgb16.png": "rgb -define png:bit-depth=16 -define png:color-type=2",
    "rgba16.png": "rgba -define png:bit-depth=16 -define png:color-type=6",
    "l.jpg": f"rgb {GRAY} -quality 90",
    "ycbcr.jpg": "rgb -quality 90 -sampling-factor 2x2",
    "ycbcr-444.jpg": "rgb -quality 90 -sampling-factor 1x1",
    "ycbcr-progressive.jpg": "rgb -quality 90 -interlace JPEG",
    "rgb.jpg": "rgb -set colorspace sRGB -colorspace RGB -quality 90 -sampling-factor 1x1",
    "cmyk-adobe.jpg": "rgb -colorspace CMYK -quality 90 -sampling-factor 1x1",
    "l.tiff": f"rgb {GRAY} -depth 8 -compress none",
    "l-white-is-zero.tiff": f"rgb {GRAY} -depth 8 {WHITE_IS_ZERO}",
    "la.tiff": f"rgba {GRAY} -depth 8 -compress lzw",
    "1.tiff": "rgb -monochrome -type bilevel -depth 1 -compress none",
    "1-fax.tiff": "rgb -monochrome -compress group4",
    "p.tiff": "rgb -colors 16 -type palette -compress lzw",
    "rgb.tiff": "rgb -depth 8 -compress zip",
    "rgb-planar.tiff": "rgb -depth 8 -interlace plane -compress lzw",
    "rgb-jpeg.tiff": "rgb -depth 8 -compress jpeg -quality 90",
    "rgba.tiff": "rgba -depth 8 -compress lzw",
    "rgba-premultiplied.tiff": "rgba -depth 8 -define tiff:alpha=associated -compress zip",
    "cmyk.tiff": "rgb -colorspace CMYK -depth 8 -compress lzw",
    "ycbcr.tiff": "rgb -colorspace YCbCr -depth 8 -compress none",
    "i.tiff": f"rgb {GRAY} -depth 32 -define quantum:format=unsigned -compress none",
    "i16.tiff": f"rgb {GRAY} -depth 16 -compress none",
    "i16-white-is-zero.tiff": f"rgb {GRAY} -depth 16 {WHITE_IS_ZERO}",
    "rgb16.tiff": "rgb -depth 16 -compress zip",
    "f.tiff": f"rgb {GRAY} -depth 32 -define quantum:format=floating-point -compress zip",
    "p.gif": "rgb -colors 32",
    "l.gif": f"rgb {GRAY} -colors 32",
    "1.gif": "rgb -monochrome",
    "p-transparent.gif": "rgba -channel A -threshold 50% +channel -colors 31",
    "rgb.webp": "rgb -quality 90",
    "rgb-lossless.webp": "rgb -define webp:lossless=true",
    "rgba.webp": "rgba -define webp:lossless=true",
    "l.bmp": f"rgb {GRAY} -depth 8 -colors 256 -type palette",
    "1.bmp": "rgb -monochrome",
    "p.bmp": "rgb -colors 16 -type palette",
    "rgb.bmp": "rgb -depth 8",
    "rgb565.bmp": "rgb -define bmp:subtype=RGB565",
    "rgba.bmp": "rgba -depth 8",
    "1.pbm": "rgb -monochrome",
    "l.pgm": f"rgb {GRAY} -depth 8",
    "l-text.pgm": f"rgb {GRAY} -depth 8 -compress none",
    "i16.pgm": f"rgb {GRAY} -depth 16",
    "rgb.ppm": "rgb -depth 8",
    "rgb16.ppm": "rgb -depth 16",
    "l.jp2": f"rgb {GRAY} -depth 8 -quality 90",
    "rgb.jp2": "rgb -depth 8 -quality 90",
    "rgba.jp2": "rgba -depth 8 -quality 90",
    "i16.jp2": f"rgb {GRAY} -depth 16 -quality 90",
    "rgb.heic": "rgb -quality 90",
}
# libvips's arguments for the formats that ImageMagick writes without an alpha channel, or with
# halved colours only.
FILES_OF_VIPS = {
    "l.avif": "heifsave l.png --compression av1 --Q 90",
    "rgb.avif": "heifsave rgb.png --compression av1 --Q 90 --subsample-mode off",
    "rgb-420.avif": "heifsave rgb.png --compression av1 --Q 90 --subsample-mode on",
    "rgba.avif": "heifsave rgba.png --compression av1 --Q 90 --subsample-mode off",
    "rgba.heic": "heifsave rgba.png --compression hevc --Q 90 --subsample-mode off",
}
DECODED_BY_VIPS = frozenset({"rgb.avif", "rgba.avif", "rgba.heic"})


def picture() -> tuple[np.ndarray, np.ndarray]:
    """Return a smooth field of colours with a few sharp edges, and its opacity, both 0 to 1."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    rows, columns = rows / (HEIGHT - 1), columns / (WIDTH - 1)
    rgb = np.stack([columns, rows, 1 - (rows + columns) / 2], axis=2)
    rgb[4:10, 4:12] = (0.95, 0.2, 0.1)
    rgb[12:20, 20:32] = (0.1, 0.25, 0.7)
    rgb[20:24, 6:16] = 1
    rgb[22:26, 26:32] = 0
    opacity = columns.copy()
    opacity[:, :4] = 0
    opacity[6:16, 8:24] = 1
    return rgb, opacity


def save_pam(path: Path, channels: np.ndarray) -> None:
    """Write 16 bits in the plainest format that has an alpha channel."""
    kind = {3: "RGB", 4: "RGB_ALPHA"}[channels.shape[2]]
    header = f"P7\nWIDTH {WIDTH}\nHEIGHT {HEIGHT}\nDEPTH {channels.shape[2]}\nMAXVAL 65535\n"
    header += f"TUPLTYPE {kind}\nENDHDR\n"
    path.write_bytes(header.encode() + np.rint(channels * 65535).astype(">u2").tobytes())


def run(*command: str | Path) -> None:
    subprocess.run([*map(str, command)], check=True)


def without_adobe_marker(content: bytes) -> bytes:
    start = content.index(b"\xff\xee")
    return content[:start] + content[start + 2 + int.from_bytes(content[start + 2 : start + 4]) :]


def as_ycck(folder: Path) -> bytes:
    """Return a JPEG of YCCK, which ImageMagick reads, but does not write.

    The channels of a CMYK file that say luma and chroma are all there is to it, with a marker that
    says so.
    """
    negative = folder / "negative.pam"
    rgb, _ = picture()
    save_pam(negative, 1 - rgb)
    planes = [folder / f"plane-{number}.pgm" for number in range(3)]
    run("convert", negative, "-colorspace", "YCbCr", "-depth", "8", "-separate",
        folder / "plane-%d.pgm")  # fmt: skip
    black = folder / "black.pgm"
    run("convert", planes[0], "-evaluate", "set", "100%", black)
    made = folder / "ycck.jpg"
    # In a file the inks are inverted, so each plane is too.
    run("convert", *planes, black, "-negate", "-set", "colorspace", "CMYK", "-combine",
        "-quality", "90", "-sampling-factor", "1x1", made)  # fmt: skip
    content = bytearray(made.read_bytes())
    content[content.index(b"Adobe") + 11] = 2
    return bytes(content)


def save_lab(folder: Path, made: Path) -> None:
    """Write a TIFF of CIELAB as image editors do, relative to the white of paper (D50).

    ImageMagick and libvips have daylight (D65) in mind, so the picture itself is the reference.
    """
    rgb, _ = picture()
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(  # sRGB, with the white adapted to D50 by Bradford's method
        [
            [0.4360747, 0.3850649, 0.1430804],
            [0.2225045, 0.7168786, 0.0606169],
            [0.0139322, 0.0971045, 0.7141733],
        ]
    )
    ratio = linear @ to_xyz.T / (0.96422, 1.0, 0.82521)
    root = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    x, y, z = np.moveaxis(root, 2, 0)
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=2)
    raw = folder / "lab.raw"
    raw.write_bytes(lab.astype("<f4").tobytes())
    run("vips", "rawload", raw, folder / "raw.v", WIDTH, HEIGHT, 3, "--format", "float")
    run("vips", "copy", folder / "raw.v", folder / "lab.v", "--interpretation", "lab")
    run("vips", "tiffsave", folder / "lab.v", made, "--bitdepth", "8")  # not float, that is


def main() -> None:
    rgb, opacity = picture()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_pam(folder / "rgb.pam", rgb)
        save_pam(folder / "rgba.pam", np.dstack([rgb, opacity]))
        for file, arguments in FILES.items():
            source, *options = shlex.split(arguments)
            prefix = options.pop() if options and options[-1].endswith(":") else ""
            run("convert", folder / f"{source}.pam", "-strip", *options, f"{prefix}{HERE / file}")
        for file, arguments in FILES_OF_VIPS.items():
            operation, source, *options = shlex.split(arguments)
            run("vips", operation, HERE / source, HERE / file, *options)
        adobe = (HERE / "cmyk-adobe.jpg").read_bytes()
        (HERE / "cmyk.jpg").write_bytes(without_adobe_marker(adobe))
        (HERE / "ycck.jpg").write_bytes(as_ycck(folder))
        for file in [*FILES, *FILES_OF_VIPS, "cmyk.jpg", "ycck.jpg"]:
            decode(HERE / file, folder)
        save_lab(folder, HERE / "lab.tiff")
        run(
            "convert", folder / "rgb.pam", "-depth", "8", "-strip", f"png24:{HERE}/lab.tiff.rgb.png"
        )


def decode(file: Path, folder: Path) -> None:
    """Write the pixels of a file as 8-bit RGB on white, without anything Pillow had a hand in."""
    reference = f"png24:{file}.rgb.png"
    if file.name not in DECODED_BY_VIPS:
        run("convert", f"{file}[0]", "-auto-orient", "-background", "white", "-alpha", "remove",
            "-colorspace", "sRGB", "-depth", "8", "-strip", reference)  # fmt: skip
        return
    flat = folder / "flat.ppm"
    if "rgba" in file.name:
        run("vips", "flatten", file, flat, "--background", "255")
    else:
        run("vips", "copy", file, flat)
    run("convert", flat, "-strip", reference)


if __name__ == "__main__":
    main()
