"""Training: the plan, the step, the loop, the run."""
