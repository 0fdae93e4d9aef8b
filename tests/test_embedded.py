"""The embedded CLIP: it needs no network, and open_clip can build it."""

import re
from pathlib import Path

import open_clip
import pytest
import torch
from anomalib import LearningType
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from safetensors.torch import load_file

import anomalib_aprilgan
from anomalib_aprilgan import AprilGan, AprilGanModel
from anomalib_aprilgan.demo.drawing.scenes import AUXILIARY_KINDS, HELD_OUT_KINDS, KINDS
from anomalib_aprilgan.files import embedded
from anomalib_aprilgan.files.adapter_files import read_adapters, write_adapters
from anomalib_aprilgan.files.embedded import (
    ADAPTED,
    ADAPTERS,
    BACKBONE,
    IMAGE_SIZE,
    LAYERS,
    REFERENCE_LAYERS,
    TAG,
    WEIGHTS,
)
from anomalib_aprilgan.method.architecture import Architecture
from anomalib_aprilgan.method.towers import build_towers, native_image_size, tokenizer_of


def test_arguments_that_are_given_are_used_and_only_the_others_get_defaults() -> None:
    assert Architecture.of(BACKBONE) == Architecture(
        BACKBONE, TAG, IMAGE_SIZE, LAYERS, REFERENCE_LAYERS, quick_gelu=False
    )
    given = Architecture.of(BACKBONE, None, 64, (1, 8), (3,), quick_gelu=True)
    assert given == Architecture(BACKBONE, None, 64, (1, 8), (3,), quick_gelu=True)
    assert Architecture.of() == Architecture(
        "ViT-L-14-336", "openai", 518, (6, 12, 18, 24), (6, 12, 18, 24), quick_gelu=False
    )
    assert Architecture.of("ViT-B-16") == Architecture(
        "ViT-B-16", "openai", 224, (3, 6, 9, 12), (3, 6, 9, 12), quick_gelu=False
    )


def test_a_value_that_is_another_backbones_default_is_used_too() -> None:
    """518 px and "openai" are defaults of ViT-L-14-336, but with ViT-builtin they are used and refused as given."""
    model = AprilGan(BACKBONE, image_size=520)
    assert model.model.image_size == 520
    assert model.input_size == (520, 520)
    with pytest.raises(ValueError, match=r"`image_size` to be a multiple of the patch size 8.*518"):
        AprilGan(BACKBONE, image_size=518)
    with pytest.raises(ValueError, match=r"`pretrained` to be a tag .* ViT-builtin \(builtin\).*'openai'"):
        AprilGan(BACKBONE, pretrained="openai")
    with pytest.raises(ValueError, match=r"`layers` to hold blocks from 1 to 8"):
        AprilGan(BACKBONE, layers=(6, 12, 18, 24))


def test_of_a_file_with_more_stages_a_model_takes_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each adapter reads one stage, so the others are not missed."""
    weights, origin = read_adapters(ADAPTERS)
    assert origin.layers == ADAPTED
    for layers in (LAYERS, (6, 8)):
        model = AprilGanModel(BACKBONE, layers=layers, adapter=TAG)
        assert model.trained_on == origin.trained_on
        for stage, adapter in zip(layers, model.adapters.fc, strict=True):
            assert torch.equal(adapter.weight, weights[f"fc.{ADAPTED.index(stage)}.weight"])
            assert torch.equal(adapter.bias, weights[f"fc.{ADAPTED.index(stage)}.bias"])
    assert not caplog.records
    file = write_adapters(tmp_path / "own.safetensors", weights, origin)
    AprilGanModel(BACKBONE, adapter=file)
    assert re.search(r"Of the stages \(5, 6, 7, 8\) in .*own.safetensors, the model has \(8,\)", caplog.text)
    with pytest.raises(ValueError, match=r"layers \(5, 6, 7, 8\) against the model's \(4, 8\)"):
        AprilGanModel(BACKBONE, layers=(4, 8), adapter=TAG)


def test_it_works_with_the_backbone_as_only_argument(sample_root: Path, tmp_path: Path) -> None:
    """Test zero-shot and few-shot with anomalib's Engine."""
    for k_shot, learning_type in ((0, LearningType.ZERO_SHOT), (2, LearningType.FEW_SHOT)):
        model = AprilGan(backbone=BACKBONE, k_shot=k_shot, visualizer=False)
        assert model.learning_type == learning_type
        datamodule = MVTecAD(root=sample_root, category="gravel", num_workers=0)
        (metrics,) = Engine(default_root_dir=tmp_path, accelerator="cpu", logger=False).test(
            model, datamodule=datamodule
        )
        assert metrics["pixel_AUROC"] > 0.7
        assert model.model.trained_on
        shipped = AprilGanModel(BACKBONE, adapter=TAG).adapters.state_dict()
        assert all(torch.equal(model.model.adapters.state_dict()[name], value) for name, value in shipped.items())


def test_it_is_registered_with_open_clip() -> None:
    ordinary = open_clip.create_model(BACKBONE).eval()
    ordinary.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    size = native_image_size(BACKBONE)
    model = AprilGanModel(BACKBONE, image_size=size)
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    sentences = ["a photo of a damaged gear.", "a photo of the flawless leather."]
    with torch.no_grad():
        expected_images = ordinary.encode_image(images)
        expected_sentences = ordinary.encode_text(open_clip.get_tokenizer(BACKBONE)(sentences))
    assert torch.allclose(model.clip.encode_image(images, ()).embedding, expected_images, atol=1e-5)
    assert torch.allclose(model.clip.encode_text(sentences), expected_sentences, atol=1e-5)


def test_another_tag_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a tag that open_clip has for ViT-builtin \(builtin\).*'laion2b'"):
        AprilGanModel(BACKBONE, pretrained="laion2b")


def test_its_adapters_fit_no_other_weights() -> None:
    with pytest.raises(ValueError, match="pretrained"):
        AprilGanModel(BACKBONE, pretrained=None, adapter=TAG)
    with pytest.raises(ValueError, match="backbone"):
        AprilGanModel("ViT-S-16-alt", pretrained=None, image_size=32, layers=(3, 6, 9, 12), adapter=TAG)


def test_words_outside_the_training_captions_share_one_embedding() -> None:
    embedding = build_towers(BACKBONE, TAG, IMAGE_SIZE, quick_gelu=False).token_embedding.weight
    tokenizer = tokenizer_of(BACKBONE)

    def row(word: str) -> torch.Tensor:
        return embedding[tokenizer([word])[0, 1]]

    for kind in HELD_OUT_KINDS:
        assert torch.equal(row(kind), row("thing")), kind
    rows = torch.stack([row(word) for word in ("thing", "damaged", "photo", "leather", "washer")])
    assert len(rows.unique(dim=0)) == len(rows)


def test_packaged_files_are_small() -> None:
    package = Path(anomalib_aprilgan.__file__).parent
    files = [path for name in ("files", "demo") for path in (package / name).rglob("*") if path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 15e6


def test_the_model_card_names_command_and_kinds() -> None:
    card = (embedded.FOLDER / "README.md").read_text(encoding="utf-8")
    assert "anomalib-aprilgan pretrain" in card
    for kind in HELD_OUT_KINDS:
        assert kind in card
    assert str(len(AUXILIARY_KINDS)) in card


@pytest.mark.parametrize("kind", [KINDS[0], HELD_OUT_KINDS[0]])
def test_sentences_of_the_same_state_are_more_similar(kind: str) -> None:
    """The text tower has learned the words of the states for known and unknown kinds."""
    model = AprilGanModel(BACKBONE)
    words = ("flawless", "perfect", "damaged", "broken")
    flawless, perfect, damaged, broken = torch.nn.functional.normalize(
        model.clip.encode_text([f"a photo of a {word} {kind}." for word in words]), dim=-1
    )
    assert flawless @ perfect > flawless @ damaged
    assert damaged @ broken > broken @ perfect
