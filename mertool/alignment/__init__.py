"""Training a visual encoder against the frozen acoustic vector of the same clip, without labels.

The anchor a of a clip is the mean over layers of its standardised, time-pooled hidden states (A,); it gets no
gradient and no projection. A learned projection of the anchor could make the task easy by moving the target (to a
single point, with a loss that has no negatives); without one the visual vectors live in the acoustic space itself,
where a fusion can compare them with the sound channel by channel.
"""
