"""Pre-training of the embedded CLIP with a few pairs."""

import re
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from PIL import Image
from safetensors.torch import load_file
from skimage import data
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, normalize

from anomalib_aprilgan import AprilGanModel
from anomalib_aprilgan.cli import main
from anomalib_aprilgan.demo.drawing.scenes import HELD_OUT_KINDS, INVENTIONS
from anomalib_aprilgan.demo.drawing.sheet import Scene
from anomalib_aprilgan.files.adapter_files import read_adapters
from anomalib_aprilgan.files.embedded import ADAPTED, BACKBONE, IMAGE_SIZE, TAG
from anomalib_aprilgan.method.adapters import StageAdapters
from anomalib_aprilgan.method.encoders import encode_image
from anomalib_aprilgan.method.prompts import prompt_ensemble
from anomalib_aprilgan.method.towers import Towers, build_towers, tokenizer_of
from anomalib_aprilgan.pretraining import command, training
from anomalib_aprilgan.pretraining.camera import Camera
from anomalib_aprilgan.pretraining.captions import captions, vocabulary_sentences
from anomalib_aprilgan.pretraining.damage import DEFECT_NAMES, damage
from anomalib_aprilgan.pretraining.held_out import write_held_out_photographs
from anomalib_aprilgan.pretraining.losses import (
    distance_loss,
    encode,
    encode_references,
    image_losses,
    kept_losses,
    patch_loss,
)
from anomalib_aprilgan.pretraining.materials import Materials, read_index
from anomalib_aprilgan.pretraining.pair_files import write_pairs
from anomalib_aprilgan.pretraining.pairs import Batch, Pairs
from anomalib_aprilgan.pretraining.scenes import undamaged
from anomalib_aprilgan.pretraining.training import Schedule, Start

PATCH = 8
TEMPERATURE = 20.0


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test on one kind with two defects, and one photograph."""
    monkeypatch.setattr(command, "HELD_OUT_KINDS", ("gear",))
    monkeypatch.setattr(command, "DEFECTS", ("crack", "hole"))
    monkeypatch.setattr(command, "SHOTS", (0, 4))
    monkeypatch.setattr(
        command, "write_held_out_photographs", partial(write_held_out_photographs, categories=1, train=4, test=2)
    )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pairs(tmp_path_factory.mktemp("pairs"), 8, 128, seed=1)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of scikit-image, two of which have a licence that is taken for a permissive one."""
    folder = tmp_path_factory.mktemp("photographs")
    rows = ["file\tsource\tlicence\tcopyright"]
    for name, licence in (("brick", "CC0"), ("grass", "MIT"), ("gravel", "GPL-2+")):
        (folder / name).mkdir()
        Image.fromarray(getattr(data, name)()).save(folder / name / "one.png")
        rows.append(f"{name}/one.png\tsomewhere\t{licence}\tnone")
    (folder / "INDEX.tsv").write_text("\n".join(rows), encoding="utf-8")
    return folder


def losses(towers: Towers, adapters: StageAdapters, batch: Batch) -> dict[str, float]:
    encoded = encode(towers, adapters, tokenizer_of(BACKBONE), batch)
    values = image_losses(encoded, batch, TEMPERATURE) | patch_loss(encoded, batch, TEMPERATURE)
    values |= distance_loss(encoded, encode_references(towers, batch), batch)
    return {name: value.item() for name, value in values.items()}


def train(folder: Path, pairs: Pairs, steps: int, stop_after: int | None = None, **changes: Any) -> dict[str, Tensor]:
    class Stop(Exception):  # noqa: N818
        pass

    class Interrupted(Pairs):
        def __init__(self) -> None:
            vars(self).update(vars(pairs))
            self.batches = 0

        def batch(self, *arguments: Any) -> Batch:
            self.batches += 1
            if stop_after is not None and self.batches > stop_after:
                raise Stop
            return super().batch(*arguments)

    schedule = Schedule(steps, batch_size=4, learning_rate=1e-3, image_sizes=(48, 96), seed=0)
    try:
        return training.train(folder, Interrupted(), schedule._replace(**changes)).towers.state_dict()
    except Stop:
        return {}


@pytest.mark.usefixtures("few")
def test_the_command_writes_weights_and_adapters_that_load(
    tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--pairs", "6", "--steps", "1", "--photograph_pairs", "6", "--photograph_steps", "1"]
    main(["pretrain", str(tmp_path), "--photographs", str(photographs), *few])
    output = capsys.readouterr().out
    for k_shot in (0, 4):
        assert f"held-out drawn kinds, {k_shot}-shot: image_AUROC" in output
        assert f"held-out photographs, {k_shot}-shot: image_AUROC" in output
    weights = tmp_path / "ViT-builtin.safetensors"
    assert {value.dtype for value in load_file(weights).values()} == {torch.float16}
    model = AprilGanModel(BACKBONE, weights, adapter=tmp_path / "adapters.safetensors")
    assert {"leather", "brick", "grass"} <= set(model.trained_on)
    assert "gravel" not in model.trained_on
    _, origin = read_adapters(tmp_path / "adapters.safetensors")
    assert origin.pretrained == "builtin", "the tag, not the path of the weights on this machine"


def test_an_interrupted_training_continues_with_the_same_result(
    drawn: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)
    (tmp_path / "whole").mkdir()
    (tmp_path / "halved").mkdir()
    expected = train(tmp_path / "whole", Pairs(drawn), 4)
    assert not train(tmp_path / "halved", Pairs(drawn), 4, stop_after=3)
    resumed = train(tmp_path / "halved", Pairs(drawn), 4)
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_the_checkpoint_of_another_training_is_refused(drawn: list[Path], tmp_path: Path) -> None:
    train(tmp_path, Pairs(drawn), 1)
    with pytest.raises(ValueError, match=r"8 pairs \(\w+\), Schedule\(steps=2.*8 pairs \(\w+\), Schedule\(steps=1"):
        train(tmp_path, Pairs(drawn), 2)


def test_damaged_files_of_a_training_are_named(drawn: list[Path], tmp_path: Path) -> None:
    checkpoint, pairs = tmp_path / "checkpoint.pt", tmp_path / "pairs.npy"
    checkpoint.write_bytes(bytes(100_000))
    with pytest.raises(ValueError, match=re.escape(str(checkpoint))):
        train(tmp_path, Pairs(drawn), 1)
    for content in (b"", drawn[0].read_bytes()[:-1], np.array([{}]).dumps()):
        pairs.write_bytes(content)
        with pytest.raises(ValueError, match=f"{re.escape(str(pairs))} to hold pairs of images"):
            Pairs([pairs])


def test_existing_files_are_kept(drawn: list[Path]) -> None:
    before = [path.stat().st_mtime_ns for path in drawn]
    assert write_pairs(drawn[0].parent, 8, 128, seed=1) == drawn
    assert [path.stat().st_mtime_ns for path in drawn] == before


def test_a_batch_depends_on_its_seed_only(drawn: list[Path]) -> None:
    pairs = Pairs(drawn)
    first, again, other = (pairs.batch(4, default_rng(seed), IMAGE_SIZE, PATCH) for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert first.captions == again.captions
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (4, 2, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert first.covered.shape == (4, (IMAGE_SIZE // PATCH) ** 2)
    assert first.references.shape == (4, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert first.covered.amax(dim=1).gt(0).all(), "crops contain a part of the defect"


def test_masks_are_augmented_like_their_images(drawn: list[Path]) -> None:
    """Both images of a pair differ more in covered patches than elsewhere."""
    batch = Pairs(drawn).batch(8, default_rng(3), 96, PATCH)
    change = (batch.images[:, 0] - batch.images[:, 1]).abs().mean(dim=1)
    change = torch.nn.functional.avg_pool2d(change, 8).flatten(1)
    for covered, changed in zip(batch.covered, change, strict=True):
        assert changed[covered > 0.5].mean() > 2 * changed[covered == 0].mean() or covered.max() <= 0.5


def test_captions_differ_only_in_the_state_and_never_name_held_out_kinds() -> None:
    named = 0
    for seed in range(200):
        normal, abnormal, is_named = captions("hex_nut", "missing_part", default_rng(seed))
        assert normal != abnormal
        assert normal in prompt_ensemble("hex nut")[0] + prompt_ensemble("hex_nut")[0] or not is_named
        assert is_named == ("nut" in normal) == ("nut" in abnormal)
        assert not any(kind in normal for kind in HELD_OUT_KINDS)
        named += is_named
    assert 100 < named < 180


@pytest.mark.parametrize("kind", INVENTIONS)
def test_invented_kinds_are_never_named(kind: str) -> None:
    for seed in range(20):
        *twins, is_named = captions(kind, "scratch", default_rng(seed))
        assert not is_named
        assert kind not in "".join(twins)
        assert kind not in vocabulary_sentences()


def test_the_losses_equal_those_of_a_simple_loop(drawn: list[Path]) -> None:
    """The loop follows the definition of the losses, in full precision."""
    towers = build_towers(BACKBONE, None, 64, quick_gelu=False)
    towers.visual.output_tokens = True
    torch.manual_seed(5)
    adapters = StageAdapters(len(ADAPTED), 128, 128)
    batch = Pairs(drawn).batch(3, default_rng(5), 64, PATCH)
    values = losses(towers, adapters, batch)
    embedding, tokens = towers.visual(batch.images.flatten(0, 1))
    stages = encode_image(towers.visual, batch.images.flatten(0, 1), ADAPTED).tokens
    images = normalize(embedding, dim=-1)
    read = [
        normalize(tokens @ towers.visual.proj, dim=-1),
        *(normalize(adapter(stages[stage]), dim=-1) for stage, adapter in zip(ADAPTED, adapters.fc, strict=True)),
    ]
    sentences = normalize(towers.encode_text(tokenizer_of(BACKBONE)(batch.captions)), dim=-1)

    twins: list[Tensor] = []
    covered: list[Tensor] = []
    uncovered: list[Tensor] = []
    for pair in range(3):
        first, second = 2 * pair, 2 * pair + 1
        logits = TEMPERATURE * images[first : second + 1] @ sentences[first : second + 1].T
        for one_way in (logits, logits.T):
            for state in (0, 1):
                log = one_way[state].log_softmax(dim=0)
                twins.append(-0.975 * log[state] - 0.025 * log[1 - state])
        for patches, state, patch in product(read, (0, 1), range(64)):
            part = float((3 * batch.covered[pair, patch]).clamp(0.02, 0.98)) if state else 0.02
            log = (TEMPERATURE * patches[first + state, patch] @ sentences[first : second + 1].T).log_softmax(dim=0)
            (covered if part > 0.5 else uncovered).append(-(1 - part) * log[0] - part * log[1])
    assert values["twins"] == pytest.approx(torch.stack(twins).mean().item(), abs=0.02)
    expected = torch.stack(covered).mean() / 2 + torch.stack(uncovered).mean()
    assert values["patches"] == pytest.approx(expected.item(), abs=0.02)

    references = encode_image(towers.visual, batch.references, ADAPTED).tokens
    covered, uncovered = [], []
    for stage, pair, patch in product(ADAPTED, range(3), range(64)):
        similarities = cosine_similarity(stages[stage][2 * pair + 1, patch], references[stage][pair], dim=-1)
        logit = 20 * (1 - similarities.max() - 0.15)
        part = (3 * batch.covered[pair, patch]).clamp(0.02, 0.98)
        (covered if part > 0.5 else uncovered).append(binary_cross_entropy_with_logits(logit, part))
    expected = torch.stack(covered).mean() / 2 + torch.stack(uncovered).mean()
    assert values["distances"] == pytest.approx(expected.item(), abs=0.02)


def test_pairs_whose_defect_cannot_be_seen_do_not_train_the_image_embedding(drawn: list[Path]) -> None:
    towers = build_towers(BACKBONE, None, 48, quick_gelu=False)
    adapters = StageAdapters(len(ADAPTED), 128, 128)
    batch = Pairs(drawn).batch(2, default_rng(0), 48, PATCH)
    seen = losses(towers, adapters, batch)
    other = batch.images.clone()
    other[1] = -other[1]
    unseen = torch.stack([batch.covered[0], batch.covered[1].clamp(max=0.09)])
    first, second = (
        losses(towers, adapters, batch._replace(covered=unseen, images=images)) for images in (batch.images, other)
    )
    assert first["twins"] != seen["twins"]
    for name in ("contrast", "twins"):
        assert first[name] == pytest.approx(second[name], abs=1e-5)
    assert first["patches"] != second["patches"]


def test_the_second_round_keeps_text_features_and_image_embeddings(
    drawn: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the losses that keep the embedding, it changes more, although the training is the same otherwise."""
    monkeypatch.setattr(training, "WARM_UP", 1)
    pairs, schedule = Pairs(drawn), Schedule(30, batch_size=4, learning_rate=3e-4, image_sizes=(48,), seed=0)
    batch = pairs.batch(8, default_rng(1), 48, PATCH)
    before = build_towers(BACKBONE, TAG, 96, quick_gelu=False)
    kept = training.train(tmp_path / "kept", pairs, schedule, Start(TAG, TAG)).towers
    monkeypatch.setitem(training.LOSS_WEIGHTS, "embedding", 0.0)
    monkeypatch.setitem(training.LOSS_WEIGHTS, "state", 0.0)
    free = training.train(tmp_path / "free", pairs, schedule, Start(TAG, TAG)).towers
    for name, value in before.state_dict().items():
        assert torch.equal(kept.state_dict()[name], value) == (not name.startswith("visual.")), name
    embeddings = [
        encode_image(towers.visual, batch.images.flatten(0, 1), ()).embedding for towers in (before, kept, free)
    ]
    changes = [1 - cosine_similarity(embeddings[0], embedding, dim=-1).mean() for embedding in embeddings[1:]]
    assert changes[0] < 0.5 * changes[1]


def test_the_losses_that_keep_the_embedding_are_0_for_the_same_tower(drawn: list[Path]) -> None:
    towers = build_towers(BACKBONE, TAG, 96, quick_gelu=False)
    adapters = StageAdapters(len(ADAPTED), 128, 128)
    encoded = encode(towers, adapters, tokenizer_of(BACKBONE), Pairs(drawn).batch(3, default_rng(1), 96, PATCH))
    same = kept_losses(encoded, encoded.images.flatten(0, 1), TEMPERATURE)
    assert {name: value.item() for name, value in same.items()} == pytest.approx({"embedding": 0, "state": 0}, abs=1e-5)
    before = torch.randn_like(encoded.images)
    changed = kept_losses(encoded, before.flatten(0, 1), TEMPERATURE)
    assert changed["embedding"].item() == pytest.approx(
        1 - cosine_similarity(encoded.images, before, dim=-1).mean().item()
    )
    then, now = (
        (TEMPERATURE * normalize(embedding, dim=-1) @ encoded.captions.mT).softmax(dim=-1)
        for embedding in (before, encoded.images)
    )
    expected = (then * (then / now).log()).sum(dim=-1).mean()
    assert changed["state"].item() == pytest.approx(expected.item(), rel=1e-3)


def test_photographs_with_a_permissive_licence_are_trained_on_and_the_others_are_held_out(photographs: Path) -> None:
    assert {(picture.name, picture.is_trained_on) for picture in read_index(photographs)} == {
        ("brick", True),
        ("grass", True),
        ("gravel", False),
    }


@pytest.mark.parametrize(
    ("licence", "is_trained_on"),
    [
        ("MIT", True),
        ("Apache-2.0 AND BSD-3-Clause", True),
        ("CC-BY-4.0 and CC-BY-3.0", True),
        ("CC0/no known restrictions, shipped under BSD-3-Clause", True),
        ("CC0-1.0", True),
        ("public-domain", True),
        ("CC-BY-SA-3.0", False),
        ("MIT and GPL-2+", False),
        ("GPL-and-LGPL", False),
        ("MPL-2.0", False),
        ("", False),
    ],
)
def test_licences(licence: str, is_trained_on: bool, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").touch()
    (tmp_path / "a" / "2.jpg").touch()
    rows = f"file\tsource\tlicence\na/1.jpg\tsomewhere\t{licence}\na/2.jpg\tsomewhere\tMIT\n"
    (tmp_path / "INDEX.tsv").write_text(rows, encoding="utf-8")
    picture, _ = read_index(tmp_path)
    assert picture.is_trained_on == is_trained_on


def test_missing_photographs_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"photographs.*INDEX\.tsv"):
        read_index(tmp_path)
    (tmp_path / "INDEX.tsv").write_text("file\tsource\tlicence\nwood/1.jpg\tsomewhere\tMIT\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"wood/1\.jpg"):
        read_index(tmp_path)


def test_a_start_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="photographs"):
        main(["pretrain", str(tmp_path), "--start", "builtin"])


def test_a_start_without_adapters_is_refused(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "ViT-builtin.safetensors").touch()
    with pytest.raises(SystemExit, match=r"`start`.*adapters\.safetensors"):
        main(["pretrain", str(tmp_path), "--photographs", str(photographs), "--start", str(tmp_path)])


def test_a_start_whose_adapters_do_not_fit_is_refused(drawn: list[Path], tmp_path: Path) -> None:
    one_stage = AprilGanModel(BACKBONE, layers=(8,), adapter=TAG).save_adapters(tmp_path / "adapters.safetensors")
    with pytest.raises(ValueError, match=r"layers \(8,\) against the model's \(5, 6, 7, 8\)"):
        training.train(tmp_path, Pairs(drawn), Schedule(1, 2, 1e-4, (64,), 0), Start(TAG, one_stage))


def test_damage_is_drawn_where_the_mask_says(photographs: Path) -> None:
    materials, rng = Materials(read_index(photographs)), default_rng(0)
    seen = set()
    for _ in range(60):
        scene, _ = undamaged(materials, rng, 96)
        damaged = damage(scene, materials, rng)
        change = np.abs(damaged.picture - np.clip(scene.picture, 0, 1)).max(axis=-1)
        assert change[damaged.mask].min() > 0.02
        assert change[damaged.mask].mean() > 5 * change[~damaged.mask].mean()
        seen.add(damaged.defect)
    assert seen == set(DEFECT_NAMES)


def test_a_camera_takes_both_pictures_alike(photographs: Path) -> None:
    """Equal scenes differ by noise alone, which is the smaller part of the picture's variation."""
    materials, rng = Materials(read_index(photographs)), default_rng(2)
    for _ in range(20):
        scene, _ = undamaged(materials, rng, 96)
        camera = Camera(rng)
        first, second = (camera.take(scene.picture).astype(float) for _ in range(2))
        assert abs((first - second).mean()) < 1
        assert np.abs(first - second).mean() < 20


def test_held_out_photographs_are_a_data_set_in_mvtec_ads_layout(photographs: Path, tmp_path: Path) -> None:
    root = write_held_out_photographs(tmp_path, read_index(photographs), categories=5, train=2, test=3)
    files = {str(path.relative_to(root)) for path in root.rglob("*.png")}
    assert {path.split("/")[0] for path in files} == {"00_gravel"}, "the permissive ones are trained on"
    assert sum(path.startswith("00_gravel/test/damaged") for path in files) == 3
    assert sum(path.startswith("00_gravel/ground_truth/damaged") for path in files) == 3
    assert len(files) == 2 + 3 + 3 + 3


def test_captions_of_mixed_scenes_name_nothing() -> None:
    assert not any(captions("thing", "pit", default_rng(seed))[2] for seed in range(20))


def test_a_batch_without_names_has_no_contrast(drawn: list[Path]) -> None:
    towers = build_towers(BACKBONE, None, 48, quick_gelu=False)
    adapters = StageAdapters(len(ADAPTED), 128, 128)
    batch = Pairs(drawn).batch(2, default_rng(0), 48, PATCH)._replace(is_named=torch.tensor([False, False]))
    values = losses(towers, adapters, batch)
    assert values["contrast"] == 0
    assert np.isfinite(list(values.values())).all()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("file\tlicence\na/1.jpg\tMIT\n", "source"),
        ("", "file, licence, source"),
        ("file\tsource\tlicence\na/1.jpg\tsomewhere\tGPL-2\n", "permissive"),
        ("file\tsource\tlicence\na/1.jpg\tscikit-image\tCC0\n", "permissive"),
        ("file\tsource\tlicence\na/1.jpg\tsomewhere\n", "line 2 has not"),
        ("file\tsource\tlicence\na/\udc80.jpg\tsomewhere\tCC0\n", r"INDEX\.tsv to be a table in UTF-8"),
    ],
)
def test_an_index_that_cannot_be_used_is_refused(index: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").touch()
    (tmp_path / "INDEX.tsv").write_text(index, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        read_index(tmp_path)


def test_pairs_of_other_photographs_are_other_files(photographs: Path, tmp_path: Path) -> None:
    pictures = read_index(photographs)
    first, second = (write_pairs(tmp_path, 1, 64, 0, pictures[part : part + 2]) for part in (0, 1))
    assert first != second
    assert Pairs(first).digest != Pairs(second).digest
    assert write_pairs(tmp_path, 1, 64, 0, pictures[:2]) == first
    assert sorted(tmp_path.iterdir()) == sorted([*first, *second])


def test_a_scene_of_one_pixel_cannot_be_damaged(photographs: Path) -> None:
    picture, silhouette = np.full((48, 48, 3), 0.5, np.float32), np.zeros((48, 48), np.float32)
    silhouette[20, 20] = 1
    with pytest.raises(ValueError, match="`scene`"):
        damage(Scene(picture, picture, silhouette), Materials(read_index(photographs)), default_rng(0))
