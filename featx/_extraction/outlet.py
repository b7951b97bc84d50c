"""The outlet of the stream: finished parcels on their way to whoever asked for them."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from featx._extraction.parcels import Parcel


class AbandonedError(Exception):
    """Nobody asks for parcels any longer."""


class Outlet:
    """Finished parcels, and whether there is room for more to be begun.

    Parameters
    ----------
    most_images, most_bytes : int
        Of the parcels that are begun and not handed on; one is always begun.
    """

    def __init__(self, most_images: int, most_bytes: int) -> None:
        self._most_images = most_images
        self._most_bytes = most_bytes
        self._sizes: deque[tuple[int, int]] = deque()
        self._images = 0
        self._bytes = 0
        self._finished: deque[Parcel] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._is_ended = False
        self.is_closed = False

    @property
    def has_room(self) -> bool:
        """Whether another parcel may be begun."""
        return self._images < self._most_images and self._bytes < self._most_bytes

    def admit(self, n_images: int, n_bytes: int) -> None:
        """Count a parcel that is begun."""
        with self._changed:
            self._sizes.append((n_images, n_bytes))
            self._images += n_images
            self._bytes += n_bytes

    def put(self, parcel: Parcel) -> None:
        """Add a finished parcel; this never waits."""
        with self._changed:
            if self.is_closed:
                raise AbandonedError
            self._finished.append(parcel)
            self._changed.notify_all()

    def drain(self) -> Iterator[Parcel]:
        """Yield the finished parcels."""
        while self._finished:
            with self._changed:
                parcel = self._finished.popleft()
                n_images, n_bytes = self._sizes.popleft()
                self._images -= n_images
                self._bytes -= n_bytes
                self._changed.notify_all()
            yield parcel

    def wait_for_room(self) -> None:
        """Wait for whoever takes finished parcels, until there is room for another one.

        Raises
        ------
        AbandonedError
            Nobody asks for parcels any longer.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.has_room or not self._finished or self.is_closed)
            if self.is_closed:
                raise AbandonedError

    def end(self, error: BaseException | None) -> None:
        """Say that no parcel follows, and what went wrong, if anything did."""
        with self._changed:
            self._error, self._is_ended = error, True
            self._changed.notify_all()

    def parcels(self) -> Iterator[Parcel]:
        """Yield all parcels as they are finished, then raise what ended them, if anything did."""
        while True:
            with self._changed:
                while not (self._finished or self._is_ended):
                    self._changed.wait()
                is_last = self._is_ended
            yield from self.drain()
            if is_last:
                break
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ask for no more."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()


def hand_on_from_a_thread(
    steps: Callable[[], Generator[None]], outlet: Outlet
) -> Generator[Parcel]:
    """Take steps in a thread of their own and yield the parcels that they finish.

    So whoever takes the parcels may take its time, while nothing that was begun waits for it.

    Parameters
    ----------
    steps : callable
        Begins the work, which may wait between two steps.
    outlet : Outlet
        Where it puts the parcels.
    """

    def work() -> None:
        error: BaseException | None = None
        try:
            with closing(steps()) as taken:
                for _ in taken:
                    outlet.wait_for_room()
        except AbandonedError:
            pass
        except BaseException as raised:  # whatever it is, the caller's thread raises it
            error = raised
        finally:
            outlet.end(error)

    thread = threading.Thread(target=work, name="featx-stream", daemon=True)
    thread.start()
    try:
        yield from outlet.parcels()
    finally:
        outlet.close()
        thread.join()
