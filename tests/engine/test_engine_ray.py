"""Extraction on Ray gives what extraction in one process gives, whatever happens to the workers."""

import importlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import psutil
import pytest
import torch

from mertool.encoders import TABLE  # noqa: F401
from mertool.engine import fill, on_ray
from mertool.engine.on_ray import do_on_ray
from mertool.engine.pipeline import Report, Work, mean_pool
from mertool.errors import MertoolError
from mertool.extract import ExtractOptions, extract
from mertool.features import Recipe
from mertool.manifest import Manifest
from mertool.store import FeatureStore, parts_folder


@pytest.fixture(scope="module")
def cluster():
    """A Ray on this machine that believes in four cores: two workers."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'mertool[ray]'")
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init("local", num_cpus=4, object_store_memory=100 << 20, **quiet)
    yield ray
    ray.shutdown()


class OnRay:
    """In place of `Session`: does the items on Ray."""

    def __init__(self, job):
        self.job = job

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def do(self, items, writer, faces, progress):
        return do_on_ray(items, self.job, writer, faces, progress)


def silent(*_):
    pass


@pytest.fixture
def by_ray(cluster, monkeypatch):
    """A function like `extract` that works on Ray."""

    def run(*args, progress=silent):
        with monkeypatch.context() as patch:
            patch.setattr(fill, "Session", OnRay)
            return extract(*args, progress)

    return run


def content(path):
    """Values, ids, facts and failures of a store."""
    found = {}
    with h5py.File(path) as file:
        for name in ("values", "offset", "length", *(f"clips/{column}" for column in file["clips"])):
            if name in file:
                column = file[name][:]
                found[name] = (column.shape, column.tolist() if column.dtype == object else column.tobytes())
        found["failures"] = [[cell.decode() for cell in row] for row in file["failures"][:]]
        found["attributes"] = dict(file.attrs)
    return found


def workers():
    """Processes of Ray's workers under this process."""
    return [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::Worker")]


# ---------------------------------------------------------------- as without Ray


@pytest.fixture(scope="module")
def local_audio(workspace, tiny_encoders, tmp_path_factory):
    path = tmp_path_factory.mktemp("local") / "audio.h5"
    extract(Manifest.read(workspace.manifest), path, audio_options(tiny_encoders), silent)
    return path


def audio_options(tiny_encoders):
    return ExtractOptions("audio", str(tiny_encoders["hubert"]), storage="float32", device="cpu")


def test_audio_is_the_same(by_ray, workspace, tiny_encoders, local_audio, tmp_path):
    steps, manifest = [], Manifest.read(workspace.manifest)
    path = tmp_path / "audio.h5"
    result = by_ray(manifest, path, audio_options(tiny_encoders), progress=lambda *step: steps.append(step))
    assert content(path) == content(local_audio)
    assert result.failed == {"missing_file": 1, "unreadable": 1}
    assert steps[-1][:3] == (len(manifest), len(manifest), 2)
    assert 0 < result.seconds["encode"] < result.seconds["wall"]
    assert not parts_folder(path).exists()
    again = by_ray(manifest, path, audio_options(tiny_encoders))
    assert (again.extracted, again.cached) == (0, result.extracted)


def test_video_and_crops_are_the_same_from_relative_paths(by_ray, workspace, tiny_encoders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(__file__).parents[2] / "data" / "demo" / "clips", "clips")
    assert False, workspace


def test_a_killed_worker_is_replaced(by_ray, workspace, tiny_encoders, local_audio, tmp_path, caplog):
    killed = []

    def kill_once(*_):
        if not killed:
            killed.append(workers()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    path = tmp_path / "audio.h5"
    by_ray(Manifest.read(workspace.manifest), path, audio_options(tiny_encoders), progress=kill_once)
    assert content(path) == content(local_audio)
    assert f"worker {killed[0]} died and is replaced" in caplog.text
