"""Build the reader that the settings name.

In:    settings; the model that reads, where one does; a tape for what lasts
Out:   SharedReader: reads each page once for all who ask the same of it
"""

from __future__ import annotations

from collections.abc import Callable

from dr_jax.agent.endpoint import Endpoint, remembered_as
from dr_jax.agent.extractive import ExtractiveReader
from dr_jax.agent.model_reader import ModelReader, PolicyModel, Told
from dr_jax.agent.reading import ReaderSettings, Task
from dr_jax.agent.shared_reader import SharedReader, Shelf
from dr_jax.base.metrics import Metrics
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import Policy, RequestKey
from dr_jax.web.page import Page


def make_reader(
    settings: ReaderSettings,
    *,
    chat: Chat,
    policy: Policy | None,
    metrics: Metrics,
    version: Callable[[], str] = str,
    endpoint: Endpoint | None = None,
    shelf: Shelf | None = None,
) -> SharedReader:
    """Build a reader.

    Args:
        settings: which, and its caps.
        chat: of the reading policy.
        policy: reads where the settings ask for one; without it the extractive reader does.
        metrics: everything under `reader/`.
        version: which weights the policy has now.
        endpoint: the server of `openai`, opened.
        shelf: where the results of a model are kept; None when it changes.
    """
    if endpoint is not None:
        said = remembered_as(settings.endpoint)
        return SharedReader(ModelReader(endpoint, settings, metrics).told, lambda: said, settings, metrics, shelf)
    if settings.kind == "policy" and policy is not None:
        model = PolicyModel(policy, chat, settings.max_new_tokens)
        return SharedReader(ModelReader(model, settings, metrics).told, version, settings, metrics, shelf)
    plain = ExtractiveReader(settings)

    async def told(page: Page, task: Task, key: RequestKey) -> Told:
        return Told(await plain.read(page, task, key))

    return SharedReader(told, lambda: "extractive", settings, metrics)
