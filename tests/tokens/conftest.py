import pytest

from dr_jax.tokens.chat import Chat
from dr_jax.tokens.tokenizer import Tokenizer
from dr_jax.tokens.vocabulary import train

TEXTS = [
    "Velin Tarro was founded by Oren Vash in 1871.",
    '<tool_call>{"name": "web_search", "arguments": {"query": ["x"]}}',
] * 20


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train(TEXTS, 400)


@pytest.fixture(scope="session")
def chat(tokenizer: Tokenizer) -> Chat:
    return Chat(tokenizer)
