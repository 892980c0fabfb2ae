"""The tokenizer of a model: loaded with it, or trained on the data for a model that has none.

A trained one is byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909; Radford et al. 2019): every text can be written
in it, and nothing is unknown. It is kept in the cache under the digest of the texts it was trained on.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from harness import notes
from harness.catalogue import hub
from harness.errors import ModelError
from harness.models.model import Model
from harness.storage import cache_folder

SPECIAL = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
    "bos_token": "[CLS]", "eos_token": "[SEP]",
}  # fmt: skip
"""The first tokens of a trained vocabulary, by what they are for."""
_VERSION = "1"


def load(model: Model, texts: Callable[[], Iterable[str]] | None = None) -> Any:
    """The tokenizer of a model, or the one that `model.tokenizer` names.

    Args:
        model: whose.
        texts: what one is trained on, where `builtin:transformer` has none; called twice.

    Raises:
        ModelError: it cannot be loaded, or there is none and nothing to train it on.
        StorageError: the cache cannot be written.
    """
    if not model.is_own or model.tokenizer:
        where = "model.tokenizer" if model.tokenizer else "model.name"
        return _loaded(model.tokenizer or model.name, model.revision, where)
    if texts is None:
        fix = "name one: model.tokenizer=<a Hub id, a folder or a built-in>"
        raise ModelError(f"{model.name} has no tokenizer before one is trained", where="model.tokenizer", fix=fix)
    return _trained(texts, model.sizes.vocabulary, model.sizes.max_length)


def _loaded(name: str, revision: str | None, where: str) -> Any:
    from transformers import AutoTokenizer

    with hub.explained("tokenizer", name, where=where), hub.quiet_loading():
        folder = hub.resolve(name, revision, where)
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=False)
    if not tokenizer.is_fast:
        notes.note(f"the tokenizer of '{name}' exists in Python only: reading texts takes many times longer")
    return tokenizer


def _trained(texts: Callable[[], Iterable[str]], vocabulary: int, max_length: int) -> Any:
    from transformers import PreTrainedTokenizerFast

    digest = hashlib.sha256(f"{_VERSION} {vocabulary}".encode())
    for text in texts():
        digest.update(f"{len(text)} ".encode() + text.encode())
    folder = cache_folder() / "tokenizers" / digest.hexdigest()[:32]
    if not folder.is_dir():
        _keep(_train(texts(), vocabulary), folder)
    trained = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), model_input_names=["input_ids", "attention_mask"],
        model_max_length=max_length, **SPECIAL,
    )  # fmt: skip
    if (size := len(trained)) != vocabulary:
        many, few = "bytes and special tokens are so many", "the texts have no more pairs that occur twice"
        notes.note(f"a vocabulary of {size:,} tokens, not of {vocabulary:,}: {many if size > vocabulary else few}")
    return trained


def _train(texts: Iterable[str], vocabulary: int) -> Any:
    """At most so many tokens; fewer where the texts have no more pairs that occur twice."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys(SPECIAL.values()))
    trainer: Any = trainers.BpeTrainer(
        vocab_size=max(vocabulary, len(special) + 256), min_frequency=2, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    frame = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=frame
    )
    return tokenizer


def _keep(tokenizer: Any, folder: Path) -> None:
    """Write it whole, or not at all; another process may have been faster."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    tokenizer.save(str(made / "tokenizer.json"))
    try:
        made.rename(folder)
    except OSError:
        shutil.rmtree(made)
        if not folder.is_dir():
            raise
