"""What the learning-rate law is worth: batch curvature, thresholds, the learner on a training run, and on a stream."""
