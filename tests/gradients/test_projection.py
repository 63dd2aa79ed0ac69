"""Projectors: naive twins, the statistics that they promise, and independence of batches, pieces and devices."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from gradsift.errors import ConfigError
from gradsift.gradients import projection
from gradsift.gradients.philox import philox, philox_in_integers
from gradsift.gradients.projection import PROJECTORS, ProjectionConfig, build_projector, philox_key, sketch_plan

SHAPES = {"layer.0.A": (3, 5), "layer.0.B": (7, 4), "layer.1.A": (3, 5), "layer.1.B": (1, 90)}
RANDOM_KINDS = sorted(PROJECTORS.keys() - {"identity"})

Blocks = Mapping[str, Tensor]


def random_blocks(num_rows: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(num_rows, *shape, generator=generator) for name, shape in SHAPES.items()}


def projected(kind: str, blocks_BOI: Blocks, dim: int = 16, seed: int = 0, shapes: Mapping = SHAPES) -> Tensor:
    projector = build_projector(ProjectionConfig(kind=kind, dim=dim, seed=seed), shapes)
    num_rows = len(next(iter(blocks_BOI.values())))
    features_BK = torch.zeros(num_rows, projector.dim)
    for name, block_BOI in blocks_BOI.items():
        projector.add(features_BK, block_BOI, name)
    return features_BK


def naive_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 in Python integers, as in the paper (Salmon et al., SC 2011)."""
    (x0, x1, x2, x3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(x0 * 0xD2E7470EE14C6C93, 1 << 64)
        high1, low1 = divmod(x2 * 0xCA5A826395121157, 1 << 64)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) % (1 << 64), (k1 + 0xBB67AE8584CAA73B) % (1 << 64)
    return [x0, x1, x2, x3]


def unsigned(words: Tensor) -> list[int]:
    return [word % (1 << 64) for word in words.tolist()]


def naive_sketch_matrix(parameter: str, size: int, dim: int) -> Tensor:
    """The dense [D, K] matrix that `sketch_plan` describes."""
    plan = sketch_plan(0, parameter, size, dim)
    matrix_DK = torch.zeros(size, dim)
    for coordinate in range(size):
        chunk, position = divmod(coordinate, dim)
        sign = plan.chunk_signs[chunk] * plan.position_signs[chunk // dim, position]
        matrix_DK[coordinate, (plan.shifts[chunk] + position) % dim] = sign
    return matrix_DK


def naive_rademacher_matrix(parameter: str, size: int, dim: int) -> Tensor:
    """The dense [D, K] matrix: a row's counters give W 32-bit words; column s·W + w is bit 31 - s of word w."""
    key = philox_key(0, parameter, "rademacher")
    num_counters = -(-dim // 256)
    matrix_DK = torch.zeros(size, dim)
    for row in range(size):
        counters = range(row * num_counters, (row + 1) * num_counters)
        wide = [word for counter in counters for word in naive_philox([counter, 0, 0, 0], [key, 0])]
        words = [half for word in wide for half in (word & 0xFFFFFFFF, word >> 32)]
        for column in range(dim):
            shift, index = divmod(column, len(words))
            bit = words[index] >> (31 - shift) & 1
            matrix_DK[row, column] = (1 - 2 * bit) / dim**0.5
    return matrix_DK


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("0 0 0 0", "0 0", "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
        (
            "ffffffffffffffff ffffffffffffffff ffffffffffffffff ffffffffffffffff",
            "ffffffffffffffff ffffffffffffffff",
            "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
        ),
    ],
)
def test_naive_philox_gives_the_known_answers_of_random123(counter: str, key: str, expected: str) -> None:
    words = naive_philox(*([int(word, 16) for word in text.split()] for text in (counter, key)))

    assert words == [int(word, 16) for word in expected.split()]


@pytest.mark.parametrize("start", [0, 1, (1 << 32) - 1, (1 << 63) - 4])
@pytest.mark.parametrize("key", [0, 1, (1 << 64) - 1, 0x299F31D0_A4093822])
def test_philox_equals_the_naive_one(key: int, start: int) -> None:
    words = philox(key, start, 3, torch.device("cpu"))

    expected = [word for counter in range(start, start + 3) for word in naive_philox([counter, 0, 0, 0], [key, 0])]
    assert unsigned(words) == expected


@pytest.mark.parametrize("start", [0, (1 << 32) - 1, (1 << 63) - 4])
@pytest.mark.parametrize("key", [0, (1 << 64) - 1, 0x299F31D0_A4093822])
def test_philox_of_other_devices_gives_the_same_bits(key: int, start: int) -> None:
    words = philox_in_integers(key, start, 3, torch.device("cpu"))

    assert torch.equal(words, philox(key, start, 3, torch.device("cpu")))


def test_keys_differ_by_seed_parameter_and_purpose() -> None:
    keys = {philox_key(seed, name, purpose) for seed in (0, 1) for name in ("A", "B") for purpose in ("x", "y")}

    assert len(keys) == 8


@pytest.mark.parametrize("kind", PROJECTORS)
def test_projection_is_the_sum_of_the_parameters_projections(kind: str) -> None:
    blocks = random_blocks(3)

    together = projected(kind, blocks)

    one_by_one = sum(projected(kind, {name: block}) for name, block in blocks.items())
    torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", PROJECTORS)
def test_projection_does_not_depend_on_the_order_of_the_parameters(kind: str) -> None:
    blocks = random_blocks(3)

    backwards = projected(kind, dict(reversed(blocks.items())))

    torch.testing.assert_close(projected(kind, blocks), backwards, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", PROJECTORS)
def test_projection_is_linear(kind: str) -> None:
    left, right = random_blocks(3, seed=1), random_blocks(3, seed=2)

    of_sum = projected(kind, {name: 2 * left[name] - 3 * right[name] for name in SHAPES})

    expected = 2 * projected(kind, left) - 3 * projected(kind, right)
    torch.testing.assert_close(of_sum, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", PROJECTORS)
def test_a_row_does_not_depend_on_its_batch(kind: str) -> None:
    blocks = random_blocks(5)

    alone = projected(kind, {name: block[3:4] for name, block in blocks.items()})

    torch.testing.assert_close(projected(kind, blocks)[3:4], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", PROJECTORS)
def test_projection_adds_to_what_is_there(kind: str) -> None:
    blocks = random_blocks(2)
    expected = projected(kind, blocks)
    features_BK = torch.ones_like(expected)
    projector = build_projector(ProjectionConfig(kind=kind, dim=16), SHAPES)

    for name, block_BOI in blocks.items():
        projector.add(features_BK, block_BOI, name)

    torch.testing.assert_close(features_BK, expected + 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", PROJECTORS)
def test_projection_leaves_the_block_as_it_was(kind: str) -> None:
    block = random_blocks(2)["layer.1.B"]
    before = block.clone()

    projected(kind, {"layer.1.B": block})

    assert torch.equal(block, before)


@pytest.mark.parametrize("kind", PROJECTORS)
def test_the_same_block_of_another_parameter_is_projected_differently(kind: str) -> None:
    block = random_blocks(2)["layer.0.A"]

    first, second = projected(kind, {"layer.0.A": block}), projected(kind, {"layer.1.A": block})

    assert not torch.allclose(first, second)


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_projection_differs_for_another_seed(kind: str) -> None:
    blocks = random_blocks(2)

    assert not torch.allclose(projected(kind, blocks, seed=0), projected(kind, blocks, seed=1))


@pytest.mark.parametrize("kind", PROJECTORS)
def test_projection_is_the_same_when_built_again(kind: str) -> None:
    blocks = random_blocks(2)

    assert torch.equal(projected(kind, blocks), projected(kind, blocks))


@pytest.mark.parametrize(
    ("size", "dim"),
    [(3, 8), (8, 8), (9, 8), (60, 8), (64, 8), (65, 8), (100, 4), (203, 3), (7, 1)],
    ids=lambda number: str(number),
)
def test_sketch_equals_the_dense_matrix_of_its_plan(size: int, dim: int) -> None:
    block = torch.randn(2, 1, size, generator=torch.Generator().manual_seed(0))

    features_BK = projected("sketch", {"A": block}, dim=dim, shapes={"A": (1, size)})

    expected = block.flatten(1) @ naive_sketch_matrix("A", size, dim)
    torch.testing.assert_close(features_BK, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [64, 80, 203])
def test_sketch_of_devices_with_costly_calls_is_the_same(size: int) -> None:
    block_BD = torch.randn(2, size, generator=torch.Generator().manual_seed(0))
    expected = projected("sketch", {"A": block_BD[:, None]}, dim=8, shapes={"A": (1, size)})
    found, plan = torch.zeros(2, 8), sketch_plan(0, "A", size, dim=8)

    projection._add_gathered(found, block_BD[:, :40], plan, first_chunk=0)
    projection._add_gathered(found, block_BD[:, 40:], plan, first_chunk=5)

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step", [1, 5, 16, 48, 100])
@pytest.mark.parametrize("kind", PROJECTORS)
def test_a_block_given_in_pieces_is_projected_as_a_whole_one(kind: str, step: int) -> None:
    block_BD, shapes = torch.randn(2, 203, generator=torch.Generator().manual_seed(0)), {"A": (7, 29)}
    projector = build_projector(ProjectionConfig(kind=kind, dim=16), shapes)
    features_BK = torch.zeros(2, projector.dim)

    for start in range(0, 203, step):
        projector.add(features_BK, block_BD[:, start : start + step], "A", start)

    expected = projected(kind, {"A": block_BD.view(2, 7, 29)}, shapes=shapes)
    torch.testing.assert_close(features_BK, expected, rtol=1e-5, atol=1e-5)
    assert kind == "rademacher" or torch.equal(features_BK, expected)


def naive_plan(size: int, dim: int, words: Tensor) -> tuple[Tensor, list[int], list[int]]:
    """Signs of all K positions, signs of chunks and shifts, from the words [rounds, K, 4] of `sketch_plan`."""
    num_chunks = -(-size // dim)
    shifts = words[..., 2].argsort(dim=1, stable=True).flatten()[:num_chunks]
    signs = 1 - 2 * (words[..., :2] & 1)
    return signs[..., 0], signs[..., 1].flatten()[:num_chunks].tolist(), shifts.tolist()


@pytest.mark.parametrize("with_ties", [False, True])
@pytest.mark.parametrize(("size", "dim"), [(3, 8), (9, 8), (60, 8), (65, 8), (203, 3), (3, 1), (1000, 4096)])
def test_a_plan_is_what_a_sort_of_all_words_gives(
    size: int, dim: int, with_ties: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if with_ties:
        monkeypatch.setattr(projection, "philox", lambda *drawn: philox(*drawn) % 4)
    num_rounds = -(-size // dim**2)
    words = projection.philox(philox_key(0, "A", "sketch"), 0, num_rounds * dim, torch.device("cpu"))
    position_signs, chunk_signs, shifts = naive_plan(size, dim, words.view(num_rounds, dim, 4))

    plan = sketch_plan(0, "A", size, dim)

    assert torch.equal(plan.position_signs, position_signs[:, :size])
    assert (list(plan.chunk_signs), list(plan.shifts)) == (chunk_signs, shifts)


def test_a_plan_takes_a_byte_for_each_position_that_exists() -> None:
    assert sketch_plan(0, "A", size=1000, dim=4096).position_signs.nbytes == 1000
    assert sketch_plan(0, "A", size=10_000, dim=4096).position_signs.nbytes == 4096


def test_sketch_shifts_of_one_round_are_distinct() -> None:
    plan = sketch_plan(0, "A", size=8 * 8 * 3, dim=8)

    assert [sorted(plan.shifts[start : start + 8]) for start in (0, 8, 16)] == [list(range(8))] * 3


def test_sketch_signs_of_rounds_differ_where_a_gradient_is_longer_than_dim_squared() -> None:
    plan = sketch_plan(0, "A", size=32 * 32 * 2, dim=32)

    assert not torch.equal(plan.position_signs[0], plan.position_signs[1])


@pytest.mark.parametrize("dim", [5, 128, 130])
def test_rademacher_equals_its_dense_matrix(dim: int) -> None:
    block = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))

    features_BK = projected("rademacher", {"A": block}, dim=dim, shapes={"A": (3, 4)})

    expected = block.flatten(1) @ naive_rademacher_matrix("A", 12, dim)
    torch.testing.assert_close(features_BK, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("floats", [1, 16 * 7, 16 * 1000])
def test_rademacher_does_not_depend_on_the_size_of_its_blocks(floats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = random_blocks(3)
    expected = projected("rademacher", blocks)

    monkeypatch.setattr(projection, "RADEMACHER_BLOCK_FLOATS", floats)

    torch.testing.assert_close(projected("rademacher", blocks), expected, rtol=1e-5, atol=1e-5)


def gradient_pairs() -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs of gradients [1, O, I] of several structures, not orthogonal to each other."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    wide = normal(8, 192)
    rank_one = torch.outer(normal(192), normal(8))
    one_row = torch.zeros(48, 32)
    one_row[5] = normal(32)
    pairs = {
        "dense and wide": (wide, wide + normal(8, 192)),
        "rank one": (rank_one, rank_one + torch.outer(normal(192), normal(8))),
        "the same rank one": (rank_one, rank_one),
        "constant": (torch.ones(32, 48), torch.ones(32, 48)),
        "one row of a matrix": (one_row, one_row + normal(48, 32) * 0.1),
        "longer than the square of K": (normal(40, 32), torch.ones(40, 32)),
    }
    return {name: (x_OI[None], y_OI[None]) for name, (x_OI, y_OI) in pairs.items()}


NUM_SEEDS = 400


@functools.cache
def product_errors(kind: str, pair: str, dim: int) -> Tensor:
    """Error of the inner product of two projected gradients, by seed, float64 [NUM_SEEDS]."""
    x_1OI, y_1OI = gradient_pairs()[pair]
    shapes = {"A": tuple(x_1OI.shape[1:])}
    both = {"A": torch.cat([x_1OI, y_1OI])}
    features = torch.stack([projected(kind, both, dim, seed, shapes) for seed in range(NUM_SEEDS)]).double()
    return (features[:, 0] * features[:, 1]).sum(dim=1) - (x_1OI.double() * y_1OI.double()).sum()


def theoretical_variance(pair: str, dim: int) -> float:
    """(|x|²|y|² + (x·y)²) / K."""
    x_D, y_D = (gradient_1OI.flatten().double() for gradient_1OI in gradient_pairs()[pair])
    return float(((x_D @ x_D) * (y_D @ y_D) + (x_D @ y_D) ** 2) / dim)


@pytest.mark.parametrize("pair", gradient_pairs())
@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_inner_products_are_unbiased(kind: str, pair: str) -> None:
    errors = product_errors(kind, pair, 32)

    deviation_of_mean = (theoretical_variance(pair, dim=32) / NUM_SEEDS) ** 0.5
    assert abs(float(errors.mean())) < 4 * deviation_of_mean


@pytest.mark.parametrize("pair", gradient_pairs())
@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_inner_products_have_a_variance_of_at_most_one_over_k(kind: str, pair: str) -> None:
    errors = product_errors(kind, pair, 32)

    # 400 draws of a variable with the tails of chi-square with few degrees of freedom: 30 % is four deviations.
    assert float(errors.square().mean()) < 1.3 * theoretical_variance(pair, dim=31)


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_variance_of_inner_products_falls_as_one_over_k(kind: str) -> None:
    small, large = (float(product_errors(kind, "dense and wide", dim).square().mean()) * dim for dim in (16, 64))

    assert 0.6 < large / small < 1.6


def test_identity_is_the_concatenation_in_the_order_of_the_shapes() -> None:
    blocks = random_blocks(2)

    features_BK = projected("identity", dict(reversed(blocks.items())))

    assert torch.equal(features_BK, torch.cat([blocks[name].flatten(1) for name in SHAPES], dim=1))


def test_a_model_without_lora_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match="no LoRA parameter"):
        build_projector(ProjectionConfig(), {})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("kind", PROJECTORS)
def test_projection_on_a_gpu_equals_the_one_on_the_cpu(kind: str) -> None:
    blocks = random_blocks(3)
    projector = build_projector(ProjectionConfig(kind=kind, dim=16), SHAPES)
    features_BK = torch.zeros(3, projector.dim, device="cuda")

    for name, block_BOI in blocks.items():
        projector.add(features_BK, block_BOI.cuda(), name)

    torch.testing.assert_close(features_BK.cpu(), projected(kind, blocks), rtol=1e-5, atol=1e-5)
