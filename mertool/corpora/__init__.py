"""Corpora by name: what is known of a corpus, and its clips from the layout that it has when it is unpacked.

Each file of this package is a corpus, found by its name (`crema_d.py` is `crema-d`); docs/extending.md shows one.
"""

from mertool.corpora._card import CorpusCard, corpus_card, corpus_names
from mertool.corpora._reading import Corpus, read_corpus, write_corpus_folds

__all__ = ["Corpus", "CorpusCard", "corpus_card", "corpus_names", "read_corpus", "write_corpus_folds"]
