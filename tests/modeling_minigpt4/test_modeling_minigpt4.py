"""The model against the original's numbers (fixtures/parity), and against itself: caches, batches, packing, saving."""

import copy

import pytest
import torch
from transformers import (
    Blip2QFormerConfig,
    Blip2VisionConfig,
    Dinov2Config,
    LlamaConfig,
    SiglipVisionConfig,
)

from minigpt4 import (
    MiniGPT4Config,
    MiniGPT4DataCollator,
    MiniGPT4ForConditionalGeneration,
    MiniGPT4Model,
)
from minigpt4.hub.convert import projection_weights, read_checkpoint

# Six tokens, greedy; random weights would write the image token (id 0) where a trained LLM never does.
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 2, "suppress_tokens": [0]}
STAGES = [("out_stage1.pth", None), ("out_stage2_seed0.pth", "Could you describe the contents of this image for me?")]


def close(found, expected, tolerance):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def new_tokens(model, inputs, **arguments):
    """What greedy generation appends, one list for each row."""
    return model.generate(**inputs, **{**GREEDY, **arguments})[:, inputs["input_ids"].shape[1] :].tolist()


def loss_and_gradient(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), model.model.projection.weight.grad, model.model.projection.bias.grad


@pytest.fixture
def prompt(processor, picture):
    """Inputs of one picture and a question."""
    return processor(text="<s>###Human: <Img><unk></Img> What is this?###", images=picture(), return_tensors="pt")


@pytest.fixture
def captions(collator, picture):
    """A training batch of three captions of different length."""
    texts = ["a cat", "two people walking on the beach at sunset", "a red mat and a dog"]
    return [{"image": picture(seed), "text": text} for seed, text in enumerate(texts)]


# Parity with the original


def test_vision_features_are_the_originals(original, parity):
    expected = parity("out_vision.pth")
    with torch.no_grad():
        vit = original.model.vision_tower(expected["pixel_values"], output_hidden_states=True)
        qformer = original.model.qformer(
            query_embeds=original.model.query_tokens.expand(2, -1, -1),
            encoder_hidden_states=vit.last_hidden_state,
            output_hidden_states=True,
        )
        image = original.get_image_features(expected["pixel_values"], return_dict=True)
    for block in range(3):
        close(vit.hidden_states[block + 1], expected[f"vit_block_{block}"], 1e-5)
    close(vit.last_hidden_state, expected["ln_vision_output"], 1e-5)
    for layer, hidden in enumerate(qformer.hidden_states):
        close(hidden, expected[f"qformer_hidden_{layer}"], 1e-5)
    close(image.last_hidden_state, expected["ln_vision_output"], 1e-5)
    close(original.model.get_vision_features(expected["pixel_values"]), expected["qformer_last_hidden_state"], 1e-5)
    close(image.pooler_output, expected["projected"], 1e-5)


def test_layer_norms_have_the_originals_eps(original, parity, tmp_path):
    """transformers' Blip2VisionModel gives its last LayerNorm the ViT's 1e-6; after loading ours must still be 1e-5."""
    expected = parity("out_layernorm_eps.pth")
    original.save_pretrained(tmp_path)
    model = MiniGPT4ForConditionalGeneration.from_pretrained(tmp_path).model
    block = model.vision_tower.encoder.layers[0]
    assert model.vision_tower.post_layernorm.eps == expected["eps"]["ln_vision"] == 1e-5
    assert block.layer_norm1.eps == block.layer_norm2.eps == expected["eps"]["vit_norm1"] == 1e-6
    assert model.qformer.layernorm.eps == expected["eps"]["qformer"] == 1e-12
    with torch.no_grad():
        close(model.vision_tower.post_layernorm(expected["x"]), expected["ln_vision(x)"], 1e-6)
        close(block.layer_norm1(expected["x"]), expected["vit_block0_norm1(x)"], 1e-6)
        close(model.qformer.layernorm(expected["q"]), expected["qformer_embeddings(q)"], 1e-6)


@pytest.mark.parametrize(("fixture", "instruction"), STAGES)
def test_both_stages_train_on_the_originals_numbers(fixture, instruction, original, processor, parity, picture):
    """Ids, masks and labels exactly; embeddings, logits, loss and gradients within fp32's rounding."""
    expected = parity(fixture)
    collator = MiniGPT4DataCollator(processor, max_answer_tokens=expected["max_txt_len"])
    examples = [{"image": picture(), "text": text} for text in expected["answers"]]
    batch = collator([{**example, "instruction": instruction} if instruction else example for example in examples])
    attended = expected["attention_mask"].bool()

    before, after = expected.get("prompt_before_ids", []), expected.get("prompt_after_ids", [])
    for row, mask, answer in zip(batch["input_ids"], attended, expected["answer_ids"], strict=True):
        assert row[mask].tolist() == [1, *before, *[0] * 5, *after, *answer]
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert torch.equal(batch["labels"], expected["targets"])

    batch["pixel_values"] = expected["pixel_values"]
    seen = {}
    original.model.language_model.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    output = original(**batch)
    close(seen["inputs_embeds"][attended], expected["inputs_embeds"][attended], 1e-5)
    close(output.logits[attended], expected["logits"][attended], 5e-5)
    close(output.loss, expected["loss"], 5e-6)
    for training in (True, False):
        loss, weight, bias = loss_and_gradient(original.train(training), batch)
        close(loss, expected["loss"], 5e-6)
        close(weight, expected["grad_llama_proj_weight"], 1e-5)
        close(bias, expected["grad_llama_proj_bias"], 1e-5)


def test_without_qformer_four_neighbouring_patches_are_merged(original, tiny_config, parity, parity_dir):
    """The Llama-2 variant: class token dropped, patches concatenated in fours, the published file's projection fits."""
    config = copy.deepcopy(tiny_config)
    config.qformer_config = None
    model = MiniGPT4ForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(original.model.vision_tower.state_dict())
    weights = projection_weights(read_checkpoint(parity_dir / "checkpoints" / "pretrained_minigpt4_llama2_tiny.pth"))
    model.load_state_dict(weights, strict=False)
    expected = parity("out_vision.pth")
    image = model.get_image_features(expected["pixel_values"], return_dict=True)
    patches = expected["ln_vision_output"][:, 1:].view(2, 16 // 4, 32 * 4)
    close(model.model.get_vision_features(expected["pixel_values"]), patches, 1e-5)
    projection = torch.nn.functional.linear(patches, weights["model.projection.weight"], weights["model.projection.bias"])
    close(image.pooler_output, projection, 1e-5)


# Generation


def test_generation_is_the_same_without_cache(original, prompt):
    assert new_tokens(original, prompt) == new_tokens(original, prompt, use_cache=False)


def test_batched_rows_answer_as_they_do_alone(original, processor, picture):
    """Left-padded rows with two pictures, one and none."""
    texts = ["<s><unk> and <unk> differ how?###", "<s>###Human: <Img><unk></Img> hi###", "<s>###Human: tell me a story###"]
    pictures = [[picture(0), picture(1)], [picture(2)], None]
    flat = [image for images in pictures for image in images or []]
    batch = processor(text=texts, images=flat, return_tensors="pt", padding=True, padding_side="left")
    alone = [processor(text=text, images=images, return_tensors="pt") for text, images in zip(texts, pictures, strict=True)]
    for beams in (1, 2):
        expected = [new_tokens(original, inputs, num_beams=beams)[0] for inputs in alone]
        assert new_tokens(original, batch, num_beams=beams) == expected


@pytest.mark.parametrize("beams", [1, 2])
def test_kept_features_answer_as_their_picture_does(original, prompt, beams):
    """`vision_features` and `mm_encoder_outputs` instead of `pixel_values`, also in generate."""
    expected = new_tokens(original, prompt, num_beams=beams)
    logits = original(**prompt).logits
    pixel_values = prompt.pop("pixel_values")
    features = original.model.get_vision_features(pixel_values)
    assert new_tokens(original, prompt, num_beams=beams) != expected  # or this test would show nothing
    assert new_tokens(original, {**prompt, "vision_features": features}, num_beams=beams) == expected
    image = original.get_image_features(pixel_values, return_dict=True)
    close(original(**prompt, vision_features=features).logits, logits, 0)
    close(original(**prompt, mm_encoder_outputs={"image": image}).logits, logits, 0)
    assert new_tokens(original, {**prompt, "mm_encoder_outputs": {"image": image}}, num_beams=beams) == expected


def test_each_beam_sees_the_pictures_of_its_row_in_their_order(original, processor, picture):
    """transformers 5.18 hands the pictures A, B of a row to its beams as A, A and B, B."""
    inputs = processor(
        text=["<s><unk> or <unk>?", "<s>one <unk>?"],
        images=[picture(seed) for seed in range(3)],
        return_tensors="pt",
        padding=True,
    )
    seen = []
    original.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    original(**inputs)
    image = original.get_image_features(inputs.pop("pixel_values"), return_dict=True)
    for _ in range(2):  # kept features serve again
        new_tokens(original, {**inputs, "mm_encoder_outputs": {"image": image}}, num_beams=2, max_new_tokens=1)
    for prefill in seen[1:]:
        close(prefill, seen[0].repeat_interleave(2, dim=0), 1e-6)


def test_visual_tokens_stand_where_the_image_tokens_stood(original, processor, picture):
    """Two pictures in the first row, one in the third: placed by hand, in reading order."""
    texts = ["<s>first <unk> then <unk> end", "<s>no picture", "<s><unk>"]
    inputs = processor(
        text=texts, images=[picture(0), picture(1), picture(2)], return_tensors="pt", padding=True, padding_side="right"
    )
    embeddings = original.get_input_embeddings()(inputs["input_ids"]).detach()
    visual = original.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output.reshape(-1, 48)
    for token, position in zip(visual, (inputs["input_ids"] == 0).nonzero(), strict=True):
        embeddings[*position] = token
    by_hand = original(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"])
    close(original(**inputs).logits, by_hand.logits, 1e-5)


@pytest.mark.parametrize(("pictures", "counts"), [(1, "10 image tokens.*1 picture.*5 visual"), (3, "10 .* 3 .* 15 ")])
def test_wrong_number_of_pictures_names_both_counts(original, processor, picture, pictures, counts):
    inputs = processor(text="<s><unk> <unk>", images=[picture(), picture()], return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"][:1].expand(pictures, -1, -1, -1)
    with pytest.raises(ValueError, match=counts):
        original(**inputs)
    with pytest.raises(ValueError, match=counts):
        original.generate(**inputs, num_beams=2, max_new_tokens=1)


def test_either_ids_or_embeddings(original, prompt):
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        original(**prompt, inputs_embeds=torch.zeros(1, 1, 48))


@pytest.mark.parametrize("beams", [1, 2])
def test_image_tokens_are_found_in_embeddings_too(original, prompt, beams):
    embeddings = original.get_input_embeddings()(prompt["input_ids"])
    given = {"inputs_embeds": embeddings, "pixel_values": prompt["pixel_values"]}
    close(original(**given).logits, original(**prompt).logits, 0)
    assert original.generate(**given, **GREEDY, num_beams=beams).tolist() == new_tokens(original, prompt, num_beams=beams)


def test_logits_to_keep_are_the_last_or_the_named_ones(original, prompt):
    logits = original(**prompt).logits
    close(original(**prompt, logits_to_keep=3).logits, logits[:, -3:], 1e-5)
    close(original(**prompt, logits_to_keep=torch.tensor([0, 4])).logits, logits[:, [0, 4]], 1e-5)


@pytest.mark.slow
def test_forward_compiles_as_one_graph(original, prompt):
    torch._dynamo.reset()
    compiled = torch.compile(original, fullgraph=True, backend="eager")
    close(compiled(**prompt).logits, original(**prompt).logits, 1e-5)


# Training


@pytest.mark.parametrize("training", [True, False])
def test_packing_changes_neither_loss_nor_gradient(original, processor, captions, training):
    original.train(training)
    expected = loss_and_gradient(original, MiniGPT4DataCollator(processor)(captions))
    pack = MiniGPT4DataCollator(processor, packing=True)
    for order in ([0, 1, 2], [2, 0, 1]):
        packed = loss_and_gradient(original, pack([captions[index] for index in order]))
        for found, value in zip(packed, expected, strict=True):
            close(found, value, 1e-5)


def test_loss_over_accumulated_batches_is_that_of_one(original, processor, captions):
    """The Trainer passes `num_items_in_batch`: batches with answers of different length weigh by their tokens."""
    collator, original = MiniGPT4DataCollator(processor), original.train()
    whole = collator(captions)
    tokens = (whole["labels"] != -100).sum()
    parts = [original(**collator([example]), num_items_in_batch=tokens).loss for example in captions]
    close(sum(parts), original(**whole).loss, 1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_labels_that_the_trainer_has_moved_give_the_same_loss(training, original, collator, captions):
    """Context parallelism moves labels before it cuts a sequence, and passes them as `shift_labels`."""
    batch, original = collator(captions), original.train(training)
    loss = original(**batch).loss
    labels = batch.pop("labels")
    moved = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    close(original(**batch, shift_labels=moved).loss, loss, 0)
    close(original(**batch, labels=torch.zeros_like(labels), shift_labels=moved).loss, loss, 0)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")  # its successor is not in 5.18 yet
def test_checkpointed_activations_give_the_same_gradient(original, collator, captions):
    """It looks at the train mode, which the frozen LLM must therefore follow."""
    batch, original = collator(captions), original.train()
    expected = loss_and_gradient(original, batch)
    original.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for found, value in zip(loss_and_gradient(original, batch), expected, strict=True):
        close(found, value, 1e-6)


def test_training_moves_the_projection_and_nothing_else(original, collator, captions):
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    optimizer = torch.optim.AdamW([weight for weight in original.parameters() if weight.requires_grad], lr=1e-3)
    original.train()(**collator(captions)).loss.backward()
    optimizer.step()
    moved = {name for name, tensor in original.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"model.projection.weight", "model.projection.bias"}


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("projection", ("model.projection",)),
        ("query_tokens", ("model.query_tokens",)),
        ("qformer", ("model.qformer", "model.query_tokens")),
    ],
)
def test_only_the_trained_parts_take_gradients(part, names, tiny_config, tmp_path):
    """After building, and after loading."""
    config = copy.deepcopy(tiny_config)
    config.trained_parts = [part]
    built = MiniGPT4ForConditionalGeneration(config)
    built.save_pretrained(tmp_path)
    for model in (built, MiniGPT4ForConditionalGeneration.from_pretrained(tmp_path)):
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        assert trained == {name for name, _ in model.named_parameters() if name.startswith(names)} != set()


def test_unknown_trained_part_is_refused(tiny_config):
    config = copy.deepcopy(tiny_config)
    config.trained_parts = ["projektion"]
    with pytest.raises(ValueError, match="trained_parts names 'projektion'"):
        MiniGPT4Model(config)


def test_frozen_vision_stays_in_eval_mode_while_the_llm_trains(original, collator, captions):
    """The Q-Former has dropout, and the Trainer calls `model.train()`."""
    original.train()
    assert original.model.language_model.training
    assert not any(module.training for module in original.model.vision_tower.modules())
    assert not any(module.training for module in original.model.qformer.modules())
    batch = collator(captions)
    assert torch.equal(original(**batch).loss, original(**batch).loss)
    original.config.trained_parts = ["projection", "qformer"]
    assert original.train().model.qformer.training
    assert not original.eval().model.qformer.training


# Saving, loading, other parts


def test_saved_model_is_the_same_to_the_bit_when_loaded_and_saved_again(original, tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    original.save_pretrained(first)
    for source, target in ((first, second), (second, third)):
        loaded = MiniGPT4ForConditionalGeneration.from_pretrained(source)
        found = loaded.state_dict()
        assert found.keys() == original.state_dict().keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in original.state_dict().items())
        loaded.save_pretrained(target)
        assert (source / "model.safetensors").read_bytes() == (target / "model.safetensors").read_bytes()
    # The first config is that of a model that was built, not loaded: its parts do not name their precision yet.
    for file in ("config.json", "generation_config.json"):
        assert (second / file).read_bytes() == (third / file).read_bytes()


def test_headless_model_loads_from_the_same_folder(original, prompt, tmp_path):
    """Other engines build `MiniGPT4Model`."""
    original.save_pretrained(tmp_path)
    headless = MiniGPT4Model.from_pretrained(tmp_path).eval()
    hidden = headless(**prompt).last_hidden_state
    close(original.lm_head(hidden), original(**prompt).logits, 0)


def test_half_precision_spares_the_projection(original, prompt, tmp_path):
    """EVA's attention blocks also have a layer called `projection`: those are half precision, or the tower breaks."""
    original.save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        model = MiniGPT4ForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
        precise = {name for name, weight in model.named_parameters() if weight.dtype == torch.float32}
        assert precise == {"model.projection.weight", "model.projection.bias"}
        assert {weight.dtype for weight in model.parameters()} == {dtype, torch.float32}
        close(model(**prompt).logits.float(), original(**prompt).logits, 0.3)


def test_missing_projection_is_drawn_and_the_rest_kept(original):
    """A model assembled from parts has no projection yet; drawing one must not draw the queries again."""
    weights = {name: tensor for name, tensor in original.state_dict().items() if not name.startswith("model.projection.")}
    model = MiniGPT4ForConditionalGeneration.from_pretrained(None, config=original.config, state_dict=weights)
    assert torch.equal(model.model.query_tokens, original.model.query_tokens)
    assert model.model.projection.weight.std() > 0
    assert not torch.equal(model.model.projection.weight, original.model.projection.weight)


def test_tied_head_stays_tied(tiny_config, tmp_path):
    config = copy.deepcopy(tiny_config)
    config.text_config.tie_word_embeddings = config.tie_word_embeddings = True
    MiniGPT4ForConditionalGeneration(config).save_pretrained(tmp_path)
    model = MiniGPT4ForConditionalGeneration.from_pretrained(tmp_path)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_three_projection_layers(tiny_config, parity):
    """The paper's ablation: 24 -> 48 -> 48 -> 48 with GELU between."""
    config = copy.deepcopy(tiny_config)
    config.projection_layers = 3
    model = MiniGPT4ForConditionalGeneration(config)
    trained = {name: tuple(weight.shape) for name, weight in model.named_parameters() if weight.requires_grad}
    names = [f"model.projection.{index}" for index in (0, 2, 4)]
    shapes = [(48, 24), (48, 48), (48, 48)]
    expected = {f"{name}.weight": shape for name, shape in zip(names, shapes, strict=True)}
    assert trained == {**expected, **{f"{name}.bias": (48,) for name in names}}
    first, second, third = model.model.projection[::2]
    features = model.model.get_vision_features(parity("out_vision.pth")["pixel_values"])
    image = model.get_image_features(vision_features=features, return_dict=True)
    inner = torch.nn.functional.gelu(second(torch.nn.functional.gelu(first(features))))
    close(image.pooler_output, third(inner), 1e-6)


TOWERS = {
    "siglip": SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
    ),
    "dinov2": Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14, mlp_ratio=2
    ),
    "eva": Blip2VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56
    ),
}


@pytest.mark.parametrize("with_qformer", [True, False])
@pytest.mark.parametrize("tower", TOWERS)
def test_other_vision_towers(tower, with_qformer, tmp_path):
    """Any tower that AutoModel builds, with and without Q-Former, trains, and survives saving."""
    qformer = Blip2QFormerConfig(hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3)
    config = MiniGPT4Config(
        vision_config=copy.deepcopy(TOWERS[tower]),
        qformer_config=qformer if with_qformer else None,
        text_config=LlamaConfig(
            hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=64
        ),
        num_query_tokens=4,
    )
    model = MiniGPT4ForConditionalGeneration(config)
    assert config.num_image_tokens == 4  # four queries, or sixteen patches merged by four
    input_ids = torch.tensor([[1, *[config.image_token_id] * 4, 5, 6]])
    batch = {"input_ids": input_ids, "labels": input_ids, "pixel_values": torch.randn(1, 3, 56, 56)}
    _, weight, _ = loss_and_gradient(model.train(), batch)
    assert weight.abs().sum() > 0
    model.save_pretrained(tmp_path)
    loaded = MiniGPT4ForConditionalGeneration.from_pretrained(tmp_path).eval()
    close(loaded(**batch).loss, model.eval()(**batch).loss, 0)
