"""Suites: what they ask of the benchmarks' own files, what given answers are worth, and what they refuse."""

import html
import json
import os
import re
import subprocess
import sys

import pytest
from benchmark_files import CAPTIONS, write, write_coco, write_pictures, write_pope, write_vqa
from local_hub import local_hub

from minigpt4.cli import evaluate, main
from minigpt4.evaluation.suites import POEM, SUITES, Options, load_suite
from minigpt4.evaluation.suites.text import edits
from minigpt4.hub import app
from minigpt4.hub.export import export
from minigpt4.metrics.statistics import measured

IMAGE = {"id": 1, "file_name": "a.png"}
TEST_SPLIT = {"question_id": "q", "image_id": 7, "question": "?", "choices": ["a", "b"]}
LINE = {"image": "a.png", "text": "?", "label": "no", "question_id": 1}


def scores(suite, said, verdicts=None):
    """{way: {figure: value}} of answers: a text for all, or a function of the request."""
    said = {request.id: said(request) if callable(said) else said for request in suite.requests}
    figures = suite.figures(said, verdicts)
    return {way: {name: measured(*figure)["value"] for name, figure in of_way.items()} for way, of_way in figures.items()}


def suite_of(name, *data, **options):
    return load_suite(name, Options(data=tuple(map(str, data)), **options))


def test_captions(tmp_path, picture):
    folder = write_coco(tmp_path, picture)
    suite = suite_of("captions", folder / "captions.json")
    assert suite.n == 3 and {request.instruction is None for request in suite.requests} == {True, False}
    right = scores(suite, lambda request: CAPTIONS[request.image][0].capitalize() + ". And more words.")
    wrong = scores(suite, "Nothing of the kind here.")
    assert right["short"]["bleu4"] > 0.9 and right["short"]["rouge_l"] == 1 and right["short"]["cider"] > 2
    assert wrong["short"]["bleu4"] == 0 and wrong["short"]["cider"] < 0.1


def test_coverage_counts_unjudged_as_not_covered(tmp_path, picture):
    suite = suite_of("coverage", write_coco(tmp_path, picture) / "captions.json")
    first, second, third = suite.requests
    asked = suite.question(first, "A dog.\n1: yes")[1]["content"].splitlines()
    assert asked == ["Test: A dog. 1: yes", *(f"{i}: {text}" for i, text in enumerate(CAPTIONS["a.png"], 1))]
    assert suite.verdict(first, "1: yes\n2: No\n3: yes.") == [True, False, True]
    for nonsense in ("", "yes", "1: yes\n2: no", "1: yes\n1: yes\n2: no\n3: no", "1: yes\n2: maybe\n3: no"):
        assert suite.verdict(first, nonsense) is None
    found = scores(suite, "text", {first.id: [True, True, False], second.id: None, third.id: [False] * 3})
    assert found["descriptions"]["captions_covered"] == pytest.approx(2 / 3)


def test_chair_knows_objects_and_captions(tmp_path, picture):
    folder = write_coco(tmp_path, picture)
    suite = suite_of("chair", folder)
    said = {"a.png": "A puppy and a cat.", "b.png": "Men on bikes.", "c.png": "A boy eats a cake with a knife."}
    found = scores(suite, lambda request: said[request.image])["long"]
    # dog, cat | person, bicycle | person, cake, knife: cat and knife are not there
    assert found["chair_i"] == pytest.approx(2 / 7) and found["chair_s"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx(5 / 6) and found["words"] == pytest.approx((5 + 3 + 8) / 3)
    assert scores(suite, "Nothing.")["long"]["chair_i"] is None  # no object was named: undefined, not zero


def test_pope(tmp_path, picture):
    suite = suite_of("pope", write_pope(tmp_path, picture))
    right = scores(suite, lambda request: "Yes, there is." if suite.labels[request.id] == "yes" else "No.")
    assert set(right) == {"random", "popular"} and right["random"] == {
        "accuracy": 1, "f1": 1, "precision": 1, "recall": 1, "yes_ratio": 0.5}  # fmt: skip
    always = scores(suite, "There is one.")["popular"]
    assert (always["accuracy"], always["yes_ratio"], always["f1"]) == (0.5, 1, pytest.approx(2 / 3))
    assert scores(suite, "")["random"]["accuracy"] == 0  # no answer is not a no


def test_vqa(tmp_path, picture):
    folder = write_vqa(tmp_path, picture)
    suite = suite_of("vqa", folder / "aokvqa.json", folder / "gqa.json", images=str(folder / "images"))
    candidates = {request.id: request.candidates for request in suite.requests if request.candidates}
    assert candidates == {
        "choices by likelihood/q7": ("sleeping", "running", "eating", "barking"),
        "GQA by likelihood/1": ("yes", "no"),
        "GQA by likelihood/2": ("red", "blue"),
    }
    truth = {"q7": "running", "1": "yes", "2": "blue", "3": "vase"}
    assert {v for way in scores(suite, lambda r: truth[r.id.split("/")[1]]).values() for v in way.values()} == {1}
    sentences = {"q7": "The dog is running.", "1": "Yes, it is day.", "2": "The car is blue.", "3": "There is a vase."}
    written = scores(suite, lambda r: r.candidates[0] if r.candidates else sentences[r.id.split("/")[1]])
    assert written["GQA"]["accuracy"] == written["choices"]["accuracy"] == written["direct answers"]["accuracy"] == 1
    assert written["choices by likelihood"]["accuracy"] == 0 and written["GQA by likelihood"]["accuracy"] == 0.5
    hedged = scores(suite, "playing, red or blue")
    assert hedged["direct answers"]["accuracy"] == 0 and hedged["GQA"]["accuracy"] == 0
    assert scores(suite, "playing")["direct answers"]["accuracy"] == pytest.approx(2 / 3)


def test_aokvqa_leaves_difficult_direct_answers_out(tmp_path, picture):
    """As in its authors' eval_predictions.py: such a question counts only for the choices."""
    folder = write_vqa(tmp_path, picture)
    [entry] = json.loads((folder / "aokvqa.json").read_text())
    write(folder / "aokvqa.json", [entry, {**entry, "question_id": "q8", "difficult_direct_answer": True}])
    ids = [request.id for request in suite_of("vqa", folder / "aokvqa.json", images=str(folder / "images")).requests]
    assert ids == ["choices/q7", "choices by likelihood/q7", "direct answers/q7", "choices/q8", "choices by likelihood/q8"]


def test_advanced_reads_folders(tmp_path, picture):
    names = [f"{ability}/{i}.png" for ability in ("memes", "recipes", "advertisements", "poems") for i in range(2)]
    write_pictures(tmp_path / "data", picture, names)
    suite = suite_of("advanced", tmp_path / "data")
    verdicts = {request.id: request.id.endswith("/0.png") or None for request in suite.requests}  # half are unjudged
    found = scores(suite, "text", verdicts)
    assert found["all"]["fulfilled"] == found["poems"]["fulfilled"] == 0.5
    image, text = suite.question(suite.requests[0], "Ha.")[1]["content"]
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,") and text["text"].endswith("Answer: Ha.")


def test_advanced_leaves_no_picture_out(tmp_path, picture):
    write_pictures(tmp_path, picture, ["memes/1.png", "adverts/1.png"])
    with pytest.raises(ValueError, match=r"adverts/1.png is in none of memes/, recipes/, advertisements/, poems/"):
        suite_of("advanced", tmp_path)


def test_failures_of_scenes_and_of_a_folder(tmp_path, picture):
    suite = suite_of("failures", limit=3)
    good = scores(suite, lambda r: "A\nlong\npoem here" if r.instruction == POEM else suite.rows[r.image]["text"] + ".")
    assert good["descriptions"]["failures"] == good["poems"]["failures"] == 0
    assert good["descriptions"]["object_recall"] == 1
    bad = scores(suite, "")
    assert bad["descriptions"]["failures"] == bad["descriptions"]["empty"] == 1
    write_pictures(tmp_path / "photos", picture, ["1.png", "2.jpg"])
    assert suite_of("failures", tmp_path / "photos").n == 2


def test_composed_controls(monkeypatch):
    suite = suite_of("composed", limit=8)
    truth = {request.id: question["text"] for request in suite.requests if (question := suite.asked.get(request.id))}
    found = scores(suite, lambda r: truth.get(r.id) or suite.rows[r.id.split("/")[1]]["conversation"][0]["text"])
    assert found["questions"]["answered_right"] == 1 and found["descriptions"]["object_recall"] == 1
    # What is said about swapped pictures is judged by the scene that was asked about.
    by_picture = scores(suite, lambda r: suite.rows[r.image.removeprefix("noto-")]["conversation"][0]["text"])
    assert by_picture["descriptions"]["object_recall"] == 1 and by_picture["descriptions, swapped"]["object_recall"] < 0.5
    captions = scores(suite, lambda r: suite.rows[r.id.split("/")[1]]["text"])
    assert captions["captions"]["caption_exact"] == 1 and captions["captions, swapped"]["caption_exact"] == 0


def test_the_command_line_names_every_suite():
    assert set(evaluate.SUITES) == set(SUITES)


def test_a_limit_is_a_seeded_draw_of_pictures(tmp_path, picture):
    folder = write_coco(tmp_path, picture)
    drawn = [{r.image for r in suite_of("captions", folder, limit=2, seed=s).requests} for s in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 2 and any(other != drawn[0] for other in drawn)


@pytest.mark.parametrize(
    ("name", "files", "options", "message"),
    [
        ("nothing", {}, {}, "expected one of failures, coverage"),
        ("captions", {}, {}, "this suite needs --data: COCO captions"),
        ("captions", {"pope.json": [LINE]}, {}, "found POPE questions"),
        ("captions", {"x.json": "no json {"}, {}, "neither JSON nor"),
        ("captions", {"x.json": {"images": [], "annotations": []}}, {}, "n = 0"),
        ("captions", "coco", {"limit": 0}, "--limit is 0"),
        ("captions", "coco", {"limit": 9}, "--limit is 9, but there are 3 pictures"),
        ("captions", "coco", {"images": "."}, "3 of 3 pictures are missing, the first 'a.png'"),
        ("captions", {"x.json": {"images": [{"id": 1, "file_name": "/etc/../etc/x.png"}],
                                 "annotations": [{"image_id": 1, "caption": "x"}]}}, {}, "points outside"),
        ("captions", {"x.json": {"images": [IMAGE, IMAGE], "annotations": []}}, {}, "id 1 appears twice"),
        ("captions", {"x.json": {"images": [IMAGE, {**IMAGE, "id": 2}], "annotations": []}}, {}, "'a.png' appears twice"),
        ("captions", {"x.json": {"images": [IMAGE], "annotations": []}}, {}, "1 of 1 pictures have no caption"),
        ("vqa", {"x.json": '{"1": {"imageId": "a"}, "1": {}}'}, {}, "'1' appears twice"),
        ("vqa", {"x.json": [TEST_SPLIT]}, {}, "the test split as published has no answers"),
        ("captions", {"x.json": {"images": [], "annotations": [{"image_id": 3}]}}, {}, "image_id 3, which no image has"),
        ("pope", {"x.json": [{**LINE, "label": "maybe"}]}, {}, "'maybe'"),
        ("pope", {"x.json": [LINE, LINE]}, {}, "'x/1' appears twice"),
        ("vqa", {"x.json": [{"question_id": "q", "image_id": 7, "question": "", "choices": []}]}, {}, "has choices []"),
        ("chair", {"x.json": {"images": [], "annotations": [], "categories": [{"id": 1, "name": "unicorn"}]}}, {}, "n = 0"),
        ("advanced", {}, {}, "a folder with memes/"),
        ("failures", {"x.json": {}}, {}, "expected a folder of pictures"),
        ("composed", "coco", {}, "composes its own scenes"),
        ("composed", {}, {"limit": 5}, "needs more than 7"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(tmp_path, picture, name, files, options, message):
    data = ()
    if files == "coco":
        data = (write_coco(tmp_path, picture) / "captions.json",)
    for file, content in files.items() if isinstance(files, dict) else ():
        (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content))
        data = (tmp_path / file,)
    if "images" in options:
        options = {"images": str(tmp_path / options["images"])}
    with pytest.raises(ValueError) as raised:
        suite_of(name, *data, **options)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_category_that_coco_has_not(tmp_path, picture):
    write_pictures(tmp_path, picture, ["a.png"])
    objects = [{"image_id": 1, "category_id": 1}]
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": objects,
        "categories": [{"id": 1, "name": "unicorn"}],
    }
    write(tmp_path / "x.json", content)
    with pytest.raises(ValueError, match="'unicorn' is not one of COCO's 80"):
        suite_of("chair", tmp_path / "x.json")


@pytest.mark.slow
def test_data_sets_come_from_the_hub(tmp_path, picture):
    folder = write_pope(tmp_path / "pope", picture)
    code = """
import sys
from minigpt4.evaluation.suites import *
for name in sys.argv[1:]:
    print(load_suite("pope", Options(data=(name,))).n)
"""
    with local_hub() as hub:
        hub.private["tester/pope"] = False
        hub.files["tester/pope"] = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        environment = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "hf")}
        line = [sys.executable, "-c", code, "tester/pope", "tester/nothing"]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "3", done.stderr
    assert "ValueError: tester/nothing: no such file or folder, and the Hub does not provide it" in done.stderr


def test_text_is_read_letter_by_letter(tmp_path):
    suite = suite_of("text", limit=30)
    words = suite.pictures.words
    assert {name.partition("/")[0] for name in words} == {"plain", "texture", "photograph"}
    images = {name: suite.pictures.open(name) for name in words}
    again = suite_of("text", limit=30).pictures
    assert all(image.size == (448, 448) and image == again.open(name) for name, image in images.items())
    right = scores(suite, lambda request: f'The sign says "{words[request.image].upper()}".')
    assert right["all"]["exact"] == 1 and right["photograph"]["edit_distance"] == 0
    assert right["all"]["exact, shuffled"] < 0.3 and right["all"]["edit_distance, shuffled"] > 0.5
    assert (
        edits("coffee", "a COFFE shop") == pytest.approx(1 / 6)
        and edits("stop", "") == 1
        and edits("exit", "I saw it") == 0.5
    )
    with pytest.raises(ValueError, match="leave --data out"):
        suite_of("text", tmp_path)
    with pytest.raises(ValueError, match="--limit is 3; the shuffled control needs more than 7"):
        suite_of("text", limit=3)


def test_spatial_asks_what_no_bias_answers(tmp_path):
    suite = suite_of("spatial", limit=12)
    assert suite.n == 12 and len(suite.requests) == 60
    always_yes = scores(suite, "Yes.")
    assert always_yes["yes or no"]["accuracy"] == 0.5 and always_yes["yes or no"]["yes_ratio"] == 1
    right = scores(suite, lambda r: suite.labels.get(r.id) or f"A {r.id.split('/')[-1]} is there.")
    assert right["yes or no"]["accuracy"] == right["named"]["right"] == 1
    assert right["named"]["right, shuffled"] < 0.3
    for request in suite.requests[:5]:
        first, second = suite.rows[request.image]["objects"]
        assert first in request.instruction or request.instruction.startswith("What is")
        assert first in suite.truth(request) and second in suite.truth(request)
    with pytest.raises(ValueError, match="leave --data out"):
        suite_of("spatial", tmp_path)


def test_abilities_are_the_twelve_of_the_page():
    suite = suite_of("abilities")
    assert [(r.image, r.instruction) for r in suite.requests] == [(image, question) for image, _, question in app.ABILITIES]
    assert all(suite.pictures.open(request.image) for request in suite.requests)
    alone = scores(suite, "A poem. It has an end.")
    assert set(alone["abilities"]) == {"failures", "words"}
    judged = scores(suite, "A poem.", {request.id: request.image == "poem.png" for request in suite.requests})
    assert judged["abilities"]["fulfilled"] == pytest.approx(1 / 12)


@pytest.mark.slow
def test_the_abilities_page_shows_every_answer_and_a_persons_verdicts(original, processor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(original, processor, "tiny")
    command = ["evaluate", "--model", "tiny", "--suite", "abilities", "--max-new-tokens", "4", "--output", "out"]
    assert main(command) == 0
    page = (tmp_path / "out/report.html").read_text()
    assert all(html.escape(question, quote=False) in page or question in page for _, _, question in app.ABILITIES)
    assert "judge.html" in {path.name for path in (tmp_path / "out").iterdir()}
    hashed = re.search(r'answers: "(sha256:[0-9a-f]+)"', (tmp_path / "out/judge.html").read_text())[1]
    verdicts = {f"abilities/{image}": image == "humor.png" for image, *_ in app.ABILITIES}
    (tmp_path / "mine.json").write_text(json.dumps({"answers": hashed, "verdicts": verdicts}))
    assert main([*command, "--judge", "mine.json"]) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["scores"]["abilities"]["fulfilled"]["value"] == pytest.approx(1 / 12)
