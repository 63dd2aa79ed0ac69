"""Greedy generation: the same as each prompt alone, and where it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import LENGTH_READERS, load_toy, save_toy
from conftest import MakeModel

from gradsift.encoding.encoder import Encoder, EncodingConfig
from gradsift.evaluation.answering import Answerer
from gradsift.evaluation.batches import BatchSize
from gradsift.evaluation.fitting import Fitted
from gradsift.evaluation.generation import FIRST_ROUND, Writer, end_marks, left_padded, writing_sides

NUM_NEW = 3 * FIRST_ROUND
TEXTS = ["Hi.", "Once upon a time there was a little girl named Lily.", "What is the capital of France?", "", "One day"]


@pytest.fixture
def model(make_lora_model: MakeModel) -> Any:
    return make_lora_model().eval()


@pytest.fixture
def prompts(tiny_encoder: Encoder) -> list[Fitted]:
    texts = [f"<|user|>\n{text}\n<|assistant|>\n" for text in TEXTS]
    return [Fitted(text, tiny_encoder.tokenizer(text)["input_ids"], 0, 0, cut=False) for text in texts]


def greedy_alone(model: Any, ids: list[int], num_new: int) -> list[int]:
    """One token after another from the logits of the whole row, without cache, padding or batch."""
    ids = list(ids)
    for _ in range(num_new):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-num_new:]


def alone(model: Any, encoder: Encoder, prompt: Fitted) -> str:
    ids = greedy_alone(model, prompt.input_ids, NUM_NEW)
    end = encoder.tokenizer.eos_token_id
    ids = ids[: ids.index(end)] if end in ids else ids
    return str(encoder.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("batch_size", [1, 3, 16, "auto"])
def test_a_batch_writes_what_each_prompt_gives_alone(
    model: Any, tiny_encoder: Encoder, prompts: list[Fitted], batch_size: BatchSize
) -> None:
    answers = Answerer(model, tiny_encoder, batch_size).generate(prompts, NUM_NEW, None, lambda *_: None)
    assert [answer.text for answer in answers] == [alone(model, tiny_encoder, prompt) for prompt in prompts]
    assert [answer.fitted for answer in answers] == prompts


def other_model(kind: str, num_tokens: int) -> Any:
    """A random model of another kind than Llama: with learned positions, or with sliding windows."""
    from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig

    size: dict[str, Any] = {"vocab_size": num_tokens, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {
        "learned positions": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=512, **size),
        "sliding windows": MistralConfig(hidden_size=32, intermediate_size=64, sliding_window=8, **heads, **size),
    }[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", ["learned positions", "sliding windows"])
def test_a_batch_of_another_architecture_writes_what_each_prompt_gives_alone(
    kind: str, tiny_encoder: Encoder, prompts: list[Fitted]
) -> None:
    model = other_model(kind, len(tiny_encoder.tokenizer))
    answers = Writer(model, tiny_encoder, NUM_NEW, None).write(prompts)
    assert [answer.text for answer in answers] == [alone(model, tiny_encoder, prompt) for prompt in prompts]


@pytest.mark.parametrize("position", [2, FIRST_ROUND + 3])
def test_an_answer_ends_before_the_stop_text_and_the_others_go_on(
    model: Any, tiny_encoder: Encoder, prompts: list[Fitted], position: int
) -> None:
    whole = [alone(model, tiny_encoder, prompt) for prompt in prompts]
    stop = whole[1][position : position + 2]
    answers = Writer(model, tiny_encoder, NUM_NEW, stop).write(prompts)
    assert [answer.text for answer in answers] == [text.partition(stop)[0] for text in whole]
    assert len(answers[1].text) < len(whole[1])


def test_the_end_mark_ends_an_answer(model: Any, tiny_encoder: Encoder, prompts: list[Fitted]) -> None:
    written = greedy_alone(model, prompts[0].input_ids, 4)
    base = model.get_base_model()
    base.generation_config.eos_token_id = [tiny_encoder.tokenizer.eos_token_id, written[2]]
    answer = Writer(model, tiny_encoder, 4, None).write(prompts[:1])[0]
    expected = written[: written.index(written[2])]
    assert answer.text == tiny_encoder.tokenizer.decode(expected)


def test_sampling_defaults_of_the_model_are_put_aside_and_put_back(
    model: Any, tiny_encoder: Encoder, prompts: list[Fitted]
) -> None:
    expected = [answer.text for answer in Writer(model, tiny_encoder, 8, None).write(prompts)]
    base = model.get_base_model()
    base.generation_config.update(do_sample=True, temperature=5.0, top_k=3, repetition_penalty=1.7)
    before = base.generation_config
    found = [answer.text for answer in Writer(model, tiny_encoder, 8, None).write(prompts)]
    assert found == expected
    assert base.generation_config is before


def test_rows_are_padded_on_the_left() -> None:
    ids, mask = left_padded([[5, 6], [7]], pad_id=0)
    assert ids.tolist() == [[5, 6], [0, 7]]
    assert mask.tolist() == [[1, 1], [0, 1]]


def test_end_marks_are_tokens_where_they_can_be(model: Any, tiny_encoder: Encoder) -> None:
    assert end_marks(model.get_base_model(), tiny_encoder) == ([tiny_encoder.tokenizer.eos_token_id], None)


def test_an_end_mark_that_is_no_token_is_a_stop_text(model: Any, tiny_encoder: Encoder) -> None:
    encoder = Encoder(tiny_encoder.tokenizer, EncodingConfig(template="chatml", max_length=512))
    assert end_marks(model.get_base_model(), encoder)[1] == "<|im_end|>"


@pytest.mark.parametrize(
    "kind", [kind for kind, (_, settings) in LENGTH_READERS.items() if "max_position_embeddings" not in settings]
)
def test_company_does_not_change_an_answer_where_the_model_looks_at_the_batch(
    kind: str, tiny_encoder: Encoder, tmp_path: Path
) -> None:
    model = load_toy(save_toy(LENGTH_READERS[kind][0], tmp_path, LENGTH_READERS[kind][1]))
    prompts = [Fitted("", list(range(5, 5 + length)), 0, 0, cut=False) for length in (3, 8, 11, 12, 13, 30, 30)]

    def written(batch_size: BatchSize) -> list[str]:
        answerer = Answerer(model, tiny_encoder, batch_size)
        return [answer.text for answer in answerer.generate(prompts, 6, None, lambda *_: None)]

    assert written(16) == written(1)


def test_prompts_that_may_share_a_batch_stay_on_one_side_to_their_last_token(tmp_path: Path) -> None:
    model = load_toy(save_toy("phi3", tmp_path, LENGTH_READERS["longrope"][1]))

    assert writing_sides(model, [3, 6, 7, 20], max_new_tokens=6) == [0, 0, ("alone", 2), ("alone", 3)]


def test_only_prompts_of_one_length_share_a_batch_where_the_model_sees_padding(tmp_path: Path) -> None:
    assert writing_sides(load_toy(save_toy("rwkv", tmp_path / "rwkv")), [3, 6, 3], 4) == [3, 6, 3]
    assert writing_sides(load_toy(save_toy("llama", tmp_path / "llama")), [3, 6, 3], 4) == [0, 0, 0]


def test_a_padding_token_that_the_model_lacks_is_not_used(
    tiny_encoder: Encoder, prompts: list[Fitted], model: Any
) -> None:
    expected = [answer.text for answer in Writer(model, tiny_encoder, 8, None).write(prompts)]
    tiny_encoder.tokenizer.add_special_tokens({"pad_token": "<outside>"})

    assert tiny_encoder.tokenizer.pad_token_id == model.get_input_embeddings().num_embeddings
    assert [answer.text for answer in Writer(model, tiny_encoder, 8, None).write(prompts)] == expected
