import pytest

from dr_jax.agent.budget import Budget
from dr_jax.agent.context import STUB, ContextSettings, Exchange, Full, KeepLastK, make_context


def exchanges(*observations: str) -> tuple[Exchange, ...]:
    return tuple(Exchange((number,), True, text) for number, text in enumerate(observations))


def test_full_never_rewrites() -> None:
    assert make_context(ContextSettings()).rewrite(exchanges("a", "b", "c")) is None


def test_older_observations_become_stubs_a_few_at_a_time() -> None:
    manager = make_context(ContextSettings("keep_last_k", keep=1, slack=2))
    assert manager.rewrite(exchanges("a", "b")) is None
    rewritten = manager.rewrite(exchanges("a", "b", "c"))
    assert rewritten == exchanges(STUB, STUB, "c")
    assert manager.rewrite((*rewritten, Exchange((3,), True, "d"))) is None


def test_what_was_said_stays() -> None:
    rewritten = KeepLastK(1, 1).rewrite(exchanges("a", "b"))
    assert rewritten is not None
    assert [one.said for one in rewritten] == [(0,), (1,)]


def test_managers_are_chosen_by_name_and_settings_are_checked() -> None:
    assert isinstance(make_context(ContextSettings()), Full)
    with pytest.raises(ValueError, match="keep = 0"):
        ContextSettings(keep=0)


def test_a_budget_runs_out() -> None:
    budget = Budget(turns=1, tokens=100)
    assert (budget.for_generation(60, 30), budget.for_generation(90, 30), budget.for_generation(120, 30)) == (30, 10, 0)
    assert (budget.holds(99), budget.holds(100), budget.must_answer) == (True, False, False)
    budget.spend_turn()
    assert budget.must_answer
