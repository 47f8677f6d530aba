import json
import time

import pytest

from dr_jax.agent.extractive import ExtractiveReader, best_sentences
from dr_jax.agent.model_reader import ModelReader, PolicyModel
from dr_jax.agent.reader import make_reader
from dr_jax.agent.reading import ReaderSettings, Reading, Task, segments
from dr_jax.base.metrics import Metrics
from dr_jax.tokens.chat import Chat
from dr_jax.tokens.policy import RequestKey
from dr_jax.web.page import Page
from tests.fakes import ScriptedPolicy

KEY = RequestKey(0, "q", 0, 0)
TASK = Task("Who founded Velin?", "Velin founder")
TOWN = "Velin is a town. It has a market. Velin was founded by Oren Vash. Rain is common there. The founder of Narn is Ula."


def page(text: str) -> Page:
    return Page("http://x/p", "p", text)


def test_the_best_sentences_come_in_page_order() -> None:
    assert best_sentences(TOWN, TASK, 1) == ["Velin was founded by Oren Vash."]
    assert best_sentences(TOWN, TASK, 9) == [
        "Velin is a town.",
        "Velin was founded by Oren Vash.",
        "The founder of Narn is Ula.",
    ]
    assert best_sentences(TOWN, Task("?", "nothing of this"), 3) == [], "`of` and `this` are no reason"


def test_lines_are_sentences_and_dots_inside_words_are_not_ends() -> None:
    assert best_sentences("Founder | O. Vash\nArea | 3.5 km", Task("area", "area 3"), 1) == ["Area | 3.5 km"]


async def test_only_what_is_new_is_told() -> None:
    reader = ExtractiveReader(ReaderSettings(sentences=1))
    first = await reader.read(page(TOWN), TASK, KEY)
    assert first == (Reading(1, "Velin was founded by Oren Vash."),)
    second = await reader.read(page(TOWN), Task(TASK.question, TASK.sub_question, (first[0].summary,)), KEY)
    assert second == (Reading(1, "Velin is a town."),)


async def test_reading_goes_on_until_something_was_found_and_then_stops() -> None:
    settings = ReaderSettings(segment_chars=40, max_segments=9, sentences=2)
    text = "Rain is common there in the winter. " * 2 + "The Velin founder was Oren Vash. " + "Velin has a founder. " * 9
    found = await ExtractiveReader(settings).read(page(text), TASK, KEY)
    assert [reading.page_number for reading in found] == [3]
    assert "Oren Vash" in found[0].summary


def test_segments_are_cut_at_white_space_and_capped() -> None:
    settings = ReaderSettings(segment_chars=10, max_segments=3)
    assert list(segments("aaaa bbbb cccc\ndddd eeee ffff gggg", settings)) == ["aaaa bbbb", "cccc\ndddd", "eeee ffff"]
    assert list(segments("x" * 25, settings)) == ["x" * 10, "x" * 10, "x" * 5]
    assert list(segments("", settings)) == []


async def test_a_long_line_without_full_stops_is_cut_into_pieces() -> None:
    (found,) = await ExtractiveReader(ReaderSettings(sentences=1)).read(page("word " * 20_000 + "velin"), TASK, KEY)
    assert found.summary.endswith("velin")
    assert len(found.summary) <= 600


async def test_a_small_page_is_read_in_less_than_a_millisecond() -> None:
    reader = ExtractiveReader(ReaderSettings())
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        await reader.read(page(TOWN * 3), TASK, KEY)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.001


def model_reader(policy: ScriptedPolicy, chat: Chat, settings: ReaderSettings, metrics: Metrics | None = None) -> ModelReader:
    return ModelReader(PolicyModel(policy, chat, settings.max_new_tokens), settings, metrics or Metrics())


def reply(information: str, *, page_down: bool | str) -> str:
    return "Here: " + json.dumps({"information": information, "page_down": page_down, "summary": "s"})


async def test_a_policy_reads_on_as_long_as_it_wants_to_and_pages_last(chat: Chat) -> None:
    def script(key: RequestKey, seen: str) -> str:
        number = int(key.purpose.rsplit(":", 1)[1])
        return reply(f"fact {number}" if number != 2 else "", page_down=True)

    policy = ScriptedPolicy(chat, script)
    reader = model_reader(policy, chat, ReaderSettings(kind="policy", segment_chars=10, max_segments=4))
    found = await reader.read(page("aaaa bbbb cccc dddd eeee ffff gggg"), Task("main?", "sub?", ("old",)), KEY)
    assert found == (Reading(1, "fact 1"), Reading(3, "fact 3"), Reading(4, "fact 4"))
    asked = [
        json.loads(text[text.index("{") : text.rindex("}") + 1])
        for text in map(_user, (chat, chat, chat, chat), policy.prompts.values())
    ]
    assert asked[2] == {
        "question": "main?",
        "sub_question": "sub?",
        "known": ["old", "fact 1"],
        "page": 3,
        "pages": 4,
        "text": "eeee ffff",
    }


def _user(chat: Chat, ids: tuple[int, ...]) -> str:
    text = chat.tokenizer.decode(ids)
    return text[text.index("<|im_start|>user") :]


async def test_a_policy_may_stop(chat: Chat) -> None:
    policy = ScriptedPolicy(chat, [reply("all of it", page_down=False)])
    reader = model_reader(policy, chat, ReaderSettings(segment_chars=10))
    assert await reader.read(page("aaaa bbbb cccc dddd"), TASK, KEY) == (Reading(1, "all of it"),)
    assert len(policy.prompts) == 1


async def test_half_a_character_of_a_reply_is_replaced(chat: Chat) -> None:
    half = '{"information": "a \\ud83d face", "page_down": false}'
    reader = model_reader(ScriptedPolicy(chat, [half]), chat, ReaderSettings())
    assert await reader.read(page(TOWN), TASK, KEY) == (Reading(1, "a ? face"),)


@pytest.mark.parametrize(
    "nonsense",
    ["no json", "{]", '{"information": 3}', '["information"]', "{" * 5000 + "}", '{"information": ' + "9" * 5000 + "}"],
)
async def test_a_reply_that_cannot_be_read_is_counted_and_the_page_is_read_without_a_model(chat: Chat, nonsense: str) -> None:
    metrics = Metrics()
    reader = model_reader(ScriptedPolicy(chat, [nonsense]), chat, ReaderSettings(sentences=1, max_new_tokens=9999), metrics)
    assert await reader.read(page(TOWN), TASK, KEY) == (Reading(1, "Velin was founded by Oren Vash."),)
    assert metrics.drain()["reader/unreadable_replies"] == 1


async def test_a_segment_that_the_model_cannot_hold_is_read_without_it(chat: Chat) -> None:
    metrics = Metrics()
    policy = ScriptedPolicy(chat, ["never"], context=100)
    reader = make_reader(ReaderSettings(kind="policy", sentences=1), chat=chat, policy=policy, metrics=metrics)
    assert await reader.read(page(TOWN), TASK, KEY) == (Reading(1, "Velin was founded by Oren Vash."),)
    assert metrics.drain()["reader/segments_too_long"] == 1


async def test_what_is_known_is_not_told_again_and_a_long_reply_is_cut(chat: Chat) -> None:
    policy = ScriptedPolicy(chat, lambda key, seen: reply("old" if key.purpose.endswith(":1") else "x" * 900, page_down=True))
    settings = ReaderSettings(segment_chars=10, max_new_tokens=1000)
    found = await model_reader(policy, chat, settings).read(page("aaaa bbbb cccc dddd"), Task("q", "s", ("old",)), KEY)
    assert [reading.page_number for reading in found] == [2]
    short = model_reader(ScriptedPolicy(chat, [reply("x" * 900, page_down=False)]), chat, ReaderSettings(max_new_tokens=50))
    assert not (await short.told(page("nothing"), TASK, KEY)).sure  # a reply that goes on for ever is none


async def test_two_pages_of_one_turn_have_random_numbers_of_their_own(chat: Chat) -> None:
    policy = ScriptedPolicy(chat, [reply("x", page_down=False)])
    reader = model_reader(policy, chat, ReaderSettings())
    for name in ("a", "b"):
        await reader.read(Page(f"http://x/{name}", name, TOWN), TASK, KEY)
    assert len(policy.prompts) == 2


def test_settings_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="sentences = 0"):
        ReaderSettings(sentences=0)
