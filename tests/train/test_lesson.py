from types import SimpleNamespace

import pytest

from dr_jax.train.lesson import Purse
from dr_jax.train.together import LeftError, ProcessSettings, Together, reason


def test_each_process_knows_what_all_have_spent_and_counts_its_own_once() -> None:
    mine, theirs = SimpleNamespace(queries=10, money=1.0), SimpleNamespace(queries=10, money=1.0)
    purses = [Purse((one, ("queries", "money"))) for one in (mine, theirs)]
    mine.queries, theirs.money = 13, 1.5
    told = [purse.spent() for purse in purses]
    assert told == [[3, 0.0], [0, 0.5]]
    mine.queries += 1  # while the round lasts
    for purse, own in zip(purses, told, strict=True):
        purse.settle(own, told)
    assert (mine.queries, mine.money) == (14, 1.5)
    assert (theirs.queries, theirs.money) == (13, 1.5)
    assert [purse.spent() for purse in purses] == [[1, 0.0], [0, 0.0]]


def test_shares_are_put_back_in_the_order_of_the_whole() -> None:
    together = Together(ProcessSettings())
    assert together.alone
    assert together.first
    assert together.share("abcde") == list("abcde")
    assert together.woven(["ad", "be", "c"]) == list("abcde")
    assert together.exchange({"x": 1}) == [{"x": 1}]
    assert together.leave("an error")
    together.refuse_left()


def test_why_a_process_ends_is_told_in_words() -> None:
    assert reason(None) == ""
    assert reason(KeyboardInterrupt()) == "interrupted"
    assert reason(OSError("disk full")) == "OSError: disk full"
    assert reason(LeftError(2, "OSError: disk full")) == "OSError: disk full"


def test_settings_that_mean_nothing() -> None:
    with pytest.raises(ValueError, match=r"lost_s = 1\.0; 0 or more and at least 5"):
        ProcessSettings(lost_s=1.0)
