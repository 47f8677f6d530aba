import pytest

from dr_jax.rewards.judge import Verdict, read_verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ('{"rationale": "same city", "judgement": "correct"}', Verdict(True, "same city")),
        ('So: {"judgement": "incorrect"}.', Verdict(False, "")),
        ('{"judgement": "perhaps"}', None),
        ("correct", None),
        ("{[}", None),
        ('["correct"]', None),
    ],
)
def test_replies(reply: str, verdict: Verdict | None) -> None:
    assert read_verdict(reply) == verdict
