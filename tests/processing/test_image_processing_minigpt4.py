"""Pixels are the original's; whatever a person hands over becomes RGB as a viewer shows it, or one clear line."""

import base64
import io
import json
import struct
import zlib

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BertConfig,
    Blip2VisionConfig,
    CLIPVisionConfig,
    Dinov2Config,
    DINOv3ViTConfig,
    SiglipVisionConfig,
    ViTConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from minigpt4 import MiniGPT4ImageProcessor
from minigpt4.processing.for_model import image_processor_for
from minigpt4.processing.image_processing_minigpt4 import load_image


def encoded(image, file_format="PNG", **options):
    """A picture as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def colours(image):
    """All colors of a picture, as a set."""
    return {colour for _, colour in image.getcolors()}


# The original's pixels


@pytest.mark.parametrize("name", ["a_75x50", "b_40x90", "c_gray_30x30"])
def test_pixels_are_the_originals(name, parity, parity_dir):
    expected = parity("out_image_processors_v1.pth")[f"{name}/eval"]
    image_processor = MiniGPT4ImageProcessor(size={"height": 56, "width": 56})
    # The fixture was made with Pillow 13, which resizes an upright picture in the other direction first: 3 levels of 255.
    levels = 3 if name == "b_40x90" and int(PIL.__version__.split(".")[0]) < 13 else 0
    tolerance = levels / 255 / min(image_processor.image_std) + 1e-6
    path = parity_dir / "images" / f"{name}.png"
    for source in (path, str(path), Image.open(path), load_image(path)):
        pixel_values = image_processor(source, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(pixel_values, expected[None], rtol=0, atol=tolerance)


def test_default_size_is_the_originals(parity, parity_dir):
    expected = parity("out_image_processors_v1.pth")["a_75x50/eval224_sum_per_channel"]
    pixel_values = MiniGPT4ImageProcessor()(parity_dir / "images" / "a_75x50.png", return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 224, 224)
    torch.testing.assert_close(pixel_values[0].double().sum((1, 2)), expected, rtol=0, atol=1e-2)


def test_array_and_picture_give_the_same_pixels(picture):
    image_processor = MiniGPT4ImageProcessor(size={"height": 56, "width": 56})
    images = [picture(0), np.asarray(picture(0)), torch.from_numpy(np.array(picture(0))).permute(2, 0, 1)]
    pixel_values = image_processor(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixel_values[0], pixel_values[1])
    assert torch.equal(pixel_values[0], pixel_values[2])


def test_saved_image_processor_is_the_same(tmp_path):
    saved = MiniGPT4ImageProcessor(size={"height": 56, "width": 56}, rescale_factor=1 / 128)
    saved.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is MiniGPT4ImageProcessor
    assert loaded.to_dict() == saved.to_dict()


# Pictures that cannot be read


def huge_png(side):
    """A PNG of a few bytes that claims side x side pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
BAD = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "cannot be read .*directory"),
    "empty": (lambda path: path.touch(), "0 bytes"),
    "text": (lambda path: path.write_text("no picture"), "not a picture that can be read"),
    "truncated JPEG": (lambda path: path.write_bytes(encoded(NOISE, "JPEG")[:1500]), "damaged or truncated"),
    "truncated PNG": (lambda path: path.write_bytes(encoded(NOISE)[:3000]), "damaged or truncated"),
    "headless PNG": (lambda path: path.write_bytes(encoded(NOISE)[:20]), "not a picture|damaged"),
    "400 megapixels": (lambda path: path.write_bytes(huge_png(20_000)), "too large .*64 megapixels"),
    "100 megapixels": (lambda path: path.write_bytes(huge_png(10_000)), "too large .10000 x 10000.*64 megapixels"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_is_one_clear_line(kind, tmp_path, recwarn):
    write, message = BAD[kind]
    path = tmp_path / "picture.png"
    write(path)
    with pytest.raises(ValueError, match=message) as error:
        load_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not recwarn.list


@pytest.mark.parametrize("address", ["http://localhost/a.png", "https://example.org/a.png"])
def test_nothing_is_fetched(address):
    with pytest.raises(ValueError, match="pictures are read from files"):
        load_image(address)
    with pytest.raises(ValueError, match="pictures are read from files"):
        MiniGPT4ImageProcessor()([address])


def test_data_url_is_read():
    address = "data:image/png;base64," + base64.b64encode(encoded(NOISE)).decode()
    assert load_image(address).tobytes() == NOISE.tobytes()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("data:image/png;base64,@@", "not valid base64"),
        ("data:image/png;base64,", "0 bytes"),
        ("data:image/png;base64,AAAA", "not a picture"),
        ("data:image/png,abc", "expected a picture as data:image"),
        ("data:" + "x" * 10_000, "expected a picture as data:image"),
    ],
)
def test_bad_data_url_is_one_short_line(address, message):
    with pytest.raises(ValueError, match=message) as error:
        load_image(address)
    assert len(str(error.value)) < 150 and "BytesIO" not in str(error.value)


def test_opened_picture_that_is_damaged_is_one_clear_line(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(NOISE, "JPEG")[:1500])
    for source, name in [
        (Image.open(tmp_path / "a.jpg"), "a.jpg"),
        (Image.open(io.BytesIO(encoded(NOISE)[:3000])), "the picture"),
    ]:
        with pytest.raises(ValueError, match=f"{name}: damaged or truncated"):
            load_image(source)


def test_heic_without_its_plugin_says_what_to_do():
    with pytest.raises(ValueError, match=r"HEIC picture.*save it as JPEG or PNG"):
        load_image(b"\0\0\0\x18ftypheic" + bytes(40))


@pytest.mark.filterwarnings("ignore")  # Pillow's own, about metadata
def test_damaged_bytes_never_raise_anything_else():
    """Each decoder fails in its own way; some broken files still show a picture."""
    random = np.random.default_rng(0)
    for file_format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        data = encoded(NOISE.resize((16, 16)), file_format)
        for _ in range(100):
            broken = bytearray(data)
            for position in random.integers(0, min(len(broken), 120), 3):
                broken[position] = random.integers(256)
            try:
                assert load_image(bytes(broken)).mode == "RGB"
            except ValueError as error:
                assert str(error).startswith("the picture: ")


# Pictures of all kinds


def test_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert colours(load_image(tmp_path / "a.gif")) == {(255, 0, 0)}
    opened = Image.open(tmp_path / "a.gif")
    opened.seek(2)
    assert colours(load_image(opened)) == {(255, 0, 0)}


@pytest.mark.parametrize(
    ("mode", "colour", "shown"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (0, 255), (0, 0, 0)),
        ("L", 100, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_transparency_lies_on_white(mode, colour, shown):
    assert colours(load_image(encoded(Image.new(mode, (8, 8), colour)))) == {shown}


def test_transparent_palette_colour_lies_on_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.paste(1, (0, 0, 4, 8))
    assert colours(load_image(encoded(image))) == {(200, 0, 0), (0, 0, 200)}
    assert colours(load_image(encoded(image, transparency=0))) == {(255, 255, 255), (0, 0, 200)}


def test_cmyk_is_shown_in_its_colours():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    [(red, green, blue)] = colours(load_image(encoded(image, "TIFF")))
    assert red > 240
    assert green < 20
    assert blue < 20


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (np.array([[0, 257 * 100, 65535]], dtype=np.uint16), [0, 100, 255]),
        (np.array([[0, 100, 200]], dtype=np.uint16), [0, 0, 1]),  # a dark picture stays dark
        (np.array([[0, 257 * 100, 65535]], dtype=np.int32), [0, 100, 255]),
        (np.array([[0, 100, 255]], dtype=np.int32), [0, 100, 255]),
        (np.array([[-5, 500_000, 1_000_000]], dtype=np.int32), [0, 128, 255]),
        (np.array([[0, 100.4, 255]], dtype=np.float32), [0, 100, 255]),
        (np.array([[0, 500, 1000]], dtype=np.float32), [0, 128, 255]),
    ],
)
def test_more_than_eight_bits_become_eight(values, shown):
    image = load_image(Image.fromarray(values))
    assert np.asarray(image)[0].tolist() == [[value] * 3 for value in shown]


def test_sixteen_bit_png_is_not_white():
    """Clipping to 8 bits, as Pillow's own conversion does, would show almost all of it white."""
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    shown = np.asarray(load_image(encoded(Image.fromarray(values))))[..., 0].ravel()
    assert shown.tolist() == [round(value / 257) for value in values.ravel()]


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (20, 10), "white")
    image.paste((255, 0, 0), (0, 0, 10, 10))  # the left half, which a camera held upright means as the top
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    shown = load_image(encoded(image, exif=exif))
    assert shown.size == (10, 20)
    assert shown.getpixel((5, 2)) == (255, 0, 0)
    assert shown.getpixel((5, 17)) == (255, 255, 255)


def test_a_jpeg_that_is_scaled_down_while_it_is_decoded_looks_the_same():
    """The decoder's half or quarter, then resized, against the whole picture resized: a few levels apart at most."""
    gradient = np.linspace(0, 255, 900 * 700).reshape(700, 900)
    waves = 90 * np.sin(np.arange(900) / 17)[None] + 90 * np.cos(np.arange(700) / 23)[:, None]
    pixels = np.stack([gradient, gradient[::-1], 128 + waves / 2], -1).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    plain, scaled = load_image(buffer.getvalue()), load_image(buffer.getvalue(), smallest=224)
    assert (plain.size == (900, 700) and scaled.size == (300, 234)) or scaled.size == (450, 350)
    assert load_image(buffer.getvalue(), smallest=351).size == (900, 700)
    small = [np.asarray(image.resize((224, 224), Image.BICUBIC), dtype=float) for image in (plain, scaled)]
    difference = np.abs(small[0] - small[1])
    assert difference.mean() < 1 and np.quantile(difference, 0.99) < 4


def written(folder, **fields):
    """A folder with a preprocessor_config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return str(folder)


def test_a_tower_sees_what_its_own_image_processor_gives(picture, tmp_path):
    """SigLIP's, with its own resampling, at the tower's size."""
    size = {"height": 56, "width": 56}
    theirs = SiglipImageProcessorPil(size=size, resample=2)
    theirs.save_pretrained(tmp_path)
    ours = image_processor_for(SiglipVisionConfig(image_size=56), str(tmp_path))
    found = [which(picture(), return_tensors="pt")["pixel_values"] for which in (ours, theirs)]
    assert torch.equal(*found) and found[0].shape == (1, 3, 56, 56)


def test_the_towers_repository_has_the_last_word(tmp_path):
    """Colors, resampling and scale of the file; the size of the tower, since the number of patches follows from it."""
    said = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "resample": 1, "rescale_factor": 0.5}
    repo = written(tmp_path, **said, size={"shortest_edge": 256}, crop_size=224, do_center_crop=True)
    processor = image_processor_for(ViTConfig(image_size=[32, 48]), repo)
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.1] * 3, [0.2] * 3)
    assert (processor.resample, processor.rescale_factor) == (1, 0.5)
    assert (processor.size.height, processor.size.width, processor.do_center_crop) == (32, 48, False)


IMAGENET = [0.485, 0.456, 0.406]
CLIP = [0.48145466, 0.4578275, 0.40821073]


@pytest.mark.parametrize(
    ("config", "mean", "resample"),
    [
        (SiglipVisionConfig(), [0.5] * 3, 3),
        (CLIPVisionConfig(), CLIP, 3),
        (Blip2VisionConfig(), CLIP, 3),
        (ViTConfig(), [0.5] * 3, 2),
        (Dinov2Config(), IMAGENET, 3),
        (DINOv3ViTConfig(), IMAGENET, 2),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_without_a_file_it_is_what_the_family_has(config, mean, resample, tmp_path):
    for repo in (None, str(tmp_path)):
        processor = image_processor_for(config, repo)
        assert (list(processor.image_mean), processor.resample) == (mean, resample)


def test_colours_that_nobody_knows_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"bert: its repository has no preprocessor_config\.json.* are unknown"):
        image_processor_for(BertConfig())
    repo = written(tmp_path / "efficientnet", image_mean=IMAGENET, image_std=[0.2] * 3, rescale_offset=True)
    with pytest.raises(ValueError, match="sets rescale_offset, which is not followed here"):
        image_processor_for(ViTConfig(), repo)
