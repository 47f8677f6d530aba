import pytest

from dr_jax.tokens.calls import Answer, Call, Calls, Malformed, parse

SEARCH = '{"name": "web_search", "arguments": {"query": ["a"]}}'


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("<think>hm</think><answer> Paris </answer>", Answer("Paris")),
        (f"<think>hm</think><tool_call>{SEARCH}</tool_call>", Calls((Call("web_search", {"query": ["a"]}),))),
        (f"<tool_call>\n{SEARCH}\n</tool_call>", Calls((Call("web_search", {"query": ["a"]}),))),
        ("<think>the <answer>form</answer> is this</think><answer>x</answer>", Answer("x")),
        ("<answer></answer>", Answer("")),
    ],
)
def test_forms(text: str, read: object) -> None:
    assert parse(text) == read


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>hm<answer>x</answer>", "<think> is opened 1 times and closed 0"),
        ("just words", "neither"),
        (f"<answer>x</answer><tool_call>{SEARCH}</tool_call>", "both"),
        ("<answer>x</answer><answer>y</answer>", "2 answers"),
        ("<tool_call>{not json}</tool_call>", "not JSON"),
        ('<tool_call>{"name": "web_search"}</tool_call>', "needs"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "not JSON"),
    ],
)
def test_malformed_says_why(text: str, reason: str) -> None:
    read = parse(text)
    assert isinstance(read, Malformed)
    assert reason in read.reason
