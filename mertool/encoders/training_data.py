"""Data that the encoders of the table were trained on, as their authors describe them.

An encoder that has seen the clips of a corpus, or films and videos that the corpus was cut from, makes scores on that
corpus optimistic. `shared_sources` names corpora whose sources the training data may hold; an empty one means that the
authors describe data of another kind (read audiobooks, say), not that an overlap was ruled out by comparison.
"""

from dataclasses import dataclass

from mertool.encoders.table import ENCODERS

CHINESE_TELEVISION = "MER2023 to MER2026, CH-SIMS (Chinese film and television)"
WEB_VIDEO = "MOSI, MOSEI (YouTube), MSP-Podcast"
ANY = "any corpus: the data are not disclosed"


@dataclass(frozen=True)
class TrainingData:
    """data: what the encoder was trained on. shared_sources: corpora that may share sources with it."""

    data: str
    shared_sources: str


LIBRISPEECH = TrainingData("LibriSpeech, 960 h of audiobooks", "")
LIBRI_LIGHT = TrainingData("Libri-Light, 60,000 h of audiobooks", "")
WENETSPEECH = TrainingData("WenetSpeech, 10,000 h of YouTube and podcasts", CHINESE_TELEVISION)
WAVLM = TrainingData("Libri-Light, GigaSpeech (podcasts, YouTube) and VoxPopuli, 94,000 h", WEB_VIDEO)
WHISPER = TrainingData("680,000 h of transcribed audio from the web", ANY)
WEB_IMAGES = TrainingData("400 million images with captions from the web", ANY)
WEBLI = TrainingData("WebLI, images with captions from the web", ANY)
LVD = TrainingData("LVD-142M, images from the web", ANY)
CHINESE_TEXT = TrainingData("Chinese Wikipedia, encyclopedias, news and questions with answers", "")
WEB_TEXT = TrainingData("text from the web and other sources, not disclosed", ANY)

TRAINING_DATA = {
    "TencentGameMate/chinese-hubert-large": WENETSPEECH,
    "TencentGameMate/chinese-hubert-base": WENETSPEECH,
    "TencentGameMate/chinese-wav2vec2-large": WENETSPEECH,
    "TencentGameMate/chinese-wav2vec2-base": WENETSPEECH,
    "facebook/hubert-base-ls960": LIBRISPEECH,
    "facebook/hubert-large-ll60k": LIBRI_LIGHT,
    "facebook/hubert-xlarge-ll60k": LIBRI_LIGHT,
    "facebook/wav2vec2-base": LIBRISPEECH,
    "facebook/wav2vec2-large-lv60": LIBRI_LIGHT,
    "facebook/wav2vec2-large-xlsr-53": TrainingData("Multilingual LibriSpeech, CommonVoice and BABEL, 56,000 h", ""),
    "microsoft/wavlm-base-plus": WAVLM,
    "microsoft/wavlm-large": WAVLM,
    "facebook/data2vec-audio-base": LIBRISPEECH,
    "facebook/data2vec-audio-large": LIBRI_LIGHT,
    "openai/whisper-tiny.en": WHISPER,
    "openai/whisper-base": WHISPER,
    "openai/whisper-large-v3": TrainingData(
        "5 million h of audio from the web, 4 million of them pseudo-labelled", ANY
    ),
    "openai/clip-vit-large-patch14": WEB_IMAGES,
    "openai/clip-vit-base-patch16": WEB_IMAGES,
    "openai/clip-vit-base-patch32": WEB_IMAGES,
    "google/siglip-base-patch16-224": WEBLI,
    "google/siglip-so400m-patch14-384": WEBLI,
    "facebook/dinov2-base": LVD,
    "facebook/dinov2-large": LVD,
    "google/vit-base-patch16-224": TrainingData("ImageNet-21k and ImageNet-1k, with labels", ""),
    "hfl/chinese-roberta-wwm-ext-large": CHINESE_TEXT,
    "hfl/chinese-roberta-wwm-ext": CHINESE_TEXT,
    "hfl/chinese-macbert-large": CHINESE_TEXT,
    "sentence-transformers/all-MiniLM-L6-v2": TrainingData("1.2 billion pairs of sentences from the web", ""),
    "google-bert/bert-base-uncased": TrainingData("BookCorpus and English Wikipedia", ""),
    "FacebookAI/roberta-large": TrainingData("BookCorpus, Wikipedia, CC-News, OpenWebText and Stories", ""),
    "FacebookAI/xlm-roberta-large": TrainingData("CC-100, text of 100 languages from the web", ANY),
    "Qwen/Qwen2.5-7B": WEB_TEXT,
    "Qwen/Qwen2.5-14B": WEB_TEXT,
    "meta-llama/Llama-3.1-8B": WEB_TEXT,
}


def training_data_of(name: str, checkpoint: str) -> tuple[TrainingData | None, bool]:
    """Return the training data of an encoder, None if they are not known, and whether only its name says so.

    A local folder may hold any weights, so for a folder that has a short name of the table the answer is by name.
    """
    if data := TRAINING_DATA.get(checkpoint):
        return data, False
    by_name = {spec.name: TRAINING_DATA.get(spec.checkpoint) for spec in ENCODERS}
    return by_name.get(name), True
