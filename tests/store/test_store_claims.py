"""What claims promise to those that wait for them: a heartbeat, a holder, and a way around it."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest
from store_trials import Scripts, digests_of, end, heard

from featx._store import claims as claims_module
from featx._store.claims import ClaimFolder

if TYPE_CHECKING:
    from pathlib import Path

BEAT = 0.02

HOLDER = (
    "from featx._store import claims",
    f"claims.SECONDS_BETWEEN_HEARTBEATS = {BEAT}",
    "table.make()",
    "with table.claims.locked():",
    "    claim = table.claims.add('ab' * 16, digests[:3])",
    "print('claimed', flush=True)",
)


@pytest.fixture
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClaimFolder:
    monkeypatch.setattr(claims_module, "SECONDS_BETWEEN_HEARTBEATS", BEAT)
    return ClaimFolder(tmp_path / "v1" / "a1b2")


def changes(claims: ClaimFolder, name: str, seconds: float) -> bool:
    """Whether a heartbeat is seen within some seconds."""
    first, deadline = claims.heartbeat(name), time.monotonic() + seconds
    while time.monotonic() < deadline:
        if claims.heartbeat(name) != first:
            return True
        time.sleep(BEAT / 4)
    return False


def test_a_heartbeat_stops_with_its_process_and_goes_on_with_it(
    claims: ClaimFolder, script: Scripts
) -> None:
    holder = script(*HOLDER, "while True: pass")  # busy without end, as with a slow parcel
    assert heard(holder) == "claimed"
    (name,) = claims.names()
    assert claims.holder(name) == f"process {holder.pid} on {socket.gethostname()}"
    assert changes(claims, name, 20)
    os.kill(holder.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED)
    assert not changes(claims, name, 20 * BEAT)
    with claims.locked():
        assert set(claims.live().values()) == {name}
        assert claims.live(ignored={name}) == {}
        assert claims.void() == set()
    os.kill(holder.pid, signal.SIGCONT)
    assert changes(claims, name, 20)
    holder.kill()
    end(holder)
    with claims.locked():
        assert claims.live() == {}
    assert claims.heartbeat(name) is None
    assert claims.holder(name) == "another process"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_beats_for_its_own_claims_alone(claims: ClaimFolder) -> None:
    claims._table.mkdir(parents=True)
    with claims.locked():
        of_parent = claims.add("aa" * 16, digests_of([1]))
    child = os.fork()
    if child == 0:  # pragma: no cover - the parent is measured
        signal.alarm(30)
        with claims.locked():
            claims.add("bb" * 16, digests_of([2]))
        time.sleep(60)
        os._exit(0)
    try:
        deadline = time.monotonic() + 20
        while claims.heartbeat("bb" * 16) is None and time.monotonic() < deadline:
            time.sleep(BEAT)
        assert changes(claims, "bb" * 16, 20)
        of_parent.remove()
        assert claims.names() == {"bb" * 16}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_heart_stops_when_there_is_nothing_to_beat_for(claims: ClaimFolder) -> None:
    claims._table.mkdir(parents=True)
    for _ in range(2):
        with claims.locked():
            claim = claims.add("aa" * 16, digests_of([1]))
        assert changes(claims, "aa" * 16, 20)
        claim.remove()
        deadline = time.monotonic() + 20
        while claims_module._heart._thread is not None:
            assert time.monotonic() < deadline
            time.sleep(BEAT)


def test_a_claim_of_an_earlier_version_is_read(claims: ClaimFolder) -> None:
    claims._table.mkdir(parents=True)
    with claims.locked():
        held = claims.add("aa" * 16, [])
        (claims._folder / f"{'aa' * 16}.claim").write_bytes(b"".join(digests_of([1, 2])))
        assert claims.live() == dict.fromkeys(digests_of([1, 2]), "aa" * 16)
    assert claims.holder("aa" * 16) == "another process"
    held.remove()


def test_who_was_stopped_with_the_short_lock_is_not_waited_for_for_ever(
    claims: ClaimFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "SECONDS_FOR_THE_LOCK", 0.2)
    claims._table.mkdir(parents=True)
    other = ClaimFolder(claims._table)
    with claims.locked():
        for least, most in ((0.2, 20.0), (0.0, 0.15)):
            started = time.monotonic()
            with pytest.raises(TimeoutError, match="does not go on"), other.locked():
                pass
            assert least <= time.monotonic() - started <= most
    with other.locked():
        pass
