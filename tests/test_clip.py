# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The frozen CLIP: recorded features, formats of weight files, and error messages."""

import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import pretrained as open_clip_pretrained
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from anomalib_aprilgan.files import downloads
from anomalib_aprilgan.files.downloads import MissingFileError
from anomalib_aprilgan.method import pretrained
from anomalib_aprilgan.method.clip import Clip
from anomalib_aprilgan.method.clip_weights import resize_positional_embedding
from anomalib_aprilgan.method.encoders import encode_text
from anomalib_aprilgan.method.prompts import prompt_ensemble
from anomalib_aprilgan.method.scoring import average_states
from anomalib_aprilgan.method.towers import Towers, build_towers

BACKBONE = "golden-vit"
SENTENCES = ["a photo of a cable.", "a jpeg corrupted photo of the pipe_fryum without damage.", "", "cable " * 100]
"""A short, a long and an empty sentence, and a sentence that is longer than the context."""


class RunsCode:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def make_clip(golden: dict[str, Any], clip_weights: Path) -> Callable[..., Clip]:
    """Make the recorded CLIP; arguments may be overridden."""

    def make(**overrides: Any) -> Clip:
        arguments = {"backbone": BACKBONE, "pretrained": clip_weights, "image_size": golden["size"]}
        return Clip(**arguments | {"quick_gelu": False} | overrides)

    return make


@pytest.fixture
def make_towers(golden: dict[str, Any], clip_weights: Path) -> Callable[..., Towers]:
    """Make open_clip's own model of the recorded CLIP; arguments may be overridden."""

    def make(**overrides: Any) -> Towers:
        arguments = {"backbone": BACKBONE, "pretrained": clip_weights, "image_size": golden["size"]}
        return build_towers(**arguments | {"quick_gelu": False} | overrides).eval().requires_grad_(requires_grad=False)

    return make


@pytest.fixture
def make_variant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Register a variant of the recorded architecture during a test, and return its name."""

    def make(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **changes: Any) -> str:
        config = deepcopy(open_clip.get_model_config(BACKBONE)) | changes
        config["vision_cfg"] |= vision or {}
        config["text_cfg"] |= text or {}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "variant", config)
        return "variant"

    return make


@pytest.fixture
def weights(clip_weights: Path) -> dict[str, Tensor]:
    return torch.load(clip_weights, weights_only=True)


def random_images(number: int = 3, size: int = 96) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(0))


def assert_same_features(found: Clip, expected: Clip) -> None:
    images = random_images(2)
    torch.testing.assert_close(found.encode_image(images, ()).embedding, expected.encode_image(images, ()).embedding)
    torch.testing.assert_close(found.encode_text(SENTENCES[:2]), expected.encode_text(SENTENCES[:2]))


# ---- Text ---------------------------------------------------------------------------------------------------------


def test_text_features_are_the_recorded_ones(golden, make_clip):
    clip = make_clip()
    for class_name, expected in zip(golden["classes"], golden["text"], strict=True):
        states = [average_states(clip.encode_text(sentences)) for sentences in prompt_ensemble(class_name)]
        torch.testing.assert_close(torch.stack(states), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sentences", [SENTENCES, SENTENCES[:2], SENTENCES[:1], SENTENCES[2:3]])
def test_text_features_without_padding_are_exact(make_clip, make_towers, sentences):
    clip = make_clip()
    expected = make_towers().encode_text(open_clip.get_tokenizer(BACKBONE)(sentences))
    torch.testing.assert_close(clip.encode_text(sentences), expected, atol=1e-5, rtol=0)


def test_padding_is_not_computed(make_towers):
    towers, lengths = make_towers(), []
    towers.ln_final.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    encode_text(towers, open_clip.get_tokenizer(BACKBONE)(SENTENCES[:1]))
    assert lengths == [8]  # start, six tokens, end


@pytest.mark.parametrize(
    "text",
    [{"no_causal_mask": True}, {"pool_type": "first"}, {"pool_type": "last"}],
    ids=lambda text: "-".join(map(str, *text.items())),
)
@pytest.mark.parametrize("custom_text", [False, True], ids=["standard", "custom text tower"])
def test_other_text_towers_get_padded_sentences(make_clip, make_towers, make_variant, text, custom_text):
    variant = {"backbone": make_variant(text=text, custom_text=custom_text), "pretrained": None}
    clip = make_clip(**variant)
    expected = make_towers(**variant).encode_text(open_clip.get_tokenizer("variant")(SENTENCES))
    torch.testing.assert_close(clip.encode_text(SENTENCES), expected, atol=1e-5, rtol=0)


def test_a_custom_text_tower_gives_the_same_features(make_clip, make_towers, make_variant):
    backbone = make_variant(custom_text=True)
    assert isinstance(make_towers(backbone=backbone), open_clip.CustomTextCLIP)
    assert_same_features(make_clip(backbone=backbone), make_clip())


def test_the_text_tower_is_loaded_when_it_is_needed(make_clip):
    clip = make_clip()
    assert not clip.text.is_loaded
    clip.encode_text(SENTENCES[:1])
    assert clip.text.is_loaded
    copied = deepcopy(clip)
    assert not copied.text.is_loaded
    assert_same_features(copied, clip)


def test_a_text_tower_of_changed_weights_is_refused(make_clip, weights, tmp_path):
    path = tmp_path / "clip.pt"
    torch.save(weights, path)
    clip = make_clip(pretrained=path)
    weights["ln_final.bias"][-1] += 1
    torch.save(weights, path)
    with pytest.raises(RuntimeError, match=r"clip\.pt\) have changed since the image tower was loaded"):
        clip.encode_text(SENTENCES)


def test_a_relative_path_of_weights_stays_the_same_file(make_clip, clip_weights, monkeypatch, tmp_path):
    monkeypatch.chdir(clip_weights.parent)
    clip = make_clip(pretrained=clip_weights.name)
    monkeypatch.chdir(tmp_path)
    assert_same_features(clip, make_clip())


def test_text_features_from_inference_mode_can_be_trained_with(make_clip):
    """torch cannot save inference tensors for the backward pass."""
    with torch.inference_mode():
        features = make_clip().encode_text(SENTENCES[:1])
    weight = torch.ones(32, requires_grad=True)
    (features * weight).sum().backward()
    torch.testing.assert_close(weight.grad, features[0])


# ---- Images -------------------------------------------------------------------------------------------------------


def test_image_features_are_the_recorded_ones(golden, make_clip):
    embedding = make_clip().encode_image(golden["inputs"][golden["test"]], ()).embedding
    torch.testing.assert_close(normalize(embedding, dim=-1), golden["image_features"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [96, 64, 40])
@pytest.mark.parametrize(
    "vision",
    [{}, {"final_ln_after_pool": True}, {"pool_type": "avg"}, {"no_ln_pre": True}, {"ls_init_value": 0.1}],
    ids=lambda vision: "-".join(map(str, *vision.items())) if vision else "standard",
)
def test_the_image_embedding_is_that_of_open_clip(make_clip, make_towers, make_variant, vision, size):
    """The pass through the tower must give the same embedding as open_clip, for each kind of ViT."""
    variant = {"backbone": make_variant(vision=vision), "pretrained": None, "image_size": size}
    clip = make_clip(**variant)
    images = random_images(size=size)
    expected = make_towers(**variant).encode_image(images)
    torch.testing.assert_close(clip.encode_image(images, (1, 4)).embedding, expected, atol=1e-5, rtol=1e-5)


def test_stage_tokens_are_the_blocks_outputs_without_the_class_token(make_clip):
    clip, outputs = make_clip(), []
    for block in clip.visual.transformer.resblocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    images = random_images()
    clip.visual(images)
    expected, outputs = outputs, []
    batch_first = clip.visual.transformer.resblocks[0].attn.batch_first
    expected = [output if batch_first else output.transpose(0, 1) for output in expected]

    found = clip.encode_image(images, (1, 2, 3, 4)).tokens
    assert list(found) == [1, 2, 3, 4]
    for number, tokens in found.items():
        assert tokens.shape == (3, clip.num_patches, clip.width)
        torch.testing.assert_close(tokens, expected[number - 1][:, 1:], atol=1e-5, rtol=1e-5)


def test_one_pass_serves_all_stages(make_clip):
    clip, calls = make_clip(), []
    for module in (clip.visual.conv1, *clip.visual.transformer.resblocks):
        module.register_forward_hook(lambda module, inputs, output: calls.append(module))
    features = clip.encode_image(random_images(), {1, 3, 4})
    assert sorted(features.tokens) == [1, 3, 4]
    assert len(calls) == len(set(calls)) == 5


def test_only_the_requested_stages_are_returned(make_clip):
    assert list(make_clip().encode_image(random_images(1), [3]).tokens) == [3]


def test_dimensions(make_clip):
    clip = make_clip()
    assert (clip.width, clip.embed_dim, clip.num_blocks, clip.num_patches) == (64, 32, 4, 144)


# ---- The positional embedding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [96, 40])
def test_the_positional_embedding_is_resized_as_open_clip_does(make_clip, make_towers, weights, size):
    clip = make_clip(image_size=size)
    resized = dict(weights)
    open_clip.model.resize_pos_embed(resized, make_towers(image_size=size))
    expected = resized["visual.positional_embedding"]
    assert expected.shape == (1 + (size // 8) ** 2, 64)
    torch.testing.assert_close(clip.visual.positional_embedding.data, expected)


def test_the_same_grid_keeps_the_positional_embedding(weights, make_clip):
    expected = weights["visual.positional_embedding"]
    assert torch.equal(resize_positional_embedding(expected, 8), expected)
    assert torch.equal(make_clip(image_size=64).visual.positional_embedding, expected)


def test_random_weights_get_a_resized_positional_embedding_too(make_clip):
    small, large = (make_clip(pretrained=None, image_size=size).visual for size in (64, 96))
    expected = resize_positional_embedding(small.positional_embedding, 12)
    assert torch.equal(large.positional_embedding, expected)


# ---- State and random weights -------------------------------------------------------------------------------------


def test_clip_computes_no_gradients(make_clip):
    clip = make_clip()
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    images = random_images(1).requires_grad_()
    assert not clip.encode_image(images, (1,)).tokens[1].requires_grad


def test_clip_stays_in_evaluation_mode(make_clip):
    clip = make_clip()
    nn.Sequential(clip).train()
    assert clip.train() is clip
    assert not any(module.training for module in clip.modules())


def test_patch_dropout_is_inactive(make_clip, make_variant):
    clip = make_clip(backbone=make_variant(vision={"patch_dropout": 0.5})).train()
    assert clip.encode_image(random_images(1), (4,)).tokens[4].shape == (1, 144, 64)


def test_a_state_dict_does_not_contain_clip(make_clip):
    clip = make_clip()
    assert clip.state_dict() == {}
    model = nn.ModuleDict({"clip": clip, "adapter": nn.Linear(2, 2)})
    assert set(model.state_dict()) == {"adapter.weight", "adapter.bias"}


def test_a_state_dict_without_clip_can_be_loaded_strictly(make_clip):
    model = nn.ModuleDict({"clip": make_clip(), "adapter": nn.Linear(2, 2)})
    before = {name: value.clone() for name, value in model["clip"].named_parameters()}
    state = {"adapter.weight": torch.ones(2, 2), "adapter.bias": torch.ones(2)}
    assert str(model.load_state_dict(state)) == "<All keys matched successfully>"
    assert all(torch.equal(value, before[name]) for name, value in model["clip"].named_parameters())
    with pytest.raises(RuntimeError, match=r"adapter\.bias"):
        model.load_state_dict({"adapter.weight": torch.ones(2, 2)})


def test_random_weights_are_the_same_each_time_and_leave_the_random_state_alone(make_clip):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = make_clip(pretrained=None)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = make_clip(pretrained=None)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert first.fingerprint == second.fingerprint


def test_the_fingerprint_depends_on_the_weights_but_not_on_the_image_size(make_clip):
    assert make_clip(image_size=64).fingerprint == make_clip(image_size=96, quick_gelu=True).fingerprint
    assert make_clip().fingerprint != make_clip(pretrained=None).fingerprint


# ---- The activation -----------------------------------------------------------------------------------------------


def test_quick_gelu_changes_both_towers(make_clip):
    gelu, quick = make_clip(), make_clip(quick_gelu=True)
    assert (gelu.quick_gelu, quick.quick_gelu) == (False, True)
    images = random_images(1)
    difference = gelu.encode_image(images, ()).embedding - quick.encode_image(images, ()).embedding
    assert difference.abs().max() > 1e-3
    assert (gelu.encode_text(SENTENCES) - quick.encode_text(SENTENCES)).abs().max() > 1e-3


def test_an_architecture_with_quick_gelu_always_uses_it(make_clip, make_variant):
    clip = make_clip(backbone=make_variant(quick_gelu=True))
    assert clip.quick_gelu
    assert_same_features(clip, make_clip(quick_gelu=True))


def test_the_registered_architecture_is_not_changed(make_clip):
    make_clip(quick_gelu=True)
    assert "quick_gelu" not in open_clip.get_model_config(BACKBONE)


# ---- Architectures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32", "convnext_base"])
def test_other_architectures_are_refused(backbone):
    with pytest.raises(ValueError, match="standard ViT") as error:
        Clip(backbone, None, 224, quick_gelu=False)
    assert backbone in str(error.value)
    assert "ViT-B-16," in str(error.value)


@pytest.mark.parametrize("vision", [{"attentional_pool": True}, {"pool_type": "none"}])
def test_other_ways_of_pooling_are_refused(make_clip, make_variant, vision):
    with pytest.raises(ValueError, match="variant, which has a ViT with attentional pooling"):
        make_clip(backbone=make_variant(vision=vision), pretrained=None)


@pytest.mark.parametrize(
    ("backbone", "near"),
    [("ViT-L14-336", "ViT-L-14-336"), ("ViTB16", "ViT-B-16"), ("golden_vit", BACKBONE), ("?", "ViT-L-14-336")],
)
def test_an_unknown_architecture_is_refused_with_similar_names(backbone, near):
    with pytest.raises(ValueError, match="Did you mean") as error:
        Clip(backbone, None, 224, quick_gelu=False)
    assert repr(backbone) in str(error.value)
    assert near in str(error.value).replace(backbone, "")


@pytest.mark.parametrize("image_size", [100, 0, -8, 5, 96.0, "96", None])
def test_an_image_size_that_does_not_fit_is_refused(make_clip, image_size):
    with pytest.raises(ValueError, match="multiple of the patch size 8 of golden-vit") as error:
        make_clip(image_size=image_size)
    assert repr(image_size) in str(error.value)


def test_a_fitting_image_size_is_suggested(make_clip):
    with pytest.raises(ValueError, match="96 or 104"):
        make_clip(image_size=100)


# ---- Weights ------------------------------------------------------------------------------------------------------


def as_safetensors(weights: dict[str, Tensor], folder: Path) -> Path:
    save_file(weights, folder / "clip.safetensors")
    return folder / "clip.safetensors"


def as_checkpoint(weights: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"state_dict": weights, "epoch": 3, "name": "clip"}, folder / "epoch_3.pt")
    return folder / "epoch_3.pt"


def as_distributed_checkpoint(weights: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, folder / "epoch_3.pt")
    return folder / "epoch_3.pt"


def as_half_precision(weights: dict[str, Tensor], folder: Path) -> Path:
    torch.save({name: value.half() for name, value in weights.items()}, folder / "half.pt")  # lossless
    return folder / "half.pt"


def as_openai_s_state_dict(weights: dict[str, Tensor], folder: Path) -> Path:
    sizes = {name: torch.tensor(77) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save(weights | sizes | {"logit_scale": weights["logit_scale"].reshape(1)}, folder / "openai.pt")
    return folder / "openai.pt"


IGNORE_TRACING_WARNINGS = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)


def as_torchscript(weights: dict[str, Tensor], folder: Path) -> Path:
    towers = build_towers(BACKBONE, None, 64, quick_gelu=False).eval().requires_grad_(requires_grad=False)
    towers.load_state_dict(weights)
    images = random_images(1, 64)
    tokens = torch.zeros(1, 77, dtype=torch.long)
    del towers.visual.image_size, towers.visual.grid_size  # a trace cannot store these attributes
    mask = towers.attn_mask
    del towers.attn_mask
    towers.attn_mask = mask  # no buffer, since OpenAI's archives contain no mask
    traced = torch.jit.trace_module(towers, {"encode_image": images, "encode_text": tokens}, check_trace=False)
    traced.save(str(folder / "archive.pt"))
    return folder / "archive.pt"


@IGNORE_TRACING_WARNINGS
@pytest.mark.parametrize(
    "write",
    [
        as_safetensors,
        as_checkpoint,
        as_distributed_checkpoint,
        as_half_precision,
        as_openai_s_state_dict,
        as_torchscript,
    ],
)
def test_weights_are_read_from_each_file_format(make_clip, weights, tmp_path, write):
    clip = make_clip(pretrained=str(write(weights, tmp_path)))
    assert all(parameter.dtype == torch.float32 for parameter in clip.parameters())
    assert_same_features(clip, make_clip())


@IGNORE_TRACING_WARNINGS
def test_a_torchscript_archive_is_read_without_warnings(make_clip, weights, tmp_path):
    """Users of OpenAI's weights cannot avoid TorchScript, which torch has deprecated."""
    path = as_torchscript(weights, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_clip(pretrained=path)


def test_weights_are_loaded(make_towers, weights):
    state = make_towers(image_size=64).state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items())


def test_a_tag_s_file_is_read_like_any_other(make_clip, make_variant, monkeypatch, clip_weights):
    source = {"url": "", "hf_hub": "somewhere/else/"}
    monkeypatch.setitem(open_clip_pretrained._PRETRAINED, make_variant(), {"some_tag": source})
    asked = []
    monkeypatch.setattr(pretrained, "fetch_from_hub", lambda *arguments: asked.append(arguments[:2]) or clip_weights)
    assert_same_features(make_clip(backbone="variant", pretrained="some_tag"), make_clip())
    assert asked == [("somewhere/else", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])]


def test_an_archive_in_open_clip_s_older_cache_is_used_offline(
    make_clip, make_variant, monkeypatch, clip_weights, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    cached = tmp_path / ".cache" / "clip" / "some_clip.pt"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(clip_weights.read_bytes())
    source = {"url": "https://example.invalid/some_clip.pt", "hf_hub": "somewhere/else/"}
    monkeypatch.setitem(open_clip_pretrained._PRETRAINED, make_variant(), {"some_tag": source})
    monkeypatch.setattr(pretrained, "fetch_from_hub", pytest.fail)
    assert_same_features(make_clip(backbone="variant", pretrained="some_tag"), make_clip())


@pytest.mark.parametrize(
    ("backbone", "tags"),
    [("ViT-L-14-336", "openai"), (BACKBONE, "there is none")],
    ids=["tags exist", "no tags"],
)
@pytest.mark.parametrize("pretrained", ["no_such_tag", "folder/no_such_file.pt", ""])
def test_an_unknown_tag_is_refused(backbone, tags, pretrained):
    with pytest.raises(ValueError, match="pretrained") as error:
        Clip(backbone, pretrained, 336, quick_gelu=False)
    assert repr(pretrained) in str(error.value)
    assert f"({tags}" in str(error.value)


def test_a_folder_of_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder") as error:
        Clip("ViT-L-14-336", tmp_path, 336, quick_gelu=False)
    assert "open_clip_model.safetensors" in str(error.value)


def test_weights_in_the_format_of_transformers_are_refused(make_clip, weights, tmp_path):
    foreign = {f"vision_model.encoder.layers.0.{name}": value for name, value in weights.items()}
    with pytest.raises(ValueError, match="transformers") as error:
        make_clip(pretrained=as_safetensors(foreign, tmp_path))
    assert "ViT-L-14-336px.pt" in str(error.value)
    assert str(tmp_path / "clip.safetensors") in str(error.value)


@pytest.mark.parametrize(
    ("backbone", "tag", "address"),
    [
        ("ViT-L-14-336", "openai", "ViT-L-14-336px.pt"),
        ("ViT-B-16", "laion2b_s34b_b88k", "https://huggingface.co/laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
    ],
)
def test_a_failed_download_names_urls_and_paths(monkeypatch, tmp_path, backbone, tag, address):
    def fail(*args: Any, **kwargs: Any) -> str:
        msg = "no route to host"
        raise ConnectionError(msg)

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(downloads, "get_hf_file_metadata", fail)
    monkeypatch.setattr(pretrained, "download", fail)  # older versions of open_clip know no file in the hub
    monkeypatch.setattr(downloads, "hf_hub_download", pytest.fail)  # would try again and again
    with pytest.raises(MissingFileError, match="no route to host") as error:
        Clip(backbone, tag, 336, quick_gelu=False)
    for part in (address, f"'{tag}' of {backbone}", "`--model.pretrained PATH`", "`--model.backbone ViT-builtin`"):
        assert part in str(error.value)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)  # noqa: S301
    if tag == "openai":
        assert str(tmp_path / ".cache" / "clip" / "ViT-L-14-336px.pt") in str(error.value)


def test_a_file_in_the_hub_s_cache_is_used_offline(make_clip, make_variant, monkeypatch, clip_weights):
    source = {"url": "", "hf_hub": "somewhere/else/clip.pt"}
    monkeypatch.setitem(open_clip_pretrained._PRETRAINED, make_variant(), {"some_tag": source})
    cache = {("somewhere/else", "clip.pt"): str(clip_weights)}
    monkeypatch.setattr(downloads, "try_to_load_from_cache", lambda *file: cache.get(file))
    monkeypatch.setattr(downloads, "get_hf_file_metadata", pytest.fail)
    assert_same_features(make_clip(backbone="variant", pretrained="some_tag"), make_clip())


def test_a_file_with_an_address_alone_is_downloaded_into_open_clip_s_cache(
    make_clip, make_variant, monkeypatch, clip_weights, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(open_clip_pretrained._PRETRAINED, make_variant(), {"some_tag": {"url": clip_weights.as_uri()}})
    assert_same_features(make_clip(backbone="variant", pretrained="some_tag"), make_clip())
    assert [path.name for path in (tmp_path / ".cache" / "clip").iterdir()] == [clip_weights.name]


@IGNORE_TRACING_WARNINGS
@pytest.mark.parametrize("write", [as_safetensors, as_checkpoint, as_torchscript])
@pytest.mark.parametrize("share", [0, 0.5, 0.98], ids=lambda share: f"{share:.0%}")
def test_a_truncated_file_is_refused_by_name(make_clip, weights, tmp_path, write, share):
    path = write(weights, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="Could not read CLIP weights") as error:
        make_clip(pretrained=path)
    assert str(path) in str(error.value)


def test_a_web_page_is_refused_without_a_warning_about_code(make_clip, tmp_path):
    """Many download links return a web page instead of the file."""
    (tmp_path / "clip.pt").write_bytes(b"<!DOCTYPE html><html>Not found</html>")
    with pytest.raises(ValueError, match="CLIP weights") as error:
        make_clip(pretrained=tmp_path / "clip.pt")
    assert str(tmp_path / "clip.pt") in str(error.value)
    assert "would run code" not in str(error.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch.save", "pickle"])
def test_a_file_with_code_is_refused_and_its_code_is_not_run(make_clip, weights, tmp_path, zipped):
    path, trace = tmp_path / "clip.pt", tmp_path / "trace"
    content = {"state_dict": {"visual.proj": weights["visual.proj"], "code": RunsCode(trace)}}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match="would run code") as error:
        make_clip(pretrained=path)
    assert str(path) in str(error.value)
    assert not trace.exists()


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"state_dict": {"a": 1}}, {"weights": [1]}])
def test_a_file_without_a_state_dict_is_refused_by_name(make_clip, tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="state dict of a CLIP") as error:
        make_clip(pretrained=tmp_path / "other.pt")
    assert str(tmp_path / "other.pt") in str(error.value)


@pytest.mark.parametrize(
    "vision",
    [{"width": 128}, {"layers": 3}, {"layers": 5}, {"patch_size": 16}],
    ids=["width", "fewer blocks", "more blocks", "patch size"],
)
def test_weights_of_another_architecture_are_refused(make_clip, make_variant, clip_weights, vision):
    with pytest.raises(ValueError, match="do not fit the architecture") as error:
        make_clip(backbone=make_variant(vision=vision))
    assert "variant" in str(error.value)
    assert str(clip_weights) in str(error.value)


@pytest.mark.parametrize(
    "name", ["visual.proj", "visual.positional_embedding", "token_embedding.weight", "logit_scale"]
)
def test_missing_weights_are_named(make_clip, weights, tmp_path, name):
    del weights[name]
    torch.save(weights, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="do not fit the architecture") as error:
        make_clip(pretrained=tmp_path / "clip.pt")
    assert name in str(error.value)


def test_a_tokenizer_leaves_the_root_logger_as_it_is() -> None:
    """open_clip logs through it, and Python gives it a handler then."""
    program = "import logging, sys; from anomalib_aprilgan.method.towers import tokenizer_of; tokenizer_of('ViT-B-16')"
    subprocess.run([sys.executable, "-c", f"{program}; sys.exit(bool(logging.getLogger().handlers))"], check=True)
