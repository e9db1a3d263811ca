"""Tiny real tokenizers and text encoders in place of the Hub files that diffusers' own tests ask for.

The texts are read letter by letter; sizes are those that diffusers' dummy components expect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import transformers
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    GemmaTokenizer,
    LlamaTokenizer,
    Qwen2Tokenizer,
    RobertaTokenizer,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
    XLMRobertaTokenizer,
)

from tests.seams.parts import LETTERS, clip_tokenizer, draw, t5_tokenizer

__all__ = ["AbsentFile", "standing_in"]

CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


class AbsentFile(OSError):
    """A file of the Hub for which there is no stand-in."""


def _clip() -> Any:
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = 77
    return tokenizer


def _t5_config() -> T5Config:
    return T5Config(d_model=32, d_ff=37, d_kv=8, num_heads=4, num_layers=2, vocab_size=1103)


def _t5_tokenizer() -> Any:
    tokenizer = t5_tokenizer()
    tokenizer.model_max_length = 512
    return tokenizer


def _umt5() -> Any:
    return draw(
        UMT5EncoderModel,
        config=UMT5Config(d_model=32, d_ff=37, d_kv=8, num_heads=4, num_layers=2, vocab_size=1103),
    )


def _bytes() -> dict[str, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: i for i, letter in enumerate(bytes_to_unicode().values())}


def _qwen() -> Any:
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    tokenizer = Qwen2Tokenizer(vocab=_bytes(), merges=[], additional_special_tokens=special)
    tokenizer.chat_template = CHAT
    return tokenizer


def _gemma() -> Any:
    pieces = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "▁",
        "a",
        "e",
        "o",
    ]  # Sana's dummy encoder knows eight tokens
    tokenizer = GemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    tokenizer.chat_template = CHAT
    return tokenizer


def _llama() -> Any:
    pieces = ["<unk>", "<s>", "</s>", "▁", *LETTERS]
    tokenizer = LlamaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    tokenizer.pad_token = "</s>"
    tokenizer.model_max_length = 128
    return tokenizer


def _bert_tokenizer() -> Any:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=77)


def _bert() -> Any:
    config = BertConfig(
        vocab_size=1124, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37
    )
    return draw(BertModel, config=config)


def _roberta() -> Any:
    special = {"<s>": 256, "<pad>": 257, "</s>": 258, "<unk>": 259, "<mask>": 260}
    return RobertaTokenizer(vocab=_bytes() | special, merges=[], model_max_length=77)


def _xlm_roberta() -> Any:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS, "<mask>"]
    return XLMRobertaTokenizer(vocab=[(piece, 0.0) for piece in pieces], model_max_length=77)


STAND_INS: dict[tuple[str, str], Callable[[], Any]] = {
    ("CLIPTokenizer", "tiny-random-clip"): _clip,
    ("AutoTokenizer", "tiny-random-t5"): _t5_tokenizer,
    ("T5Tokenizer", "tiny-random-t5"): _t5_tokenizer,
    ("T5Tokenizer", "tiny-random-T5Model"): _t5_tokenizer,
    ("AutoConfig", "tiny-random-t5"): _t5_config,
    ("T5EncoderModel", "tiny-random-t5"): lambda: draw(T5EncoderModel, config=_t5_config()),
    ("UMT5EncoderModel", "tiny-random-umt5"): _umt5,
    ("Qwen2Tokenizer", "tiny-random-Qwen2VLForConditionalGeneration"): _qwen,
    ("AutoTokenizer", "tiny-random-Qwen2VLForConditionalGeneration"): _qwen,
    ("GemmaTokenizer", "dummy-gemma"): _gemma,
    ("AutoTokenizer", "dummy-gemma"): _gemma,
    ("LlamaTokenizer", "dummy-hunyaunvideo"): _llama,
    ("BertModel", "tiny-random-BertModel"): _bert,
    ("AutoTokenizer", "tiny-random-BertModel"): _bert_tokenizer,
    ("RobertaTokenizer", "tiny-random-roberta"): _roberta,
    ("XLMRobertaTokenizer", "tiny-random-mclip-base"): _xlm_roberta,
}
"""By class and by the last part of the name on the Hub."""

CLASSES = (
    *("AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer", "BertModel", "BertTokenizer"),
    *("CLIPTokenizer", "ChatGLMTokenizer", "ClapTextModelWithProjection", "GemmaTokenizer", "GPT2Tokenizer"),
    *("LlamaForCausalLM", "LlamaTokenizer", "Qwen2Tokenizer", "Qwen2VLProcessor", "Qwen3VLProcessor"),
    *("RobertaTokenizer", "SiglipVisionModel", "SiglipImageProcessor", "T5EncoderModel", "T5Tokenizer"),
    *("UMT5EncoderModel", "XLMRobertaTokenizer", "AutoModelForCausalLM", "Qwen2_5_VLProcessor"),
)


@contextmanager
def standing_in() -> Iterator[None]:
    """Within the block `from_pretrained` of the text classes gives stand-ins; without one it raises `AbsentFile`."""
    found = {}
    for name in CLASSES:
        cls = getattr(transformers, name, None)
        if cls is not None and hasattr(cls, "from_pretrained"):
            found[id(cls)] = (cls.__name__ if name not in ("AutoConfig",) else name, cls)

    def give(name: str) -> classmethod[Any, ..., Any]:
        def from_pretrained(cls: type, path: Any, *_: Any, **__: Any) -> Any:
            tail = str(path).rsplit("/", 1)[-1]
            made = STAND_INS.get((name, tail))
            if made is None:
                raise AbsentFile(f"{name} of {path}")
            return made()

        return classmethod(from_pretrained)

    from contextlib import ExitStack

    with ExitStack() as stack:
        for name, cls in found.values():
            stack.enter_context(patch.object(cls, "from_pretrained", give(name)))
        yield
