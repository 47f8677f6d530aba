import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dr_jax.model.logprobs import token_logprobs
from dr_jax.sharding.mesh import MeshSettings, make_mesh
from dr_jax.train.hlo import counted
from tests.model.programs import largest

B, T, D, V = 2, 10, 4, 32
HIDDEN = jax.random.normal(jax.random.key(0), (B, T, D))
HEAD = jax.random.normal(jax.random.key(1), (D, V))
TARGETS = jax.random.randint(jax.random.key(2), (B, T), 0, V)


def plain(hidden: jax.Array, matrix: jax.Array, temperature: float = 1.0) -> tuple[jax.Array, jax.Array]:
    logprobs = jax.nn.log_softmax(hidden @ matrix / temperature)
    entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
    return jnp.take_along_axis(logprobs, TARGETS[..., None], axis=-1)[..., 0], entropy


def test_even_odds() -> None:
    logprobs, entropy = token_logprobs(jnp.zeros((1, 3, D)), jnp.ones((D, 8)), jnp.zeros((1, 3), jnp.int32))
    np.testing.assert_allclose(logprobs, -np.log(8.0) * np.ones((1, 3)), rtol=1e-6)
    np.testing.assert_allclose(entropy, np.log(8.0) * np.ones((1, 3)), rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 4096])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunks_agree_with_all_logits_at_once(chunk: int, temperature: float) -> None:
    found = jax.jit(lambda t: token_logprobs(HIDDEN, HEAD, TARGETS, chunk=chunk, temperature=t))(jnp.float32(temperature))
    for one, expected in zip(found, plain(HIDDEN, HEAD, temperature), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=5e-6)


def test_so_do_their_gradients() -> None:
    weight = jax.random.normal(jax.random.key(3), (B, T))

    def total(f):
        return lambda hidden, matrix: jnp.sum((lambda lp, entropy: (lp + 0.3 * entropy) * weight)(*f(hidden, matrix)))

    expected = jax.jit(jax.grad(total(plain), argnums=(0, 1)))(HIDDEN, HEAD)
    found = jax.jit(jax.grad(total(lambda h, m: token_logprobs(h, m, TARGETS, chunk=3)), argnums=(0, 1)))(HIDDEN, HEAD)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_without_entropy_it_is_zero_and_the_rest_the_same() -> None:
    with_it, without = (token_logprobs(HIDDEN, HEAD, TARGETS, entropy=entropy) for entropy in (True, False))
    np.testing.assert_array_equal(with_it[0], without[0])
    assert not without[1].any()


ASKED = jax.random.bernoulli(jax.random.key(4), 0.4, (B, T)).at[1, 3:].set(False)


@pytest.mark.parametrize("chunk", [1, 6, 4096])
def test_where_some_are_asked_those_answers_and_gradients_are_the_same(chunk: int) -> None:
    def total(f):
        return lambda h, m: sum(jnp.where(ASKED, told, 0.0).sum() for told in f(h, m))

    asking = total(lambda h, m: token_logprobs(h, m, TARGETS, chunk=chunk, asked_BT=ASKED))
    expected = jax.jit(jax.value_and_grad(total(plain), argnums=(0, 1)))(HIDDEN, HEAD)
    found = jax.jit(jax.value_and_grad(asking, argnums=(0, 1)))(HIDDEN, HEAD)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_chunks_without_a_question_are_never_computed() -> None:
    asked = jnp.zeros((B, T), bool).at[:, 1::2].set(True)  # five of ten, moved to the front: one chunk of two
    poisoned = jnp.where(asked[..., None], HIDDEN, jnp.nan)

    def total(hidden: jax.Array, matrix: jax.Array) -> jax.Array:
        return jnp.where(asked, token_logprobs(hidden, matrix, TARGETS, chunk=5 * B, asked_BT=asked)[0], 0.0).sum()

    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(poisoned, HEAD)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert not gradients[0][:, ::2].any()


def test_logits_of_all_tokens_never_exist_at_once() -> None:
    rows, length, width, vocab, chunk = 4, 512, 8, 4096, 64

    def backward(hidden: jax.Array, matrix: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
        return jax.grad(lambda h, m: sum(x.sum() for x in token_logprobs(h, m, targets, chunk=chunk)), (0, 1))(hidden, matrix)

    found = largest(
        backward,
        jax.ShapeDtypeStruct((rows, length, width), jnp.float32),
        jax.ShapeDtypeStruct((width, vocab), jnp.float32),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
    )
    assert found == chunk * vocab


def test_devices_send_nothing_for_each_chunk() -> None:
    mesh = make_mesh(MeshSettings(data=1, fsdp=4, tensor=2))

    def sent(chunk: int) -> float:
        def share(hidden_BTD: jax.Array, head_DV: jax.Array, targets_BT: jax.Array) -> jax.Array:
            return token_logprobs(hidden_BTD, head_DV, targets_BT, chunk=chunk)[0].sum()

        def placed(shape: tuple[int, ...], dtype: object, *axes: str | None) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

        given = (
            placed((4, 32, 16), jnp.float32, "fsdp"),
            placed((16, 64), jnp.float32, "fsdp", "tensor"),
            placed((4, 32), jnp.int32, "fsdp"),
        )
        with jax.set_mesh(mesh):
            compiled = jax.jit(jax.grad(share, argnums=(0, 1))).trace(*given).lower().compile()
        return counted(compiled.as_text(), unbound=32 // chunk).sent

    assert sent(4) < 1.5 * sent(16)
