"""app.py where ZeroGPU lends the GPU: answers come from a function that has no access to the conversations here."""

import subprocess
import sys

from spaces import GPU

from minigpt4.hub import app


def test_a_conversation_goes_on_where_answers_are_written_elsewhere(original, processor, picture):
    """Outside of a Space the decorator changes nothing, and the function takes and returns messages as it does there."""
    settings = {"max_new_tokens": 8, "do_sample": False}
    image, here, there = picture(), original.chat_session(processor), original.chat_session(processor)
    say, say_elsewhere = app.speaker(original, processor), app.speaker(original, processor, GPU)
    first = list(say(here, "What is this?", image, **settings))
    assert list(say_elsewhere(there, "What is this?", image, **settings)) == first
    assert there.export() == here.export()
    again = original.chat_session(processor, here.export())  # an answer comes back as text, not as the ids that were written
    assert "".join(say_elsewhere(there, "Why?", None, **settings)) == again.ask("Why?", **settings)
    assert [message["role"] for message in there.messages] == ["user", "assistant"] * 2


def test_spaces_is_not_imported_elsewhere():
    code = "import sys; from minigpt4.hub import app; assert app.GPU is None and 'spaces' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
