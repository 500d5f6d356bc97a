"""Measuring in a process of its own, whose peak memory is its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import TypeVar

from common.errors import FedwardError

T = TypeVar("T")


def in_child(function: Callable[..., T], *arguments: object, preload: str | None = None) -> T:
    """Return what `function` gives in a fresh process.

    Args:
        function: A function of a module; it and its arguments are pickled.
        arguments: Its arguments.
        preload: A module to import once for all children that name it; without it each child imports anew.

    Raises:
        FedwardError: The process ended without an answer, most likely for want of memory.
    """
    context: BaseContext = multiprocessing.get_context("spawn" if preload is None else "forkserver")
    if preload is not None:
        context.set_forkserver_preload([preload])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(  # type: ignore[attr-defined]
        target=_answer, args=(sender, function, arguments)
    )
    child.start()
    sender.close()
    try:
        answer: T = receiver.recv()
    except EOFError:
        raise FedwardError(
            "A measuring process ended without a result. Close other programs to free memory and try again."
        ) from None
    finally:
        child.join()
        receiver.close()
    return answer


def _answer(sender: Connection, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """Run in the child: measure and send."""
    sender.send(function(*arguments))
    sender.close()
