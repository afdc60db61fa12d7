"""Generation: the paper's prompt and "Continue", in batches here or behind a server, resumed without repeating."""

import pytest
import torch
from curation import ChatServer, make_store

from minigpt4.curation import generate as module
from minigpt4.curation.endpoint import Endpoint
from minigpt4.curation.generate import CONTINUE, PROMPT, Describer, generate, generate_by_server
from minigpt4.curation.sample import read_picture
from minigpt4.processing.image_processing_minigpt4 import load_image


@pytest.fixture
def describer(original, processor):
    return Describer(original, processor, "tiny", max_new_tokens=8)


def test_the_prompts_are_the_papers(describer, monkeypatch):
    seen = []
    monkeypatch.setattr(
        module,
        "batch_answers",
        lambda model, processor, prompts, *_, **__: seen.extend(prompts) or ["A dog."] * len(prompts),
    )
    describer(torch.zeros(1, 3, 56, 56))
    first, second = (prompt.replace("\ufdd0", "").replace("<unk>", "IMAGE") for prompt in seen)
    assert first == f"<s>###Human: <Img>IMAGE</Img> {PROMPT} ###Assistant: "
    assert second == f"{first}A dog.###Human: Continue ###Assistant: "


def test_batched_answers_equal_single_ones_and_a_long_answer_is_not_continued(tmp_path, describer, monkeypatch):
    with make_store(tmp_path, 5, ("sample",)) as store:
        assert generate(store, describer, batch_size=3).done == 5
        for row in store.rows("SELECT * FROM answers JOIN pictures USING (picture)"):
            [alone] = describer(describer.pixels([load_image(read_picture(store, row))]))
            assert (row["first"], row["continued"], row["text"]) == (alone.first, alone.continued, alone.text)
            assert row["continued"] is not None
        [(settings, rows)] = store.runs("generate")
        assert rows == 5 and settings["decoding"]["max_new_tokens"] == 8 and settings["prompt"] == PROMPT
    monkeypatch.setattr(module, "ENOUGH_TOKENS", 2)
    assert describer(torch.zeros(1, 3, 56, 56))[0].continued is None


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, original, processor):
    describer = Describer(original, processor, "tiny", max_new_tokens=6, do_sample=True, temperature=1.0)
    calls = []

    def stopping(pixels):
        calls.append(len(pixels))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return describer(pixels)

    stopping.settings, stopping.pixels = describer.settings, describer.pixels
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    with (
        make_store(tmp_path / "whole", 6, ("sample",)) as whole,
        make_store(tmp_path / "stopped", 6, ("sample",)) as stopped,
    ):
        generate(whole, describer, batch_size=2, seed=5)
        with pytest.raises(KeyboardInterrupt):
            generate(stopped, stopping, batch_size=2, seed=5)
        assert stopped.count("generate") == 2
        assert generate(stopped, describer, batch_size=2, seed=5).done == 4
        texts = [[row["text"] for row in s.rows("SELECT text FROM answers ORDER BY picture")] for s in (whole, stopped)]
        assert texts[0] == texts[1] and len(set(texts[0])) > 1


def test_a_vanished_picture_is_reported_and_the_rest_described(tmp_path, describer, capsys):
    with make_store(tmp_path, 4, ("sample",)) as store:
        (tmp_path / "pictures" / "0002.png").unlink()
        report = generate(store, describer, batch_size=2)
        assert (report.done, report.failures) == (3, 1) and "0002.png: the picture is gone" in capsys.readouterr().err


def test_a_server_that_serves_the_model_is_asked_again_after_a_short_answer_only(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    long = "word " * 81
    with make_store(tmp_path, 3, ("sample",)) as store, ChatServer() as server:
        server.behave = lambda text, nth: "More of it." if text == CONTINUE else long if nth == 1 else "A short answer."
        report = generate_by_server(store, Endpoint("m", server.url, concurrency=2), max_new_tokens=20)
        assert report.done == 3 and server.count() == {PROMPT: 3, CONTINUE: 2}
        assert {row["text"] for row in store.rows("SELECT text FROM answers")} == {
            long.strip(),
            "A short answer. More of it.",
        }
        parts = server.bodies[0]["messages"][0]["content"]
        assert parts[0]["image_url"]["url"].startswith("data:image/png;base64,")
