"""How clips become features: plan what is to do, decode in processes, batch, encode, write.

The stages bring the recipe and a loaded encoder; `pipeline.run` brings them together.
"""
