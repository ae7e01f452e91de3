"""The parameter table: what each tensor-parallel rank owns, and which modules take LoRA adapters."""

import random
from collections.abc import Sequence
from dataclasses import fields, replace

from support.cuda_rig import FAMILIES

from semipd.network.blocks import DenseMlp, GqaAttention
from semipd.network.config import ModelConfig
from semipd.network.params import Param, layer_params, model_params


def random_config(rng: random.Random, world: int) -> ModelConfig:
    num_kv_heads = world * rng.randint(1, 2)
    return replace(
        rng.choice(list(FAMILIES.values())),
        vocab_size=world * rng.randint(1, 9),
        num_kv_heads=num_kv_heads,
        num_heads=num_kv_heads * rng.randint(1, 3),
        head_dim=2 * rng.randint(1, 4),
        intermediate_size=world * rng.randint(1, 5),
        interleaved_rope=rng.random() < 0.5,
    )


def cells(params: Sequence[Param]) -> list[tuple[str, str, int, int]]:
    """(parameter, tensor, row, column) of every element that is read; vectors have one column."""
    found = []
    for param in params:
        for source in param.sources:
            columns = source.columns or range(source.shape[-1] if len(source.shape) > 1 else 1)
            found += [(param.name, source.tensor, row, at) for row in source.rows for at in columns]
    return found


def test_ranks_divide_what_is_divided_and_share_the_rest() -> None:
    rng = random.Random(0)
    for seed in range(60):
        world = rng.choice([1, 2, 4])
        params = list(model_params(random_config(rng, world), packed=rng.random() < 0.5))
        ranks = [[param.of_rank(rank, world) for param in params] for rank in range(world)]
        divided = [[param for param in rank if param.shard_axis] for rank in ranks]
        parts = [cell for rank in divided for cell in cells(rank)]
        assert sorted(parts) == sorted(cells([p for p in params if p.shard_axis])), seed
        assert all(rank[i] == p for rank in ranks for i, p in enumerate(params) if p.shard_axis is None), seed


def test_a_rank_has_the_shapes_of_a_model_with_fewer_heads() -> None:
    rng = random.Random(1)
    for seed in range(60):
        world = rng.choice([2, 4])
        config = random_config(rng, world)
        smaller = replace(
            config,
            vocab_size=config.vocab_size // world,
            num_heads=config.num_heads // world,
            num_kv_heads=config.num_kv_heads // world,
            intermediate_size=config.intermediate_size // world,
        )
        mine = [param.of_rank(world - 1, world) for param in model_params(config)]
        assert [(p.name, p.shape) for p in mine] == [(p.name, p.shape) for p in model_params(smaller)], seed


def test_blocks_have_a_field_for_every_parameter_of_a_layer() -> None:
    config = replace(FAMILIES["biased"], qkv_bias=True, qk_norm=True)
    used = [field.name for block in (GqaAttention, DenseMlp) for field in fields(block)]
    assert sorted(used) == sorted(param.name for param in layer_params(config))


def test_adapters_may_change_every_product_of_a_layer() -> None:
    targets = {s.tensor for p in layer_params(FAMILIES["biased"]) if p.lora for s in p.sources}
    names = {target.removesuffix(".weight").rpartition(".")[2] for target in targets}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
