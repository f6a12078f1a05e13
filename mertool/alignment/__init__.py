"""Training a visual encoder to predict the frozen acoustic vector of the same clip, without labels.

The target a (A,) of a clip is the mean over layers of its standardised, time-pooled hidden states. It gets no gradient
and no projection: a learned projection could make the task easy by moving the targets together (to a single point,
with a loss that has no negatives). So the visual vectors lie in the acoustic space itself, where a fusion head can
compare them with the audio features channel by channel.
"""
