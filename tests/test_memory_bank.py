# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Memory banks: distances to the nearest reference token, and saving."""

import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from torch.utils._python_dispatch import TorchDispatchMode

from anomalib_aprilgan.method.memory_bank import MemoryBank, nearest_distances


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled_bank(references: torch.Tensor) -> MemoryBank:
    bank = MemoryBank(references.shape[-1])
    bank.add(references)
    return bank


def test_distances_equal_the_authors():
    """The authors compute 1 - cosine similarity with scikit-learn and take the minimum over the references."""
    queries, references = random_tokens(2, 5, 6), random_tokens(3, 4, 6, seed=1)
    found = filled_bank(references)(queries)
    assert found.shape == (2, 5)
    for image in range(2):
        similarity = cosine_similarity(references.flatten(0, 1).numpy(), queries[image].numpy())
        torch.testing.assert_close(found[image], torch.from_numpy((1 - similarity).min(axis=0)))


def test_equal_tokens_have_distance_zero():
    tokens = random_tokens(2, 5, 6)
    found = filled_bank(tokens)(tokens)
    assert found.min() >= 0
    assert found.max() < 1e-6


def test_opposite_directions_have_distance_two():
    tokens = random_tokens(1, 1, 6)
    torch.testing.assert_close(filled_bank(tokens)(-tokens), torch.tensor([[2.0]]))


def test_distances_do_not_depend_on_the_norm_of_tokens():
    queries, references = random_tokens(1, 5, 6), random_tokens(1, 4, 6, seed=1)
    found = filled_bank(references * torch.tensor([0.01, 1, 7, 100])[:, None])(20 * queries)
    torch.testing.assert_close(found, filled_bank(references)(queries))


def test_distances_do_not_depend_on_the_order_of_references():
    queries, references = random_tokens(2, 5, 6), random_tokens(3, 4, 6, seed=1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    permuted = references.flatten(0, 1)[order].reshape(3, 4, 6)
    torch.testing.assert_close(filled_bank(permuted)(queries), filled_bank(references)(queries), atol=1e-6, rtol=0)


@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
def test_distances_do_not_depend_on_the_chunk_size(monkeypatch, chunk):
    queries, references = random_tokens(2, 20, 6), random_tokens(3, 4, 6, seed=1)
    expected = filled_bank(references)(queries)
    monkeypatch.setattr("anomalib_aprilgan.method.memory_bank.CHUNK", chunk)
    torch.testing.assert_close(filled_bank(references)(queries), expected, atol=1e-6, rtol=0)


class NewTensors(TorchDispatchMode):
    """Records the size in bytes of each tensor that an operation creates; views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.sizes.append(result.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize(("images", "patches"), [(1, 1000), (100, 20), (7, 33)], ids=["large", "many", "odd"])
@pytest.mark.parametrize("references", [40, 5000])
def test_memory_is_bounded_whatever_the_size_of_batch_images_and_bank(monkeypatch, images, patches, references):
    block, chunk, width = 64, 128, 6
    queries, bank = random_tokens(images, patches, width), filled_bank(random_tokens(1, references, width)).tokens
    expected = nearest_distances(queries, bank)
    monkeypatch.setattr("anomalib_aprilgan.method.memory_bank.BLOCK", block)
    monkeypatch.setattr("anomalib_aprilgan.method.memory_bank.CHUNK", chunk)
    with NewTensors() as created:
        found = nearest_distances(queries, bank)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    result = 4 * images * patches
    assert max(size for size in created.sizes if size != result) <= 4 * block * chunk
    assert created.sizes.count(result) <= 2, "the result, and that of its only row of blocks"


def test_tokens_may_be_added_in_several_steps():
    references = random_tokens(5, 4, 6)
    bank = filled_bank(references[:3])
    bank.add(references[3:])
    assert torch.equal(bank.tokens, filled_bank(references).tokens)


def test_a_cleared_bank_is_empty():
    bank = filled_bank(random_tokens(3, 4, 6))
    bank.clear()
    assert len(bank) == 0


@pytest.mark.parametrize("size_before", [0, 1, 5], ids=["empty", "smaller", "larger"])
@pytest.mark.parametrize("size", [0, 3], ids=["from empty", "from filled"])
def test_a_state_dict_with_another_number_of_tokens_is_loaded(tmp_path, size_before, size):
    saved = filled_bank(random_tokens(size, 4, 6)) if size else MemoryBank(6)
    torch.save(torch.nn.Sequential(saved).state_dict(), tmp_path / "bank.pt")
    restored = filled_bank(random_tokens(size_before, 4, 6, seed=1)) if size_before else MemoryBank(6)
    torch.nn.Sequential(restored).load_state_dict(torch.load(tmp_path / "bank.pt", weights_only=True))
    assert len(restored) == 4 * size
    assert torch.equal(restored.tokens, saved.tokens)
    if size:
        assert torch.equal(restored(random_tokens(1, 5, 6)), saved(random_tokens(1, 5, 6)))


def test_a_state_dict_of_another_width_is_refused():
    bank = filled_bank(random_tokens(2, 4, 6))
    with pytest.raises(RuntimeError, match="tokens"):
        bank.load_state_dict(filled_bank(random_tokens(2, 4, 7)).state_dict())
    assert bank.tokens.shape == (8, 6)


def test_an_empty_bank_is_refused():
    bank = MemoryBank(6)
    assert len(bank) == 0
    with pytest.raises(RuntimeError, match="reference images"):
        bank(random_tokens(1, 5, 6))


def test_inputs_are_not_modified():
    queries, references = random_tokens(1, 5, 6), random_tokens(2, 4, 6, seed=1)
    copies = queries.clone(), references.clone()
    filled_bank(references)(queries)
    assert torch.equal(queries, copies[0])
    assert torch.equal(references, copies[1])
