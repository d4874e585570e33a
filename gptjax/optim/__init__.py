"""How the model changes: schedules, optimisers, averaged weights."""
