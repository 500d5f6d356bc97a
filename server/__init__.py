"""The coordinator: owns the plan, the model and the test set, and opens only the sum."""
