"""Pre-training of the embedded CLIP with a few pairs."""

from itertools import product
from pathlib import Path

import pytest
import torch
from numpy.random import default_rng
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from anomalib_aprilgan import AprilGanModel
from anomalib_aprilgan.cli import main
from anomalib_aprilgan.demo.drawing.scenes import HELD_OUT_KINDS, INVENTIONS
from anomalib_aprilgan.demo.sample_data import DATA_SETS
from anomalib_aprilgan.files.adapter_files import read_adapters
from anomalib_aprilgan.files.embedded import BACKBONE, IMAGE_SIZE, LAYERS
from anomalib_aprilgan.method.adapters import StageAdapters
from anomalib_aprilgan.method.encoders import encode_image
from anomalib_aprilgan.method.prompts import prompt_ensemble
from anomalib_aprilgan.method.towers import build_towers, tokenizer_of
from anomalib_aprilgan.pretraining import command, training
from anomalib_aprilgan.pretraining.captions import captions, vocabulary_sentences
from anomalib_aprilgan.pretraining.drawn_files import draw_pairs
from anomalib_aprilgan.pretraining.losses import losses
from anomalib_aprilgan.pretraining.pairs import Batch, Pairs


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train adapters on two kinds for one epoch, and test on one kind."""
    monkeypatch.setitem(DATA_SETS, "auxiliary", (("leather", "washer"), ("scratch",)))
    monkeypatch.setattr(command, "HELD_OUT_KINDS", ("gear",))
    monkeypatch.setattr(command, "ADAPTER_EPOCHS", 1)
    monkeypatch.setattr(command, "ADAPTER_LOOKS", 2)
    monkeypatch.setattr(command, "SHOTS", (0, 4))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_pairs(tmp_path_factory.mktemp("pairs"), 8, seed=1)


def train(folder: Path, pairs: Pairs, steps: int, stop_after: int | None = None) -> dict[str, torch.Tensor]:
    class Stop(Exception):  # noqa: N818
        pass

    class Interrupted(Pairs):
        def __init__(self) -> None:
            vars(self).update(vars(pairs))
            self.batches = 0

        def batch(self, size: int, rng: object) -> Batch:
            self.batches += 1
            if stop_after is not None and self.batches > stop_after:
                raise Stop
            return super().batch(size, rng)

    try:
        return training.train(folder, Interrupted(), steps, batch_size=4, learning_rate=1e-3, seed=0).state_dict()
    except Stop:
        return {}


@pytest.mark.usefixtures("few")
def test_the_command_writes_weights_and_adapters_that_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pretrain", str(tmp_path), "--pairs", "6", "--steps", "1"])
    output = capsys.readouterr().out
    for k_shot in (0, 4):
        assert f"held-out kinds, all defects, {k_shot}-shot: image_AUROC" in output
        assert f"held-out kinds, held-out defects, {k_shot}-shot: image_AUROC" in output
    weights = tmp_path / "ViT-demo.safetensors"
    assert {value.dtype for value in load_file(weights).values()} == {torch.float16}
    model = AprilGanModel(BACKBONE, weights, adapter=tmp_path / "adapters.safetensors")
    assert model.trained_on
    _, origin = read_adapters(tmp_path / "adapters.safetensors")
    assert origin.pretrained == "demo", "the tag, not the path of the weights on this machine"


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
    with pytest.raises(ValueError, match=r"8 pairs, 2 steps of 4.*8 pairs, 1 steps of 4"):
        train(tmp_path, Pairs(drawn), 2)


def test_existing_files_are_kept(drawn: list[Path]) -> None:
    before = [path.stat().st_mtime_ns for path in drawn]
    assert draw_pairs(drawn[0].parent, 8, seed=1) == drawn
    assert [path.stat().st_mtime_ns for path in drawn] == before


def test_a_batch_depends_on_its_seed_only(drawn: list[Path]) -> None:
    pairs = Pairs(drawn)
    first, again, other = (pairs.batch(4, default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert first.captions == again.captions
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (4, 2, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert first.covered.shape == (4, 144)
    assert first.covered.amax(dim=1).gt(0.2).all()


def test_masks_are_augmented_like_their_images(drawn: list[Path]) -> None:
    """Both images of a pair differ more in covered patches than elsewhere."""
    batch = Pairs(drawn).batch(8, default_rng(3))
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
    towers = build_towers(BACKBONE, None, IMAGE_SIZE, quick_gelu=False)
    towers.visual.output_tokens = True
    torch.manual_seed(5)
    adapters = StageAdapters(len(LAYERS), 128, 128)
    batch, temperature = Pairs(drawn).batch(3, default_rng(5)), 20.0
    values = losses(towers, adapters, tokenizer_of(BACKBONE), batch, temperature)
    embedding, tokens = towers.visual(batch.images.flatten(0, 1))
    stages = encode_image(towers.visual, batch.images.flatten(0, 1), LAYERS).tokens
    images = normalize(embedding, dim=-1)
    read = [
        normalize(tokens @ towers.visual.proj, dim=-1),
        *(normalize(adapter(stages[stage]), dim=-1) for stage, adapter in zip(LAYERS, adapters.fc, strict=True)),
    ]
    sentences = normalize(towers.encode_text(tokenizer_of(BACKBONE)(batch.captions)), dim=-1)

    twins: list[Tensor] = []
    covered: list[Tensor] = []
    uncovered: list[Tensor] = []
    for pair in range(3):
        first, second = 2 * pair, 2 * pair + 1
        logits = temperature * images[first : second + 1] @ sentences[first : second + 1].T
        for one_way in (logits, logits.T):
            for state in (0, 1):
                log = one_way[state].log_softmax(dim=0)
                twins.append(-0.975 * log[state] - 0.025 * log[1 - state])
        for patches, state, patch in product(read, (0, 1), range(144)):
            part = float(batch.covered[pair, patch].clamp(0.02, 0.98)) if state else 0.02
            log = (temperature * patches[first + state, patch] @ sentences[first : second + 1].T).log_softmax(dim=0)
            (covered if part > 0.3 else uncovered).append(-(1 - part) * log[0] - part * log[1])
    assert values[1].item() == pytest.approx(torch.stack(twins).mean().item(), abs=0.02)
    expected = torch.stack(covered).mean() / 2 + torch.stack(uncovered).mean()
    assert values[2].item() == pytest.approx(expected.item(), abs=0.02)
