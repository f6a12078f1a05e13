"""From clips to features: plan, decode in worker processes, encode in batches, write stores.

`job` says what is done, `job_builder` makes it from options, `driver` brings its stores up to date, by a `worker` in
this process or by workers on Ray (`ray_backend`). `pipeline` is the loop of a worker; `decoding` and `face_crops` give
it clips, `clip_encoder` and `pooling` make the values. `transcription` makes transcripts for clips without one.
"""
