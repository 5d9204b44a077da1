"""A read or a write in steps: what becomes of one that is given up."""

import errno
from types import SimpleNamespace

from vhost_user_blk.move import Move
from vhost_user_blk.shares import Shares


def test_a_write_that_was_given_up_while_it_waited_is_not_begun() -> None:
    """What it waited for may have taken long; and nobody waits for it any more."""
    turns, ended = Shares(2), list[int]()
    requests = SimpleNamespace(
        image=SimpleNamespace(fd=-1, unit=1),
        engine=None,  # and so nothing can be begun
        is_durable=False,
        turns=turns,
        bounces=Shares(1),
        end=lambda queue, chain, what, offset, result: ended.append(result),
    )
    chain = SimpleNamespace(given_up=False)
    move = Move(requests, None, chain, 0, 512, writing=True, turns=1)  # type: ignore[arg-type]  # in their place
    turns.take(2, lambda: None)
    turns.take(1, move.begin)
    chain.given_up = True
    turns.give(2)
    assert ended == [-errno.ECANCELED]
    alone = list[int]()
    turns.take(2, lambda: alone.append(1))
    assert alone, "its share was given back"
