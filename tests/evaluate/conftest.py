import pytest

from dr_jax.tokens.chat import Chat
from tests.fakes import small_chat


@pytest.fixture(scope="session")
def chat() -> Chat:
    return small_chat()
