"""What is to be known of one class of transformers, and how its weights are renamed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["GENERIC", "OF_TEXT", "Family", "all_renamed", "packed", "renamed"]

Names = Mapping[str, str]  # regular expressions for the beginning of a key, and what takes its place

# Keys of every config.json that change no prediction.
GENERIC = frozenset({
    "_commit_hash", "_name_or_path", "attention_probs_dropout_prob", "dtype", "finetuning_task", "hidden_dropout_prob",
    "initializer_range", "label2id", "num_labels", "output_attentions", "output_hidden_states", "problem_type",
    "return_dict", "semantic_loss_ignore_index", "torch_dtype", "torchscript", "transformers_version",
    "use_return_dict",
})  # fmt: skip
# Of networks for text: transformers 4 wrote them into ``backbone_config`` with their defaults.
OF_TEXT = frozenset({
    "add_cross_attention", "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "id2label", "is_decoder", "is_encoder_decoder", "length_penalty", "max_length", "min_length",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_scores", "pad_token_id",
    "prefix", "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "sep_token_id",
    "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
    "tie_word_embeddings", "tokenizer_class", "top_k", "top_p", "typical_p", "use_bfloat16",
})  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A class of transformers in the words of mmsegmentation."""

    architecture: str  # the class, as ``architectures`` of config.json says
    carried: frozenset[str]  # keys of config.json that are carried out, or that the weights show
    only: Mapping[str, tuple[Any, ...]]  # keys that are supported with some values
    harmless: frozenset[str]  # further keys that change no prediction
    model: Callable[[Mapping[str, Any]], dict[str, Any]]  # config.json to ``model`` of a configuration
    # Weights under mmsegmentation's keys, of those that the file has and of config.json.
    weights: Callable[[Mapping[str, Tensor], Mapping[str, Any]], dict[str, Tensor]]
    processors: frozenset[str]  # classes of preprocessor_config.json
    processor: Mapping[str, Any]  # their defaults; a key beyond the common ones, such as do_pad, is then carried out


def renamed(key: str, names: Names) -> str:
    """The first name that begins the key, replaced; a key without one stays, and will not fit."""
    for pattern, name in names.items():
        new, count = re.subn(rf"^{pattern}", name, key)
        if count:
            return new
    return key


def all_renamed(weights: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Weights under new keys.

    Raises:
        ValueError: two keys become one.
    """
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = rename(key)
        if name in found:
            raise ValueError(f"two of its keys mean {name}, one of them {key}")
        found[name] = value
    return found


def packed(weights: Mapping[str, Tensor], pattern: str, name: str) -> dict[str, Tensor]:
    """Weights with query, key and value packed into one projection, in this order.

    Args:
        pattern: of their keys; its last two groups are the part and ``weight`` or ``bias``.
        name: of the projection, an expansion of the match.
    """
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        match = re.fullmatch(pattern, key)
        if match is None:
            found[key] = value
        else:
            parts.setdefault(match.expand(name), {})[match.groups()[-2]] = value
    for key, own in parts.items():
        three = [own[name] for name in ("query", "key", "value") if name in own]
        # With one missing, or of another shape, the projection is told as missing.
        if len(three) == 3 and three[0].dim() and len({part.shape for part in three}) == 1:
            found[key] = torch.cat(three)
    return found
