"""Training data of the encoders."""

from mertool.encoders import ENCODERS
from mertool.encoders.training_data import TRAINING_DATA, training_data_of


def test_every_encoder_of_the_table_has_its_training_data():
    assert {spec.checkpoint for spec in ENCODERS} == set(TRAINING_DATA)


def test_a_local_folder_is_known_by_its_name_only():
    data, by_name = training_data_of("hubert-base", "/home/x/hubert-base")
    assert (data.data, by_name) == ("LibriSpeech, 960 h of audiobooks", True)
    assert training_data_of("hubert-base", "facebook/hubert-base-ls960") == (data, False)
    assert training_data_of("own", "/home/x/own")[0] is None
