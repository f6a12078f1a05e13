"""Suffixes of media files, and names of folders that hold one kind of them."""

VIDEO_SUFFIXES = frozenset(
    (
        *(".3g2", ".3gp", ".f4v", ".m4v", ".mov", ".mp4", ".qt"),
        *(".m2t", ".m2ts", ".m2v", ".mpe", ".mpeg", ".mpg", ".mts", ".ts", ".vob"),
        *(".asf", ".avi", ".divx", ".dv", ".flv", ".gif", ".mkv", ".mxf", ".ogm", ".ogv", ".rm", ".rmvb", ".webm"),
        *(".wmv", ".wtv"),
    )
)
AUDIO_SUFFIXES = frozenset(
    (
        *(".aif", ".aifc", ".aiff", ".au", ".caf", ".sph", ".w64", ".wav"),
        *(".ape", ".flac", ".tta", ".wv"),
        *(".3ga", ".aac", ".ac3", ".amr", ".awb", ".m4a", ".m4b", ".mka", ".mp2", ".mp3", ".mpa", ".oga", ".ogg"),
        *(".opus", ".spx", ".weba", ".wma"),
    )
)
# Media that cannot be read, because they have no header, name other files, or need a program of their own.
UNSUPPORTED_SUFFIXES = frozenset(
    (
        *(".braw", ".cda", ".m4p", ".mid", ".midi", ".pcm", ".r3d", ".ra", ".raw", ".swf"),
        *(".m3u", ".m3u8", ".mpd", ".pls", ".ram", ".wpl", ".xspf"),
    )
)
# Of several audio files with the same content, the first of these is read.
LOSSLESS_SUFFIXES = (".wav", ".flac")
# A video and its sound often lie in two folders with such names.
KIND_FOLDERS = frozenset(
    (
        *("avi", "clips", "mkv", "mov", "mp4", "video", "videos", "visual"),
        *("audio", "audios", "flac", "m4a", "mp3", "sound", "sounds", "wav", "wavs", "wave", "waves"),
    )
)
