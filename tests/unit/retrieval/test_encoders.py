"""Encoders against transformers itself, one image or text at a time."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeEngine
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import normalize
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Processor,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from icdsel.errors import VlmError
from icdsel.records import Example
from icdsel.retrieval.embeddings import encode
from icdsel.retrieval.encoders import BATCH, ClipEncoder, VlmEncoder, load_clip
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Engine
from icdsel.vlm.engines import EngineIdentity, identify_engine, open_engine
from icdsel.vlm.local.loading import TINY_VLM_DIR

CPU = torch.device("cpu")
MANY_PIXELS = 1_000_000
TEXTS = ["What is this?", "", "WHO is on the red boat, and why?", "a", "What is this?"]
TEXT_LIMIT = 40  # tokens; for the tiny CLIP a token is a letter
QUESTION_WORDS = ("what", "is", "this", "who", "on", "the", "red", "boat", "and", "why", "a")
LAYERS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,  # so that features differ from image to image, and from text to text
    "attention_dropout": 0.5,  # must be off
}


def save_clip(folder: Path) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    end = len(vocabulary) - 1
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)}, merges=[], model_max_length=TEXT_LIMIT
    )
    text = {"vocab_size": end + 1, "max_position_embeddings": TEXT_LIMIT, "projection_dim": 24}
    text |= {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    vision = {"image_size": 32, "patch_size": 8, "projection_dim": 24}
    config = CLIPConfig(text_config=LAYERS | text, vision_config=LAYERS | vision, projection_dim=24)
    CLIPModel(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPProcessor(CLIPImageProcessor(**size), tokenizer).save_pretrained(folder)


def save_siglip(folder: Path, two: bool) -> None:
    words = ["<pad>", "<eos>", "<unk>", *QUESTION_WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", "padding_side": "right"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    text = LAYERS | {"vocab_size": len(words), "max_position_embeddings": 12, "projection_size": 32}
    if two:
        config = Siglip2Config(text_config=text, vision_config=LAYERS | {"num_patches": 16, "patch_size": 16})
        Siglip2Model(config).save_pretrained(folder)
        Siglip2Processor(Siglip2ImageProcessor(), wrapped).save_pretrained(folder)
    else:
        config = SiglipConfig(text_config=text, vision_config=LAYERS | {"image_size": 32, "patch_size": 8})
        SiglipModel(config).save_pretrained(folder)
        images = SiglipImageProcessor(size={"height": 32, "width": 32})
        SiglipProcessor(images, wrapped).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {kind: tmp_path_factory.mktemp(kind) for kind in ("clip", "siglip", "siglip2")}
    torch.manual_seed(7)
    save_clip(made["clip"])
    save_siglip(made["siglip"], two=False)
    save_siglip(made["siglip2"], two=True)
    return made


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    """Five pictures of different sizes and modes."""
    folder, rng, paths = tmp_path_factory.mktemp("images"), random.Random(3), []
    for i, (mode, size) in enumerate(
        [("RGB", (64, 48)), ("L", (40, 90)), ("RGBA", (33, 32)), ("P", (9, 9)), ("1", (50, 70))]
    ):
        small = Image.frombytes("RGB", (4, 4), rng.randbytes(48))
        path = folder / f"{i}.png"
        small.resize(size).convert(mode).save(path)
        paths.append(path)
    return paths


@pytest.fixture
def clip(folders) -> ClipEncoder:
    return load_clip(str(folders["clip"]), CPU, MANY_PIXELS)


def with_broken(images: list[Path], folder: Path) -> list[Path]:
    """The images with a missing one, a damaged one and a too large one between them."""
    damaged, large = folder / "damaged.png", folder / "large.png"
    damaged.write_bytes(images[0].read_bytes()[:60])
    Image.new("L", (2000, 1000)).save(large)
    return [folder / "missing.png", images[0], damaged, images[1], large]


def near(made: Tensor, expected: Tensor) -> bool:
    return torch.allclose(made, expected, rtol=1e-5, atol=1e-5)


def distinct(features: Tensor) -> bool:
    """Whether no two rows have the same direction; otherwise agreement would prove nothing."""
    unit = normalize(features, dim=-1)
    return bool((unit @ unit.T - 2 * torch.eye(len(unit)) < 0.999).all())


# --- CLIP -------------------------------------------------------------------------------------------------


def test_embeddings_are_lever_plus_formula(folders, images, clip, tmp_path):
    """e = normalise((v/|v| + t/|t|)/2) of CLIP's two encoders, each example alone."""
    vision = CLIPVisionModelWithProjection.from_pretrained(folders["clip"]).eval()
    text = CLIPTextModelWithProjection.from_pretrained(folders["clip"]).eval()
    processor = CLIPProcessor.from_pretrained(folders["clip"])
    examples = [Example(i, i, image, TEXTS[i], "", ()) for i, image in enumerate(images)]
    encoded = encode(examples, clip, tmp_path, "train")
    assert not clip.centred
    made = encoded.relative_to(None)
    expected = []
    with torch.inference_mode():
        for example in examples:
            pixels = processor(images=Image.open(example.image).convert("RGB"), return_tensors="pt")
            v = vision(**pixels).image_embeds[0]
            t = text(**processor(text=example.question, return_tensors="pt")).text_embeds[0]
            e = (v / v.norm() + t / t.norm()) / 2
            expected.append(e / e.norm())
    assert near(made.both, torch.stack(expected))
    assert made.both.shape == (5, 24)
    assert distinct(made.image)
    assert distinct(made.question[:4])


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_one_at_a_time_and_many_at_once_agree(kind, folders, images):
    encoder = load_clip(str(folders[kind]), CPU, MANY_PIXELS)
    repeats = 2 * BATCH // len(images) + 3  # more than is read ahead
    features, broken = encoder.embed_images(images * repeats)
    alone = torch.cat([encoder.embed_images([image])[0] for image in images])
    assert broken == {}
    assert features.dtype == torch.float32
    assert near(features, alone.repeat(repeats, 1))
    assert distinct(alone)
    texts = encoder.embed_texts(TEXTS * 20)
    assert near(texts, torch.cat([encoder.embed_texts([text]) for text in TEXTS]).repeat(20, 1))
    assert distinct(texts[:4])


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_siglip_texts_are_padded_to_the_end_and_the_padding_is_read(kind, folders, images):
    model_class, processor_class = {
        "siglip": (SiglipModel, SiglipProcessor),
        "siglip2": (Siglip2Model, Siglip2Processor),
    }[kind]
    model = model_class.from_pretrained(folders[kind]).eval()
    processor = processor_class.from_pretrained(folders[kind])
    encoder = load_clip(str(folders[kind]), CPU, MANY_PIXELS)
    with torch.inference_mode():
        ids = processor(text=TEXTS, padding="max_length", max_length=12, truncation=True, return_tensors="pt").input_ids
        expected = model.get_text_features(input_ids=ids).pooler_output
        pixels = processor(images=[Image.open(image).convert("RGB") for image in images], return_tensors="pt")
        image_features = model.get_image_features(**pixels).pooler_output
    assert ids.shape == (5, 12)
    assert near(encoder.embed_texts(TEXTS), expected)
    assert near(encoder.embed_images(images)[0], image_features)


def test_a_long_text_is_cut_and_counted(clip):
    short = "x " * (TEXT_LIMIT - 2)  # with begin and end just at the limit
    features = clip.embed_texts([short, short + "y z", "no", short + "?"])
    assert clip.truncated == 2
    assert near(features[1], features[0])
    assert near(features[3], features[0])
    assert not near(features[2], features[0])


def test_broken_images_are_named_and_the_others_stay_in_place(images, clip, tmp_path):
    paths = with_broken(images, tmp_path) + images[:1] * BATCH + with_broken(images, tmp_path)
    features, broken = clip.embed_images(paths)
    other = BATCH + 5  # where the second round begins, in another batch
    assert sorted(broken) == [0, 2, 4, other, other + 2, other + 4]
    assert all(broken.values())
    assert not features[list(broken)].any()
    expected = clip.embed_images(images[:2])[0]
    assert near(features[[1, 3]], expected)
    assert near(features[[other + 1, other + 3]], expected)


def test_nothing_but_broken_images(clip, tmp_path):
    features, broken = clip.embed_images([tmp_path / "missing.png"])
    assert features.shape == (1, 24)
    assert not features.any()
    assert list(broken) == [0]


def test_features_may_come_as_a_bare_tensor(clip, monkeypatch):
    expected = clip.embed_texts(TEXTS)
    embed = clip.model.get_text_features
    monkeypatch.setattr(clip.model, "get_text_features", lambda **inputs: embed(**inputs).pooler_output)
    assert torch.equal(clip.embed_texts(TEXTS), expected)


def test_bfloat16_only_if_requested(folders, images, clip):
    fast = load_clip(str(folders["clip"]), CPU, MANY_PIXELS, torch.bfloat16)
    features, expected = fast.embed_images(images)[0], clip.embed_images(images)[0]
    assert clip.model.dtype == torch.float32
    assert features.dtype == torch.float32
    assert not torch.equal(features, expected)
    assert (normalize(features) * normalize(expected)).sum(1).min() > 0.99


# --- identity ---------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_files_and_arithmetic_and_needs_no_weights(folders, tmp_path):
    def fingerprint(folder: Path, pixels: int = MANY_PIXELS, **more: Any) -> str:
        return load_clip(str(folder), CPU, pixels, **more).fingerprint

    elsewhere = tmp_path / "clip"
    shutil.copytree(folders["clip"], elsewhere)
    encoder = load_clip(str(elsewhere), CPU, MANY_PIXELS)
    assert encoder.fingerprint == fingerprint(folders["clip"])
    assert "model" not in vars(encoder)
    assert encoder.name == str(elsewhere)
    other = {fingerprint(elsewhere, 5), fingerprint(elsewhere, dtype=torch.bfloat16), fingerprint(folders["siglip"])}
    weights = load_file(elsewhere / "model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, elsewhere / "model.safetensors", {"format": "pt"})
    other |= {fingerprint(elsewhere), encoder.fingerprint}
    assert len(other) == 5


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Path:
    """An empty cache of the hub's files; the hub cannot be reached."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network here")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_downloaded_model_needs_no_network(hub, folders, clip):
    place = hub / "models--owner--some-clip"
    shutil.copytree(folders["clip"], place / "snapshots" / ("a" * 40))
    (place / "refs").mkdir()
    (place / "refs/main").write_text("a" * 40)
    encoder = load_clip("owner/some-clip", CPU, MANY_PIXELS)
    assert torch.equal(encoder.embed_texts(TEXTS), clip.embed_texts(TEXTS))
    assert encoder.fingerprint == clip.fingerprint
    # Of an incomplete download the hub is queried for the rest.
    (place / "snapshots" / ("a" * 40) / "model.safetensors").unlink()
    assert "no network here" in message("owner/some-clip")


def test_a_name_on_a_hub_that_cannot_be_reached(hub):
    assert "no network here" in message("owner/some-clip")


# --- what cannot be loaded --------------------------------------------------------------------------------


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def message(folder: Path | str) -> str:
    with pytest.raises(VlmError) as error:
        load_clip(str(folder), CPU, MANY_PIXELS).embed_texts(["x"])
    shown = str(error.value)
    assert repr(str(folder)) in shown
    assert "--encoder vlm" in shown
    return shown


def test_a_folder_that_does_not_exist(tmp_path):
    assert "it is neither a folder nor a name" in message(tmp_path / "nowhere")


def test_a_folder_without_a_model(tmp_path):
    assert "config.json" in message(tmp_path)


def test_a_model_that_is_not_like_clip():
    assert "qwen2_5_vl" in message(TINY_VLM_DIR)


def test_weights_that_are_cut_off(folders, tmp_path):
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    message(folder)


def test_weights_without_the_text_encoder(folders, tmp_path):
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("text_model.")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert "text_model." in message(folder)


def test_weights_of_another_shape(folders, tmp_path):
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    weights["text_projection.weight"] = torch.zeros(7, 32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    message(folder)


def test_weights_older_than_safetensors_are_read_without_running_code(folders, tmp_path, clip):
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert torch.equal(load_clip(str(folder), CPU, MANY_PIXELS).embed_texts(TEXTS), clip.embed_texts(TEXTS))
    ran = tmp_path / "ran"
    torch.save(weights | {"text_projection.weight": Bomb(ran)}, folder / "pytorch_model.bin")
    with pytest.raises(VlmError, match="contain code"):
        load_clip(str(folder), CPU, MANY_PIXELS).embed_texts(TEXTS)
    assert not ran.exists()


def test_a_folder_without_a_tokenizer(folders, tmp_path):
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in message(folder)


# --- the VLM ----------------------------------------------------------------------------------------------


def vlm_encoder(open_engine: Callable[[], Engine], **settings: Any) -> VlmEncoder:
    return VlmEncoder(open_engine, lambda: EngineIdentity("fake", "float32"), VlmSettings(**settings), MANY_PIXELS)


def tiny_encoder(**settings: Any) -> VlmEncoder:
    own = VlmSettings(model="tiny-vlm", device="cpu", **settings)

    def identify() -> EngineIdentity:
        found = identify_engine(own)
        assert found is not None
        return found

    return VlmEncoder(lambda: open_engine(own, MANY_PIXELS), identify, own, MANY_PIXELS)


def test_the_engine_is_opened_once_when_it_is_needed(images):
    opened = []

    def open_fake() -> Engine:
        opened.append(FakeEngine())
        return opened[0]

    encoder = vlm_encoder(open_fake)
    assert (encoder.name, encoder.centred, opened) == ("vlm", True, [])
    features, broken = encoder.embed_images(images[:2])
    texts = encoder.embed_texts(TEXTS)
    assert len(opened) == 1
    assert broken == {} and features.equal(FakeEngine().embed_images(images[:2])[0])
    assert texts.equal(FakeEngine().embed_texts(TEXTS))


def test_an_engine_without_embeddings_is_a_clear_mistake(images):
    engine = FakeEngine("a-server")
    engine.can_embed = False
    with pytest.raises(VlmError, match=r"a-server has no features of single images: name another encoder.*--encoder"):
        vlm_encoder(lambda: engine).embed_images(images)


def test_the_vlms_broken_images_are_named(images, tmp_path):
    encoder = tiny_encoder()
    paths = with_broken(images, tmp_path) + images[:1] * BATCH + [tmp_path / "other.png"]
    features, broken = encoder.embed_images(paths)
    assert sorted(broken) == [0, 2, 4, len(paths) - 1]
    assert all(broken.values())
    assert not features[[0, 2, 4, -1]].any()
    assert near(features[[1, 3]], encoder.embed_images(images[:2])[0])
    assert features.shape[1] == encoder.embed_texts(TEXTS).shape[1]


def test_the_vlms_fingerprint_is_of_files_arithmetic_and_image_sizes():
    settings = ({}, {"dtype": "bfloat16"}, {"max_pixels": 4000}, {"min_pixels": 50}, {"batch_tokens": 7})
    assert len({tiny_encoder(**more).fingerprint for more in settings}) == 4  # batches make no difference
