"""A byte-level BPE tokenizer trained on the captions, whose tokens can be traced back to words."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch

# Captions are short: threads would cost more than they save, and warn when the loader's workers fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PAD = "[PAD]"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenBatch:
    """``ids`` [B, L]; ``mask`` [B, L] bool, True = valid; ``spans``: the characters of each valid token."""

    ids: torch.Tensor
    mask: torch.Tensor
    spans: list[list[tuple[int, int]]]

    def padded(self, length: int) -> TokenBatch:
        """As long as that, by tokens that are not valid."""
        more = max(0, length - self.ids.shape[1])
        ids, mask = (torch.nn.functional.pad(x, (0, more)) for x in (self.ids, self.mask))
        return TokenBatch(ids, mask, self.spans)

    def tokens_of(self, caption: int, start: int, end: int) -> list[int]:
        """The valid tokens of a caption that overlap its characters [start, end); none if cut off."""
        return [number for number, (a, b) in enumerate(self.spans[caption]) if a < end and b > start]


class CaptionTokenizer:
    """Lower-cased text to tokens. Bytes are the alphabet, so no text is unknown; there are no BOS and EOS."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.tokenizer.enable_truncation(max_tokens)
        self.tokenizer.enable_padding(pad_id=tokenizer.token_to_id(PAD), pad_token=PAD)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, max_tokens: int) -> CaptionTokenizer:
        """Learn the merges from captions; ``vocab_size`` bounds the vocabulary."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(captions, trainer)
        return cls(tokenizer, max_tokens)

    @classmethod
    def from_json(cls, text: str, max_tokens: int) -> CaptionTokenizer:
        return cls(Tokenizer.from_str(text), max_tokens)

    def to_json(self) -> str:
        return str(self.tokenizer.to_str())

    @property
    def vocab_size(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def __call__(self, captions: list[str]) -> TokenBatch:
        """Encode captions, padded to the longest of them and cut at ``max_tokens``."""
        encodings = self.tokenizer.encode_batch(captions)
        ids = torch.tensor([encoding.ids for encoding in encodings], dtype=torch.int64)
        mask = torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.bool)
        if any(encoding.overflowing for encoding in encodings):
            _say_cut(self.max_tokens)
        spans = [encoding.offsets[: sum(encoding.attention_mask)] for encoding in encodings]
        return TokenBatch(ids, mask, spans)

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids)).strip()


@functools.cache
def _say_cut(max_tokens: int) -> None:
    """Once per process."""
    _log.warning("warning: captions of more than %d tokens are cut", max_tokens)
