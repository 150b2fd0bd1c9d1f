"""A Qwen3 of 1.9 million parameters: its tokenizer and chat template, weights before training, and files."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from grammar import Sentence
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

TOKENS = 960
WIDTH = 192
LAYERS = 4
HEADS, KEY_VALUE_HEADS = 4, 2
HEAD_WIDTH = 64  # inference engines have kernels for heads of 64, but not for WIDTH / HEADS = 48
FEED_FORWARD = 512
MAX_POSITIONS = 1024
IGNORED = -100
# How often the tokenizer sees a sentence and an instruction: a prompt holds many of the first, one of the second.
SENTENCE_WEIGHT = 4
INSTRUCTION_WEIGHT = 100

PAD = "<|endoftext|>"
START = "<|im_start|>"
END = "<|im_end|>"

# ChatML. What stands between `generation` and `endgeneration` is what the assistant has to learn.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}"
    "{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Words that instructions are made of: text for the tokenizer only, so that prompts are short.
INSTRUCTIONS = [
    "Given the following 5 candidate transcriptions from a speech recogniser, generate the most accurate and "
    "coherent transcription:",
    "Given the following 10 candidate transcriptions from a neural speech decoder, generate the most accurate and "
    "coherent transcription:",
    "Return the intent of the sentence as JSON with scenario, action and entities.",
    "Answer the question with a word from the text.",
    "Which of the following is the correct answer?",
    "You are a helpful assistant.",
    "system\nuser\nassistant\n",
]


def annotation_json(sentence: Sentence) -> str:
    """A sentence's scenario, action and entities as one line of JSON."""
    entities = [{"type": entity.kind, "filler": entity.filler} for entity in sentence.entities]
    return json.dumps({"scenario": sentence.scenario, "action": sentence.action, "entities": entities})


def build_tokenizer(sentences: Sequence[Sentence], instructions: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train byte-level byte-pair units, each digit one of its own, on sentences, their JSON and instructions."""
    texts = [text for s in sentences for text in (s.text, *[f" {s.text}"] * SENTENCE_WEIGHT)]
    texts += map(annotation_json, sentences[::2])
    texts += [*INSTRUCTIONS, *instructions] * INSTRUCTION_WEIGHT
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Make the untrained model."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        head_dim=HEAD_WIDTH,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def prompt_text(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """A user's message, and the opening of the assistant's answer."""
    message = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)


def encode(tokenizer: PreTrainedTokenizerFast, prompt: str | None, answer: str) -> tuple[list[int], list[int]]:
    """Token ids and labels of an exchange; without a prompt the answer is plain text.

    Only the answer and its end token are labelled.
    """
    asked = [] if prompt is None else tokenizer(prompt_text(tokenizer, prompt)).input_ids
    answered = tokenizer(answer + END).input_ids
    return asked + answered, [IGNORED] * len(asked) + answered


def stack(examples: Sequence[tuple[list[int], list[int]]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and labels of a batch, filled up on the right."""
    length = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([ids + [pad_id] * (length - len(ids)) for ids, _ in examples])
    labels = torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in examples])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in examples])
    return ids, mask, labels


@torch.no_grad()
def answer(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    batch: int = 50,
) -> list[str]:
    """The model's greedy answer to each prompt."""
    texts = [prompt_text(tokenizer, prompt) for prompt in prompts]
    answers = []
    for start in range(0, len(texts), batch):
        inputs = tokenizer(texts[start : start + batch], return_tensors="pt", padding=True)
        found = model.generate(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=max_new_tokens
        )
        answers += tokenizer.batch_decode(found[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return answers


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the checkpoint: fp16 weights, and a config that asks for float32 so that it trains anywhere."""
    half = copy.deepcopy(model).half()
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _edit_json(folder / "config.json", {"dtype": "float32"})
    _edit_json(folder / "generation_config.json", {})
    # The name that releases of the library before and after its version 5 both know.
    _edit_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    for path in folder.iterdir():
        path.chmod(0o644)


def _edit_json(path: Path, changes: dict[str, object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    content.pop("_from_model_config", None)  # true would make the library build a new one and lose ours
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Read a checkpoint back, in evaluation mode."""
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(folder)
