"""The method: losses, projections, terms, stages, curricula, the train step."""
