"""The settings of speech recognition: language, script, and their name in tables of transcripts."""

import json
import shutil

import pytest
from fixtures.whisper import FOLDER

from mertool.encoders import recognition, resolve_recognition
from mertool.encoders.chinese import convert_chinese
from mertool.encoders.recognition import RecognitionSettings, recognition_id
from mertool.errors import MertoolError


@pytest.mark.parametrize("name", ["zh", "Chinese", "<|zh|>", "mandarin", " ZH "])
def test_a_language_has_one_code(name):
    assert resolve_recognition(str(FOLDER), language=name).settings.language == "zh"


def test_a_language_that_does_not_exist():
    with pytest.raises(MertoolError, match=r"unknown language 'chinse' \(--language\): did you mean 'chinese'\? valid"):
        resolve_recognition(str(FOLDER), language="chinse")


@pytest.mark.parametrize("settings", ["generation_config.json", "config.json"])
def test_an_english_only_whisper_refuses_other_languages(settings, tmp_path):
    """Where generation_config.json does not tell, the vocabulary's size does; the fixture's is small."""
    folder = tmp_path / "whisper-small-en"
    shutil.copytree(FOLDER, folder)
    path = folder / "generation_config.json"
    if settings == "config.json":
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"is_multilingual": False}))
    with pytest.raises(MertoolError, match="--language zh: whisper-small-en transcribes English only: give a multi"):
        resolve_recognition(str(folder), language="zh")
    assert resolve_recognition(str(folder), language="english").settings.language == "en"


def test_the_id_names_the_model_and_every_setting():
    found = resolve_recognition(str(FOLDER))
    media = found.to_media()
    assert found.id == recognition_id(media)
    for change in ({"language": "en"}, {"chinese": "simplified"}, {"vad": "other"}, {"version": 2}):
        assert recognition_id({**media, "recognition": {**media["recognition"], **change}}) != found.id
    assert recognition_id({**media, "asr": "other"}) != found.id
    assert recognition_id({**media, "noise": {}}) == found.id
    assert recognition_id({}) is None


@pytest.mark.parametrize(
    "value", [3, {"speaker": 1}, {"language": 3}, {"vad": True}, {"chinese": "old"}, {"version": "1"}]
)
def test_settings_of_a_foreign_recipe_are_checked(value):
    with pytest.raises(ValueError, match="settings of speech recognition are not valid"):
        RecognitionSettings.from_json(value)


def test_other_rules_are_refused():
    with pytest.raises(MertoolError, match=r"features 'text': .*version 9 there, 1 here\): extract the text again"):
        RecognitionSettings(version=9).check_available("features 'text'")


def test_chinese_is_converted_by_opencc():
    pytest.importorskip("opencc")
    assert convert_chinese("頭髮乾了，很難過", "zh", "simplified") == "头发干了，很难过"
    assert convert_chinese("头发很难过", "zh", "traditional") == "頭髮很難過"
    assert convert_chinese("頭髮", "ja", "simplified") == "頭髮"
    assert convert_chinese("頭髮", "zh", None) == "頭髮"


def test_a_conversion_without_opencc_is_refused(monkeypatch):
    monkeypatch.setattr(recognition.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MertoolError, match=r"--chinese simplified needs OpenCC, .*pip install 'mertool\[asr\]'"):
        resolve_recognition(str(FOLDER), chinese="simplified")
