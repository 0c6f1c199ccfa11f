"""What several stages need to train and to measure: models, batches, log-probabilities, the way to TRL's trainers."""
