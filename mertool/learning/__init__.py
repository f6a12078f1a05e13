"""What the training stages share: labelled examples, folds, linear probes, members trained at once."""
