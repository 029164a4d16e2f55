"""Make the demo checkpoint in this folder: run `python reference/demo/train.py` after changing it or the corpus.

    sentencepiece.bpe.model   trained on every line of corpus/*.txt
    vocab.txt                 [CLS] [PAD] [SEP] [UNK], the model's pieces, [MASK]: token id = sentencepiece id + 1
    config.json, model.safetensors   a small ErnieMModel with random weights from SEED, rounded to float16

The weights are not trained. They are drawn wider than ERNIE-M's (0.15 instead of 0.02): with small weights the residual
path dominates, and [CLS], which starts out the same in all sentences, also ends up the same (cosines of 1.00 instead
of 0.86 to 0.98).

The pieces come from byte-pair encoding. On so small a corpus, the unigram trainer splits most words of languages
without spaces into single characters; and merging by counts does not depend on a machine's floating point. The same
corpus and package versions produce the same files, byte for byte.

Source: the layout of `vocab.txt` is ERNIE-M's own, as read by transformers 4.40.2, `tokenization_ernie_m.py`.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import sentencepiece

from ernie_m.reference import ErnieMConfig, ErnieMModel
from ernie_m.tokenizer.files import replacing

HERE = Path(__file__).resolve().parent
PIECES = 4200
SEED = 2021


def read_corpus() -> list[str]:
    """Every sentence of every language, in the order of the language codes."""
    return [line for path in sorted((HERE / "corpus").glob("*.txt")) for line in path.read_text("utf-8").splitlines()]


def train_tokenizer(sentences: list[str], pieces: int = PIECES) -> bytes:
    """The file content of a sentencepiece model with `pieces` pieces, including `<unk>`, `<s>` and `</s>`."""
    model = io.BytesIO()
    # An iterator and a writer, because the trainer would store file names in the model.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def vocabulary(model: bytes) -> list[str]:
    """The lines of `vocab.txt` for a sentencepiece model."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(processor.get_piece_size())
    pieces = [processor.id_to_piece(i) for i in ids if not processor.is_control(i) and not processor.is_unknown(i)]
    return ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *pieces, "[MASK]"]


def configuration(vocab_size: int) -> ErnieMConfig:
    """A model small enough to ship: four layers of four heads, at most 128 tokens."""
    return ErnieMConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=130,
        initializer_range=0.15,
    )


def main() -> None:
    """Write the four files and print their sizes. Exits with a message if the corpus is missing."""
    if not (HERE / "corpus").is_dir():
        sys.exit(f"{HERE / 'corpus'}: no such folder; the corpus is only in a checkout, not in the installed package")
    model = train_tokenizer(read_corpus())
    vocab = vocabulary(model)
    with replacing(HERE / "sentencepiece.bpe.model", HERE / "vocab.txt") as (model_file, vocab_file):
        model_file.write(model)
        vocab_file.write("".join(f"{token}\n" for token in vocab).encode("utf-8"))
    ErnieMModel.from_config(configuration(len(vocab)), seed=SEED, dtype="float16").save_pretrained(HERE, overwrite=True)
    for name in ("sentencepiece.bpe.model", "vocab.txt", "config.json", "model.safetensors"):
        print(f"{name:24} {(HERE / name).stat().st_size:8,} bytes")


if __name__ == "__main__":
    main()
