"""Decode images in a process of their own, which may crash, hang or fill the memory.

The tests call `run_trials`; run as a program this module is that process. It says what it begins
and what came of it, a line each, so that whoever reads knows where it was when it died.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import random
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

REFERENCES = Path(__file__).resolve().parent / "references"

_SEED = "seed:"
_WEB_PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n"


@dataclass(frozen=True)
class Trial:
    """What came of one image.

    Attributes
    ----------
    name : str
        What was decoded.
    reason : str or None
        Why it was refused; None if there are pixels.
    shape : tuple of int or None
        Shape of the pixels.
    seconds : float
        How long it took.
    peak_mb : float
        The most memory the process had until then, above what it had after ``import torch,
        torchvision, timm``; or above what it had before, if each has a process.
    resident_mb : float
        The memory it had afterwards, above the same.
    """

    name: str
    reason: str | None
    shape: tuple[int, ...] | None
    seconds: float
    peak_mb: float
    resident_mb: float


def run_trials(
    jobs: list[str], *, seconds_each: float = 5, each_in_a_process: bool = False
) -> list[Trial]:
    """Decode each job in another process.

    Parameters
    ----------
    jobs : list of str
        A path, or "seed:7" for the file that `mutated_file` makes of 7.
    seconds_each : float
        A job that takes longer is a failure.
    each_in_a_process : bool
        Fork for each job, so that its memory is told from that of the others.

    Raises
    ------
    AssertionError
        If the process crashes, hangs, or raises anything but `ImageDecodeError`: with the job, the
        signal and the traceback.
    """
    command = [sys.executable, __file__, str(seconds_each), str(int(each_in_a_process))]
    done = subprocess.run(
        command, input="\n".join(jobs), capture_output=True, text=True, errors="replace",
        check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    trials = [
        Trial(**{**line, "shape": line["shape"] and tuple(line["shape"])})
        for line in lines
        if "reason" in line
    ]
    if done.returncode != 0 or len(trials) != len(jobs):
        begun = lines[-1]["name"] if lines else "nothing yet"
        raise AssertionError(
            f"The process ended with {done.returncode} at {begun}:\n{done.stderr[-4000:]}"
        )
    return trials


def mutated_file(seed: int) -> bytes:
    """Return a damaged file: always the same for one seed."""
    files = sorted(
        path for path in REFERENCES.iterdir()
        if path.suffix not in (".py", ".md") and not path.name.endswith(".rgb.png")
    )  # fmt: skip
    chance = random.Random(seed)
    content = bytearray(chance.choice(files).read_bytes())
    mutation = chance.choice(_MUTATIONS)
    return bytes(mutation(content, chance, files))


def _truncate(content: bytearray, chance: random.Random, files: list[Path]) -> bytes:
    return content[: chance.randrange(len(content))]


def _flip_bits(content: bytearray, chance: random.Random, files: list[Path]) -> bytes:
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return content


def _damage_header(content: bytearray, chance: random.Random, files: list[Path]) -> bytes:
    for _ in range(chance.choice((1, 2, 4))):
        place = chance.randrange(min(64, len(content)))
        content[place] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
    return content


def _swap_header(content: bytearray, chance: random.Random, files: list[Path]) -> bytes:
    other = chance.choice(files).read_bytes()
    length = chance.choice((4, 8, 16, 32, 64))
    return other[:length] + content[length:]


def _join_two(content: bytearray, chance: random.Random, files: list[Path]) -> bytes:
    other = chance.choice(files).read_bytes()
    return content[: chance.randrange(len(content))] + other[chance.randrange(len(other)) :]


def _zero_bytes(content: bytearray, chance: random.Random, files: list[Path]) -> bytes:
    start = chance.randrange(len(content))
    length = min(chance.choice((1, 4, 100, len(content))), len(content) - start)
    content[start : start + length] = bytes(length)
    return content


def _extreme_numbers(content: bytearray, chance: random.Random, files: list[Path]) -> bytes:
    start = chance.randrange(len(content))
    extreme = chance.choice(("ffffffff", "7fffffff", "80000000", "00000000", "ffff", "00010000"))
    content[start : start + len(extreme) // 2] = bytes.fromhex(extreme)
    return content


def _insert_or_cut(content: bytearray, chance: random.Random, files: list[Path]) -> bytes:
    start = chance.randrange(len(content))
    if chance.random() < 0.5:
        return content[:start] + chance.randbytes(chance.choice((1, 7, 300))) + content[start:]
    return content[:start] + content[start + chance.choice((1, 7, 300)) :]


def _other_content(content: bytearray, chance: random.Random, files: list[Path]) -> bytes:
    return chance.choice((_WEB_PAGE, b"", bytes(1000), chance.randbytes(200), content[:3]))


_MUTATIONS = (
    _truncate,
    _flip_bits,
    _flip_bits,
    _damage_header,
    _damage_header,
    _swap_header,
    _join_two,
    _zero_bytes,
    _extreme_numbers,
    _insert_or_cut,
    _other_content,
)


def _main() -> None:
    seconds_each, forks = float(sys.argv[1]), bool(int(sys.argv[2]))
    for module in ("torch", "torchvision", "timm"):
        importlib.import_module(module)
    baseline = _resident_mb()
    if forks:
        importlib.import_module("featx._images.decode")
    faulthandler.enable()
    for job in sys.stdin.read().split("\n"):
        print(json.dumps({"name": job}), flush=True)
        if not forks:
            _try(job, seconds_each, baseline)
        elif (child := os.fork()) == 0:
            _try(job, seconds_each, _resident_mb())
            os._exit(0)
        elif status := os.waitpid(child, 0)[1]:
            sys.exit(f"{job}: exit status {os.waitstatus_to_exitcode(status)}")


def _try(job: str, seconds_each: float, baseline: float) -> None:
    from featx._errors import ImageDecodeError
    from featx._images.decode import decode_content
    from featx._images.sources import read_content

    item = mutated_file(int(job.removeprefix(_SEED))) if job.startswith(_SEED) else job
    faulthandler.dump_traceback_later(seconds_each, exit=True)
    reason, shape = None, None
    started = time.perf_counter()
    try:
        shape = tuple(decode_content(read_content(item), job).shape)
    except ImageDecodeError as error:
        reason = error.reason
    seconds = time.perf_counter() - started
    faulthandler.cancel_dump_traceback_later()
    peak = _peak_mb() - baseline
    trial = Trial(job, reason, shape, seconds, peak, _resident_mb() - baseline)
    print(json.dumps(asdict(trial)), flush=True)


def _peak_mb() -> float:
    # Not ru_maxrss, which a program inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    _main()
