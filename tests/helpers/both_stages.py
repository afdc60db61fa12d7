"""Takes a model folder through both stages, two steps each."""

from dataclasses import replace

from minigpt4.configuration.recipe import Recipe, TrainSection
from minigpt4.processing.data.datasets import PictureTexts
from minigpt4.training.run import train


def train_both_stages(base, images, output):
    """Trains the model in folder `base` on two images; returns (the model as trained, the folder where it is saved)."""
    first = Recipe(1, output=str(output / "stage1"))
    first.model.base = str(base)
    first.train = TrainSection(steps=2, batch_size=2, learning_rate=1e-2, warmup_steps=0, check_first_loss=False)
    texts = [{"picture": i, "text": text} for i, text in enumerate(("a cat", "two dogs"))]
    rows = [{"image": image} for image in images]
    train(first, dataset=PictureTexts(rows, texts))
    second = replace(first, stage=2, output=str(output / "stage2"))
    second.model = replace(first.model, projection=f"{first.output}/model")
    asked = [{**text, "instruction": "Describe this image in detail."} for text in texts]
    model, _, summary = train(second, dataset=PictureTexts(rows, asked))
    assert all(0 < loss < 100 for _, loss in summary["losses"])
    return model.eval(), f"{second.output}/model"
