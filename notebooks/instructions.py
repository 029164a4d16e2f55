"""Instructions in eight languages, whose verbs and nouns are known, as input of the model. Used by the notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ernie_m.reference.array import Array
from ernie_m.reference.objectives import Vocabulary, camlm, collate
from ernie_m.reference.tasks import AlignedPair
from ernie_m.tokenizer import ErnieMTokenizer

# Translations stand in the same place in every language. A noun takes the place of %, with its article.
VERBS = {
    "en": "Delete %.|Save %.|Open %.|Close %.|Copy %.|Print %.|Select %.",
    "de": "Löschen Sie %.|Speichern Sie %.|Öffnen Sie %.|Schließen Sie %.|Kopieren Sie %.|Drucken Sie %.|Wählen Sie %.",
    "fr": "Supprimez %.|Enregistrez %.|Ouvrez %.|Fermez %.|Copiez %.|Imprimez %.|Sélectionnez %.",
    "es": "Elimine %.|Guarde %.|Abra %.|Cierre %.|Copie %.|Imprima %.|Seleccione %.",
    "ru": "Удалите %.|Сохраните %.|Откройте %.|Закройте %.|Скопируйте %.|Напечатайте %.|Выберите %.",
    "el": "Διαγράψτε %.|Αποθηκεύστε %.|Ανοίξτε %.|Κλείστε %.|Αντιγράψτε %.|Εκτυπώστε %.|Επιλέξτε %.",
    "zh": "删除%。|保存%。|打开%。|关闭%。|复制%。|打印%。|选择%。",
    "ja": "%を削除してください。|%を保存してください。|%を開いてください。|%を閉じてください。|%をコピーしてください。|"
    "%を印刷してください。|%を選択してください。",
}
NOUNS = {
    "en": "the file|the table|the page|the link|the document|the window|the folder|the text",
    "de": "die Datei|die Tabelle|die Seite|den Link|das Dokument|das Fenster|den Ordner|den Text",
    "fr": "le fichier|le tableau|la page|le lien|le document|la fenêtre|le dossier|le texte",
    "es": "el archivo|la tabla|la página|el enlace|el documento|la ventana|la carpeta|el texto",
    "ru": "файл|таблицу|страницу|ссылку|документ|окно|папку|текст",
    "el": "το αρχείο|τον πίνακα|τη σελίδα|τον σύνδεσμο|το έγγραφο|το παράθυρο|τον φάκελο|το κείμενο",
    "zh": "文件|表格|页面|链接|文档|窗口|文件夹|文本",
    "ja": "ファイル|表|ページ|リンク|文書|ウィンドウ|フォルダー|テキスト",
}


class Instruction(NamedTuple):
    """A sentence, and the characters [start, end) of its verb and of its noun, both without other words."""

    text: str
    verb: tuple[int, int]
    noun: tuple[int, int]


def instructions(language: str) -> list[Instruction]:
    """All verbs with all nouns: number 8 v + n has verb v and noun n. What surrounds a Japanese noun is the verb."""
    found = []
    for head, tail in (verb.split("%") for verb in VERBS[language].split("|")):
        for noun in NOUNS[language].split("|"):
            end = len(head) + len(noun)
            verb = (0, len(head.split()[0])) if head else (end, end + len(tail) - 1)
            found.append(Instruction(head + noun + tail, verb, (end - len(noun.split()[-1]), end)))
    return found


INSTRUCTIONS = {language: instructions(language) for language in VERBS}


def tokens_within(tokenizer: ErnieMTokenizer, text: str, span: tuple[int, int], width: int) -> Array:  # -> (width,)
    """Which of the first `width` tokens of a text, with special tokens, come from these characters."""
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"][:width]
    found = np.zeros(width, bool)
    found[: len(offsets)] = [start < span[1] and span[0] < end and start < end for start, end in offsets]
    return found


def masked_pairs(
    tokenizer: ErnieMTokenizer, sources: list[str], targets: list[str]
) -> tuple[dict[str, Array], Array]:  # -> arguments of ErnieMForMaskedLM, (B, S)
    """Pairs as in the training of the checkpoint that ships: the targets are masked, to be predicted from the sources.

    Also returns the token that each mask replaced, and -100 where there is no mask.
    """
    vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.mask_token_id)
    sides = [tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (sources, targets)]
    examples = []
    for source, target in zip(*sides, strict=True):
        # The side to mask is drawn at random. This generator draws the second.
        rng = np.random.default_rng(0)
        drawn = camlm(source, target, vocabulary, rng, masked_sides="one", ratio=1.0, positions="again")
        examples.append(drawn)
    batch = collate(examples, vocabulary)
    del batch["label_weights"]
    return batch, batch.pop("labels")


def judged(links: Sequence[AlignedPair], english: Instruction, other: Instruction) -> list[str]:
    """For the English verb and the noun: "right" if aligned with its translation only, else "wrong", or "none"."""
    found = []
    for own, (start, end) in ((english.verb, other.verb), (english.noun, other.noun)):
        hits = [start < link.target[1] and link.target[0] < end for link in links if link.source == own]
        found.append("none" if not hits else "right" if all(hits) else "wrong")
    return found
