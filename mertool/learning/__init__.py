"""Tools that the training stages share: folds, labelled clips, features in memory, checkpoints, early stopping."""
