"""Make the demo checkpoint in this folder: run `python reference/demo/train.py` after a change to it or the corpus.

    sentencepiece.bpe.model   trained on every line of corpus/*.txt
    vocab.txt                 [CLS] [PAD] [SEP] [UNK], the model's pieces, [MASK]: token id = sentencepiece id + 1
    config.json, model.safetensors   a small ErnieMModel with random weights by SEED, rounded to float16

The weights are not trained. They are drawn wider than ERNIE-M's (0.15 instead of 0.02): with small ones the residual
path wins, and [CLS], which starts alike in all sentences, ends alike too (cosines of 1.00 instead of 0.86 to 0.98).

The pieces come from byte-pair encoding: on so small a corpus the unigram trainer leaves most words of languages without
spaces in single characters, and merges by counts do not depend on a machine's floating point. The same corpus and
versions give the same files, byte for byte.

Source: the layout of `vocab.txt` is that of ERNIE-M's own, as transformers 4.40.2, `tokenization_ernie_m.py`, reads it.
"""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece

from ernie_m.reference import ErnieMConfig, ErnieMModel

HERE = Path(__file__).resolve().parent
PIECES = 4200
SEED = 2021


def read_corpus() -> list[str]:
    """Every sentence of every language, ordered by language code."""
    return [line for path in sorted((HERE / "corpus").glob("*.txt")) for line in path.read_text("utf-8").splitlines()]


def train_tokenizer(sentences: list[str], pieces: int = PIECES) -> bytes:
    """A sentencepiece model with `pieces` pieces (`<unk>`, `<s>`, `</s>` among them), as the content of its file."""
    model = io.BytesIO()
    # An iterator and a writer instead of file names, which the trainer would store in the model.
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
    """A model small enough to ship: four layers of four heads, 128 tokens at most."""
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
    """Write the four files and say how large they are."""
    model = train_tokenizer(read_corpus())
    vocab = vocabulary(model)
    (HERE / "sentencepiece.bpe.model").write_bytes(model)
    (HERE / "vocab.txt").write_bytes("".join(f"{token}\n" for token in vocab).encode("utf-8"))
    ErnieMModel.from_config(configuration(len(vocab)), seed=SEED, dtype="float16").save_pretrained(HERE, overwrite=True)
    for name in ("sentencepiece.bpe.model", "vocab.txt", "config.json", "model.safetensors"):
        print(f"{name:24} {(HERE / name).stat().st_size:8,} bytes")


if __name__ == "__main__":
    main()
