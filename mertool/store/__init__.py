"""`FeatureStore`: one HDF5 file with one modality of many clips, made by one recipe.

Layout (schema 2). `values` is (N, L, D) in a pooled store: N clips, L layers, D channels. In a frame store the frames
of all clips lie end to end, (sum T, D), or (L, sum T, D) for several layers, with `offset` and `length` (N,) per clip;
face crops are (sum T, 224, 224, 3). With a recipe of float16 the dataset is float32 if a clip has a value beyond that
format (see `store.precision`). `clips/id`, `clips/digest`, `clips/seconds`, `clips/frames_seen` and `clips/face_share`
hold one row per clip; `failures` is a table (clip, digest, stage, reason, message). Attributes: `schema`, `recipe`
(JSON), `fingerprint`, and `origin` (JSON: the provenance of the encoder and its trained parts, which changes no value).

While an extraction runs, finished clips are in immutable part files (`NAME.h5.parts/part-*.h5`). Each is written under
a temporary name, flushed and renamed. `StoreWriter.finish` merges them into a new file that replaces the old store by a
rename. Each file begins with the digest of its bytes. This is the only package that imports h5py.
"""

from mertool.store.layout import ClipFeatures, Failure, parts_folder
from mertool.store.merge import merge_stores, write_store
from mertool.store.parts import read_part_recipe
from mertool.store.precision import as_stored
from mertool.store.reader import FeatureStore, validate_store
from mertool.store.writer import PartWriter, StoreBusy, StoreWriter, check_store

__all__ = [
    "ClipFeatures",
    "Failure",
    "FeatureStore",
    "PartWriter",
    "StoreBusy",
    "StoreWriter",
    "as_stored",
    "check_store",
    "merge_stores",
    "parts_folder",
    "read_part_recipe",
    "validate_store",
    "write_store",
]
